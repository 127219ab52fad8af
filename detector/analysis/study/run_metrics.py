"""Computes the numbers of a run that a study compares, on the validation images and on resamples.

    AP, AP50, AP75, APs, APm, APl    the metric coco, overall and by size
    mAP, and AP at other thresholds  the metrics voc07 and voc12
    class NAME                       the first of these numbers for one class
    error KIND                       the AP50 that fixing all errors of a kind would add, as
                                     `detector/analysis/errors` defines them (coco only)

I: images, B: resamples, K: classes, T: IoU thresholds.
"""

import numpy as np

from detector.analysis.errors.diagnosis import KINDS, diagnose
from detector.analysis.errors.gains import fixed
from detector.evaluation.coco_matches import coco_matches
from detector.evaluation.columns import Detections, GroundTruth
from detector.evaluation.matches import ClassMatches, Matches
from detector.evaluation.metrics import match
from detector.evaluation.resampling import class_mean, resampled_classes

SIZES = {"APs": "small", "APm": "medium", "APl": "large"}
CLASS, ERROR = "class ", "error "


def run_metrics(
    metric: str, ground_truth: GroundTruth, detections: Detections, counts: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute all numbers of a run.

    Args:
        counts: integers (I, B), how often each resample contains each image.

    Returns:
        Name of a number -> float64 (1 + B,): its value on the validation images, and on each
        resample of them; nan if there is no object to detect. The first name is the primary
        metric, on which the verdicts of a study are based.
    """
    counts = np.concatenate([np.ones_like(counts[:, :1]), counts], axis=1)
    matches = match(metric, ground_truth, detections)
    aps = resampled_classes(metric, matches, counts)  # (K, T, 1 + B)
    means = class_mean(aps)
    found = {name: means[chosen].mean(axis=0) for name, chosen in matches.thresholds.items()}
    if metric == "coco":
        found["AP75"] = means[5]
        for name, area in SIZES.items():
            of_size = coco_matches(ground_truth, detections, area=area)
            found[name] = class_mean(resampled_classes(metric, of_size, counts)).mean(axis=0)
    first = next(iter(matches.thresholds.values()))
    for name, of_class in zip(ground_truth.names, aps, strict=True):
        found[CLASS + name] = of_class[first].mean(axis=0)
    if metric == "coco":
        found |= error_gains(ground_truth, detections, counts, means[0])
    return found


def error_gains(
    ground_truth: GroundTruth, detections: Detections, counts: np.ndarray, ap50: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute the AP50 (1 + B,) that fixing all errors of each kind would add.

    Args:
        counts: (I, 1 + B), how often each image counts.
        ap50: (1 + B,), the AP50 before any error is fixed.
    """
    diagnosis = diagnose(ground_truth, detections)
    gains = {}
    for kind in KINDS:
        matches = _at_one_half(coco_matches(*fixed(ground_truth, diagnosis, {kind})))
        after = class_mean(resampled_classes("coco", matches, counts))[0]
        # If all objects were missed and have been removed, nothing is wrong any more: AP50 is 1.
        gains[ERROR + kind] = np.where(np.isnan(after) & np.isfinite(ap50), 1.0, after) - ap50
    return gains


def _at_one_half(matches: Matches) -> Matches:
    """Keep the matches at an IoU of 0.5 only."""
    classes = [
        ClassMatches(
            one.images, one.true_positives[:1], one.false_positives[:1], one.ties, one.object_images
        )
        for one in matches.classes
    ]
    return Matches(classes, matches.summary, {"AP50": slice(1)})
