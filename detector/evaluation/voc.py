"""Average precision by the rules of PASCAL VOC.

Implemented from VOCdevkit's VOCevaldet.m (2007: eleven points; 2010 and later: area under the
curve) and from section 4.2 of Everingham et al., "The PASCAL Visual Object Classes (VOC)
Challenge", IJCV 2010. As in the devkit, and unlike in some ports of it, an IoU equal to the
threshold is a match.

    G: objects of one class;  D: detections of one class, by descending score;
    P: pairs of a detection and an object.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np

from detector.evaluation.coco_format import as_detections, as_ground_truth
from detector.evaluation.columns import (
    AnyDetections,
    AnyGroundTruth,
    Detections,
    GroundTruth,
    look_up_images_and_classes,
)
from detector.evaluation.entries import EvaluationError
from detector.evaluation.matches import ClassMatches, Pairs, overlapping, rows_of

Rule = Literal["voc07", "voc12"]


@dataclass(frozen=True)
class VocMetrics:
    """Average precisions in 0..1, each at one IoU threshold and named after it: "AP50" for 0.5.

    Attributes:
        summary: "mAP", then the mean AP over the classes at each threshold; mAP is the mean at the
            first threshold. None if no class has objects to detect.
        per_class: class name -> the AP at each threshold, in the order of category ids. A class
            without objects to detect has None and is left out of the means.
        matches: the matches of each class at these thresholds.
    """

    summary: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]
    matches: list[ClassMatches]


def ap_name(iou_threshold: float) -> str:
    """Return the name of the average precision at an IoU threshold: "AP50" for 0.5."""
    return f"AP{100 * iou_threshold:g}"


def check_thresholds(iou_thresholds: tuple[float, ...]) -> None:
    """Refuse IoU thresholds that are out of range, or at which two APs would have the same name.

    Raises:
        EvaluationError: there are none, one is not in (0, 1], or two have the same `ap_name`.
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

    The detections of a class in all images are processed by descending score; equal scores keep
    their order. Each detection is compared with the object of its image with which it has the
    highest IoU, and matches it if that IoU reaches the threshold. The first detection that matches
    an object is a true positive. A later one, and one without a match, is a false positive. A
    detection that matches a difficult object (`iscrowd` 1) is ignored.

    Args:
        ground_truth: COCO-format content, see `coco_format.py`.
        detections: COCO-format results. If they are empty, every class with objects to detect
            scores 0.
        rule: "voc07", the mean of the precisions at the recalls 0, 0.1 ... 1, or "voc12", the area
            under the curve of precision over recall. The precision at a recall is the highest one
            at that recall or above.
        iou_thresholds: the smallest IoUs, in (0, 1], at which a detection matches an object.
        pixel_inclusive: False if boxes span [x, x + width]: a VOC box with the first pixel 1 and
            the last pixel 10 then has a width of 10, and IoUs equal the devkit's. True if width is
            the last pixel minus the first, 9 in this example: one pixel is then added to width and
            height, as the devkit does with the boxes of its XML files.

    Raises:
        EvaluationError: the ground truth or the detections break the format, a detection is of an
            unknown image or category, or `check_thresholds` refuses the thresholds.
        ValueError: the rule is unknown.
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
    """Match the detections of each class at each IoU threshold.

    There are no ties: VOC ranks a detection and its copies in a resample as neighbours.
    """
    images, classes = look_up_images_and_classes(ground_truth, detections)
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
            _true_and_false_positives(_matches(best, num_found, iou_threshold), difficult[theirs])
            for iou_threshold in iou_thresholds
        ]
        of_classes.append(
            ClassMatches(
                images=images[ours],
                true_positives=np.stack([true for true, _ in judged]),
                false_positives=np.stack([false for _, false in judged]),
                ties=np.arange(num_found),
                object_images=gt_images[theirs][~difficult[theirs]],
            )
        )
    return of_classes


def _corners(boxes: np.ndarray, pixel_inclusive: bool) -> np.ndarray:
    """Convert boxes (N, 4) from xywh to xyxy, with one pixel more if `pixel_inclusive`."""
    ends = boxes[:, 2:] + (boxes[:, :2] + pixel_inclusive)
    return np.concatenate([boxes[:, :2], ends], axis=1)


def _best(pairs: Pairs) -> Pairs:
    """Keep the pair with the highest IoU of each detection; of equal ones, the first object's."""
    order = np.lexsort((pairs.objects, -pairs.ious, pairs.detections))
    best = order[np.unique(pairs.detections[order], return_index=True)[1]]
    return Pairs(pairs.detections[best], pairs.objects[best], pairs.ious[best])


def _matches(best: Pairs, num_detections: int, iou_threshold: float) -> np.ndarray:
    """Return the index (D,) below G of the object that each detection matches, or -1 for none."""
    near = best.ious >= iou_threshold
    matches = np.full(num_detections, -1)
    matches[best.detections[near]] = best.objects[near]
    return matches


def _ious(
    boxes: np.ndarray, gt_boxes: np.ndarray, detections: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """Return the IoU (P,) of each pair of boxes (D, 4) and (G, 4) xyxy; 0 for two empty boxes."""
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


def _true_and_false_positives(
    matches: np.ndarray, difficult: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the true positives and the false positives, bool (D,) each.

    Args:
        matches: (D,), as `_matches` returns them.
        difficult: bool (G,), the flag of each object.
    """
    counts = ~np.append(difficult, False)[matches]  # index -1 (no match) gives False
    true_positives = np.zeros(len(matches), dtype=bool)
    true_positives[np.unique(matches, return_index=True)[1]] = True  # the first to match an object
    true_positives &= counts & (matches >= 0)
    return true_positives, counts & ~true_positives


def _average_precisions(matches: ClassMatches, rule: Rule) -> list[float | None]:
    """Return the AP of a class at each IoU threshold; None if it has no objects to detect."""
    num_objects = len(matches.object_images)
    if num_objects == 0:
        return [None] * len(matches.true_positives)
    return [
        _average_precision(true[true | false], num_objects, rule)
        for true, false in zip(matches.true_positives, matches.false_positives, strict=True)
    ]


def _average_precision(is_true: np.ndarray, num_objects: int, rule: Rule) -> float:
    """Compute AP from the detections that are not ignored: bool (D,), true for true positives."""
    num_true = np.cumsum(is_true)
    precisions = num_true / np.arange(1, len(is_true) + 1)
    envelope = np.maximum.accumulate(precisions[::-1])[::-1]  # the best at this recall or above
    if rule == "voc12":
        return float(envelope[is_true].sum() / num_objects)  # recall rises by 1 / num_objects each
    # Compare whole numbers, because 3 / 10 is less than the float 3 * 0.1.
    reached = np.searchsorted(10 * num_true, num_objects * np.arange(11))
    return float(np.append(envelope, 0.0)[reached].mean())
