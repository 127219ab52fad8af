"""Average precision by the rules of PASCAL VOC.

Written from VOCdevkit's VOCevaldet.m (2007: eleven points; 2010 and later: area under the curve)
and from section 4.2 of Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge",
IJCV 2010. As in the devkit, and unlike some ports of it, an IoU equal to the threshold matches.

    G: objects, D: detections of one class, the latter by falling score;  P: pairs of the two.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np

from detector.evaluation.columns import (
    AnyDetections,
    AnyGroundTruth,
    Detections,
    GroundTruth,
    as_detections,
    as_ground_truth,
    placed,
)
from detector.evaluation.entries import EvaluationError
from detector.evaluation.matches import ClassMatches, Pairs, overlapping, rows_of

Rule = Literal["voc07", "voc12"]


@dataclass(frozen=True)
class VocMetrics:
    """Average precisions, 0..1, each at one IoU threshold and named by it: "AP50" for 0.5.

    Attributes:
        summary: their means over the classes, and before them "mAP", which is that at the first
            threshold. None where no class has an object to be found.
        per_class: class name -> the same but mAP, in the order of ids. None, and not part of the
            means, for a class without an object to be found.
        matches: of each class, at these thresholds.
    """

    summary: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]
    matches: list[ClassMatches]


def ap_name(iou_threshold: float) -> str:
    """The name of the average precision at an IoU threshold: "AP50" for 0.5."""
    return f"AP{100 * iou_threshold:g}"


def check_thresholds(iou_thresholds: tuple[float, ...]) -> None:
    """Refuse IoU thresholds that average precisions cannot be computed at or named by.

    Raises:
        EvaluationError: there are none, one is not in (0, 1], or two have one name.
    """
    thresholds = f"iou_thresholds={list(iou_thresholds)}"
    if not iou_thresholds or not all(0 < threshold <= 1 for threshold in iou_thresholds):
        raise EvaluationError(f"{thresholds} must be one or more numbers in (0, 1]")
    names = [ap_name(threshold) for threshold in iou_thresholds]
    if len(set(names)) < len(names):
        raise EvaluationError(f"{thresholds} must differ: they are named {', '.join(names)}")


def voc_metrics(
    ground_truth: AnyGroundTruth,
    detections: AnyDetections,
    *,
    rule: Rule,
    iou_thresholds: tuple[float, ...] = (0.5,),
    pixel_inclusive: bool = False,
) -> VocMetrics:
    """Score `detections` against `ground_truth`; neither is changed.

    The detections of a class, over all images and by falling score (the earlier first where equal),
    are each compared with the object of the highest IoU in their image. Matching an object that
    is not taken yet is right, matching a taken one is wrong, and so is no match. Matching a
    difficult object (`iscrowd` 1) is neither.

    Args:
        ground_truth: COCO-format, see `columns.py`.
        detections: COCO-format results; none at all score 0 wherever there is ground truth.
        rule: "voc07", the mean of the precision at recalls 0, 0.1 ... 1, or "voc12", the area under
            the curve of precision over recall. Precision at a recall is the highest one at that
            recall or above.
        iou_thresholds: the IoUs, above 0 up to 1, from which on a detection matches.
        pixel_inclusive: False where boxes span [x, x + width]: a VOC box whose first pixel is 1 and
            last is 10 is then 10 wide, and the IoU is the devkit's own. True where width is the
            last pixel minus the first, here 9: one pixel is then added to both sides, as the
            devkit does with what stands in its XML files.

    Raises:
        EvaluationError: one of the two breaks the format, they do not belong together, or
            `check_thresholds` refuses the thresholds.
        ValueError: an unknown rule.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"rule: expected one of {get_args(Rule)}, got {rule!r}")
    check_thresholds(iou_thresholds)
    ground_truth, detections = as_ground_truth(ground_truth), as_detections(detections)
    matches = _class_matches(ground_truth, detections, iou_thresholds, pixel_inclusive)
    names = [ap_name(iou_threshold) for iou_threshold in iou_thresholds]
    per_class = {
        class_name: dict(zip(names, _average_precisions(of_class, rule), strict=True))
        for class_name, of_class in zip(ground_truth.names, matches, strict=True)
    }
    means = {}
    for name in names:
        aps = [ap for of_class in per_class.values() if (ap := of_class[name]) is not None]
        means[name] = float(np.mean(aps)) if aps else None
    return VocMetrics({"mAP": means[names[0]]} | means, per_class, matches)


def _class_matches(
    ground_truth: GroundTruth,
    detections: Detections,
    iou_thresholds: tuple[float, ...],
    pixel_inclusive: bool,
) -> list[ClassMatches]:
    """What the detections of each class met. No ties are kept together: a detection and its copies
    are neighbours.
    """
    images, classes = placed(ground_truth, detections)
    order = np.lexsort((-detections.scores, classes))  # stable
    images, boxes = images[order], _corners(detections.boxes[order], pixel_inclusive)
    gt_order = np.argsort(ground_truth.classes, kind="stable")
    gt_images = ground_truth.images[gt_order]
    gt_boxes = _corners(ground_truth.boxes[gt_order], pixel_inclusive)
    difficult = ground_truth.is_crowd[gt_order]
    num_classes = len(ground_truth.names)
    rows = rows_of(classes[order], num_classes)
    gt_rows = rows_of(ground_truth.classes[gt_order], num_classes)

    of_classes = []
    for ours, theirs in zip(rows, gt_rows, strict=True):
        near = partial(_ious, boxes[ours], gt_boxes[theirs])
        best = _best(overlapping(images[ours], gt_images[theirs], near, min(iou_thresholds)))
        num_found = len(images[ours])
        judged = [
            _right_and_wrong(_matches(best, num_found, iou_threshold), difficult[theirs])
            for iou_threshold in iou_thresholds
        ]
        of_classes.append(
            ClassMatches(
                images=images[ours],
                right=np.stack([right for right, _ in judged]),
                wrong=np.stack([wrong for _, wrong in judged]),
                ties=np.arange(num_found),
                objects=gt_images[theirs][~difficult[theirs]],
            )
        )
    return of_classes


def _corners(boxes: np.ndarray, pixel_inclusive: bool) -> np.ndarray:
    """Boxes (N, 4) xywh as xyxy."""
    ends = boxes[:, 2:] + (boxes[:, :2] + pixel_inclusive)
    return np.concatenate([boxes[:, :2], ends], axis=1)


def _best(pairs: Pairs) -> Pairs:
    """Of each detection the pair of the highest IoU; of equals the one of the earlier object."""
    order = np.lexsort((pairs.objects, -pairs.ious, pairs.detections))
    best = order[np.unique(pairs.detections[order], return_index=True)[1]]
    return Pairs(pairs.detections[best], pairs.objects[best], pairs.ious[best])


def _matches(best: Pairs, num_detections: int, iou_threshold: float) -> np.ndarray:
    """Return the object (D,) that each detection matches, as an index below G, or -1 for none."""
    near = best.ious >= iou_threshold
    matches = np.full(num_detections, -1)
    matches[best.detections[near]] = best.objects[near]
    return matches


def _ious(
    boxes: np.ndarray, gt_boxes: np.ndarray, detections: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """Return the IoU (P,) of each pair, from boxes (D, 4) and (G, 4) xyxy; 0 for two empty ones."""
    boxes, gt_boxes = boxes[detections], gt_boxes[objects]
    starts = np.maximum(boxes[:, :2], gt_boxes[:, :2])
    ends = np.minimum(boxes[:, 2:], gt_boxes[:, 2:])
    intersections = np.prod((ends - starts).clip(min=0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    gt_areas = np.prod(gt_boxes[:, 2:] - gt_boxes[:, :2], axis=1)
    unions = areas + gt_areas - intersections
    ious = np.zeros(len(boxes))
    np.divide(intersections, unions, out=ious, where=unions > 0)
    return ious


def _right_and_wrong(matches: np.ndarray, difficult: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what `_matches` (D,) makes of each detection (D,), from its objects' flags (G,)."""
    counts = ~np.append(difficult, False)[matches]  # the last flag is that of -1, no match
    right = np.zeros(len(matches), dtype=bool)
    right[np.unique(matches, return_index=True)[1]] = True  # the first to match an object
    right &= counts & (matches >= 0)
    return right, counts & ~right


def _average_precisions(matches: ClassMatches, rule: Rule) -> list[float | None]:
    """The average precision of a class at each IoU threshold."""
    num_objects = len(matches.objects)
    if num_objects == 0:
        return [None] * len(matches.right)
    return [
        _average_precision(right[right | wrong], num_objects, rule)
        for right, wrong in zip(matches.right, matches.wrong, strict=True)
    ]


def _average_precision(right: np.ndarray, num_objects: int, rule: Rule) -> float:
    """From the detections (D,) that count, which of them are right."""
    num_right = np.cumsum(right)
    precisions = num_right / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precisions[::-1])[::-1]  # the best at this recall or above
    if rule == "voc12":
        return float(envelope[right].sum() / num_objects)  # recall rises by 1 / num_objects
    # In whole numbers, since 3 / 10 is less than the float 3 * 0.1.
    reached = np.searchsorted(10 * num_right, num_objects * np.arange(11))
    return float(np.append(envelope, 0.0)[reached].mean())
