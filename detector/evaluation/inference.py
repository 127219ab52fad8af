"""Runs a detector over a data set and returns its detections in COCO's results format."""

import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from detector.data.dataset import Sample
from detector.evaluation.results import Detection


def to_float(image: Tensor, device: torch.device) -> Tensor:
    """uint8 (3, H, W) -> float32 in [0, 1], on the device."""
    return image.to(device, non_blocking=True).float() / 255


@torch.no_grad()
def detect(
    model: nn.Module,
    batches: Iterable[list[Sample]],
    *,
    category_ids: tuple[int, ...],
    device: torch.device,
    precision: torch.dtype,
) -> tuple[list[Detection], float]:
    """Detections of every image, and the seconds that the model took per image.

    The model is left in evaluation mode. Boxes are (x, y, w, h) in the pixels of the image file.
    """
    model.eval()
    detections: list[Detection] = []
    seconds, num_images = 0.0, 0
    for samples in batches:
        images = [to_float(sample["image"], device) for sample in samples]
        start = time.perf_counter()
        with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            results = model(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds += time.perf_counter() - start
        num_images += len(samples)
        for sample, result in zip(samples, results, strict=True):
            detections += to_coco(sample["image_id"], result, category_ids)
    return detections, seconds / max(num_images, 1)


def to_coco(
    image_id: int, result: dict[str, Tensor], category_ids: tuple[int, ...]
) -> list[Detection]:
    """One image's boxes (D, 4) xyxy, scores (D,) and labels (D,) as COCO results."""
    boxes = result["boxes"].double().cpu()
    boxes[:, 2:] -= boxes[:, :2]
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label - 1],
            "bbox": box,
            "score": score,
        }
        for box, label, score in zip(
            boxes.tolist(), result["labels"].tolist(), result["scores"].tolist(), strict=True
        )
    ]
