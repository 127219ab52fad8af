"""Reports the errors in a results file by kind: tables, JSON, pictures and TensorBoard events."""

import json
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from detector.analysis.charts import bars, heat_map, precision_recall, save, to_tensorboard
from detector.analysis.errors.confusion import Confusion, confusion
from detector.analysis.errors.diagnosis import KINDS
from detector.analysis.errors.gains import ErrorSplit, error_split
from detector.evaluation.coco import coco_metrics
from detector.evaluation.result_files import read_results
from detector.evaluation.results import read_ground_truth
from detector.tables import table


def report(results: Path, annotations: Path, folder: Path, *, iou: float, min_score: float) -> str:
    """Write all files of the report into a folder; return the tables as markdown.

    Args:
        results: a results file of any detector, in a format that `read_results` accepts.
        annotations: the COCO-format ground truth.
        iou: the smallest IoU at which the confusion matrix matches a detection with an object.
        min_score: the smallest score of the detections that the confusion matrix counts.

    Raises:
        EvaluationError: a file cannot be read or has a wrong format, or the ground truth has no
            object to detect.
    """
    ground_truth = read_ground_truth(annotations)
    detections = read_results(results, ground_truth)
    split = error_split(ground_truth, detections)
    matrix = confusion(ground_truth, detections, iou=iou, min_score=min_score)
    curves = coco_metrics(ground_truth, detections).curves

    rows, columns = [*matrix.names, "background"], [*matrix.names, "missed"]
    pictures = {
        "precision_recall": precision_recall(curves),
        "confusion": heat_map(matrix.counts, rows, columns),
        "errors": bars({kind: 100 * gain for kind, gain in split.gains.items()}, "AP50 gained"),
    }
    content = {
        "AP50": split.ap50,
        "errors": {k: {"count": split.counts[k], "gain": split.gains[k]} for k in KINDS},
        "confusion": {
            "iou": iou,
            "min_score": min_score,
            "rows": rows,
            "columns": columns,
            "counts": matrix.counts.tolist(),
        },
        "curves": {name: curve.precision.tolist() for name, curve in curves.items()},
    }
    tables = f"AP50 {100 * split.ap50:.1f}\n\n{split_table(split)}\n\n{confusion_table(matrix)}\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "errors.md").write_text(tables, encoding="utf-8")
    (folder / "errors.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    for name, picture in pictures.items():
        save(picture, folder / f"{name}.png")
    with SummaryWriter(str(folder)) as writer:
        to_tensorboard(writer, pictures, step=0)
    return tables


def split_table(split: ErrorSplit) -> str:
    """Return a markdown table of the kinds of errors, their counts and the AP50 that correcting
    them would add, in percent.
    """
    rows = [[kind, str(split.counts[kind]), f"{100 * split.gains[kind]:.1f}"] for kind in KINDS]
    return table(["error", "count", "AP50 gained"], rows)


def confusion_table(matrix: Confusion) -> str:
    """Return the confusion matrix as a markdown table, with true classes in rows and predicted
    classes in columns.
    """
    rows = [
        [name, *map(str, counts)]
        for name, counts in zip([*matrix.names, "background"], matrix.counts.tolist(), strict=True)
    ]
    return table(["true \\ predicted", *matrix.names, "missed"], rows)
