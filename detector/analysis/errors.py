"""What is wrong with the detections of a results file, and what each kind of error costs.

    python -m detector.analysis.errors detections=RESULTS.json annotations=GT.json output=DIR
    python -m detector.analysis.errors detections=A.json annotations=GT.json output=. iou=0.75
    python -m detector.analysis.errors detections=A.json annotations=GT.json output=. min_score=0.3

writes errors.md, errors.json, three pictures (PNG) and the same pictures for TensorBoard into DIR.

The kinds are those of Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection
Errors", ECCV 2020, in the order in which their code asks. A detection that matches no object at an
IoU of 0.5, by the rules of COCO, and that no crowd excuses, is an error of

    localisation    the best IoU with an object of its class is at least 0.1, and below 0.5
    classification  that with an object of another class is at least 0.5
    duplicate       that with an object of its class is at least 0.5: another has matched that one
    background      no object has an IoU above 0.1
    both            it is none of these: neither the class nor the place is right

and an object is missed if no detection matches it, and none would by the mending below.

Mending all errors of a kind alone means: for localisation and classification, the detection takes
the box and the class of the object that the IoU was with; if that one is matched already, or a
mended detection of a higher score takes it, the detection is left out. For duplicate, background
and both, it is left out. For missed, the object is left out; a class without any other is then no
part of the mean. The gain is the AP50 of what results less the AP50 of before.

    D: detections of an image, G: objects, C: crowds, K: classes
"""

import json
import sys
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from pycocotools import mask
from torch.utils.tensorboard import SummaryWriter

from detector import entry
from detector.analysis.charts import bars, heat_map, precision_recall, save, to_tensorboard
from detector.config import ConfigError, typed
from detector.data.check import table
from detector.evaluation.coco import coco_metrics
from detector.evaluation.coco_matches import MAX_DETECTIONS, coco_matches
from detector.evaluation.results import (
    Detection,
    EvaluationError,
    GroundTruth,
    normalise_ground_truth,
    read_detections,
    read_ground_truth,
)

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
FOREGROUND, BACKGROUND = 0.5, 0.1  # IoUs; the paper's t_f and t_b


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with each detection.

    Attributes:
        detections: those that are scored: of an image and class, the 100 of the highest scores.
        kinds: for each of these the kind of its error, or None: it is right, or a crowd excuses it.
        targets: for each the annotation, by its position, that it would find if it were mended;
            None where it would be left out.
        missed: the positions of the annotations that are missed.
    """

    detections: list[Detection]
    kinds: list[str | None]
    targets: list[int | None]
    missed: frozenset[int]

    def counts(self) -> dict[str, int]:
        """Kind -> the number of its errors."""
        return {kind: self.kinds.count(kind) for kind in KINDS} | {"missed": len(self.missed)}


def diagnose(ground_truth: GroundTruth, detections: list[Detection]) -> Diagnosis:
    """Find the errors of detections that `check_detections` accepts.

    Args:
        ground_truth: as `normalise_ground_truth` returns it.
    """
    detections = _scored(detections)
    annotations = ground_truth["annotations"]
    found_in, annotated_in = _by_image(detections), _by_image(annotations)
    kinds: list[str | None] = [None] * len(detections)
    targets: list[int | None] = [None] * len(detections)
    missed: set[int] = set()
    for image in ground_truth["images"]:
        ours, theirs = found_in[image["id"]], annotated_in[image["id"]]
        objects = [position for position in theirs if not annotations[position]["iscrowd"]]
        crowds = [annotations[position] for position in theirs if annotations[position]["iscrowd"]]
        wrong, matched = _diagnose_image(
            [detections[position] for position in ours],
            [annotations[position] for position in objects],
            crowds,
        )
        left = {position for number, position in enumerate(objects) if number not in matched}
        missed |= left
        for number, (kind, target) in wrong.items():
            kinds[ours[number]] = kind
            if target is not None and objects[target] in left:
                targets[ours[number]] = objects[target]
    return Diagnosis(detections, kinds, targets, frozenset(missed.difference(targets)))


def _diagnose_image(
    detections: list[Detection], objects: list[dict[str, Any]], crowds: list[dict[str, Any]]
) -> tuple[dict[int, tuple[str, int | None]], set[int]]:
    """Return, by positions, detection -> its error and the object it is about; objects matched."""
    ious = _ious(detections, objects)
    is_own = _classes(detections)[:, None] == _classes(objects)
    own, other = ious * is_own, ious * ~is_own
    matches = _match(own, np.array([detection["score"] for detection in detections]))
    in_crowd = _ious(detections, crowds) * (_classes(detections)[:, None] == _classes(crowds))
    excused = (in_crowd >= FOREGROUND).any(axis=1)
    wrong: dict[int, tuple[str, int | None]] = {}
    for number in np.flatnonzero((matches < 0) & ~excused).tolist():
        best_own, best_other = own[number].max(initial=0), other[number].max(initial=0)
        if BACKGROUND <= best_own < FOREGROUND:
            wrong[number] = ("localisation", int(own[number].argmax()))
        elif best_other >= FOREGROUND:
            wrong[number] = ("classification", int(other[number].argmax()))
        elif best_own >= FOREGROUND:
            wrong[number] = ("duplicate", None)
        elif best_other <= BACKGROUND:
            wrong[number] = ("background", None)
        else:
            wrong[number] = ("both", None)
    return wrong, set(matches[matches >= 0].tolist())


def _match(ious: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the object (D,) that each detection takes, or -1, from IoUs (D, G) that are 0 where
    it must not. As pycocotools: by falling score, the best of what is left, of equals the last.
    """
    free = ious.copy()
    matches = np.full(len(ious), -1)
    for number in np.argsort(-scores, kind="stable"):
        if free[number].max(initial=0) >= FOREGROUND:
            best = ious.shape[1] - 1 - int(free[number, ::-1].argmax())
            matches[number] = best
            free[:, best] = 0
    return matches


def mended(
    ground_truth: GroundTruth, diagnosis: Diagnosis, kinds: Collection[str]
) -> tuple[GroundTruth, list[Detection]]:
    """The ground truth and the detections, were it not for the errors of these kinds."""
    best: dict[int, int] = {}  # annotation -> the detection that takes it
    for number, (kind, target) in enumerate(zip(diagnosis.kinds, diagnosis.targets, strict=True)):
        if kind in kinds and target is not None:
            rival = best.setdefault(target, number)
            if diagnosis.detections[number]["score"] > diagnosis.detections[rival]["score"]:
                best[target] = number
    takes = {number: target for target, number in best.items()}
    detections = []
    for number, (detection, kind) in enumerate(
        zip(diagnosis.detections, diagnosis.kinds, strict=True)
    ):
        if kind not in kinds:
            detections.append(detection)
        elif number in takes:
            found = ground_truth["annotations"][takes[number]]
            detections.append(detection | {key: found[key] for key in ("category_id", "bbox")})
    left_out = diagnosis.missed if "missed" in kinds else frozenset()
    annotations = [
        annotation
        for position, annotation in enumerate(ground_truth["annotations"])
        if position not in left_out
    ]
    return ground_truth | {"annotations": annotations}, detections


@dataclass(frozen=True)
class ErrorSplit:
    """How many errors there are of each kind, and what they cost.

    Attributes:
        ap50: 0..1, before anything is mended.
        counts: kind -> the number of its errors.
        gains: kind -> the AP50 that mending all of them, and nothing else, would add; 0..1.
    """

    ap50: float
    counts: dict[str, int]
    gains: dict[str, float]


def error_split(ground_truth: GroundTruth, detections: list[Detection]) -> ErrorSplit:
    """Split the errors by kind and score the detections with each mended.

    Args:
        ground_truth, detections: COCO-format, see `results.py`.

    Raises:
        EvaluationError: one of the two breaks the format, they do not belong together, or there is
            no object to be found.
    """
    ground_truth = normalise_ground_truth(ground_truth)
    before = coco_matches(ground_truth, detections).summary["AP50"]
    if before is None:
        raise EvaluationError("ground truth: it has no object to be found, and no errors then")
    diagnosis = diagnose(ground_truth, detections)
    gains = {
        kind: _ap50(*mended(ground_truth, diagnosis, {kind})) - before if count else 0.0
        for kind, count in diagnosis.counts().items()
    }
    return ErrorSplit(before, diagnosis.counts(), gains)


def _ap50(ground_truth: GroundTruth, detections: list[Detection]) -> float:
    """0..1; 1 where all objects were missed and left out."""
    ap50 = coco_matches(ground_truth, detections).summary["AP50"]
    return 1.0 if ap50 is None else ap50


@dataclass(frozen=True)
class Confusion:
    """What objects were taken for.

    Attributes:
        names: of the K classes, in the order of their ids.
        counts: int64 (K + 1, K + 1). Rows are the true class, the last one the background; columns
            the predicted class, the last one what was missed. A row of a class sums to its
            objects, a column of a class to its detections.
    """

    names: tuple[str, ...]
    counts: np.ndarray


def confusion(
    ground_truth: GroundTruth, detections: list[Detection], *, iou: float, min_score: float
) -> Confusion:
    """Match detections and objects of whatever class, by falling score: each takes the object with
    the highest IoU that is left. Those that take none and lie in a crowd, of any class, are not
    counted.

    Args:
        ground_truth, detections: as `diagnose` takes them.
        iou: from which on they match, above 0; of the detection's own area for a crowd.
        min_score: from which on a detection counts.
    """
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    place = {category["id"]: number for number, category in enumerate(categories)}
    counts = np.zeros((len(place) + 1, len(place) + 1), dtype=np.int64)
    seen = [detection for detection in detections if detection["score"] >= min_score]
    found_in, annotated_in = _by_image(seen), _by_image(ground_truth["annotations"])
    for image in ground_truth["images"]:
        ours = sorted(
            (seen[position] for position in found_in[image["id"]]), key=lambda d: -d["score"]
        )
        theirs = [ground_truth["annotations"][position] for position in annotated_in[image["id"]]]
        objects = [annotation for annotation in theirs if not annotation["iscrowd"]]
        crowds = [annotation for annotation in theirs if annotation["iscrowd"]]
        ious, in_crowd = _ious(ours, objects), _ious(ours, crowds)
        for number, detection in enumerate(ours):
            column = place[detection["category_id"]]
            if ious[number].max(initial=0) >= iou:
                best = int(ious[number].argmax())
                counts[place[objects[best]["category_id"]], column] += 1
                ious[:, best] = -1  # taken
            elif in_crowd[number].max(initial=0) < iou:
                counts[-1, column] += 1
        for left in np.flatnonzero((ious >= 0).all(axis=0)):
            counts[place[objects[left]["category_id"]], -1] += 1
    return Confusion(tuple(category["name"] for category in categories), counts)


def _scored(detections: list[Detection]) -> list[Detection]:
    """The detections that COCO looks at, in their order."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for position, detection in enumerate(detections):
        groups[detection["image_id"], detection["category_id"]].append(position)
    kept: list[int] = []
    for group in groups.values():
        kept += sorted(group, key=lambda position: -detections[position]["score"])[:MAX_DETECTIONS]
    return [detections[position] for position in sorted(kept)]


def _by_image(entries: list[dict[str, Any]]) -> defaultdict[int, list[int]]:
    """Image id -> the positions of its entries."""
    positions: defaultdict[int, list[int]] = defaultdict(list)
    for position, one in enumerate(entries):
        positions[one["image_id"]].append(position)
    return positions


def _ious(detections: list[Detection], annotations: list[dict[str, Any]]) -> np.ndarray:
    """IoUs (D, G) by pycocotools; with a crowd, the share of the detection that is in it."""
    if not detections or not annotations:
        return np.zeros((len(detections), len(annotations)))
    ours, theirs = (
        np.array([one["bbox"] for one in entries], dtype=np.float64)
        for entries in (detections, annotations)
    )
    ious: np.ndarray = mask.iou(ours, theirs, [one["iscrowd"] for one in annotations])
    return ious


def _classes(entries: list[dict[str, Any]]) -> np.ndarray:
    return np.array([one["category_id"] for one in entries], dtype=np.int64)


# ---- the command --------------------------------------------------------------------------------


@dataclass
class ReportConfig:
    """What the command takes; `iou` and `min_score` are the confusion matrix's."""

    detections: str
    annotations: str
    output: str
    iou: float = 0.5
    min_score: float = 0.5


def report(config: ReportConfig) -> str:
    """Write all files into `config.output`; return the tables.

    Raises:
        ConfigError: `iou` is out of its range.
        EvaluationError: a file cannot be read, breaks the format, or has no object to be found.
    """
    if not 0 < config.iou <= 1:
        raise ConfigError(f"iou={config.iou} must be in (0, 1]")
    ground_truth = read_ground_truth(Path(config.annotations))
    detections = read_detections(Path(config.detections), ground_truth)
    split = error_split(ground_truth, detections)
    matrix = confusion(ground_truth, detections, iou=config.iou, min_score=config.min_score)
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
            "iou": config.iou,
            "min_score": config.min_score,
            "rows": rows,
            "columns": columns,
            "counts": matrix.counts.tolist(),
        },
        "curves": {name: curve.precision.tolist() for name, curve in curves.items()},
    }
    tables = f"AP50 {100 * split.ap50:.1f}\n\n{split_table(split)}\n\n{confusion_table(matrix)}\n"
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "errors.md").write_text(tables, encoding="utf-8")
    (folder / "errors.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    for name, picture in pictures.items():
        save(picture, folder / f"{name}.png")
    with SummaryWriter(str(folder)) as writer:
        to_tensorboard(writer, pictures, step=0)
    return tables


def split_table(split: ErrorSplit) -> str:
    """Markdown: the kinds, their counts and their gains in percent."""
    rows = [[kind, str(split.counts[kind]), f"{100 * split.gains[kind]:.1f}"] for kind in KINDS]
    return table(["error", "count", "AP50 gained"], rows)


def confusion_table(matrix: Confusion) -> str:
    """Markdown: true classes in rows, predicted ones in columns."""
    rows = [
        [name, *map(str, counts)]
        for name, counts in zip([*matrix.names, "background"], matrix.counts.tolist(), strict=True)
    ]
    return table(["true \\ predicted", *matrix.names, "missed"], rows)


def main() -> None:
    """key=value arguments, as everywhere."""
    given = OmegaConf.from_cli(sys.argv[1:])
    try:
        print(report(typed(ReportConfig, given)), end="")
    except OSError as error:
        raise ConfigError(f"output={given.output}: cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    entry.show_help(__doc__)
    entry.run(main)
