"""What the detections of a whole set met: all that average precision is computed from.

D: detections of one class, by falling score;  T: IoU thresholds;  I: images;
N: objects of one class that are to be found;  P: pairs of a detection and an object.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BLOCK = 2000  # detections whose pairs are looked at together, which bounds the memory


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """One class.

    Attributes:
        images: int64 (D,), the place 0..I-1 of each detection's image.
        right: bool (T, D), found an object.
        wrong: bool (T, D), found none. Neither right nor wrong does not count: a crowd, say.
        ties: int64 (D,), rising: equal for neighbours of one image and score that the metric keeps
            together, so that an image that is there twice ranks them a b a b and not a a b b.
        objects: int64 (N,), the place 0..I-1 of the image of each object that is to be found.
    """

    images: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    ties: np.ndarray
    objects: np.ndarray


@dataclass(frozen=True, eq=False)
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


@dataclass(frozen=True, eq=False)
class Pairs:
    """Detections and objects, as indices (P,), and their IoUs (P,)."""

    detections: np.ndarray
    objects: np.ndarray
    ious: np.ndarray

    def of(self, chosen: np.ndarray) -> "Pairs":
        """Some of them: a mask (P,) or their positions."""
        return Pairs(self.detections[chosen], self.objects[chosen], self.ious[chosen])


def overlapping(
    groups: np.ndarray,
    gt_groups: np.ndarray,
    ious: Callable[[np.ndarray, np.ndarray], np.ndarray],
    least: float,
) -> Pairs:
    """The pairs of one group, such as an image, whose IoU is at least `least`.

    Args:
        groups, gt_groups: of each detection and of each object, integers.
        ious: from indices (P,) of detections and of objects to their IoUs (P,).
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
        parts.append(pairs.of(pairs.ious >= least))
    return Pairs(
        np.concatenate([part.detections for part in parts]),
        np.concatenate([part.objects for part in parts]),
        np.concatenate([part.ious for part in parts]),
    )


def rows_of(groups: np.ndarray, num_groups: int) -> list[slice]:
    """Where each of the groups 0 .. num_groups - 1 stands in rising `groups`."""
    ends = np.searchsorted(groups, np.arange(num_groups + 1)).tolist()
    return [slice(start, end) for start, end in zip(ends, ends[1:], strict=False)]
