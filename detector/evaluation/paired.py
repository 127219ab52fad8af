"""Compare two detectors by a paired bootstrap over the images of a test set.

Each resample draws as many images as the set has, with replacement, and scores both detectors on
the same images (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13:
percentile interval). The interval shows how much the difference depends on the choice of test
images. It does not cover the training seed: for that, compare runs of several seeds.

In a resample, an image that was drawn w times stands for w images with consecutive ids, and AP is
the metric's AP on that data set. Detections are not matched again: they match objects of their own
image only, so each of them simply counts w times. From copy to copy of a true positive, precision
and recall rise, so the precision after the last copy is the highest one from the recall of the
first copy on. From copy to copy of a false positive, recall is constant and precision falls. It is
therefore enough to compute the precision-recall curve after the last copy of each true positive.

D: detections of a class, by descending score;  R: true positives among them;
T: IoU thresholds;  I: images;  B: resamples;  K: classes.
"""

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from detector.evaluation.coco_matches import RECALLS
from detector.evaluation.columns import AnyDetections, AnyGroundTruth, as_ground_truth
from detector.evaluation.entries import EvaluationError
from detector.evaluation.matches import ClassMatches, Matches
from detector.evaluation.metrics import VOC_THRESHOLDS, match

MEMORY = 2**27  # bytes for the resamples of one class that are scored at a time


@dataclass(frozen=True)
class Difference:
    """A score of two detectors, such as AP, and the difference of the two, with its interval.

    Attributes:
        first, second: the scores on the whole data set, 0..1.
        difference: first - second.
        low, high: the 95 % percentile interval of the differences in the resamples.
        share_above: the fraction of the resamples in which the first detector is better; those in
            which both are equal count half.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    share_above: float


@dataclass(frozen=True)
class Comparison:
    """The comparison of two detectors.

    Attributes:
        numbers: name of a score, AP or mAP first -> its difference; None where there are no
            objects to detect.
        num_images: the number of images in the test set, and in each resample.
        num_resamples: the number of resamples.
    """

    numbers: dict[str, Difference | None]
    num_images: int
    num_resamples: int

    def table(self) -> str:
        """Format the comparison as a Markdown table, in percent."""
        lines = [
            "| | first | second | difference | 95 % interval | first better in |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for name, number in self.numbers.items():
            if number is None:
                lines.append(f"| {name} | - | - | - | - | - |")
                continue
            values = f"{100 * number.first:.2f} | {100 * number.second:.2f}"
            interval = f"{100 * number.low:+.2f} to {100 * number.high:+.2f}"
            lines.append(
                f"| {name} | {values} | {100 * number.difference:+.2f} | {interval} | "
                f"{100 * number.share_above:.1f} % of resamples |"
            )
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Convert to dictionaries and numbers that json.dumps accepts."""
        return asdict(self)


def compare(
    ground_truth: AnyGroundTruth,
    first: AnyDetections,
    second: AnyDetections,
    *,
    metric: str,
    num_resamples: int,
    seed: int,
    class_agnostic: bool = False,
    pixel_inclusive: bool = False,
    iou_thresholds: tuple[float, ...] = VOC_THRESHOLDS,
) -> Comparison:
    """Compare the results of two detectors on the same ground truth by a paired bootstrap.

    For coco, AP and AP50 are compared. For voc07 and voc12, mAP, which is the AP at the first of
    `iou_thresholds`, and the AP at each other threshold are compared.

    Args:
        metric: one of `metrics.METRICS`.
        num_resamples: at least 1.
        seed: of the random generator that draws the resamples, at least 0. The same seed gives the
            same numbers.
        class_agnostic, pixel_inclusive, iou_thresholds: as in `metrics.score`.

    Raises:
        EvaluationError: `metrics.score` refuses the data or an option, an argument is out of range,
            the ground truth has no images, or no resample has an object to detect.
    """
    if num_resamples < 1:
        raise EvaluationError(f"resamples={num_resamples} must be at least 1")
    if seed < 0:
        raise EvaluationError(f"seed={seed} must be at least 0")
    ground_truth = as_ground_truth(ground_truth)
    num_images = len(ground_truth.image_ids)
    if num_images == 0:
        raise EvaluationError("a comparison needs images: the ground truth has none")
    both = [
        match(
            metric,
            ground_truth,
            detections,
            class_agnostic=class_agnostic,
            pixel_inclusive=pixel_inclusive,
            iou_thresholds=iou_thresholds,
        )
        for detections in (first, second)
    ]
    counts = draw_images(num_images, num_resamples, np.random.default_rng(seed))
    numbers: dict[str, Difference | None] = dict.fromkeys(both[0].summary)
    if None not in both[0].summary.values():
        resamples = [resampled(metric, matches, counts) for matches in both]
        for name in numbers:
            first_number, second_number = (matches.summary[name] for matches in both)
            assert first_number is not None and second_number is not None
            numbers[name] = _difference(
                first_number, second_number, *(values[name] for values in resamples)
            )
    return Comparison(numbers, num_images, num_resamples)


def _difference(first: float, second: float, firsts: np.ndarray, seconds: np.ndarray) -> Difference:
    """Compute the difference from the scores on the whole set and those on resamples (B,).

    A resample without objects to detect has nan and is left out.
    """
    differences = (firsts - seconds)[np.isfinite(firsts)]
    if len(differences) == 0:
        raise EvaluationError(f"resamples={len(firsts)} are too few: none has an object to detect")
    low, high = np.percentile(differences, [2.5, 97.5])
    share = np.mean(differences > 0) + np.mean(differences == 0) / 2
    return Difference(first, second, first - second, float(low), float(high), float(share))


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
