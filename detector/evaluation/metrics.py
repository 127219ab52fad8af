"""The metrics that a configuration can name: coco, voc07 and voc12."""

from dataclasses import dataclass, field
from typing import cast, get_args

from detector.choices import METRICS
from detector.evaluation.coco import Curve, check_backend, coco_metrics
from detector.evaluation.coco_matches import coco_matches
from detector.evaluation.columns import AnyDetections, AnyGroundTruth
from detector.evaluation.entries import EvaluationError
from detector.evaluation.matches import Matches
from detector.evaluation.voc import Rule, ap_name, check_thresholds, voc_metrics
from detector.tables import one_line

ALL = "all classes"
# With 20 classes or more, a table shows only the 5 best and the 5 worst.
MANY_CLASSES, SHOWN_CLASSES = 20, 5
LABEL = 34  # characters of a class name, so that a line with six numbers fits into 80 columns
VOC_THRESHOLDS = (0.5, 0.7)  # both are in the tables of Dai et al., arXiv:1703.06211


@dataclass(frozen=True)
class Metrics:
    """Scores in 0..1, or None where there are no objects to detect.

    Attributes:
        summary: name -> score over all classes. Runs are compared by the first one, `AP` or `mAP`.
        per_class: class name -> the scores of the class, by name.
        curves: class name -> its precision over recall. Only `metric=coco` has curves.
    """

    summary: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]
    curves: dict[str, Curve] = field(default_factory=dict)

    def table(self, *, all_in: str) -> str:
        """Format the scores in percent, in columns for a terminal.

        The scores over all classes come first, six to a line, then those of each class. Of
        `MANY_CLASSES` classes or more, only the best and the worst of those with objects to detect
        are listed, and the others are counted.

        Args:
            all_in: the file with the scores of all classes, to which a shortened list refers.
        """
        names = list(self.summary)
        of_class = [name for name in names if any(name in of for of in self.per_class.values())]
        labels = {name: one_line(name)[:LABEL] for name in self.per_class}
        width = 2 + max(map(len, [ALL, *labels.values()]))
        lines = []
        for first in range(0, len(names), 6):
            block = names[first : first + 6]
            lines += [_line("", block, width), _line(ALL, _texts(self.summary, block), width)]
        lines += ["", _line("", of_class, width)]
        listed = self._listed()
        shown = [
            _line(labels[name], _texts(self.per_class[name], of_class), width) for name in listed
        ]
        if len(self.per_class) >= MANY_CLASSES and len(listed) > 2 * SHOWN_CLASSES:
            num_left_out = len(listed) - 2 * SHOWN_CLASSES
            shown[SHOWN_CLASSES:-SHOWN_CLASSES] = [f"... {num_left_out} more in {all_in}"]
        if len(listed) < len(self.per_class):
            num_without = len(self.per_class) - len(listed)
            shown.append(f"... {num_without} without objects to detect")
        return "\n".join([*lines, *shown])

    def _listed(self) -> list[str]:
        """Return all classes in order or, if there are many, those with a score, best first."""
        if len(self.per_class) < MANY_CLASSES:
            return list(self.per_class)
        firsts = {name: next(iter(numbers.values())) for name, numbers in self.per_class.items()}
        with_objects = {name: value for name, value in firsts.items() if value is not None}
        return sorted(with_objects, key=lambda name: -with_objects[name])

    def line(self) -> str:
        """Format the first three scores over all classes in percent, as one line."""
        return "  ".join(f"{name} {_percent(self.summary[name])}" for name in [*self.summary][:3])


def score(
    metric: str,
    ground_truth: AnyGroundTruth,
    detections: AnyDetections,
    *,
    class_agnostic: bool = False,
    backend: str = "numpy",
    pixel_inclusive: bool = False,
    iou_thresholds: tuple[float, ...] = VOC_THRESHOLDS,
) -> Metrics:
    """Score detections by one of `METRICS`.

    For coco, the scores are those of `coco_metrics`, which explains `class_agnostic` and `backend`.
    For voc07 and voc12, they are the AP at each of `iou_thresholds`, named after the threshold
    (AP50 and AP70), preceded by mAP, which equals the first AP; `voc_metrics` explains
    `pixel_inclusive`.

    Raises:
        EvaluationError: the metric is unknown, an option is out of range or does not belong to
            this metric, or the data breaks the format.
    """
    check_options(
        metric,
        class_agnostic=class_agnostic,
        backend=backend,
        pixel_inclusive=pixel_inclusive,
        iou_thresholds=iou_thresholds,
    )
    if metric == "coco":
        coco = coco_metrics(
            ground_truth, detections, class_agnostic=class_agnostic, backend=backend
        )
        return Metrics(coco.summary, coco.per_class, coco.curves)
    voc = voc_metrics(
        ground_truth,
        detections,
        rule=cast(Rule, metric),  # the only metrics that are left
        iou_thresholds=iou_thresholds,
        pixel_inclusive=pixel_inclusive,
    )
    return Metrics(voc.summary, voc.per_class)


def match(
    metric: str,
    ground_truth: AnyGroundTruth,
    detections: AnyDetections,
    *,
    class_agnostic: bool = False,
    pixel_inclusive: bool = False,
    iou_thresholds: tuple[float, ...] = VOC_THRESHOLDS,
) -> Matches:
    """Match detections with ground truth as `score` does, and return the matches.

    The summary has AP and AP50 for coco. For voc07 and voc12 it has mAP, which is the AP at the
    first IoU threshold, and the AP at each other threshold.

    Raises:
        EvaluationError: as `score`.
    """
    check_options(
        metric,
        class_agnostic=class_agnostic,
        pixel_inclusive=pixel_inclusive,
        iou_thresholds=iou_thresholds,
    )
    if metric == "coco":
        return coco_matches(ground_truth, detections, class_agnostic=class_agnostic)
    voc = voc_metrics(
        ground_truth,
        detections,
        rule=cast(Rule, metric),  # the only metrics that are left
        iou_thresholds=iou_thresholds,
        pixel_inclusive=pixel_inclusive,
    )
    names = ["mAP", *map(ap_name, iou_thresholds[1:])]
    return Matches(
        voc.matches,
        {name: voc.summary[name] for name in names},
        {name: slice(i, i + 1) for i, name in enumerate(names)},
    )


def check_options(
    metric: str,
    *,
    class_agnostic: bool = False,
    backend: str = "numpy",
    pixel_inclusive: bool = False,
    iou_thresholds: tuple[float, ...] = VOC_THRESHOLDS,
) -> None:
    """Refuse options that `score` would refuse, before a detector runs.

    Raises:
        EvaluationError: the metric or the backend is unknown, an option does not belong to this
            metric, or `check_thresholds` refuses the IoU thresholds.
    """
    if metric not in METRICS:
        raise EvaluationError(f"metric={metric} must be one of {', '.join(METRICS)}")
    if metric not in get_args(Rule) and pixel_inclusive:
        raise EvaluationError(
            f"pixel_inclusive=true is for metric=voc07 and voc12, got metric={metric}"
        )
    if metric not in get_args(Rule) and iou_thresholds != VOC_THRESHOLDS:
        thresholds = f"iou_thresholds={list(iou_thresholds)}"
        raise EvaluationError(f"{thresholds} is for metric=voc07 and voc12, got metric={metric}")
    check_thresholds(iou_thresholds)
    if metric != "coco" and class_agnostic:
        raise EvaluationError(f"class_agnostic=true is for metric=coco, got metric={metric}")
    if metric != "coco" and backend != "numpy":
        raise EvaluationError(f"backend={backend} is for metric=coco, got metric={metric}")
    check_backend(backend)


def _texts(numbers: dict[str, float | None], names: list[str]) -> list[str]:
    """Format the scores of the given names in percent; the text of an absent score is empty."""
    return [_percent(numbers[name]) if name in numbers else "" for name in names]


def _line(label: str, cells: list[str], width: int) -> str:
    """Join a label and right-aligned cells."""
    return (f"{label:<{width}}" + "".join(f"{cell:>7}" for cell in cells)).rstrip()


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
