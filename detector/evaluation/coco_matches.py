"""What the detections of a whole set meet by the rules of COCO, all images and classes at once.

pycocotools asks one image, class and IoU threshold after the other, and says only in passing which
detection matched. The rules, from its `COCOeval.evaluateImg`: of an image and class, the 100
detections of the highest scores choose by falling score, each the object of the highest IoU, at
least the threshold, that no earlier one took; of equals the last. Only where there is none may it
match what is ignored: a crowd, which any number may match and which asks for an overlap with the
detection's area alone, or an object whose area is out of the range that is looked at.

G: objects and crowds, D: detections, P: pairs of the two within an image and class;
T: IoU thresholds;  I: images;  K: classes;  R: recall points.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from detector.evaluation.matches import ClassMatches, Matches, Pairs, overlapping
from detector.evaluation.results import (
    Detection,
    GroundTruth,
    check_detections,
    normalise_ground_truth,
)

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100  # of an image and class
AREAS = {  # square pixels, both ends included
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}


@dataclass(frozen=True)
class _Columns:
    """Annotations or detections (N): the places 0..K-1 of their classes and 0..I-1 of their images,
    and boxes (N, 4) xywh; by class, and as they were listed within one.
    """

    entries: list[dict[str, Any]]
    classes: np.ndarray
    images: np.ndarray
    boxes: np.ndarray

    def of(self, key: str) -> np.ndarray:
        """Another number of each, float64 (N,)."""
        return np.array([entry[key] for entry in self.entries], dtype=np.float64)


def coco_matches(
    ground_truth: GroundTruth,
    detections: list[Detection],
    *,
    class_agnostic: bool = False,
    area: str = "all",
) -> Matches:
    """Match `detections` with `ground_truth` as `coco_metrics` does; neither is changed.

    T are the thresholds 0.50, 0.55 ... 0.95. The summary's AP and AP50 are those of `coco_metrics`,
    to the last bit where pycocotools is compiled without fused multiplications, as on x86-64; its
    AP for small, medium and large objects is the AP of that `area`.

    Args:
        area: one of `AREAS`.

    Raises:
        EvaluationError: one of the two breaks the format, or they do not belong together.
    """
    ground_truth = normalise_ground_truth(ground_truth)
    check_detections(ground_truth, detections)
    class_ids, image_ids = (
        np.array(sorted(entry["id"] for entry in ground_truth[key]), dtype=np.int64)
        for key in ("categories", "images")
    )
    objects, found = (
        _columns(entries, class_ids, image_ids, class_agnostic)
        for entries in (ground_truth["annotations"], detections)
    )
    num_classes = 1 if class_agnostic else len(class_ids)
    is_crowd = objects.of("iscrowd") == 1
    smallest, largest = AREAS[area]
    is_ignored = is_crowd | (objects.of("area") < smallest) | (objects.of("area") > largest)
    scores = found.of("score")

    kept, ranks = _highest(found.classes * len(image_ids) + found.images, scores)
    classes, images, boxes = found.classes[kept], found.images[kept], found.boxes[kept]
    pairs = overlapping(
        classes * len(image_ids) + images,
        objects.classes * len(image_ids) + objects.images,
        partial(_ious, boxes, objects.boxes, is_crowd),
        THRESHOLDS[0],
    )
    matched, excused = _match(pairs, ranks, is_crowd, is_ignored)
    areas = boxes[:, 2] * boxes[:, 3]
    excused |= ~matched & ((areas < smallest) | (areas > largest))

    of_classes = []
    for place in range(num_classes):
        ours = np.flatnonzero(classes == place)  # by image, then by falling score
        ours = ours[np.argsort(-scores[kept[ours]], kind="stable")]
        to_be_found = objects.images[(objects.classes == place) & ~is_ignored]
        of_image, of_score = images[ours], scores[kept[ours]]
        is_new = (np.diff(of_image, prepend=-1) != 0) | (np.diff(of_score, prepend=np.inf) != 0)
        of_classes.append(
            ClassMatches(
                of_image,
                right=matched[:, ours] & ~excused[:, ours],
                wrong=~matched[:, ours] & ~excused[:, ours],
                ties=np.cumsum(is_new),
                num_objects=np.bincount(to_be_found, minlength=len(image_ids)),
            )
        )
    precisions = _precisions(of_classes)
    summary = {"AP": _present_mean(precisions), "AP50": _present_mean(precisions[0])}
    return Matches(of_classes, summary, {"AP": slice(None), "AP50": slice(1)})


def _present_mean(precisions: np.ndarray) -> float | None:
    """Mean over all that is not -1, in pycocotools' order, which decides how the sum is rounded."""
    present = precisions[precisions > -1]
    return float(np.mean(present)) if len(present) else None


def _columns(
    entries: list[dict[str, Any]],
    class_ids: np.ndarray,
    image_ids: np.ndarray,
    class_agnostic: bool,
) -> _Columns:
    """All are of the class 0 if `class_agnostic`, and stand in the order of their classes still."""
    entries = sorted(entries, key=lambda entry: entry["category_id"])  # stable
    classes, images = (
        np.searchsorted(ids, np.array([entry[key] for entry in entries], dtype=np.int64))
        for ids, key in ((class_ids, "category_id"), (image_ids, "image_id"))
    )
    boxes = np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)
    return _Columns(entries, np.zeros_like(classes) if class_agnostic else classes, images, boxes)


def _highest(groups: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of N detections are scored, by group and falling score, and their ranks from 0 on."""
    order = np.lexsort((-scores, groups))  # stable
    groups = groups[order]
    ranks = np.arange(len(order)) - np.searchsorted(groups, groups)
    is_scored = ranks < MAX_DETECTIONS
    return order[is_scored], ranks[is_scored]


def _ious(
    boxes: np.ndarray,
    gt_boxes: np.ndarray,
    is_crowd: np.ndarray,
    detections: np.ndarray,
    objects: np.ndarray,
) -> np.ndarray:
    """IoU (P,) of each pair, from boxes (D, 4) and (G, 4) xywh, rounded as pycocotools rounds it;
    with a crowd, the intersection's share of the detection.
    """
    boxes, gt_boxes, is_crowd = boxes[detections], gt_boxes[objects], is_crowd[objects]
    ends = np.minimum(boxes[:, 2:] + boxes[:, :2], gt_boxes[:, 2:] + gt_boxes[:, :2])
    sides = (ends - np.maximum(boxes[:, :2], gt_boxes[:, :2])).clip(min=0)
    intersections = sides[:, 0] * sides[:, 1]
    areas, gt_areas = boxes[:, 2] * boxes[:, 3], gt_boxes[:, 2] * gt_boxes[:, 3]
    unions = np.where(is_crowd, areas, areas + gt_areas - intersections)
    ious = np.zeros(len(boxes))
    with np.errstate(divide="ignore"):  # by a union that rounding makes 0
        np.divide(intersections, unions, out=ious, where=intersections > 0)
    return ious


def _match(
    pairs: Pairs, ranks: np.ndarray, is_crowd: np.ndarray, is_ignored: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections match, and which of these match what is ignored: bool (T, D) each.

    Detections of one rank are of different images or classes: they choose at once.
    """
    thresholds = THRESHOLDS[:, None]
    matched, excused = (np.zeros((len(thresholds), len(ranks)), dtype=bool) for _ in range(2))
    is_taken = np.zeros((len(thresholds), len(is_crowd)), dtype=bool)
    detections, objects, ious = pairs.detections, pairs.objects, pairs.ious
    # A detection's pairs in the order in which it would have them.
    order = np.lexsort((-objects, -ious, is_ignored[objects], detections, ranks[detections]))
    detections, objects, ious = detections[order], objects[order], ious[order]
    of_ranks = np.searchsorted(ranks[detections], np.arange(MAX_DETECTIONS + 1))
    for start, end in pairwise(of_ranks):
        if start == end:
            continue
        ours, theirs = detections[start:end], objects[start:end]
        is_open = ~is_taken[:, theirs] | is_crowd[theirs]
        is_open &= ious[start:end] >= thresholds
        places = np.where(is_open, np.arange(end - start), end - start)
        firsts = np.minimum.reduceat(places, np.flatnonzero(np.diff(ours, prepend=-1)), axis=1)
        threshold, which = np.nonzero(firsts < end - start)
        chosen = firsts[threshold, which]
        is_taken[threshold, theirs[chosen]] = True
        matched[threshold, ours[chosen]] = True
        excused[threshold, ours[chosen]] = is_ignored[theirs[chosen]]
    return matched, excused


def _precisions(classes: list[ClassMatches]) -> np.ndarray:
    """Precision (T, R, K) as `COCOeval.accumulate` has it, -1 for classes without an object."""
    precisions = np.full((len(THRESHOLDS), len(RECALLS), len(classes)), -1.0)
    for place, matches in enumerate(classes):
        num_objects = matches.num_objects.sum()
        if num_objects == 0:
            continue
        right, wrong = (np.cumsum(judged, axis=1) for judged in (matches.right, matches.wrong))
        best = right / (wrong + right + np.spacing(1))
        best = np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1]
        for threshold, row in enumerate(np.pad(best, ((0, 0), (0, 1)))):
            reached = np.searchsorted(right[threshold] / num_objects, RECALLS)
            precisions[threshold, :, place] = row[reached]
    return precisions
