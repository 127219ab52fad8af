"""Anchors, proposals and detections: torchvision's, in float32 and by other conventions too.

torchvision computes boxes in the dtype of the features. bfloat16 has 8 bits: beyond 256 pixels its
numbers are two pixels apart, beyond 1024 eight. Anchors, proposals and targets would be rounded to
them, and an object narrower than that would lose its width and make the loss NaN. So anchors, and
what the heads say of them, are at least float32 here.

`conventions.py` says what frameworks do differently.
"""

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import clip_boxes_to_image
from torchvision.ops.boxes import remove_small_boxes

from detector.model.nms import suppressed
from detector.model.roi_pooling import BoxPooling


def at_least_float32(values: Tensor) -> Tensor:
    """The values in float32, or in float64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class Anchors(AnchorGenerator):
    """Anchors (A, 4) an image, xyxy in pixels; shapes as in torchvision.

    Args:
        sizes: of each level, in pixels. Maps beyond these levels have no anchors.
        aspect_ratios: height over width.
        rounded: to whole pixels, before they are moved over the image.
        strides: pixels between them, of each level; None: the image's over the feature map's size.
    """

    def __init__(
        self,
        sizes: list[list[int]],
        aspect_ratios: list[float],
        *,
        rounded: bool,
        strides: list[int] | None,
    ) -> None:
        super().__init__(tuple(map(tuple, sizes)), (tuple(aspect_ratios),) * len(sizes))
        self.strides = strides
        if not rounded:
            ratios = torch.tensor(aspect_ratios).sqrt()
            halves = torch.stack([1 / ratios, ratios], dim=1) / 2  # (w, h) of a size of 1
            unit = torch.cat([-halves, halves], dim=1)[:, None]
            self.cell_anchors = [
                (unit * torch.tensor(of_level)[:, None]).flatten(0, 1) for of_level in sizes
            ]

    def grid_anchors(
        self, grid_sizes: list[list[int]], strides: list[list[Tensor]]
    ) -> list[Tensor]:
        """Anchors (H W A, 4) of each level."""
        if self.strides is not None:
            strides = [
                [torch.tensor(stride, device=given[0].device)] * 2
                for stride, given in zip(self.strides, strides, strict=True)
            ]
        anchors: list[Tensor] = super().grid_anchors(grid_sizes, strides)
        return anchors

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        # Only their size, dtype and device are looked at.
        stand_ins = [
            at_least_float32(maps.new_empty(())).expand(maps.shape)
            for maps in feature_maps[: len(self.sizes)]
        ]
        anchors: list[Tensor] = super().forward(image_list, stand_ins)
        return anchors


class ProposalHead(RPNHead):
    """Objectness and box deltas of the anchors, by level; shapes as in torchvision.

    Args:
        in_channels: of the maps.
        channels: of the 3x3 convolution.
        num_anchors: of a cell.
        num_levels: it looks at the first maps, as many as these; others are the boxes' alone.
    """

    def __init__(
        self, in_channels: int, channels: int, *, num_anchors: int, num_levels: int
    ) -> None:
        super().__init__(channels, num_anchors)
        if in_channels != channels:  # torchvision's has as many as it is given
            first = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1)
            nn.init.normal_(first.weight, std=0.01)
            assert first.bias is not None
            nn.init.zeros_(first.bias)
            self.conv[0][0] = first
        self.num_levels = num_levels

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, deltas = super().forward(x[: self.num_levels])
        return [*map(at_least_float32, objectness)], [*map(at_least_float32, deltas)]


class BoxPredictor(FastRCNNPredictor):
    """Class logits and box deltas of the proposals; shapes as in torchvision."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = super().forward(x)
        return at_least_float32(logits), at_least_float32(deltas)


class BoxDecoder(BoxCoder):
    """Boxes of predicted deltas; shapes as in torchvision.

    Args:
        weights: that the deltas (dx, dy, dw, dh) are divided by.
        clamp_shrinking: dw and dh are kept above -log(1000 / 16) as well as below its opposite.
    """

    def __init__(
        self, weights: tuple[float, float, float, float], *, clamp_shrinking: bool
    ) -> None:
        super().__init__(weights)
        self.clamp_shrinking = clamp_shrinking

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Deltas (N, 4 K) of boxes (N, 4) to boxes (N, 4 K)."""
        if self.clamp_shrinking:
            least = rel_codes.new_tensor([-torch.inf, -torch.inf, *self.weights[2:]])
            least[2:] *= -self.bbox_xform_clip
            rel_codes = rel_codes.maximum(least.repeat(rel_codes.shape[1] // 4))
        decoded: Tensor = super().decode_single(rel_codes, boxes)
        return decoded


class BoxHeads(RoIHeads):
    """Detections of proposals; shapes and thresholds as in torchvision.

    Args:
        pooling, head, predictor, decoder: what a proposal passes through.
        batch_size: proposals sampled per image for the losses.
        score_threshold: detections are above it.
        nms, nms_iou, nms_sigma: `method`, `iou_threshold` and `sigma` of `nms.suppressed`.
        min_side: pixels; detections with a smaller side are dropped.
        detections_per_image: at most.
    """

    def __init__(
        self,
        *,
        pooling: BoxPooling,
        head: nn.Module,
        predictor: nn.Module,
        decoder: BoxDecoder,
        batch_size: int,
        score_threshold: float,
        nms: str,
        nms_iou: float,
        nms_sigma: float,
        min_side: float,
        detections_per_image: int,
    ) -> None:
        super().__init__(
            *(pooling, head, predictor),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=batch_size,
            positive_fraction=0.25,
            bbox_reg_weights=decoder.weights,
            score_thresh=score_threshold,
            nms_thresh=nms_iou,
            detections_per_img=detections_per_image,
        )
        self.box_coder = decoder
        self.nms, self.nms_sigma = nms, nms_sigma
        self.min_side = min_side

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Boxes (D, 4), scores (D,) and labels (D,) of each image, by descending score.

        Args:
            class_logits: (N, K + 1), the background first.
            box_regression: (N, 4 (K + 1)), likewise.
            proposals: (N, 4) of each image.
            image_shapes: (h, w).
        """
        numbers = [len(one) for one in proposals]
        boxes = self.box_coder.decode(box_regression, proposals).split(numbers)
        scores = class_logits.softmax(dim=-1).split(numbers)
        found = [self._of_image(*one) for one in zip(boxes, scores, image_shapes, strict=True)]
        return tuple(map(list, zip(*found, strict=True)))  # type: ignore[return-value]

    def _of_image(
        self, boxes: Tensor, scores: Tensor, shape: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From boxes (N, K + 1, 4) and scores (N, K + 1)."""
        boxes = boxes.reshape(*scores.shape, 4)  # torchvision's are flat where there are none
        rows, labels = torch.where(scores[:, 1:] > self.score_thresh)
        labels = labels + 1
        boxes = clip_boxes_to_image(boxes[rows, labels], shape)
        scores = scores[rows, labels]
        kept = remove_small_boxes(boxes, self.min_side)
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        kept, scores = suppressed(
            *(boxes, scores, labels),
            method=self.nms,
            iou_threshold=self.nms_thresh,
            sigma=self.nms_sigma,
            score_threshold=self.score_thresh,
        )
        kept, scores = kept[: self.detections_per_img], scores[: self.detections_per_img]
        return boxes[kept], scores, labels[kept]
