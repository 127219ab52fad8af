"""What an AP that looks wrong may come from: another reading of the same results."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from detector.evaluation.columns import Detections, GroundTruth
from detector.evaluation.entries import EvaluationError
from detector.evaluation.voc import voc_metrics
from detector.readings import BOX_FORMATS, CATEGORIES

LOW, FAR_BETTER, CLEARLY = 0.05, 3, 0.1  # AP50; times as high and so much higher
MAX_IMAGES = 1000  # that `explain` looks at


def explain(
    ground_truth: GroundTruth,
    detections: Detections,
    reread: Callable[[str, str], Detections],
    *,
    box_format: str,
    categories: str,
) -> list[str]:
    """Why AP50 may be under 5 %: a line for each other reading under which it is far better.

    Args:
        reread: the detections by another `box_format` and `categories`.
        box_format, categories: by which they were read.
    """
    images = np.array([image["id"] for image in ground_truth.entries[:MAX_IMAGES]], dtype=np.int64)
    is_looked_at = np.isin(ground_truth.image_ids[ground_truth.images], images)
    truth = ground_truth.of(is_looked_at)

    def ap50(found: Detections, of: GroundTruth = truth) -> float:
        seen = found.of(np.isin(found.image_ids, images))
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
        except EvaluationError:  # cannot be read so
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
