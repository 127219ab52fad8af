"""Compare two detectors by a paired bootstrap over the images of a test set.

Each resample draws as many images as the set has, with replacement, and scores both detectors on
the same images (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13:
percentile interval). The interval shows how much the difference depends on the choice of test
images. It does not cover the training seed: for that, compare runs of several seeds.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detector.evaluation.coco_format import as_ground_truth
from detector.evaluation.columns import AnyDetections, AnyGroundTruth
from detector.evaluation.entries import EvaluationError
from detector.evaluation.metrics import VOC_THRESHOLDS, match
from detector.evaluation.resampling import draw_images, resampled


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
