"""Is one detector better than another? A paired bootstrap over the images of a test set.

Each resample draws as many images as there are, with replacement, and scores both detectors on the
same ones (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13: percentile
interval). The interval says how far the difference depends on the choice of test images. It says
nothing of the training seed: for that, compare runs of several seeds.

An image that was drawn w times is w images with ids that follow each other, and the AP of a
resample is the metric's on that data set. Nothing is matched again: matches are within an image, so
a detection of it counts w times. Among w copies of a right detection precision and recall rise, so
that the last copy's precision is the highest from the first one's recall on; among copies of a
wrong one recall stays and precision falls. So the curve at the end of each block is enough, and
only at the right ones.

D: detections of a class, by falling score;  R: the right ones of them at one IoU threshold;
T: IoU thresholds;  I: images;  B: resamples.
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

MEMORY = 2**27  # bytes, for the resamples of one class that are scored together


@dataclass(frozen=True)
class Difference:
    """One number of two detectors, 0..1, and how it differs: the first's less the second's.

    Attributes:
        first, second: on the whole set, as the metric alone gives them.
        difference: first - second.
        low, high: the interval that holds 95 % of the resamples' differences.
        share_above: of the resamples, those where the first is better; equal ones count half.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    share_above: float


@dataclass(frozen=True)
class Comparison:
    """Name of a number, AP or mAP first -> its difference; None where no object is to be found."""

    numbers: dict[str, Difference | None]
    num_images: int
    num_resamples: int

    def table(self) -> str:
        """Markdown, in percent."""
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
        """Plain containers."""
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
    """Compare two detectors' results on one ground truth: AP and AP50 by coco; mAP, at the first of
    `iou_thresholds`, and the AP at each other by voc07 and voc12. The same seed gives the same
    numbers.

    Raises:
        EvaluationError: as `metrics.score`; there are no images, or too few resamples.
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
    """From the numbers of the whole set and those of resamples (B,), nan where there is none."""
    differences = (firsts - seconds)[np.isfinite(firsts)]
    if len(differences) == 0:
        raise EvaluationError(
            f"resamples={len(firsts)} are too few: none has an object to be found"
        )
    low, high = np.percentile(differences, [2.5, 97.5])
    share = np.mean(differences > 0) + np.mean(differences == 0) / 2
    return Difference(first, second, first - second, float(low), float(high), float(share))


def draw_images(num_images: int, num_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each image is in each resample: int16 (I, B); each column adds up to I."""
    counts = np.empty((num_images, num_resamples), dtype=np.int16)
    for resample in range(num_resamples):
        drawn = rng.integers(num_images, size=num_images)
        counts[:, resample] = np.bincount(drawn, minlength=num_images)
    return counts


def resampled(metric: str, matches: Matches, counts: np.ndarray) -> dict[str, np.ndarray]:
    """The summary's numbers in each resample: name -> float64 (B,).

    A class without an object to be found in a resample has no part in that resample's mean; the
    mean over no classes is nan.

    Args:
        counts: integers (I, B), how often each image is there.
    """
    means = class_mean(resampled_classes(metric, matches, counts))  # (T, B)
    return {name: means[chosen].mean(axis=0) for name, chosen in matches.thresholds.items()}


def class_mean(aps: np.ndarray) -> np.ndarray:
    """The mean (T, B) over the classes that have an object, of AP (K, T, B)."""
    present = np.isfinite(aps)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(present, aps, 0.0).sum(axis=0) / present.sum(axis=0)
    return mean


def resampled_classes(metric: str, matches: Matches, counts: np.ndarray) -> np.ndarray:
    """AP (K, T, B) of each class in each resample, nan where it has no object to be found.

    Args:
        counts: integers (I, B), how often each image is there.
    """
    num_resamples = counts.shape[1]
    counts = counts.astype(np.int32)
    aps = np.full((len(matches.classes), len(matches.classes[0].right), num_resamples), np.nan)
    for of_class, out in zip(matches.classes, aps, strict=True):
        num_right = int(np.count_nonzero(of_class.right.any(axis=0)))
        step = max(MEMORY // (40 * num_right + 4 * len(counts)), 1)
        present, times = np.unique(of_class.objects, return_counts=True)
        for start in range(0, num_resamples, step):
            chunk = np.ascontiguousarray(counts[:, start : start + step])
            num_objects = times @ chunk[present]
            found = _average_precisions(metric, of_class, chunk, num_objects)
            out[:, start : start + step] = np.where(num_objects > 0, found, np.nan)
    return aps


def _average_precisions(
    metric: str, matches: ClassMatches, counts: np.ndarray, num_objects: np.ndarray
) -> np.ndarray:
    """AP (T, B) of one class, where `num_objects` (B,) is not 0.

    AP is the mean over recall points of the best precision at that recall or above: a right
    detection with n up to it adds its best precision for each point that n objects reach and the
    right one before it did not.
    """
    detections, copies = _in_order(matches, int(counts.max()))
    is_right, is_wrong = matches.right[:, detections], matches.wrong[:, detections]  # (T, D)
    images = matches.images[detections]
    of_one_copy = np.flatnonzero(copies >= 0)  # each is there once, or not: as an image of its own
    own = counts[images[of_one_copy]] > copies[of_one_copy, None]
    images[of_one_copy] = len(counts) + np.arange(len(of_one_copy))
    counts = np.concatenate([counts, own.astype(np.int32)])

    is_counted = is_right | is_wrong
    at_some = is_counted.any(axis=0)
    places = np.flatnonzero(is_right.any(axis=0))
    weights = counts[images[places]]  # (R, B), of those that are right at some threshold
    counted = _up_to(places, at_some, images, counts)
    reached, num_points = _points_reached(metric, num_objects)
    columns = np.arange(counts.shape[1])
    aps = np.zeros((len(matches.right), counts.shape[1]))
    for threshold, is_right_here in enumerate(is_right[:, places]):
        here = np.flatnonzero(is_right_here)
        if len(here) == 0:
            continue
        num_right = _accumulate(np.add, weights[here])  # (R, B)
        num_counted = counted[here]
        is_ignored = at_some & ~is_counted[threshold]
        if is_ignored.any():
            num_counted -= _up_to(places[here], is_ignored, images, counts)
        precisions = num_right / (num_counted + np.spacing(1))  # as pycocotools; never 0 / 0
        best = _accumulate(np.maximum, precisions[::-1])[::-1]
        # reached[num_right, columns], in half the time
        num_reached = reached.take(num_right * len(columns) + columns)
        num_new = np.diff(num_reached, axis=0, prepend=np.int32(0))
        aps[threshold] = np.einsum("rb,rb->b", best, num_new) / num_points
    return aps


def _up_to(
    places: np.ndarray, chosen: np.ndarray, images: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """How often the chosen detections (D,) up to each of the rising `places` are there: int32
    (R, B), of detections in the images (D,), which are there `counts` (I, B) times.
    """
    rows = np.searchsorted(places, np.flatnonzero(chosen))
    before = rows < len(places)
    entries = (rows[before], images[chosen][before])
    ones = np.ones(len(entries[0]), dtype=np.int32)
    between = csr_array((ones, entries), shape=(len(places), len(counts)))
    return _accumulate(np.add, between @ counts)


def _in_order(matches: ClassMatches, most_copies: int) -> tuple[np.ndarray, np.ndarray]:
    """The detections as resamples rank them, and which copy of its image each stands for.

    The second is -1 for all copies, which are neighbours. They are not where ties stand together,
    a b a b, and some of those are right and some wrong; these are listed copy by copy.
    """
    num_detections = len(matches.images)
    detections = np.arange(num_detections)
    if num_detections == 0:
        return detections, detections
    is_first = np.diff(matches.ties, prepend=matches.ties[0] - 1) != 0
    starts, groups = np.flatnonzero(is_first), np.cumsum(is_first) - 1
    some_right, some_wrong = (
        np.logical_or.reduceat(judged, starts, axis=1) for judged in (matches.right, matches.wrong)
    )
    is_mixed = np.any(some_right & some_wrong, axis=0)[groups]
    times = np.where(is_mixed, most_copies, 1)
    detections = np.repeat(detections, times)
    copies = np.arange(len(detections)) - np.repeat(np.cumsum(times) - times, times)
    order = np.lexsort((detections, copies, groups[detections]))
    detections, copies = detections[order], copies[order]
    return detections, np.where(is_mixed[detections], copies, -1)


def _accumulate(operation: np.ufunc, rows: np.ndarray) -> np.ndarray:
    """operation.accumulate(rows, axis=0), in place, and faster: that goes column by column."""
    for above, row in pairwise(rows):
        operation(above, row, out=row)
    return rows


def _points_reached(metric: str, num_objects: np.ndarray) -> tuple[np.ndarray, np.ndarray | int]:
    """How many recall points 0, 1 ... N - 1 of `num_objects` (B,) reach: int32 (N, B); and of how
    many points AP is the mean.
    """
    num_right = np.arange(num_objects.max() + 1, dtype=np.int32)[:, None]
    at_least_one = np.maximum(num_objects, 1)
    num_points: np.ndarray | int
    match metric:
        case "coco":
            reached = np.searchsorted(RECALLS, num_right / at_least_one, side="right")
            num_points = len(RECALLS)
        case "voc07":
            reached, num_points = 1 + 10 * num_right // at_least_one, 11
        case "voc12":  # each object is a point, a recall of 0 is not
            reached, num_points = np.tile(num_right, len(num_objects)), at_least_one
        case _:
            raise ValueError(f"metric: expected coco, voc07 or voc12, got {metric!r}")
    return reached.astype(np.int32), num_points
