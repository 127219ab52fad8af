"""Average precision by the rules of PASCAL VOC.

Written from VOCdevkit's VOCevaldet.m (2007: eleven points; 2010 and later: area under the curve)
and from section 4.2 of Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge",
IJCV 2010. As in the devkit, and unlike some ports of it, an IoU equal to the threshold matches.

    G: objects, D: detections of one class, the latter by falling score;  P: pairs of the two.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from detector.evaluation.matches import ClassMatches
from detector.evaluation.results import (
    Detection,
    GroundTruth,
    check_detections,
    normalise_ground_truth,
)

Rule = Literal["voc07", "voc12"]


@dataclass(frozen=True)
class VocMetrics:
    """Average precisions at one IoU threshold.

    Attributes:
        rule: "voc07", the mean of the precision at recalls 0, 0.1 ... 1, or "voc12", the area under
            the curve of precision over recall. Precision at a recall is the highest one at that
            recall or above.
        iou_threshold: the IoU from which on a detection matches.
        summary: "mAP", and the same number under the name that states the threshold: "AP50" for
            0.5, "AP70" for 0.7. 0..1, or None where no class has an object to be found.
        per_class: class name -> {"AP50": ...}, 0..1, in the order of ids. None, and not part of
            the mean, for a class without an object to be found.
    """

    rule: Rule
    iou_threshold: float
    summary: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]


def ap_name(iou_threshold: float) -> str:
    """The name of the average precision at an IoU threshold: "AP50" for 0.5."""
    return f"AP{100 * iou_threshold:g}"


def voc_metrics(
    ground_truth: GroundTruth,
    detections: list[Detection],
    *,
    rule: Rule,
    iou_threshold: float = 0.5,
    pixel_inclusive: bool = False,
) -> VocMetrics:
    """Score `detections` against `ground_truth`; neither is changed.

    The detections of a class, over all images and by falling score (the earlier first where equal),
    are each compared with the object of the highest IoU in their image. Matching an object that
    is not taken yet is right, matching a taken one is wrong, and so is no match. Matching a
    difficult object (`iscrowd` 1) is neither.

    Args:
        ground_truth: COCO-format, see `results.py`.
        detections: COCO-format results; none at all score 0 wherever there is ground truth.
        rule: see `VocMetrics`.
        iou_threshold: above 0, up to 1.
        pixel_inclusive: False where boxes span [x, x + width]: a VOC box whose first pixel is 1 and
            last is 10 is then 10 wide, and the IoU is the devkit's own. True where width is the
            last pixel minus the first, here 9: one pixel is then added to both sides, as the
            devkit does with what stands in its XML files.

    Raises:
        EvaluationError: one of the two breaks the format, or they do not belong together.
        ValueError: an unknown rule or an impossible threshold.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"rule: expected one of {get_args(Rule)}, got {rule!r}")
    name = ap_name(iou_threshold)
    matches = voc_matches(
        ground_truth, detections, iou_thresholds=(iou_threshold,), pixel_inclusive=pixel_inclusive
    )
    per_class = {
        class_name: {name: _average_precision(of_class, rule)}
        for class_name, of_class in matches.items()
    }
    aps = [ap for of_class in per_class.values() for ap in of_class.values() if ap is not None]
    mean = float(np.mean(aps)) if aps else None
    return VocMetrics(rule, iou_threshold, {"mAP": mean, name: mean}, per_class)


def voc_matches(
    ground_truth: GroundTruth,
    detections: list[Detection],
    *,
    iou_thresholds: tuple[float, ...],
    pixel_inclusive: bool = False,
) -> dict[str, ClassMatches]:
    """Match `detections` with `ground_truth` as `voc_metrics` says: class name -> matches.

    Classes and images are in the order of their ids. No ties are kept together: a detection and
    its copies are neighbours.

    Raises:
        EvaluationError, ValueError: as `voc_metrics`.
    """
    for iou_threshold in iou_thresholds:
        if not 0 < iou_threshold <= 1:
            raise ValueError(f"iou_threshold: expected 0 < threshold <= 1, got {iou_threshold}")
    ground_truth = normalise_ground_truth(ground_truth)
    check_detections(ground_truth, detections)
    gt_classes, gt_images, gt_boxes = _columns(ground_truth["annotations"], pixel_inclusive)
    difficult = np.array([entry["iscrowd"] for entry in ground_truth["annotations"]], dtype=bool)
    by_score = sorted(detections, key=lambda detection: -detection["score"])  # stable
    classes, images, boxes = _columns(by_score, pixel_inclusive)
    image_ids = np.sort([image["id"] for image in ground_truth["images"]]).astype(np.int64)
    places, gt_places = (np.searchsorted(image_ids, ids) for ids in (images, gt_images))

    per_class = {}
    for category in sorted(ground_truth["categories"], key=lambda category: category["id"]):
        ours, theirs = classes == category["id"], gt_classes == category["id"]
        pairs = _pairs_within_images(images[ours], gt_images[theirs])
        ious = _ious(boxes[ours][pairs[0]], gt_boxes[theirs][pairs[1]])
        judged = [
            _right_and_wrong(
                _matches(pairs, ious, int(ours.sum()), iou_threshold), difficult[theirs]
            )
            for iou_threshold in iou_thresholds
        ]
        to_be_found = gt_places[theirs & ~difficult]
        per_class[category["name"]] = ClassMatches(
            images=places[ours],
            right=np.stack([right for right, _ in judged]),
            wrong=np.stack([wrong for _, wrong in judged]),
            ties=np.arange(ours.sum()),
            num_objects=np.bincount(to_be_found, minlength=len(image_ids)),
        )
    return per_class


def _columns(
    entries: list[dict[str, Any]], pixel_inclusive: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return class ids (N,), image ids (N,) and boxes (N, 4) xyxy of annotations or detections."""
    classes = np.array([entry["category_id"] for entry in entries], dtype=np.int64)
    images = np.array([entry["image_id"] for entry in entries], dtype=np.int64)
    boxes = np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2] + pixel_inclusive
    return classes, images, boxes


def _pairs_within_images(
    images: np.ndarray, gt_images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return all pairs (detection, object) of one image as two arrays of indices (P,)."""
    by_image = np.argsort(gt_images, kind="stable")
    starts = np.searchsorted(gt_images[by_image], images, side="left")
    counts = np.searchsorted(gt_images[by_image], images, side="right") - starts
    detections = np.repeat(np.arange(len(images)), counts)
    first_pairs = np.cumsum(counts) - counts
    positions = np.arange(len(detections)) + np.repeat(starts - first_pairs, counts)
    return detections, by_image[positions]


def _matches(
    pairs: tuple[np.ndarray, np.ndarray],
    ious: np.ndarray,
    num_detections: int,
    iou_threshold: float,
) -> np.ndarray:
    """Return the object (D,) that each detection matches, as an index below G, or -1 for none."""
    detections, objects = pairs
    best_first = np.lexsort((objects, -ious, detections))  # the earlier object where IoUs are equal
    _, first = np.unique(detections[best_first], return_index=True)
    best = best_first[first]  # one pair for each detection whose image has objects
    best = best[ious[best] >= iou_threshold]
    matches = np.full(num_detections, -1)
    matches[detections[best]] = objects[best]
    return matches


def _ious(boxes: np.ndarray, gt_boxes: np.ndarray) -> np.ndarray:
    """Return the IoU (P,) of boxes (P, 4) xyxy, pair by pair; 0 for two boxes without any area."""
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


def _average_precision(matches: ClassMatches, rule: Rule) -> float | None:
    """Return the average precision of a class at one IoU threshold."""
    num_objects = int(matches.num_objects.sum())
    if num_objects == 0:
        return None
    right = matches.right[0][matches.right[0] | matches.wrong[0]]
    num_right = np.cumsum(right)
    precisions = num_right / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precisions[::-1])[::-1]  # the best at this recall or above
    if rule == "voc12":
        return float(envelope[right].sum() / num_objects)  # recall rises by 1 / num_objects
    # In whole numbers, since 3 / 10 is less than the float 3 * 0.1.
    reached = np.searchsorted(10 * num_right, num_objects * np.arange(11))
    return float(np.append(envelope, 0.0)[reached].mean())
