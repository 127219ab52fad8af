"""The detector as a program of `torch.export`, for images of one size.

    image   uint8 (H, W, 3), RGB
    boxes (D, 4), scores (D,), labels (D,)   as the model's own result

Python code in torchvision's classes branches on the number of boxes, which cannot be exported. This
module does the same arithmetic with the parts of these classes, without such branches.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import clip_boxes_to_image, nms, roi_align

from detector.model.boxes import BoxDecoder
from detector.model.roi_pooling import GAMMA
from ops import deform_roi_pool


class Program(nn.Module):
    """The module that is exported.

    Args:
        model: in evaluation mode.
        size: (H, W) of the images in pixels.
    """

    def __init__(self, model: FasterRCNN, size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.size = size

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect objects in an image uint8 (H, W, 3).

        Returns:
            Boxes (D, 4), scores (D,) and labels (D,), by descending score.
        """
        model = self.model
        images, _ = model.transform([image.permute(2, 0, 1).float() / 255])
        (resized,) = images.image_sizes
        features = model.backbone(images.tensors)
        proposals = self.proposals(images, list(features.values()), resized)
        heads = model.roi_heads
        pooled = pooled_features(features, proposals, heads.box_roi_pool)
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        scores = logits.softmax(dim=-1)[:, 1:]
        boxes = decoded(heads.box_coder, deltas, proposals)[:, 1:]
        boxes = clip_boxes_to_image(boxes, resized)
        sides = boxes[..., 2:] - boxes[..., :2]
        good = (scores > heads.score_thresh) & (sides >= heads.min_side).all(dim=-1)
        rows, labels = torch.where(good)
        boxes, scores = boxes[rows, labels], scores[rows, labels]
        kept = nms_by_group(boxes, scores, labels, heads.nms_thresh)
        kept = kept[: heads.detections_per_img]
        height, width = (ours / small for ours, small in zip(self.size, resized, strict=True))
        scale = boxes.new_tensor([width, height, width, height])
        return boxes[kept] * scale, scores[kept], labels[kept] + 1

    def proposals(self, images: object, maps: list[Tensor], resized: tuple[int, int]) -> Tensor:
        """Compute the proposals (N, 4) of a single image."""
        rpn = self.model.rpn
        logits, deltas = rpn.head(maps)
        (anchors,) = rpn.anchor_generator(images, maps)
        boxes_of, scores_of, levels = [], [], []
        start = 0
        for level, (of_level, change) in enumerate(zip(logits, deltas, strict=True)):
            of_level = of_level.permute(0, 2, 3, 1).flatten()
            change = change.permute(0, 2, 3, 1).reshape(-1, 4)
            top = min(rpn._pre_nms_top_n["testing"], len(of_level))
            score, order = of_level.topk(top)
            here = anchors[start : start + len(of_level)][order]
            boxes_of.append(decoded(rpn.box_coder, change[order], here)[:, 0])
            scores_of.append(score.sigmoid())
            levels.append(torch.full((top,), level, device=score.device))
            start += len(of_level)
        boxes = clip_boxes_to_image(torch.cat(boxes_of), resized)
        scores, level_of = torch.cat(scores_of), torch.cat(levels)
        sides = boxes[:, 2:] - boxes[:, :2]
        (good,) = torch.where((sides >= rpn.min_size).all(dim=-1))
        boxes, scores, level_of = boxes[good], scores[good], level_of[good]
        kept = nms_by_group(boxes, scores, level_of, rpn.nms_thresh)
        return boxes[kept[: rpn._post_nms_top_n["testing"]]]


def decoded(decoder: BoxDecoder, deltas: Tensor, boxes: Tensor) -> Tensor:
    """Apply deltas (N, 4 K) to boxes (N, 4); return boxes (N, K, 4)."""
    return decoder.decode_single(deltas, boxes).reshape(-1, deltas.shape[1] // 4, 4)


def nms_by_group(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Suppress boxes within each group; return the indices of those kept, by descending score.

    Groups are moved apart, so that a single NMS treats them separately. This is done in float64,
    in which it does not change the overlaps.

    torch.export assumes that NMS keeps at least two boxes. Two boxes are therefore added that are
    always kept and come last, and are removed from the result.
    """
    apart = boxes.double() + (groups.double() * 1e5)[:, None]
    more = apart.new_tensor([[-2e5, 0, -1e5, 1], [-4e5, 0, -3e5, 1]])
    last = apart.new_tensor([-1.0, -2.0])
    kept = nms(torch.cat([apart, more]), torch.cat([scores.double(), last]), threshold)
    return kept[:-2]


def pooled_features(features: dict[str, Tensor], boxes: Tensor, pooling: Any) -> Tensor:
    """Pool the features (N, C, size, size) of boxes (N, 4).

    All boxes are pooled from every level, and for each box the result of its own level is taken.
    """
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)
    level = pooling.levels(boxes)

    def pooled(pool: Callable[..., Tensor], **deformed: Tensor | None) -> Tensor:
        result = None
        for index, (name, stride) in enumerate(
            zip(pooling.featmap_names, pooling.strides, strict=True)
        ):
            of_level = pool(
                *(features[name], rois, pooling.output_size),
                spatial_scale=1 / stride,
                sampling_ratio=pooling.sampling_ratio,
                aligned=pooling.aligned,
                **deformed,
            )
            mine = (level == index)[:, None, None, None]
            result = of_level if result is None else torch.where(mine, of_level, result)
        assert result is not None
        return result

    plain = pooled(roi_align)
    if pooling.fc_offset is None:
        return plain
    offset, mask = pooling.offsets(plain)
    return pooled(partial(deform_roi_pool, gamma=GAMMA), offset=offset, mask=mask)
