"""Measure the time of each stage of a detection, and the size of the detector."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN

from detector.data.dataset import DetectionDataset
from detector.data.loading import batches_of_equal_size
from detector.evaluation.inference import to_float
from detector.model.flops import forward_flops

WARM_UP = 3  # batches that are run before the measurement


@dataclass(frozen=True)
class Timing:
    """Times per image in milliseconds, as means over images that are run in batches.

    Attributes:
        load_ms: reading and decoding the image in this process, and copying it to the device.
        forward_ms: resizing, backbone, RPN (with its NMS) and box head.
        post_ms: decoding boxes and scores, NMS per class, and scaling boxes to the image's pixels.
        num_images: the number of images measured.
        batch_size: the largest number of images, of equal size, that are run at once.
        num_parameters: the number of parameters of the model, including frozen ones.
        gflops: the work of a forward pass at the largest input size, counted by `forward_flops`.
    """

    load_ms: float
    forward_ms: float
    post_ms: float
    num_images: int
    batch_size: int
    num_parameters: int
    gflops: float

    def describe(self) -> str:
        """Format the result as one line."""
        return (
            f"load {self.load_ms:.1f} ms, forward {self.forward_ms:.1f} ms, post-processing "
            f"{self.post_ms:.1f} ms; {self.num_parameters / 1e6:.2f} M parameters, "
            f"{self.gflops:.1f} GFLOPs"
        )


@torch.no_grad()
def measure(
    model: FasterRCNN,
    dataset: DetectionDataset,
    *,
    device: torch.device,
    precision: torch.dtype,
    max_images: int,
    batch_size: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time the model on the first images of a data set, and leave it in evaluation mode.

    Some of the batches are run as a warm-up before. The clock is read after CUDA has finished.

    Args:
        model: must be on `device`.
        precision: the dtype of autocast; float32 means no autocast.
        max_images: the number of images to measure, or all if there are fewer.
        batch_size: the largest number of images, of equal size, to run at once.
        clock: returns the time in seconds.

    Raises:
        ValueError: there is no image to measure.
    """
    records = dataset.records[:max_images]
    num_images = len(records)
    if num_images < 1:
        raise ValueError(f"expected an image to measure, got {num_images}")
    model.eval()
    half_way: list[float] = []

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock()

    def after_heads(layer: nn.Module, inputs: object, output: object) -> None:
        half_way.append(now())

    seconds: list[tuple[float, float, float]] = []
    sizes = ((record.height, record.width) for record in records)
    batches = batches_of_equal_size(sizes, batch_size)
    warm_up = batches[:WARM_UP]
    hook = model.roi_heads.box_predictor.register_forward_hook(after_heads)
    try:
        for batch in [*warm_up, *batches]:
            start = now()
            images = [to_float(dataset[index]["image"], device) for index in batch]
            loaded = now()
            with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
                model(images)
            seconds.append((loaded - start, half_way[-1] - loaded, now() - half_way[-1]))
    finally:
        hook.remove()
    load_ms, forward_ms, post_ms = 1000 * np.sum(seconds[len(warm_up) :], axis=0) / num_images
    return Timing(
        load_ms=float(load_ms),
        forward_ms=float(forward_ms),
        post_ms=float(post_ms),
        num_images=num_images,
        batch_size=batch_size,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        gflops=forward_flops(model, model.transform.min_size[-1], model.transform.max_size) / 1e9,
    )
