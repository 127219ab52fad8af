"""Average precision on resamples of the images of a data set, from the matches of the whole set.

In a resample, an image that was drawn w times stands for w images with consecutive ids, and AP is
the metric's AP on that data set. Detections are not matched again: they match objects of their own
image only, so each of them simply counts w times. From copy to copy of a true positive, precision
and recall rise, so the precision after the last copy is the highest one from the recall of the
first copy on. From copy to copy of a false positive, recall is constant and precision falls. It is
therefore enough to compute the precision-recall curve after the last copy of each true positive.

D: detections of a class, by descending score;  R: true positives among them;
T: IoU thresholds;  I: images;  B: resamples;  K: classes.
"""

from itertools import pairwise

import numpy as np
from scipy.sparse import csr_array

from detector.evaluation.coco_matches import RECALLS
from detector.evaluation.matches import ClassMatches, Matches

MEMORY = 2**27  # bytes for the resamples of one class that are scored at a time


def draw_images(num_images: int, num_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each image is in each resample: int16 (I, B); each column sums to I."""
    counts = np.empty((num_images, num_resamples), dtype=np.int16)
    for resample in range(num_resamples):
        drawn = rng.integers(num_images, size=num_images)
        counts[:, resample] = np.bincount(drawn, minlength=num_images)
    return counts


def resampled(metric: str, matches: Matches, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Compute the scores of the summary in each resample: name -> float64 (B,).

    A class that has no objects to detect in a resample is left out of the mean of that resample;
    the mean over no classes is nan.

    Args:
        counts: integers (I, B), how often each image is in each resample.
    """
    means = class_mean(resampled_classes(metric, matches, counts))  # (T, B)
    return {name: means[chosen].mean(axis=0) for name, chosen in matches.thresholds.items()}


def class_mean(aps: np.ndarray) -> np.ndarray:
    """Return the mean (T, B) of AP (K, T, B) over the classes in which it is not nan."""
    present = np.isfinite(aps)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(present, aps, 0.0).sum(axis=0) / present.sum(axis=0)
    return mean


def resampled_classes(metric: str, matches: Matches, counts: np.ndarray) -> np.ndarray:
    """Compute the AP (K, T, B) of each class in each resample, nan if it has no objects to detect.

    Args:
        counts: integers (I, B), how often each image is in each resample.
    """
    num_resamples = counts.shape[1]
    counts = counts.astype(np.int32)
    aps = np.full(
        (len(matches.classes), len(matches.classes[0].true_positives), num_resamples), np.nan
    )
    for of_class, out in zip(matches.classes, aps, strict=True):
        num_true = int(np.count_nonzero(of_class.true_positives.any(axis=0)))
        step = max(MEMORY // (40 * num_true + 4 * len(counts)), 1)
        present, times = np.unique(of_class.object_images, return_counts=True)
        for start in range(0, num_resamples, step):
            chunk = np.ascontiguousarray(counts[:, start : start + step])
            num_objects = times @ chunk[present]
            found = _average_precisions(metric, of_class, chunk, num_objects)
            out[:, start : start + step] = np.where(num_objects > 0, found, np.nan)
    return aps


def _average_precisions(
    metric: str, matches: ClassMatches, counts: np.ndarray, num_objects: np.ndarray
) -> np.ndarray:
    """Compute the AP (T, B) of one class. It is meaningless where `num_objects` (B,) is 0.

    AP is the mean, over the recall points, of the best precision at that recall or above. Each true
    positive therefore adds the best precision from its recall on, once for each recall point that
    is reached with it and not with the true positive before.
    """
    detections, copies = _in_order(matches, int(counts.max()))
    is_true = matches.true_positives[:, detections]  # (T, D)
    is_false = matches.false_positives[:, detections]
    images = matches.images[detections]
    # A single copy is present once or not at all. It gets a row of `counts` of its own, as if it
    # were in an image of its own.
    of_one_copy = np.flatnonzero(copies >= 0)
    own = counts[images[of_one_copy]] > copies[of_one_copy, None]
    images[of_one_copy] = len(counts) + np.arange(len(of_one_copy))
    counts = np.concatenate([counts, own.astype(np.int32)])

    is_counted = is_true | is_false
    at_some = is_counted.any(axis=0)
    places = np.flatnonzero(is_true.any(axis=0))
    weights = counts[images[places]]  # (R, B), of the true positives at some threshold
    counted = _up_to(places, at_some, images, counts)
    reached, num_points = _points_reached(metric, num_objects)
    columns = np.arange(counts.shape[1])
    aps = np.zeros((len(matches.true_positives), counts.shape[1]))
    for threshold, is_true_here in enumerate(is_true[:, places]):
        here = np.flatnonzero(is_true_here)
        if len(here) == 0:
            continue
        num_true = _accumulate(np.add, weights[here])  # (R, B)
        num_counted = counted[here]
        is_ignored = at_some & ~is_counted[threshold]
        if is_ignored.any():
            num_counted -= _up_to(places[here], is_ignored, images, counts)
        precisions = num_true / (num_counted + np.spacing(1))  # as in pycocotools; never 0 / 0
        best = _accumulate(np.maximum, precisions[::-1])[::-1]
        # The same as reached[num_true, columns], in half the time.
        num_reached = reached.take(num_true * len(columns) + columns)
        num_new = np.diff(num_reached, axis=0, prepend=np.int32(0))
        aps[threshold] = np.einsum("rb,rb->b", best, num_new) / num_points
    return aps


def _up_to(
    places: np.ndarray, chosen: np.ndarray, images: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Count the chosen detections, copies included, up to each place in each resample.

    Args:
        places: (R,), ascending indices of detections.
        chosen: bool (D,), the detections to count.
        images: (D,), the row in `counts` of each detection.
        counts: (I, B), how often each image is in each resample.

    Returns:
        int32 (R, B).
    """
    rows = np.searchsorted(places, np.flatnonzero(chosen))
    before = rows < len(places)
    entries = (rows[before], images[chosen][before])
    ones = np.ones(len(entries[0]), dtype=np.int32)
    between = csr_array((ones, entries), shape=(len(places), len(counts)))
    return _accumulate(np.add, between @ counts)


def _in_order(matches: ClassMatches, most_copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort the detections as they are ranked in resamples.

    Usually all copies of a detection are neighbours, or may be treated so, and have one entry. An
    exception are ties, which are ranked as a block (a b a b), if they include both true and false
    positives: these have an entry for each copy.

    Args:
        most_copies: the largest number of copies of an image in a resample.

    Returns:
        The index of the detection of each entry, and which copy it stands for, from 0; -1 if it
        stands for all copies.
    """
    num_detections = len(matches.images)
    detections = np.arange(num_detections)
    if num_detections == 0:
        return detections, detections
    is_first = np.diff(matches.ties, prepend=matches.ties[0] - 1) != 0
    starts, groups = np.flatnonzero(is_first), np.cumsum(is_first) - 1
    some_true = np.logical_or.reduceat(matches.true_positives, starts, axis=1)
    some_false = np.logical_or.reduceat(matches.false_positives, starts, axis=1)
    is_mixed = np.any(some_true & some_false, axis=0)[groups]
    times = np.where(is_mixed, most_copies, 1)
    detections = np.repeat(detections, times)
    copies = np.arange(len(detections)) - np.repeat(np.cumsum(times) - times, times)
    order = np.lexsort((detections, copies, groups[detections]))
    detections, copies = detections[order], copies[order]
    return detections, np.where(is_mixed[detections], copies, -1)


def _accumulate(operation: np.ufunc, rows: np.ndarray) -> np.ndarray:
    """Compute operation.accumulate(rows, axis=0) in place.

    This is faster than NumPy, which works column by column.
    """
    for above, row in pairwise(rows):
        operation(above, row, out=row)
    return rows


def _points_reached(metric: str, num_objects: np.ndarray) -> tuple[np.ndarray, np.ndarray | int]:
    """Return how many recall points are reached with each number of true positives.

    Args:
        num_objects: (B,), the number of objects to detect in each resample.

    Returns:
        The points reached with 0, 1 ... N - 1 true positives, int32 (N, B), and the number of
        points over which AP is the mean, in all resamples or (B,).
    """
    num_true = np.arange(num_objects.max() + 1, dtype=np.int32)[:, None]
    at_least_one = np.maximum(num_objects, 1)
    num_points: np.ndarray | int
    match metric:
        case "coco":
            reached = np.searchsorted(RECALLS, num_true / at_least_one, side="right")
            num_points = len(RECALLS)
        case "voc07":
            reached, num_points = 1 + 10 * num_true // at_least_one, 11
        case "voc12":  # a point for each object, and none at a recall of 0
            reached, num_points = np.tile(num_true, len(num_objects)), at_least_one
        case _:
            raise ValueError(f"metric: expected coco, voc07 or voc12, got {metric!r}")
    return reached.astype(np.int32), num_points
