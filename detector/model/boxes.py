"""Proposals and detections: torchvision's classes, computed in float32 and able to follow
the conventions of other frameworks.

torchvision computes boxes in the dtype of the features. bfloat16 has 8 bits: beyond 256 pixels its
numbers are two pixels apart, beyond 1024 eight. Anchors, proposals and targets would be rounded to
these numbers, and an object narrower than their distance would lose its width and make the loss
NaN. Anchors (`anchors.py`) and the outputs of the heads are therefore at least float32 here.

`conventions.py` describes how the conventions of the frameworks differ.
"""

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import clip_boxes_to_image
from torchvision.ops.boxes import remove_small_boxes

from detector.model.matching import BoxMatcher
from detector.model.nms import non_maximum_suppression
from detector.model.roi_pooling import BoxPooling


def at_least_float32(values: Tensor) -> Tensor:
    """Return the values in float32, or unchanged if they are float64."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class ProposalHead(RPNHead):
    """Predicts objectness and box deltas of each level's anchors; shapes are as in torchvision.

    Args:
        in_channels: channels of the feature maps.
        channels: output channels of the 3x3 convolution.
        num_anchors: anchors per cell.
        num_levels: how many of the feature maps have anchors, counted from the first. The head
            ignores any further maps, which only the box head uses.
    """

    def __init__(
        self, in_channels: int, channels: int, *, num_anchors: int, num_levels: int
    ) -> None:
        super().__init__(channels, num_anchors)
        if in_channels != channels:  # torchvision's convolution keeps the number of channels
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
    """Predicts class logits and box deltas of the proposals; shapes are as in torchvision."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = super().forward(x)
        return at_least_float32(logits), at_least_float32(deltas)


class BoxDecoder(BoxCoder):
    """Turns predicted deltas into boxes and back; shapes and results are as in torchvision.

    x and y are computed at once, so that a GPU has half as many operators to launch.

    Args:
        weights: the numbers that the deltas (dx, dy, dw, dh) are divided by; equal for x and y.
        clamp_shrinking: clamp dw and dh to at least -log(1000 / 16) as well. torchvision clamps
            them only to at most log(1000 / 16).
    """

    def __init__(
        self, weights: tuple[float, float, float, float], *, clamp_shrinking: bool
    ) -> None:
        super().__init__(weights)
        assert weights[0] == weights[1] and weights[2] == weights[3]
        self.clamp_shrinking = clamp_shrinking

    def encode_single(self, reference_boxes: Tensor, proposals: Tensor) -> Tensor:
        """Return the deltas (N, 4) that turn proposals (N, 4) into reference boxes (N, 4)."""
        centres, sizes = _centres_and_sizes(proposals)
        new_centres, new_sizes = _centres_and_sizes(reference_boxes)
        moves = self.weights[0] * (new_centres - centres) / sizes
        growth = self.weights[2] * torch.log(new_sizes / sizes)
        return torch.cat([moves, growth], dim=1)

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Apply the deltas (N, 4 K) of K classes to boxes (N, 4) and return boxes (N, 4 K)."""
        centres, sizes = _centres_and_sizes(boxes.to(rel_codes.dtype)[:, None])
        moves, growth = rel_codes.unflatten(1, (-1, 4)).split(2, dim=2)  # (N, K, 2) each
        most = self.bbox_xform_clip
        least = -most if self.clamp_shrinking else None
        new_sizes = torch.exp((growth / self.weights[2]).clamp(least, most)) * sizes
        new_centres = moves / self.weights[0] * sizes + centres
        halves = 0.5 * new_sizes
        return torch.cat([new_centres - halves, new_centres + halves], dim=2).flatten(1)


def _centres_and_sizes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centres (..., 2) and the sizes (..., 2) of boxes (..., 4)."""
    corners, opposite = boxes.split(2, dim=-1)
    sizes = opposite - corners
    return corners + 0.5 * sizes, sizes


class BoxHeads(RoIHeads):
    """Turns proposals into detections; shapes and matching thresholds are as in torchvision.

    Args:
        pooling, head, predictor, decoder: the parts that a proposal passes through, in this order.
        batch_size: proposals sampled per image for the losses.
        score_threshold: only detections with a higher score are kept.
        nms, nms_iou, nms_sigma: `method`, `iou_threshold` and `sigma` of
            `non_maximum_suppression`.
        min_side: detections with a side shorter than this, in pixels, are dropped.
        detections_per_image: the largest number of detections that is kept per image.
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
        self.proposal_matcher = BoxMatcher(0.5, 0.5)
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
        """Return boxes (D, 4), scores (D,) and labels (D,) of each image, by descending score.

        Args:
            class_logits: (N, K + 1) for the N proposals of all images, the background first.
            box_regression: the box deltas (N, 4 (K + 1)), the background first.
            proposals: the boxes (n, 4) of each image, xyxy in pixels.
            image_shapes: the (height, width) of each image in pixels.
        """
        numbers = [len(one) for one in proposals]
        boxes = self.box_coder.decode(box_regression, proposals).split(numbers)
        scores = class_logits.softmax(dim=-1).split(numbers)
        found = [self._of_image(*one) for one in zip(boxes, scores, image_shapes, strict=True)]
        return tuple(map(list, zip(*found, strict=True)))  # type: ignore[return-value]

    def _of_image(
        self, boxes: Tensor, scores: Tensor, shape: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Select the detections of one image from boxes (n, K + 1, 4) and scores (n, K + 1)."""
        boxes = boxes.reshape(*scores.shape, 4)  # decode leaves them flat if n is 0
        rows, labels = torch.where(scores[:, 1:] > self.score_thresh)
        labels = labels + 1
        boxes = clip_boxes_to_image(boxes[rows, labels], shape)
        scores = scores[rows, labels]
        kept = remove_small_boxes(boxes, self.min_side)
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        kept, scores = non_maximum_suppression(
            *(boxes, scores, labels),
            method=self.nms,
            iou_threshold=self.nms_thresh,
            sigma=self.nms_sigma,
            score_threshold=self.score_thresh,
        )
        kept, scores = kept[: self.detections_per_img], scores[: self.detections_per_img]
        return boxes[kept], scores, labels[kept]
