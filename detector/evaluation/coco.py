"""The COCO metrics of box detections: https://cocodataset.org/#detection-eval.

The backend "numpy" computes them from the matches of the whole data set, and equals pycocotools to
the last bit. The backend "pycocotools" is the reference for the tests, and for users who want to
check that both agree.
"""

import io
from contextlib import redirect_stdout
from dataclasses import dataclass

import numpy as np

from detector.choices import BACKENDS
from detector.evaluation.coco_format import as_detections, as_ground_truth
from detector.evaluation.coco_matches import (
    AREAS,
    MAX_DETECTIONS,
    THRESHOLDS,
    Overlaps,
    precisions,
    present_mean,
)
from detector.evaluation.columns import (
    AnyDetections,
    AnyGroundTruth,
    Detections,
    GroundTruth,
    look_up_images_and_classes,
)
from detector.evaluation.entries import EvaluationError

SUMMARY_NAMES = tuple("AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split())
SIZES = {"s": "small", "m": "medium", "l": "large"}
# Detections per image and class that AR1, AR10 and AR100 count.
MAX_DETECTIONS_OF_AR = (1, 10, MAX_DETECTIONS)


@dataclass(frozen=True)
class Curve:
    """Precision over recall of one class, at an IoU of 0.5.

    Attributes:
        precision: float64 (101,), the highest precision at each recall 0, 0.01 ... 1 or above.
        num_objects: the number of objects to detect.
    """

    precision: np.ndarray
    num_objects: int


@dataclass(frozen=True)
class CocoMetrics:
    """The metrics that COCO's page defines; None where there are no objects to detect.

    Attributes:
        summary: each of `SUMMARY_NAMES` -> 0..1 or None. AP and AR are means over the classes and
            the IoU thresholds 0.50, 0.55 ... 0.95; AP50 and AP75 are at a single threshold. The
            suffixes s, m and l mean objects with an area of up to 32^2, up to 96^2, and more, in
            square pixels. AR1, AR10 and AR100 count that many detections per image and class; all
            other metrics count 100.
        per_class: class name -> {"AP": ..., "AP50": ...}, each 0..1 or None, in the order of
            category ids. Empty for class-agnostic metrics.
        curves: class name -> its curve, for classes with objects to detect. Empty for
            class-agnostic metrics.
    """

    summary: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]
    curves: dict[str, Curve]


@dataclass(frozen=True)
class _Scores:
    """Precision and recall, -1 for classes without objects to detect.

    Attributes:
        precisions: area -> (T, R, K).
        recalls: area and the number of detections counted -> (T, K).
    """

    precisions: dict[str, np.ndarray]
    recalls: dict[tuple[str, int], np.ndarray]


def coco_metrics(
    ground_truth: AnyGroundTruth,
    detections: AnyDetections,
    *,
    class_agnostic: bool = False,
    backend: str = "numpy",
) -> CocoMetrics:
    """Score `detections` against `ground_truth`; neither is changed.

    Args:
        ground_truth: COCO-format content, see `coco_format.py`.
        detections: COCO-format results. If they are empty, all metrics with objects to detect are
            0.
        class_agnostic: treat all classes as one, as pycocotools does with useCats=0. A detection
            then matches objects of every class, and only 100 detections of an image count.
        backend: one of `BACKENDS`; both give the same numbers.

    Raises:
        EvaluationError: the ground truth or the detections break the format, a detection is of an
            unknown image or category, or the backend is unknown.
    """
    check_backend(backend)
    ground_truth, detections = as_ground_truth(ground_truth), as_detections(detections)
    scores = {"numpy": _by_numpy, "pycocotools": _by_pycocotools}[backend](
        ground_truth, detections, class_agnostic
    )
    of_all = scores.precisions["all"]
    summary = {
        "AP": present_mean(of_all),
        "AP50": present_mean(of_all[0]),
        "AP75": present_mean(of_all[5]),
    }
    summary |= {f"AP{s}": present_mean(scores.precisions[size]) for s, size in SIZES.items()}
    summary |= {
        f"AR{most}": present_mean(scores.recalls["all", most]) for most in MAX_DETECTIONS_OF_AR
    }
    summary |= {
        f"AR{s}": present_mean(scores.recalls[size, MAX_DETECTIONS]) for s, size in SIZES.items()
    }
    if class_agnostic:
        return CocoMetrics(summary, {}, {})
    per_class = {
        name: {"AP": _mean(of_class), "AP50": _mean(of_class[0])}
        for name, of_class in zip(ground_truth.names, of_all.transpose(2, 0, 1), strict=True)
    }
    return CocoMetrics(summary, per_class, _curves(ground_truth, of_all))


def check_backend(name: str) -> None:
    """Refuse an unknown backend.

    Raises:
        EvaluationError: the name is not in `BACKENDS`.
    """
    if name not in BACKENDS:
        raise EvaluationError(f"backend={name} must be one of {', '.join(BACKENDS)}")


def _by_numpy(ground_truth: GroundTruth, detections: Detections, class_agnostic: bool) -> _Scores:
    overlaps = Overlaps(ground_truth, detections, class_agnostic=class_agnostic)
    found, recalls = {}, {}
    for area in AREAS:
        classes = overlaps.matches(area)
        found[area] = precisions(classes)
        for most in MAX_DETECTIONS_OF_AR if area == "all" else (MAX_DETECTIONS,):
            recall = np.full((len(THRESHOLDS), len(classes)), -1.0)
            for place, (matches, rows) in enumerate(zip(classes, overlaps.classes, strict=True)):
                if len(matches.object_images):
                    is_seen = overlaps.ranks[rows] < most
                    num_true = np.count_nonzero(matches.true_positives & is_seen, axis=1)
                    recall[:, place] = num_true / len(matches.object_images)
            recalls[area, most] = recall
    return _Scores(found, recalls)


def _by_pycocotools(
    ground_truth: GroundTruth, detections: Detections, class_agnostic: bool
) -> _Scores:
    """Score with pycocotools.

    Its pitfalls are avoided: it fails if there are no detections, loses the match of an annotation
    with the id 0, and prints to the terminal.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    look_up_images_and_classes(ground_truth, detections)
    results = [
        entry | {"id": number, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}
        for number, entry in enumerate(detections.to_coco(), start=1)
    ]
    dataset = ground_truth.to_coco()
    with redirect_stdout(io.StringIO()):
        indices = []
        for annotations in (dataset["annotations"], results):
            coco = COCO()
            coco.dataset = dataset | {"annotations": annotations}
            coco.createIndex()
            indices.append(coco)
        evaluator = COCOeval(*indices, "bbox")
        evaluator.params.useCats = int(not class_agnostic)
        evaluator.evaluate()
        evaluator.accumulate()
    found, recalls = evaluator.eval["precision"], evaluator.eval["recall"]
    return _Scores(
        {area: found[:, :, :, place, -1] for place, area in enumerate(AREAS)},
        {
            (area, most): recalls[:, :, place, number]
            for place, area in enumerate(AREAS)
            for number, most in enumerate(MAX_DETECTIONS_OF_AR)
        },
    )


def _curves(ground_truth: GroundTruth, of_all: np.ndarray) -> dict[str, Curve]:
    is_object = ~ground_truth.is_crowd & (ground_truth.areas <= AREAS["all"][1])
    counts = np.bincount(ground_truth.classes[is_object], minlength=len(ground_truth.names))
    return {
        name: Curve(precision, count)
        for name, precision, count in zip(
            ground_truth.names, of_all[0].T, counts.tolist(), strict=True
        )
        if (precision >= 0).all()
    }


def _mean(of_class: np.ndarray) -> float | None:
    """Average the precisions of a class; None if they are -1, for a class without objects."""
    return None if (of_class == -1).any() else float(of_class.mean())
