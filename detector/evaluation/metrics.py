"""The metrics that a configuration can name: coco, voc07 and voc12."""

from dataclasses import dataclass, field

from detector.evaluation.coco import Curve, coco_metrics
from detector.evaluation.results import Detection, EvaluationError, GroundTruth
from detector.evaluation.voc import voc_metrics

METRICS = ("coco", "voc07", "voc12")


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


def score(metric: str, ground_truth: GroundTruth, detections: list[Detection]) -> Metrics:
    """Score detections by one of `METRICS`.

    Raises:
        EvaluationError: the metric is unknown, or the data breaks the format.
    """
    match metric:
        case "coco":
            coco = coco_metrics(ground_truth, detections)
            return Metrics(coco.summary, coco.per_class, coco.curves)
        case "voc07" | "voc12":
            voc = voc_metrics(ground_truth, detections, rule=metric)
            return Metrics(voc.summary, voc.per_class)
        case _:
            raise EvaluationError(f"metric={metric} is none of {', '.join(METRICS)}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
