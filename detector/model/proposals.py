"""The region proposal network (RPN): from the outputs of its head to proposals.

The results are those of torchvision. Operators run over all images at once where torchvision calls
them for each image. NMS stays one call for each image: images in one call would be moved apart,
which rounds their boxes.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import batched_nms, clip_boxes_to_image

from detector.model.boxes import BoxDecoder
from detector.model.constants import constant
from detector.model.matching import BoxMatcher


class ProposalNetwork(RegionProposalNetwork):
    """Computes proposals and the RPN's losses; shapes and thresholds are as in torchvision.

    Args:
        anchors, head, decoder: the parts that the features pass through.
        batch_size: anchors sampled per image for the losses.
        pre_nms_top_n, post_nms_top_n: proposals kept per level before NMS and per image after it,
            in `training` and in `testing`.
        min_side: proposals with a side shorter than this, in pixels, are dropped.
    """

    def __init__(
        self,
        *,
        anchors: AnchorGenerator,
        head: nn.Module,
        decoder: BoxDecoder,
        batch_size: int,
        pre_nms_top_n: dict[str, int],
        post_nms_top_n: dict[str, int],
        min_side: float,
    ) -> None:
        super().__init__(
            *(anchors, head),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=batch_size,
            positive_fraction=0.5,
            pre_nms_top_n=pre_nms_top_n,
            post_nms_top_n=post_nms_top_n,
            nms_thresh=0.7,
        )
        self.proposal_matcher = BoxMatcher(0.7, 0.3, allow_low_quality_matches=True)
        self.box_coder = decoder
        self.min_size = min_side

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the proposals (n, 4) of each image and their scores (n,), by descending score.

        Args:
            proposals: a box for each anchor, (B, A, 4), xyxy in pixels.
            objectness: the logits of these boxes, B A in any shape.
            image_shapes: the (height, width) of each image in pixels.
            num_anchors_per_level: their sum is A.
        """
        by_level = objectness.detach().reshape(len(proposals), -1).split(num_anchors_per_level, 1)
        lengths = tuple(min(self.pre_nms_top_n(), number) for number in num_anchors_per_level)
        logits, rows, start = [], [], 0
        for of_level, length in zip(by_level, lengths, strict=True):
            top, order = of_level.topk(length, dim=1)
            logits.append(top)
            rows.append(order + start)
            start += of_level.shape[1]
        boxes = proposals.take_along_dim(torch.cat(rows, dim=1)[..., None], dim=1)
        boxes = torch.stack(list(map(clip_boxes_to_image, boxes, image_shapes)))
        scores = torch.cat(logits, dim=1).sigmoid()
        levels = constant(numbered, lengths, boxes.device)
        sides = boxes[..., 2:] - boxes[..., :2]
        good = (sides >= self.min_size).all(dim=-1) & (scores >= self.score_thresh)
        found = [self._of_image(*one, levels) for one in zip(boxes, scores, good, strict=True)]
        return [one for one, _ in found], [one for _, one in found]

    def _of_image(
        self, boxes: Tensor, scores: Tensor, good: Tensor, levels: Tensor
    ) -> tuple[Tensor, Tensor]:
        (rows,) = torch.where(good)
        boxes, scores = boxes[rows], scores[rows]
        kept = batched_nms(boxes, scores, levels[rows], self.nms_thresh)[: self.post_nms_top_n()]
        return boxes[kept], scores[kept]


@lru_cache(maxsize=16)
def numbered(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Return 0, 0, ..., 1, 1, ...: each number as often as its length says."""
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(device)
