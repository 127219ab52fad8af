"""Non-maximum suppression (NMS) of duplicate detections, hard or soft.

Hard NMS drops a box that overlaps a box with a higher score. Soft-NMS (Bodla et al., Soft-NMS:
Improving Object Detection With One Line of Code, ICCV 2017) lowers its score instead. It repeatedly
takes the box m with the highest score among the remaining boxes, and multiplies the score of each
other remaining box by

    soft_linear      1 - IoU               where its IoU with m is at least the threshold, else 1
    soft_gaussian    exp(-IoU^2 / sigma)

until no remaining score is above the score threshold. Boxes only suppress boxes of their own class.
"""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import batched_nms


def non_maximum_suppression(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    method: str,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
) -> tuple[Tensor, Tensor]:
    """Suppress the duplicate detections of an image and sort the others by descending score.

    Args:
        boxes: float (N, 4), xyxy in pixels.
        scores: (N,) in [0, 1].
        labels: int64 (N,).
        method: `hard`, `soft_linear` or `soft_gaussian`.
        iou_threshold: in [0, 1]; used by `hard` and `soft_linear`.
        sigma: above 0; used by `soft_gaussian`.
        score_threshold: Soft-NMS keeps boxes whose lowered score is above it; hard NMS ignores it.

    Returns:
        The indices (D,) of the boxes that are kept, and their scores (D,), each of which is at most
        the score given.

    Raises:
        ValueError: `method` is unknown.
    """
    if method not in ("hard", "soft_linear", "soft_gaussian"):
        raise ValueError(f"model.nms={method} must be one of hard, soft_linear, soft_gaussian")
    if method == "hard":
        kept = batched_nms(boxes, scores, labels, iou_threshold)
        return kept, scores[kept]
    if not len(boxes):
        return labels.new_zeros(0), scores
    rows = [torch.where(labels == label)[0] for label in labels.unique()]
    places = pad_sequence(rows, batch_first=True, padding_value=-1)  # (K, M): a row for each class
    by_class = soft_scores(
        boxes[places],
        scores[places].masked_fill(places < 0, -torch.inf),
        iou_threshold=iou_threshold if method == "soft_linear" else None,
        sigma=sigma,
        score_threshold=score_threshold,
    )
    softened = scores.clone()
    softened[places[places >= 0]] = by_class[places >= 0]
    order = softened.argsort(descending=True, stable=True)
    kept = order[softened[order] > score_threshold]
    return kept, softened[kept]


def soft_scores(
    boxes: Tensor,
    scores: Tensor,
    *,
    iou_threshold: float | None,
    sigma: float,
    score_threshold: float,
) -> Tensor:
    """Return the scores (K, M) after Soft-NMS, which treats all classes at once but separately.

    A score is not lowered further once it is no longer above `score_threshold`, so the returned
    value of such a score is only an upper bound.

    Args:
        boxes: the boxes (K, M, 4) of K classes, padded to M boxes each.
        scores: (K, M); -inf marks padding.
        iou_threshold: the threshold of the linear rule, or None for the Gaussian rule.
        sigma: the width of the Gaussian rule.
        score_threshold: boxes suppress others only while their score is above it.
    """
    scores, is_left = scores.clone(), scores > score_threshold
    while is_left.any():
        best = scores.where(is_left, -torch.inf).argmax(dim=1, keepdim=True)  # (K, 1)
        is_left.scatter_(1, best, False)
        overlaps = iou(boxes.take_along_dim(best[..., None], dim=1), boxes)
        if iou_threshold is None:
            decay = torch.exp(-(overlaps**2) / sigma)
        else:
            decay = (1 - overlaps).where(overlaps >= iou_threshold, 1)
        scores = (scores * decay).where(is_left, scores)
        is_left &= scores > score_threshold
    return scores


def iou(ones: Tensor, others: Tensor) -> Tensor:
    """Return the IoU (...) of boxes (..., 4) and boxes (..., 4); it is 0 if neither has an area."""
    (left, top, right, bottom), (x1, y1, x2, y2) = ones.unbind(-1), others.unbind(-1)
    width = (torch.minimum(right, x2) - torch.maximum(left, x1)).clamp(min=0)
    height = (torch.minimum(bottom, y2) - torch.maximum(top, y1)).clamp(min=0)
    common = width * height
    union = (right - left) * (bottom - top) + (x2 - x1) * (y2 - y1) - common
    return (common / union).where(union > 0, 0)
