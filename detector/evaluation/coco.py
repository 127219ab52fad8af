"""The COCO metrics of box detections: https://cocodataset.org/#detection-eval.

They are computed from the matches of the whole set. pycocotools, whose numbers they are to the last
bit, is the other backend: it judges ours in the tests, and for whoever wants to see it agree.
"""

import io
from contextlib import redirect_stdout
from dataclasses import dataclass

import numpy as np

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
    as_detections,
    as_ground_truth,
    placed,
)
from detector.evaluation.entries import EvaluationError

SUMMARY_NAMES = tuple("AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split())
BACKENDS = ("numpy", "pycocotools")
SIZES = {"s": "small", "m": "medium", "l": "large"}
MOST = (1, 10, MAX_DETECTIONS)  # detections of an image and class, for AR


@dataclass(frozen=True)
class Curve:
    """Precision over recall of one class, at an IoU of 0.5.

    Attributes:
        precision: float64 (101,), the highest at a recall of 0, 0.01 ... 1 or above.
        num_objects: that are to be found.
    """

    precision: np.ndarray
    num_objects: int


@dataclass(frozen=True)
class CocoMetrics:
    """What COCO's page defines; None where no object is to be found.

    Attributes:
        summary: each of `SUMMARY_NAMES` -> 0..1 or None. AP and AR are means over the classes and
            the IoU thresholds 0.50, 0.55 ... 0.95. AP50 and AP75 are at one threshold. s, m, l are
            objects of an area up to 32^2, up to 96^2, and above. AR1, AR10 and AR100 count that
            many detections of each image and class; everything else counts 100.
        per_class: class name -> {"AP": ..., "AP50": ...}, each 0..1 or None, in the order of ids.
        curves: class name -> its curve, of the classes with an object to be found.

    Class-agnostic numbers leave the last two empty.
    """

    summary: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]
    curves: dict[str, Curve]


@dataclass(frozen=True)
class _Scores:
    """Precisions (T, R, K) and recalls (T, K), -1 for classes without an object; by area, and
    recalls also by the number of detections that are allowed.
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
        ground_truth: COCO-format, see `columns.py`.
        detections: COCO-format results; none at all score 0 wherever there is ground truth.
        class_agnostic: all classes are one (pycocotools' useCats=0): a detection of a wrong class
            finds an object, and an image has 100 detections in all.
        backend: one of `BACKENDS`; both give the same numbers.

    Raises:
        EvaluationError: one of the two breaks the format, or they do not belong together; the
            backend is unknown.
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
    summary |= {f"AR{most}": present_mean(scores.recalls["all", most]) for most in MOST}
    summary |= {f"AR{s}": present_mean(scores.recalls[size, MOST[-1]]) for s, size in SIZES.items()}
    if class_agnostic:
        return CocoMetrics(summary, {}, {})
    per_class = {
        name: {"AP": _mean(of_class), "AP50": _mean(of_class[0])}
        for name, of_class in zip(ground_truth.names, of_all.transpose(2, 0, 1), strict=True)
    }
    return CocoMetrics(summary, per_class, _curves(ground_truth, of_all))


def check_backend(name: str) -> None:
    """Refuse one that does not exist.

    Raises:
        EvaluationError: so it is.
    """
    if name not in BACKENDS:
        raise EvaluationError(f"backend={name} is none of {', '.join(BACKENDS)}")


def _by_numpy(ground_truth: GroundTruth, detections: Detections, class_agnostic: bool) -> _Scores:
    overlaps = Overlaps(ground_truth, detections, class_agnostic=class_agnostic)
    found, recalls = {}, {}
    for area in AREAS:
        classes = overlaps.matches(area)
        found[area] = precisions(classes)
        for most in MOST if area == "all" else MOST[-1:]:
            recall = np.full((len(THRESHOLDS), len(classes)), -1.0)
            for place, (matches, rows) in enumerate(zip(classes, overlaps.classes, strict=True)):
                if len(matches.objects):
                    is_seen = overlaps.ranks[rows] < most
                    num_right = np.count_nonzero(matches.right & is_seen, axis=1)
                    recall[:, place] = num_right / len(matches.objects)
            recalls[area, most] = recall
    return _Scores(found, recalls)


def _by_pycocotools(
    ground_truth: GroundTruth, detections: Detections, class_agnostic: bool
) -> _Scores:
    """pycocotools' own, with its traps closed: it fails where nothing was detected, loses the match
    of an annotation whose id is 0, and prints.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    placed(ground_truth, detections)
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
            for number, most in enumerate(MOST)
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
    """Mean of the precisions of a class, which are all -1 where it has no object to be found."""
    return None if (of_class == -1).any() else float(of_class.mean())
