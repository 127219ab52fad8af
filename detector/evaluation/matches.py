"""Matches of detections with objects in a whole data set, from which average precision follows.

D: detections of one class, by descending score;  T: IoU thresholds;  I: images;
N: objects of one class to detect, without crowds and other ignored annotations;
P: pairs of a detection and an object.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BLOCK = 2000  # detections whose pairs are computed at a time, which bounds the memory


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """Matches of the detections of one class.

    Attributes:
        images: int64 (D,), index 0..I-1 of each detection's image.
        true_positives, false_positives: bool (T, D). A detection that is neither is ignored, for
            instance because it matches a crowd.
        ties: int64 (D,), ascending. Neighbours have the same value if they are of one image, have
            equal scores, and the metric ranks them as a block: the detections a and b of an image
            that is in the data set twice are then ranked a b a b, and not a a b b.
        object_images: int64 (N,), index 0..I-1 of the image of each object to detect.
    """

    images: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    ties: np.ndarray
    object_images: np.ndarray


@dataclass(frozen=True, eq=False)
class Matches:
    """Matches of all classes, and the metric's scores of the whole data set.

    Attributes:
        classes: the matches of each class, in the order of category ids.
        summary: name of a score -> 0..1, or None where there are no objects to detect.
        thresholds: name of a score -> those of the T thresholds that it is the mean over.
    """

    classes: list[ClassMatches]
    summary: dict[str, float | None]
    thresholds: dict[str, slice]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of a detection and an object: the indices (P,) of both, and their IoUs (P,)."""

    detections: np.ndarray
    objects: np.ndarray
    ious: np.ndarray

    def select(self, chosen: np.ndarray) -> "Pairs":
        """Return some of the pairs, chosen by a mask (P,) or by indices."""
        return Pairs(self.detections[chosen], self.objects[chosen], self.ious[chosen])


def overlapping(
    groups: np.ndarray,
    gt_groups: np.ndarray,
    ious: Callable[[np.ndarray, np.ndarray], np.ndarray],
    least: float,
) -> Pairs:
    """Return all pairs of the same group, such as an image, whose IoU is at least `least`.

    Args:
        groups: integers (D,), the group of each detection.
        gt_groups: integers, the group of each object.
        ious: computes the IoUs (P,) from the indices (P,) of detections and those of objects.
        least: the smallest IoU.
    """
    by_group = np.argsort(gt_groups, kind="stable")
    starts = np.searchsorted(gt_groups[by_group], groups, side="left")
    counts = np.searchsorted(gt_groups[by_group], groups, side="right") - starts
    none = np.zeros(0, dtype=np.int64)
    parts = [Pairs(none, none, np.zeros(0))]
    for block in range(0, len(groups), BLOCK):
        times = counts[block : block + BLOCK]
        detections = np.repeat(np.arange(block, block + len(times)), times)
        first_pairs = np.cumsum(times) - times
        positions = np.repeat(starts[block : block + BLOCK] - first_pairs, times)
        objects = by_group[positions + np.arange(len(positions))]
        pairs = Pairs(detections, objects, ious(detections, objects))
        parts.append(pairs.select(pairs.ious >= least))
    return Pairs(
        np.concatenate([part.detections for part in parts]),
        np.concatenate([part.objects for part in parts]),
        np.concatenate([part.ious for part in parts]),
    )


def rows_of(groups: np.ndarray, num_groups: int) -> list[slice]:
    """Return the rows of each of the groups 0 .. num_groups - 1 in the ascending `groups`."""
    ends = np.searchsorted(groups, np.arange(num_groups + 1)).tolist()
    return [slice(start, end) for start, end in zip(ends, ends[1:], strict=False)]
