"""Boxes in float32, whatever autocast says.

torchvision computes boxes in the dtype of the features. bfloat16 has 8 bits: beyond 256 pixels its
numbers are two pixels apart, beyond 1024 eight. Anchors, proposals and targets would be rounded to
them, and an object narrower than that would lose its width and make the loss NaN. So anchors, and
what the heads say of them, are at least float32 here.
"""

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead


def at_least_float32(values: Tensor) -> Tensor:
    """The values in float32, or in float64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class Anchors(AnchorGenerator):
    """Anchors (A, 4) an image, xyxy in pixels; shapes as in torchvision."""

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        # Only their size, dtype and device are looked at.
        stand_ins = [
            at_least_float32(maps.new_empty(())).expand(maps.shape) for maps in feature_maps
        ]
        anchors: list[Tensor] = super().forward(image_list, stand_ins)
        return anchors


class ProposalHead(RPNHead):
    """Objectness and box deltas of the anchors, by level; shapes as in torchvision."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, deltas = super().forward(x)
        return [*map(at_least_float32, objectness)], [*map(at_least_float32, deltas)]


class BoxPredictor(FastRCNNPredictor):
    """Class logits and box deltas of the proposals; shapes as in torchvision."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = super().forward(x)
        return at_least_float32(logits), at_least_float32(deltas)
