"""The metrics that a configuration can name: coco, voc07 and voc12."""

from dataclasses import dataclass, field

from detector.evaluation.coco import Curve, coco_matches, coco_metrics
from detector.evaluation.matches import Matches
from detector.evaluation.results import Detection, EvaluationError, GroundTruth
from detector.evaluation.voc import voc_matches, voc_metrics

METRICS = ("coco", "voc07", "voc12")
VOC_THRESHOLDS = (0.5, 0.7)  # both are in the tables of Dai et al., arXiv:1703.06211


@dataclass(frozen=True)
class Metrics:
    """Numbers in 0..1, or None where there is no object to be found.

    Attributes:
        summary: over all classes; the first is what runs are compared by (`AP` or `mAP`).
        per_class: class name -> its numbers.
        curves: class name -> precision over recall; COCO's alone.
    """

    summary: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]
    curves: dict[str, Curve] = field(default_factory=dict)

    def table(self) -> str:
        """A markdown table: all classes first, then each."""
        names = list(self.summary)
        rows = [["class", *names], ["---"] * (len(names) + 1)]
        for label, numbers in [("all", self.summary), *self.per_class.items()]:
            rows.append(
                [label, *(_percent(numbers[name]) if name in numbers else "" for name in names)]
            )
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def score(
    metric: str,
    ground_truth: GroundTruth,
    detections: list[Detection],
    *,
    class_agnostic: bool = False,
    backend: str = "pycocotools",
    pixel_inclusive: bool = False,
) -> Metrics:
    """Score detections by one of `METRICS`.

    COCO's numbers are those of `coco_metrics`, which explains `class_agnostic` and `backend`. VOC's
    are mAP and AP50, which are the same, and AP70; `voc_metrics` explains `pixel_inclusive`.

    Raises:
        EvaluationError: the metric is unknown or has no such option, or the data breaks the format.
    """
    _check_options(metric, class_agnostic, backend, pixel_inclusive)
    if metric == "coco":
        coco = coco_metrics(
            ground_truth, detections, class_agnostic=class_agnostic, backend=backend
        )
        return Metrics(coco.summary, coco.per_class, coco.curves)
    at_50, at_70 = (
        voc_metrics(
            ground_truth,
            detections,
            rule="voc07" if metric == "voc07" else "voc12",
            iou_threshold=iou_threshold,
            pixel_inclusive=pixel_inclusive,
        )
        for iou_threshold in VOC_THRESHOLDS
    )
    summary = at_50.summary | {"AP70": at_70.summary["AP70"]}
    per_class = {name: aps | at_70.per_class[name] for name, aps in at_50.per_class.items()}
    return Metrics(summary, per_class)


def match(
    metric: str,
    ground_truth: GroundTruth,
    detections: list[Detection],
    *,
    class_agnostic: bool = False,
    pixel_inclusive: bool = False,
) -> Matches:
    """What `score` is computed from, for AP and AP50, or mAP and AP70.

    Raises:
        EvaluationError: as `score`.
    """
    _check_options(metric, class_agnostic, "pycocotools", pixel_inclusive)
    if metric == "coco":
        return coco_matches(ground_truth, detections, class_agnostic=class_agnostic)
    summary = score(metric, ground_truth, detections, pixel_inclusive=pixel_inclusive).summary
    classes = voc_matches(
        ground_truth, detections, iou_thresholds=VOC_THRESHOLDS, pixel_inclusive=pixel_inclusive
    )
    return Matches(
        list(classes.values()),
        {name: summary[name] for name in ("mAP", "AP70")},
        {"mAP": slice(0, 1), "AP70": slice(1, 2)},
    )


def _check_options(metric: str, class_agnostic: bool, backend: str, pixel_inclusive: bool) -> None:
    if metric not in METRICS:
        raise EvaluationError(f"metric={metric} is none of {', '.join(METRICS)}")
    if metric == "coco" and pixel_inclusive:
        raise EvaluationError("pixel_inclusive=true is for metric=voc07 and voc12, got metric=coco")
    if metric != "coco" and class_agnostic:
        raise EvaluationError(f"class_agnostic=true is for metric=coco, got metric={metric}")
    if metric != "coco" and backend != "pycocotools":
        raise EvaluationError(f"backend={backend} is for metric=coco, got metric={metric}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
