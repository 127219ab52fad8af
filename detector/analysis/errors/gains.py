"""Measures what each kind of error costs: the AP50 that fixing all of its errors would add.

The errors of one kind are fixed as follows:

- localisation or classification: the detection gets the box and the class of the object with that
  best IoU. If this object is matched already, or goes to another fixed detection with a higher
  score, the detection is removed instead.
- duplicate, background or both: the detection is removed.
- missed: the object is removed. A class without any other object then drops out of the mean over
  the classes.

The gain of a kind is the AP50 after its errors are fixed minus the AP50 before.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from detector.analysis.errors.diagnosis import KINDS, Diagnosis, diagnose
from detector.evaluation.coco_format import as_detections, as_ground_truth
from detector.evaluation.coco_matches import coco_matches
from detector.evaluation.columns import AnyDetections, AnyGroundTruth, Detections, GroundTruth
from detector.evaluation.entries import EvaluationError


def fixed(
    ground_truth: GroundTruth, diagnosis: Diagnosis, kinds: Collection[str]
) -> tuple[GroundTruth, Detections]:
    """Return the ground truth and the detections after all errors of these kinds are fixed."""
    detections, targets = diagnosis.detections, diagnosis.targets
    is_fixed = np.isin(diagnosis.kinds, [KINDS.index(kind) for kind in kinds])
    # An annotation goes to the rival with the highest score; the first one wins a tie.
    rivals = np.flatnonzero(is_fixed & (targets >= 0))
    rivals = rivals[np.argsort(-detections.scores[rivals], kind="stable")]
    takers = rivals[np.unique(targets[rivals], return_index=True)[1]]
    category_ids, boxes = detections.category_ids.copy(), detections.boxes.copy()
    category_ids[takers] = ground_truth.category_ids[ground_truth.classes[targets[takers]]]
    boxes[takers] = ground_truth.boxes[targets[takers]]
    stays = ~is_fixed
    stays[takers] = True
    fixed_detections = replace(detections, category_ids=category_ids, boxes=boxes).select(stays)
    if "missed" in kinds:
        ground_truth = ground_truth.select(~diagnosis.missed)
    return ground_truth, fixed_detections


@dataclass(frozen=True)
class ErrorSplit:
    """How many errors there are of each kind, and what they cost.

    Attributes:
        ap50: the AP50 before any error is fixed, 0..1.
        counts: kind -> the number of its errors.
        gains: kind -> the AP50 that fixing all of its errors, and no others, would add, 0..1.
    """

    ap50: float
    counts: dict[str, int]
    gains: dict[str, float]


def error_split(ground_truth: AnyGroundTruth, detections: AnyDetections) -> ErrorSplit:
    """Count the errors of each kind, and compute the AP50 that fixing each kind would add.

    Args:
        ground_truth, detections: in COCO format, see `detector/evaluation/columns.py`.

    Raises:
        EvaluationError: the ground truth or the detections break the format, a detection's image or
            category is not in the ground truth, or the ground truth has no object to detect.
    """
    ground_truth, detections = as_ground_truth(ground_truth), as_detections(detections)
    before = coco_matches(ground_truth, detections).summary["AP50"]
    if before is None:
        raise EvaluationError("ground truth: it has no object to detect, so it cannot be scored")
    diagnosis = diagnose(ground_truth, detections)
    gains = {
        kind: _ap50(*fixed(ground_truth, diagnosis, {kind})) - before if count else 0.0
        for kind, count in diagnosis.counts().items()
    }
    return ErrorSplit(before, diagnosis.counts(), gains)


def _ap50(ground_truth: GroundTruth, detections: Detections) -> float:
    """Return the AP50, 0..1; 1 if all objects were missed and have been removed."""
    ap50 = coco_matches(ground_truth, detections).summary["AP50"]
    return 1.0 if ap50 is None else ap50
