"""What the detections of a whole set met: all that average precision is computed from.

D: detections of one class, by falling score;  T: IoU thresholds;  I: images.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClassMatches:
    """One class.

    Attributes:
        images: int64 (D,), the place 0..I-1 of each detection's image.
        right: bool (T, D), found an object.
        wrong: bool (T, D), found none. Neither right nor wrong does not count: a crowd, say.
        ties: int64 (D,), rising: equal for neighbours of one image and score that the metric keeps
            together, so that an image that is there twice ranks them a b a b and not a a b b.
        num_objects: int64 (I,), that are to be found in each image.
    """

    images: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    ties: np.ndarray
    num_objects: np.ndarray


@dataclass(frozen=True)
class Matches:
    """All classes, and the metric's own numbers.

    Attributes:
        classes: in the order of ids.
        summary: name of a number -> 0..1, or None where no object is to be found.
        thresholds: name of a number -> which of the T thresholds it is the mean over.
    """

    classes: list[ClassMatches]
    summary: dict[str, float | None]
    thresholds: dict[str, slice]


def pairs_within(groups: np.ndarray, gt_groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (detection, object) of one group, such as an image: two arrays of indices (P,)."""
    by_group = np.argsort(gt_groups, kind="stable")
    starts = np.searchsorted(gt_groups[by_group], groups, side="left")
    counts = np.searchsorted(gt_groups[by_group], groups, side="right") - starts
    detections = np.repeat(np.arange(len(groups)), counts)
    first_pairs = np.cumsum(counts) - counts
    positions = np.arange(len(detections)) + np.repeat(starts - first_pairs, counts)
    return detections, by_group[positions]
