"""Measures how far the bins of deformable RoI pooling move, over a validation set.

M: objects.
"""

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from tqdm import tqdm

from detector.data.dataset import DetectionDataset
from detector.evaluation.coco_matches import size_name
from detector.evaluation.inference import to_float
from detector.model.roi_pooling import GAMMA, BoxPooling


@torch.no_grad()
def bin_movements(
    model: FasterRCNN, dataset: DetectionDataset, *, device: torch.device, max_images: int
) -> dict[str, dict[str, float]]:
    """Pool the ground-truth boxes of the first images and measure how far the bins move.

    The model is left in evaluation mode.

    Args:
        max_images: the largest number of images to use.

    Returns:
        Size of the objects (`small`, `medium` or `large`, by COCO's areas) -> statistics:

        - `number`: how many objects of this size there are; sizes without any are left out.
        - `mean`, `p99`: of the distance that a bin moves, as a share of the box's height and width.
        - `by_object`: how much of the movement depends on the object. This is the variance over
          objects of a bin's movement divided by its mean square, both averaged over the bins.
        - `mask_mean`, `mask_deviation`: mean and standard deviation of the masks.

        The dictionary is empty if RoI pooling is not deformable.
    """
    pooling: BoxPooling = model.roi_heads.box_roi_pool
    if pooling.fc_offset is None:
        return {}
    model.eval()
    movements: dict[str, list[np.ndarray]] = defaultdict(list)  # (2, bins) for each object
    masks: dict[str, list[np.ndarray]] = defaultdict(list)  # (bins,) for each object
    for index in tqdm(range(min(max_images, len(dataset))), disable=None, leave=False):
        sample = dataset[index]
        objects = ~sample["iscrowd"].bool()
        if not objects.any():
            continue
        image = to_float(sample["image"], device)
        images, _ = model.transform([image])
        scale = torch.tensor(images.image_sizes[0]) / torch.tensor(image.shape[-2:])
        boxes = sample["boxes"][objects].float() * scale.flip(0).repeat(2)
        predicted = _predicted(pooling, model.backbone(images.tensors), boxes.to(device))
        offset, mask = pooling.split(predicted.float().cpu())
        if mask is None:
            mask = torch.ones_like(offset[:, 0])
        for area, of_object, factors in zip(
            sample["area"][objects].tolist(), offset.flatten(2), mask.flatten(1), strict=True
        ):
            movements[size_name(area)].append(GAMMA * of_object.numpy())
            masks[size_name(area)].append(factors.numpy())
    return {
        size: _numbers(np.stack(movements[size]), np.stack(masks[size]))
        for size in ("small", "medium", "large")
        if size in movements
    }


def _predicted(pooling: BoxPooling, features: dict[str, Tensor], boxes: Tensor) -> Tensor:
    """Return what `fc_offset` predicts for the boxes (M, 4)."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs.append(output)

    assert pooling.fc_offset is not None
    handle = pooling.fc_offset.register_forward_hook(keep)
    try:
        pooling(features, [boxes], [])
    finally:
        handle.remove()
    return outputs[0]


def _numbers(movements: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """Summarise movements (M, 2, bins) and masks (M, bins)."""
    movements = movements.astype(np.float64)
    lengths = np.linalg.norm(movements, axis=1)
    square = float(np.square(movements).mean())
    return {
        "number": len(movements),
        "mean": float(lengths.mean()),
        "p99": float(np.quantile(lengths, 0.99)),
        "by_object": float(movements.var(axis=0).mean()) / square if square else 0.0,
        "mask_mean": float(masks.mean(dtype=np.float64)),
        "mask_deviation": float(masks.std(dtype=np.float64)),
    }
