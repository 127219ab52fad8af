"""Draw detections and the ground truth into images."""

import torch
from torch import Tensor, nn
from torchvision.utils import draw_bounding_boxes

from detector.data.dataset import Sample
from detector.evaluation.inference import to_float

MIN_SCORE = 0.5  # the lowest score of a detection that is drawn


@torch.no_grad()
def draw(
    model: nn.Module, samples: list[Sample], classes: tuple[str, ...], device: torch.device
) -> list[Tensor]:
    """Detect objects and draw them in red with class and score; draw the ground truth in green.

    The model is left in evaluation mode.

    Returns:
        The images, uint8 (3, H, W) each.
    """
    model.eval()
    results = model([to_float(sample["image"], device) for sample in samples])
    return [
        _draw(sample["image"], sample["boxes"], {k: v.cpu() for k, v in result.items()}, classes)
        for sample, result in zip(samples, results, strict=True)
    ]


def _draw(
    image: Tensor, gt_boxes: Tensor, result: dict[str, Tensor], classes: tuple[str, ...]
) -> Tensor:
    if len(gt_boxes):
        image = draw_bounding_boxes(image, gt_boxes, colors="lime")
    seen = result["scores"] >= MIN_SCORE
    names = [
        f"{classes[label - 1]} {score:.2f}"
        for label, score in zip(
            result["labels"][seen].tolist(), result["scores"][seen].tolist(), strict=True
        )
    ]
    if names:
        image = draw_bounding_boxes(image, result["boxes"][seen], labels=names, colors="red")
    return image
