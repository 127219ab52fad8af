"""How far the bins of deformable RoI pooling move, over the objects of a validation set."""

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from tqdm import tqdm

from detector.data.dataset import DetectionDataset
from detector.evaluation.coco_matches import size_of
from detector.evaluation.inference import to_float
from detector.model.roi_pooling import GAMMA, BoxPooling


@torch.no_grad()
def bin_movements(
    model: FasterRCNN, dataset: DetectionDataset, *, device: torch.device, max_images: int
) -> dict[str, dict[str, float]]:
    """Pool the objects' own boxes in the first images; the model is left in evaluation mode.

    Returns:
        `small`, `medium`, `large` (by COCO's areas), where there are such objects -> their
        `number`; `mean` and `p99` of how far a bin moves, in sizes of its box; `by_object`, how
        much of that depends on the object: the variance over objects of a bin's movement, divided
        by its mean square; `mask_mean` and `mask_deviation`. Empty for a model whose bins do not
        move.
    """
    pooling: BoxPooling = model.roi_heads.box_roi_pool
    if pooling.fc_offset is None:
        return {}
    model.eval()
    movements: dict[str, list[np.ndarray]] = defaultdict(list)  # of each object (2, bins)
    masks: dict[str, list[np.ndarray]] = defaultdict(list)  # (bins,)
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
            movements[size_of(area)].append(GAMMA * of_object.numpy())
            masks[size_of(area)].append(factors.numpy())
    return {
        size: _numbers(np.stack(movements[size]), np.stack(masks[size]))
        for size in ("small", "medium", "large")
        if size in movements
    }


def _predicted(pooling: BoxPooling, features: dict[str, Tensor], boxes: Tensor) -> Tensor:
    """What the layer that finds offsets says of the boxes (M, 4)."""
    said: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        said.append(output)

    assert pooling.fc_offset is not None
    handle = pooling.fc_offset.register_forward_hook(keep)
    try:
        pooling(features, [boxes], [])
    finally:
        handle.remove()
    return said[0]


def _numbers(movements: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """Of movements (M, 2, bins) and masks (M, bins)."""
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
