"""Explain a suspiciously low AP: look for a reading of the same results that scores higher."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from detector.choices import BOX_FORMATS, CATEGORIES
from detector.evaluation.columns import Detections, GroundTruth
from detector.evaluation.entries import EvaluationError
from detector.evaluation.voc import voc_metrics

# An AP50 below LOW is explained by a reading whose AP50 is more than FAR_BETTER times as high, and
# higher by more than CLEARLY.
LOW, FAR_BETTER, CLEARLY = 0.05, 3, 0.1
MAX_IMAGES = 1000


def explain(
    ground_truth: GroundTruth,
    detections: Detections,
    reread: Callable[[str, str], Detections],
    *,
    box_format: str,
    categories: str,
) -> list[str]:
    """Explain why AP50 is below 5 %, with a line for each other reading that scores far higher.

    Args:
        ground_truth: only its first `MAX_IMAGES` images are scored.
        detections: as they were read.
        reread: reads the detections again, with another `box_format` and `categories`.
        box_format, categories: the options with which `detections` were read.

    Returns:
        The lines. There are none if AP50 is not low, or if no other reading scores far higher.
    """
    images = np.array([image["id"] for image in ground_truth.entries[:MAX_IMAGES]], dtype=np.int64)
    is_looked_at = np.isin(ground_truth.image_ids[ground_truth.images], images)
    truth = ground_truth.select(is_looked_at)

    def ap50(found: Detections, of: GroundTruth = truth) -> float:
        seen = found.select(np.isin(found.image_ids, images))
        metrics = voc_metrics(of, seen, rule="voc12", iou_thresholds=(0.5,))
        return metrics.summary["mAP"] or 0.0

    as_read = ap50(detections)
    if as_read >= LOW or not len(detections) or not len(truth.images):
        return []
    lines = []
    readings = [(form, categories) for form in BOX_FORMATS if form != box_format] + [
        (box_format, kind) for kind in CATEGORIES if kind != categories
    ]
    for form, kind in readings:
        try:
            value = ap50(reread(form, kind))
        except EvaluationError:  # the results cannot be read in this way
            continue
        if value > max(FAR_BETTER * as_read, as_read + CLEARLY):
            option = f"box_format={form}" if form != box_format else f"categories={kind}"
            lines.append(f"read with {option}, AP50 is {100 * value:.1f}")
    one_class = replace(
        truth,
        category_ids=np.ones(1, dtype=np.int64),
        names=("object",),
        classes=np.zeros_like(truth.classes),
    )
    found = replace(detections, category_ids=np.ones_like(detections.category_ids))
    agnostic = ap50(found, one_class)
    if agnostic > max(FAR_BETTER * as_read, as_read + CLEARLY):
        lines.append(
            f"with all classes as one (class_agnostic=true), AP50 is {100 * agnostic:.1f}: boxes "
            "are right and categories are not"
        )
    return lines
