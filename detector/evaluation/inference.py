"""Run a detector on a data set.

D: detections of an image;  K: classes.
"""

import time
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from detector.data.dataset import Sample
from detector.data.loading import converted_worker_errors
from detector.evaluation.coco_format import as_detections
from detector.evaluation.columns import Detections


class Found(NamedTuple):
    """The detections of one image, by descending score."""

    image_id: int
    boxes: np.ndarray  # float64 (D, 4) x, y, w, h in the pixels of the image file
    scores: np.ndarray  # float32 (D,)
    labels: np.ndarray  # int64 (D,) 1..K


def to_float(image: Tensor, device: torch.device) -> Tensor:
    """Convert an image uint8 (3, H, W) to float32 in [0, 1] on the device."""
    return image.to(device, non_blocking=True).float() / 255


def progress(batches: Iterable[list[Sample]], *, shown: bool = True) -> Iterable[list[Sample]]:
    """Iterate over the batches, with a progress bar if the output is a terminal."""
    return tqdm(
        batches, desc="evaluating", unit="image", disable=None if shown else True, leave=False
    )


@torch.no_grad()
def detect(
    model: nn.Module,
    batches: Iterable[list[Sample]],
    *,
    device: torch.device,
    precision: torch.dtype,
) -> tuple[list[Found], float]:
    """Run the model on all images, and leave it in evaluation mode.

    Args:
        precision: the dtype of autocast; float32 means no autocast.

    Returns:
        The detections of each image, and the seconds that were spent in the model.

    Raises:
        DatasetError: an image cannot be read, or a worker that loads images died or is stuck.
    """
    model.eval()
    found: list[Found] = []
    seconds = 0.0
    with converted_worker_errors():
        for samples in batches:
            images = [to_float(sample["image"], device) for sample in samples]
            start = time.perf_counter()
            with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
                results = model(images)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds += time.perf_counter() - start
            for sample, result in zip(samples, results, strict=True):
                boxes = result["boxes"].double().cpu().numpy()
                boxes[:, 2:] -= boxes[:, :2]
                scores, labels = (
                    result["scores"].float().cpu().numpy(),
                    result["labels"].cpu().numpy(),
                )
                found.append(Found(sample["image_id"], boxes, scores, labels))
    return found, seconds


def to_detections(found: list[Found], category_ids: tuple[int, ...]) -> Detections:
    """Convert detections to columns; label l gets the category id `category_ids[l - 1]`."""
    if not found:
        return as_detections([])
    lengths = [len(image.scores) for image in found]
    return Detections(
        np.repeat(np.array([image.image_id for image in found], dtype=np.int64), lengths),
        np.array(category_ids, dtype=np.int64)[np.concatenate([one.labels for one in found]) - 1],
        np.concatenate([image.boxes for image in found]),
        np.concatenate([image.scores for image in found]).astype(np.float64),
    )
