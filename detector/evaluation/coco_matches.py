"""Match detections with ground truth by COCO's rules, for all images and classes at once.

pycocotools processes one image, class and IoU threshold after the other. The rules are those of its
`COCOeval.evaluateImg`: In each image and class, the 100 detections with the highest scores are
processed by descending score. A detection matches the object with which it has the highest IoU,
among those that no earlier detection has matched and whose IoU reaches the threshold; of equal
IoUs, the last object is taken. Only if there is no such object may it match an ignored annotation:
a crowd, or an object whose area is out of the evaluated range. Any number of detections may match a
crowd, and for a crowd, the intersection is divided by the detection's own area instead of the
union.

G: annotations (objects and crowds);  D: detections;  P: pairs of a detection and an annotation of
the same image and class;  T: IoU thresholds;  R: recall points;  I: images;  K: classes.
"""

from functools import partial
from itertools import pairwise

import numpy as np

from detector.evaluation.coco_format import as_detections, as_ground_truth
from detector.evaluation.columns import (
    AnyDetections,
    AnyGroundTruth,
    Detections,
    GroundTruth,
    look_up_images_and_classes,
)
from detector.evaluation.matches import ClassMatches, Matches, Pairs, overlapping, rows_of

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100  # per image and class
AREAS = {  # ranges in square pixels, both ends included
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}


def size_name(area: float) -> str:
    """Return `small`, `medium` or `large`; an area exactly at a limit has the larger size."""
    if area < AREAS["medium"][0]:
        return "small"
    return "medium" if area < AREAS["large"][0] else "large"


class Overlaps:
    """Overlaps of detections and annotations in a whole data set, the same for all area ranges.

    Attributes:
        num_classes: K, or 1 if all classes are treated as one.
        order: int64 (D,), indices of the detections that count among all that are given. They are
            sorted by class, then by descending score; equal scores by image, then by rank.
        ranks: int64 (D,), the rank of each of them by score in its image and class, from 0.
        classes: the rows of each class in `order` and `ranks`.
    """

    def __init__(
        self,
        ground_truth: GroundTruth,
        detections: Detections,
        *,
        class_agnostic: bool = False,
    ) -> None:
        images, classes = look_up_images_and_classes(ground_truth, detections)
        num_images = len(ground_truth.image_ids)
        # Sort by class even if all are treated as one: so does pycocotools, and the order decides
        # between equal IoUs and between equal scores.
        listed = np.argsort(ground_truth.classes, kind="stable")
        gt_classes, found = ground_truth.classes[listed], np.argsort(classes, kind="stable")
        classes = classes[found]
        if class_agnostic:
            gt_classes, classes = np.zeros_like(gt_classes), np.zeros_like(classes)
        groups, scores = classes * num_images + images[found], detections.scores[found]
        kept, ranks = top_detections(groups, scores)
        by_score = np.lexsort((-scores[kept], classes[kept]))  # stable: by image and rank
        kept, self.ranks = kept[by_score], ranks[by_score]
        self.num_classes = 1 if class_agnostic else len(ground_truth.category_ids)
        self.order, self.classes = found[kept], rows_of(classes[kept], self.num_classes)
        self._images, self._scores = images[self.order], scores[kept]
        self._areas = np.prod(detections.boxes[self.order, 2:], axis=1)
        self._gt_images, self._gt_classes = ground_truth.images[listed], gt_classes
        self._gt_areas, self._is_crowd = ground_truth.areas[listed], ground_truth.is_crowd[listed]
        self._pairs = overlapping(
            groups[kept],
            gt_classes * num_images + self._gt_images,
            partial(ious, detections.boxes[self.order], ground_truth.boxes[listed], self._is_crowd),
            THRESHOLDS[0],
        )

    def matches(self, area: str, thresholds: np.ndarray = THRESHOLDS) -> list[ClassMatches]:
        """Match the detections of each class with the objects of an area range.

        Args:
            area: a key of `AREAS`. Objects out of this range are ignored.
            thresholds: IoUs (T,), at least 0.5.
        """
        smallest, largest = AREAS[area]
        is_ignored = self._is_crowd | (self._gt_areas < smallest) | (self._gt_areas > largest)
        taken = assign(self._pairs, self.ranks, thresholds, self._is_crowd, is_ignored)
        matched = taken >= 0
        not_counted = np.append(is_ignored, False)[taken]  # index -1 (no match) gives False
        not_counted |= ~matched & ((self._areas < smallest) | (self._areas > largest))
        true_positives, false_positives = matched & ~not_counted, ~matched & ~not_counted
        is_new = np.diff(self._images, prepend=-1) != 0
        is_new |= np.diff(self._scores, prepend=np.inf) != 0
        ties = np.cumsum(is_new)
        to_detect = np.flatnonzero(~is_ignored)
        objects = rows_of(self._gt_classes[to_detect], self.num_classes)
        return [
            ClassMatches(
                self._images[ours],
                true_positives=true_positives[:, ours],
                false_positives=false_positives[:, ours],
                ties=ties[ours],
                object_images=self._gt_images[to_detect[theirs]],
            )
            for ours, theirs in zip(self.classes, objects, strict=True)
        ]


def coco_matches(
    ground_truth: AnyGroundTruth,
    detections: AnyDetections,
    *,
    class_agnostic: bool = False,
    area: str = "all",
) -> Matches:
    """Match `detections` with `ground_truth` as `coco_metrics` does.

    The IoU thresholds are 0.50, 0.55 ... 0.95. The summary's AP is the mean over all of them, its
    AP50 is at the first.

    Args:
        area: a key of `AREAS`. With "small", "medium" or "large", AP is COCO's APs, APm or APl.

    Raises:
        EvaluationError: the ground truth or the detections break the format, or a detection is of
            an unknown image or category.
    """
    overlaps = Overlaps(
        as_ground_truth(ground_truth), as_detections(detections), class_agnostic=class_agnostic
    )
    classes = overlaps.matches(area)
    found = precisions(classes)
    summary = {"AP": present_mean(found), "AP50": present_mean(found[0])}
    return Matches(classes, summary, {"AP": slice(None), "AP50": slice(1)})


def precisions(classes: list[ClassMatches]) -> np.ndarray:
    """Return precision (T, R, K) as in `COCOeval.accumulate`; -1 for classes without objects."""
    num_thresholds = len(classes[0].true_positives) if classes else len(THRESHOLDS)
    result = np.full((num_thresholds, len(RECALLS), len(classes)), -1.0)
    for place, matches in enumerate(classes):
        num_objects = len(matches.object_images)
        if num_objects == 0:
            continue
        num_true = np.cumsum(matches.true_positives, axis=1)
        num_false = np.cumsum(matches.false_positives, axis=1)
        best = num_true / (num_false + num_true + np.spacing(1))
        best = np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1]
        for threshold, row in enumerate(np.pad(best, ((0, 0), (0, 1)))):
            reached = np.searchsorted(num_true[threshold] / num_objects, RECALLS)
            result[threshold, :, place] = row[reached]
    return result


def present_mean(values: np.ndarray) -> float | None:
    """Average all values but -1; None if there are no others.

    They are summed in the same order as in pycocotools, because the order decides the rounding.
    """
    present = values[values > -1]
    return float(np.mean(present)) if len(present) else None


def top_detections(
    groups: np.ndarray, scores: np.ndarray, most: int = MAX_DETECTIONS
) -> tuple[np.ndarray, np.ndarray]:
    """Select the detections with the highest scores, at most `most` of each group.

    Args:
        groups: integers (N,), the group of each detection.
        scores: (N,).

    Returns:
        The indices of those selected, by group and descending score, and their ranks from 0.
    """
    order = np.lexsort((-scores, groups))  # stable
    groups = groups[order]
    ranks = np.arange(len(order)) - np.searchsorted(groups, groups)
    is_scored = ranks < most
    return order[is_scored], ranks[is_scored]


def ious(
    boxes: np.ndarray,
    gt_boxes: np.ndarray,
    is_crowd: np.ndarray,
    detections: np.ndarray,
    objects: np.ndarray,
) -> np.ndarray:
    """Return the IoU (P,) of each pair of boxes, with the same rounding as in pycocotools.

    For a crowd, the intersection is divided by the detection's own area instead of the union.

    Args:
        boxes: (D, 4) xywh.
        gt_boxes: (G, 4) xywh.
        is_crowd: bool (G,).
        detections, objects: the indices (P,) of each pair.
    """
    boxes, gt_boxes, is_crowd = boxes[detections], gt_boxes[objects], is_crowd[objects]
    ends = np.minimum(boxes[:, 2:] + boxes[:, :2], gt_boxes[:, 2:] + gt_boxes[:, :2])
    sides = (ends - np.maximum(boxes[:, :2], gt_boxes[:, :2])).clip(min=0)
    intersections = sides[:, 0] * sides[:, 1]
    areas, gt_areas = boxes[:, 2] * boxes[:, 3], gt_boxes[:, 2] * gt_boxes[:, 3]
    unions = np.where(is_crowd, areas, areas + gt_areas - intersections)
    result = np.zeros(len(boxes))
    with np.errstate(divide="ignore"):  # rounding may make the union 0
        np.divide(intersections, unions, out=result, where=intersections > 0)
    return result


def assign(
    pairs: Pairs,
    ranks: np.ndarray,
    thresholds: np.ndarray,
    is_crowd: np.ndarray,
    is_ignored: np.ndarray,
) -> np.ndarray:
    """Assign to each detection the annotation that it matches at each IoU threshold.

    Detections are processed by rank. Those of equal rank are of different groups, so that they
    cannot compete for an object and are processed at once.

    Args:
        pairs: the pairs that may match, as indices into `ranks` and into the two flags.
        ranks: (D,), the rank of each detection in its group.
        thresholds: IoUs (T,).
        is_crowd, is_ignored: bool (G,), flags of the annotations. Crowds are ignored, too.

    Returns:
        int64 (T, D), the index of the annotation, or -1 for none.
    """
    thresholds = thresholds[:, None]
    taken = np.full((len(thresholds), len(ranks)), -1)
    is_taken = np.zeros((len(thresholds), len(is_crowd)), dtype=bool)
    # Sort the pairs of a detection by preference.
    detections, objects, values = pairs.detections, pairs.objects, pairs.ious
    order = np.lexsort((-objects, -values, is_ignored[objects], detections, ranks[detections]))
    detections, objects, values = detections[order], objects[order], values[order]
    of_ranks = np.searchsorted(ranks[detections], np.arange(ranks.max(initial=-1) + 2))
    for start, end in pairwise(of_ranks):
        if start == end:
            continue
        ours, theirs = detections[start:end], objects[start:end]
        is_open = ~is_taken[:, theirs] | is_crowd[theirs]
        is_open &= values[start:end] >= thresholds
        places = np.where(is_open, np.arange(end - start), end - start)
        firsts = np.minimum.reduceat(places, np.flatnonzero(np.diff(ours, prepend=-1)), axis=1)
        threshold, which = np.nonzero(firsts < end - start)
        chosen = firsts[threshold, which]
        is_taken[threshold, theirs[chosen]] = True
        taken[threshold, ours[chosen]] = theirs[chosen]
    return taken
