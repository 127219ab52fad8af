"""Which detections of a class are one object: non-maximum suppression, hard or soft.

Hard NMS drops a box that overlaps a better one. Soft-NMS (Bodla et al., Soft-NMS: Improving Object
Detection With One Line of Code, ICCV 2017) lowers its score instead. Over and over, the best box m
of those that are left is taken, and the score of each other one is multiplied by

    soft_linear      1 - IoU               where its IoU with m is at least the threshold, else 1
    soft_gaussian    exp(-IoU^2 / sigma)

until no score is above the threshold of scores. Boxes of two classes never meet.
"""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import batched_nms


def suppressed(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    method: str,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
) -> tuple[Tensor, Tensor]:
    """What is kept of the detections of an image, by descending score.

    Args:
        boxes: float (N, 4), xyxy in pixels.
        scores: (N,) in 0..1.
        labels: int64 (N,).
        method: hard, soft_linear or soft_gaussian.
        iou_threshold: 0..1, of `hard` and `soft_linear`.
        sigma: more than 0, of `soft_gaussian`.
        score_threshold: soft scores are above it; hard NMS takes scores as they are.

    Returns:
        The indices (D,) of the boxes that are kept, and their scores (D,), which are at most those
        given.

    Raises:
        ValueError: a method that there is none of.
    """
    if method not in ("hard", "soft_linear", "soft_gaussian"):
        raise ValueError(f"model.nms={method} is none of hard, soft_linear, soft_gaussian")
    if method == "hard":
        kept = batched_nms(boxes, scores, labels, iou_threshold)
        return kept, scores[kept]
    if not len(boxes):
        return labels.new_zeros(0), scores
    rows = [torch.where(labels == label)[0] for label in labels.unique()]
    places = pad_sequence(rows, batch_first=True, padding_value=-1)  # (K, M): a class a row
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
    """The scores (K, M) by Soft-NMS, each class for itself and all at the same time. What is not
    above the threshold of scores may be lower than here.

    Args:
        boxes: (K, M, 4) of K classes.
        scores: (K, M); -inf of what is no box.
        iou_threshold: of the linear rule; None: the gaussian one.
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
    """Intersection over union (...) of boxes (..., 4) and boxes (..., 4); 0 of two without area."""
    (left, top, right, bottom), (x1, y1, x2, y2) = ones.unbind(-1), others.unbind(-1)
    width = (torch.minimum(right, x2) - torch.maximum(left, x1)).clamp(min=0)
    height = (torch.minimum(bottom, y2) - torch.maximum(top, y1)).clamp(min=0)
    common = width * height
    union = (right - left) * (bottom - top) + (x2 - x1) * (y2 - y1) - common
    return (common / union).where(union > 0, 0)
