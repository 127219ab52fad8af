"""The numbers of a run, on the images that there are and on resampled ones.

`AP`, `AP50`, `AP75` and the AP of each size by coco, `mAP` and the AP at other thresholds by voc07
and voc12; `class NAME` is the first of these for a class; `error KIND` the AP50 that its errors
cost, as `detector.analysis.errors` has it (coco).

I: images;  B: resamples;  K: classes;  T: IoU thresholds.
"""

import numpy as np

from detector.analysis.errors.diagnosis import KINDS, diagnose, mended
from detector.evaluation.coco_matches import coco_matches
from detector.evaluation.columns import Detections, GroundTruth
from detector.evaluation.matches import ClassMatches, Matches
from detector.evaluation.metrics import match
from detector.evaluation.paired import class_mean, resampled_classes

SIZES = {"APs": "small", "APm": "medium", "APl": "large"}
CLASS, ERROR = "class ", "error "


def numbers(
    metric: str, ground_truth: GroundTruth, detections: Detections, counts: np.ndarray
) -> dict[str, np.ndarray]:
    """Name -> float64 (1 + B,): on the images that there are, then on each resample; nan where no
    object is to be found. The first is what arms are compared by.

    Args:
        counts: integers (I, B), how often each image is drawn.
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
        found |= errors(ground_truth, detections, counts, means[0])
    return found


def errors(
    ground_truth: GroundTruth, detections: Detections, counts: np.ndarray, ap50: np.ndarray
) -> dict[str, np.ndarray]:
    """The AP50 (1 + B,) that mending all errors of each kind would add."""
    diagnosis = diagnose(ground_truth, detections)
    gains = {}
    for kind in KINDS:
        matches = _at_one_half(coco_matches(*mended(ground_truth, diagnosis, {kind})))
        after = class_mean(resampled_classes("coco", matches, counts))[0]
        # Where all objects are missed and left out, nothing is wrong.
        gains[ERROR + kind] = np.where(np.isnan(after) & np.isfinite(ap50), 1.0, after) - ap50
    return gains


def _at_one_half(matches: Matches) -> Matches:
    """At an IoU of 0.5 alone."""
    classes = [
        ClassMatches(one.images, one.right[:1], one.wrong[:1], one.ties, one.objects)
        for one in matches.classes
    ]
    return Matches(classes, matches.summary, {"AP50": slice(1)})
