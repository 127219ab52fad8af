"""What the detections of a whole set meet by the rules of COCO, all images and classes at once.

pycocotools asks one image, class and IoU threshold after the other, and says only in passing which
detection matched. The rules, from its `COCOeval.evaluateImg`: of an image and class, the 100
detections of the highest scores choose by falling score, each the object of the highest IoU, at
least the threshold, that no earlier one took; of equals the last. Only where there is none may it
match what is ignored: a crowd, which any number may match and which asks for an overlap with the
detection's area alone, or an object whose area is out of the range that is looked at.

G: objects and crowds, D: detections, P: pairs of the two within an image and class;
T: IoU thresholds;  R: recall points;  I: images;  K: classes.
"""

from functools import partial
from itertools import pairwise

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
from detector.evaluation.matches import ClassMatches, Matches, Pairs, overlapping, rows_of

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100  # of an image and class
AREAS = {  # square pixels, both ends included
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}


def size_of(area: float) -> str:
    """`small`, `medium` or `large`; an area on a limit counts as the larger."""
    if area < AREAS["medium"][0]:
        return "small"
    return "medium" if area < AREAS["large"][0] else "large"


class Overlaps:
    """What overlaps what in a whole set, found once for objects of every area.

    Attributes:
        num_classes: K, or 1 where all classes are one.
        order: int64 (D,), the positions of the scored detections among those given: by class, then
            by falling score, of equals by image, rank and position.
        ranks: int64 (D,), of each by score within its image and class, from 0 on.
        classes: where each class stands in the two.
    """

    def __init__(
        self,
        ground_truth: GroundTruth,
        detections: Detections,
        *,
        class_agnostic: bool = False,
    ) -> None:
        images, classes = placed(ground_truth, detections)
        num_images = len(ground_truth.image_ids)
        # By class, also where all are one: pycocotools lists them so, which decides among equals.
        listed = np.argsort(ground_truth.classes, kind="stable")
        gt_classes, found = ground_truth.classes[listed], np.argsort(classes, kind="stable")
        classes = classes[found]
        if class_agnostic:
            gt_classes, classes = np.zeros_like(gt_classes), np.zeros_like(classes)
        groups, scores = classes * num_images + images[found], detections.scores[found]
        kept, ranks = highest(groups, scores)
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
        """What the detections of each class met, where objects of that area are to be found.

        Args:
            area: one of `AREAS`.
            thresholds: IoUs (T,) of at least 0.5.
        """
        smallest, largest = AREAS[area]
        is_ignored = self._is_crowd | (self._gt_areas < smallest) | (self._gt_areas > largest)
        taken = choose(self._pairs, self.ranks, thresholds, self._is_crowd, is_ignored)
        matched = taken >= 0
        excused = np.append(is_ignored, False)[taken]  # the last is that of -1, no match
        excused |= ~matched & ((self._areas < smallest) | (self._areas > largest))
        right, wrong = matched & ~excused, ~matched & ~excused
        is_new = np.diff(self._images, prepend=-1) != 0
        is_new |= np.diff(self._scores, prepend=np.inf) != 0
        ties = np.cumsum(is_new)
        to_be_found = np.flatnonzero(~is_ignored)
        objects = rows_of(self._gt_classes[to_be_found], self.num_classes)
        return [
            ClassMatches(
                self._images[ours],
                right=right[:, ours],
                wrong=wrong[:, ours],
                ties=ties[ours],
                objects=self._gt_images[to_be_found[theirs]],
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

    T are the thresholds 0.50, 0.55 ... 0.95. The summary's AP is the mean over these, its AP50 at
    the first. The AP of small, medium and large objects is the AP of that `area`.

    Args:
        area: one of `AREAS`.

    Raises:
        EvaluationError: one of the two breaks the format, or they do not belong together.
    """
    overlaps = Overlaps(
        as_ground_truth(ground_truth), as_detections(detections), class_agnostic=class_agnostic
    )
    classes = overlaps.matches(area)
    found = precisions(classes)
    summary = {"AP": present_mean(found), "AP50": present_mean(found[0])}
    return Matches(classes, summary, {"AP": slice(None), "AP50": slice(1)})


def precisions(classes: list[ClassMatches]) -> np.ndarray:
    """Precision (T, R, K) as `COCOeval.accumulate` has it, -1 for classes without an object."""
    num_thresholds = len(classes[0].right) if classes else len(THRESHOLDS)
    result = np.full((num_thresholds, len(RECALLS), len(classes)), -1.0)
    for place, matches in enumerate(classes):
        num_objects = len(matches.objects)
        if num_objects == 0:
            continue
        right, wrong = (np.cumsum(judged, axis=1) for judged in (matches.right, matches.wrong))
        best = right / (wrong + right + np.spacing(1))
        best = np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1]
        for threshold, row in enumerate(np.pad(best, ((0, 0), (0, 1)))):
            reached = np.searchsorted(right[threshold] / num_objects, RECALLS)
            result[threshold, :, place] = row[reached]
    return result


def present_mean(values: np.ndarray) -> float | None:
    """Mean over all that is not -1, in pycocotools' order, which decides how the sum is rounded."""
    present = values[values > -1]
    return float(np.mean(present)) if len(present) else None


def highest(
    groups: np.ndarray, scores: np.ndarray, most: int = MAX_DETECTIONS
) -> tuple[np.ndarray, np.ndarray]:
    """Which of N detections are scored, `most` of a group, by group and falling score, and their
    ranks from 0 on.
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
    """IoU (P,) of each pair, from boxes (D, 4) and (G, 4) xywh, rounded as pycocotools rounds it;
    with a crowd, the intersection's share of the detection.
    """
    boxes, gt_boxes, is_crowd = boxes[detections], gt_boxes[objects], is_crowd[objects]
    ends = np.minimum(boxes[:, 2:] + boxes[:, :2], gt_boxes[:, 2:] + gt_boxes[:, :2])
    sides = (ends - np.maximum(boxes[:, :2], gt_boxes[:, :2])).clip(min=0)
    intersections = sides[:, 0] * sides[:, 1]
    areas, gt_areas = boxes[:, 2] * boxes[:, 3], gt_boxes[:, 2] * gt_boxes[:, 3]
    unions = np.where(is_crowd, areas, areas + gt_areas - intersections)
    result = np.zeros(len(boxes))
    with np.errstate(divide="ignore"):  # by a union that rounding makes 0
        np.divide(intersections, unions, out=result, where=intersections > 0)
    return result


def choose(
    pairs: Pairs,
    ranks: np.ndarray,
    thresholds: np.ndarray,
    is_crowd: np.ndarray,
    is_ignored: np.ndarray,
) -> np.ndarray:
    """The object that each detection takes at each IoU threshold, int64 (T, D), -1 for none.

    Detections choose by rank. Those of one rank are of different groups: they choose at once.

    Args:
        pairs: that may match; detections index `ranks`, objects the two flags.
        ranks: (D,) of the detections within their groups.
    """
    thresholds = thresholds[:, None]
    taken = np.full((len(thresholds), len(ranks)), -1)
    is_taken = np.zeros((len(thresholds), len(is_crowd)), dtype=bool)
    # A detection's pairs in the order in which it would have them.
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
