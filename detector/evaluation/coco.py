"""The COCO metrics of box detections, by pycocotools, with its traps closed.

pycocotools alone loses the match of an annotation whose id is 0, fails where nothing was detected,
scores a nan, writes into what it is given and prints. The numbers here are its own, or those of
faster-coco-eval, which are the same within rounding, several times as fast.
"""

import io
import logging
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.evaluation.coco_matches import AREAS
from detector.evaluation.results import (
    Detection,
    EvaluationError,
    GroundTruth,
    check_detections,
    normalise_ground_truth,
)

SUMMARY_NAMES = tuple("AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split())
BACKENDS = ("pycocotools", "fast")


@dataclass(frozen=True)
class Curve:
    """Precision over recall of one class, at an IoU of 0.5 and 100 detections an image.

    Attributes:
        precision: float64 (101,), the highest at a recall of 0, 0.01 ... 1 or above.
        num_objects: that are to be found.
    """

    precision: np.ndarray
    num_objects: int


@dataclass(frozen=True)
class CocoMetrics:
    """What https://cocodataset.org/#detection-eval defines; None where no object is to be found.

    Attributes:
        summary: each of `SUMMARY_NAMES` -> 0..1 or None. AP and AR are means over the classes and
            the IoU thresholds 0.50, 0.55 ... 0.95. AP50 and AP75 are at one threshold. s, m, l are
            objects of an area up to 32^2, up to 96^2, and above. AR1, AR10 and AR100 allow that
            many detections in an image, per class; everything else allows 100.
        per_class: class name -> {"AP": ..., "AP50": ...}, each 0..1 or None, in the order of ids.
        curves: class name -> its curve, of the classes with an object to be found.

    Class-agnostic numbers leave the last two empty.
    """

    summary: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]
    curves: dict[str, Curve]


def coco_metrics(
    ground_truth: GroundTruth,
    detections: list[Detection],
    *,
    class_agnostic: bool = False,
    backend: str = "pycocotools",
) -> CocoMetrics:
    """Score `detections` against `ground_truth`; neither is changed.

    Args:
        ground_truth: COCO-format, see `results.py`.
        detections: COCO-format results; none at all score 0 wherever there is ground truth.
        class_agnostic: all classes are one (pycocotools' useCats=0): a detection of a wrong class
            finds an object, and an image has 100 detections in all.
        backend: "pycocotools", or "fast" for faster-coco-eval, an extra.

    Raises:
        EvaluationError: one of the two breaks the format, or they do not belong together; the
            backend is unknown or not installed.
    """
    ground_truth = normalise_ground_truth(ground_truth)
    evaluator = _evaluator(ground_truth, detections, class_agnostic, backend)
    with redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    summary = {
        name: None if value == -1 else float(value)
        for name, value in zip(SUMMARY_NAMES, evaluator.stats, strict=True)
    }
    if class_agnostic:
        return CocoMetrics(summary, {}, {})
    precisions = evaluator.eval["precision"]
    return CocoMetrics(
        summary, _per_class(ground_truth, precisions), _curves(ground_truth, precisions)
    )


def _evaluator(
    ground_truth: GroundTruth, detections: list[Detection], class_agnostic: bool, backend: str
) -> Any:
    """A COCOeval, ready to evaluate normalised ground truth."""
    check_detections(ground_truth, detections)
    datasets = [
        _renumbered(ground_truth, entries)
        for entries in (ground_truth["annotations"], _as_annotations(detections))
    ]
    coco_class, evaluator_class = load_backend(backend)
    with redirect_stdout(io.StringIO()):
        indices = [_indexed(coco_class(), dataset) for dataset in datasets]
        evaluator = evaluator_class(*indices, "bbox")
    evaluator.params.useCats = int(not class_agnostic)
    return evaluator


def load_backend(name: str) -> tuple[Any, Any]:
    """The classes COCO and COCOeval.

    Raises:
        EvaluationError: the backend is unknown or not installed.
    """
    if name == "pycocotools":
        return COCO, COCOeval
    if name != "fast":
        raise EvaluationError(f"backend={name} is none of {', '.join(BACKENDS)}")
    try:
        import faster_coco_eval
    except ImportError as error:
        message = "backend=fast needs faster-coco-eval: pip install -e '.[fast-eval]'"
        raise EvaluationError(message) from error
    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)  # else it logs its tables
    return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster


def _as_annotations(detections: list[Detection]) -> list[dict[str, Any]]:
    """What `COCO.loadRes` makes of detections, which cannot take an empty list."""
    annotations = []
    for number, detection in enumerate(detections, start=1):
        x, y, width, height = (float(value) for value in detection["bbox"])
        annotations.append(
            {
                "id": number,
                "image_id": detection["image_id"],
                "category_id": detection["category_id"],
                "bbox": [x, y, width, height],
                "area": width * height,
                "iscrowd": 0,
                "score": detection["score"],
            }
        )
    return annotations


def _renumbered(ground_truth: GroundTruth, annotations: list[dict[str, Any]]) -> GroundTruth:
    """`annotations` with the images and classes of `ground_truth`, which get numbers in the order
    of their ids: faster-coco-eval holds ids as floats.
    """
    images, classes = (
        {one: number for number, one in enumerate(sorted(entry["id"] for entry in entries))}
        for entries in (ground_truth["images"], ground_truth["categories"])
    )
    return {
        "images": [{"id": number} for number in images.values()],
        "categories": [{"id": number} for number in classes.values()],
        "annotations": [
            annotation
            | {
                "image_id": images[annotation["image_id"]],
                "category_id": classes[annotation["category_id"]],
            }
            for annotation in annotations
        ],
    }


def _indexed(coco: Any, dataset: GroundTruth) -> Any:
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _per_class(
    ground_truth: GroundTruth, precisions: np.ndarray
) -> dict[str, dict[str, float | None]]:
    """Average pycocotools' precisions (T, R, K, A, M) over recalls R, and IoU thresholds T.

    A: area ranges, of which the first is all; M: detections per image, of which the last is 100.
    """
    classes = sorted(ground_truth["categories"], key=lambda category: category["id"])
    of_classes = precisions[:, :, :, 0, -1].transpose(2, 0, 1)  # (K, T, R), T from 0.50 on
    return {
        category["name"]: {"AP": _mean(of_class), "AP50": _mean(of_class[0])}
        for category, of_class in zip(classes, of_classes, strict=True)
    }


def _curves(ground_truth: GroundTruth, precisions: np.ndarray) -> dict[str, Curve]:
    counts = Counter(
        annotation["category_id"]
        for annotation in ground_truth["annotations"]
        if not annotation["iscrowd"] and annotation["area"] <= AREAS["all"][1]
    )
    classes = sorted(ground_truth["categories"], key=lambda category: category["id"])
    return {
        category["name"]: Curve(precision, counts[category["id"]])
        for category, precision in zip(classes, precisions[0, :, :, 0, -1].T, strict=True)
        if (precision >= 0).all()
    }


def _mean(precisions: np.ndarray) -> float | None:
    """Mean of the precisions of a class, which are all -1 where it has no object to be found."""
    return None if (precisions == -1).any() else float(precisions.mean())
