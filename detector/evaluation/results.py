"""Ground truth and detections in COCO format: read from files, checked, written.

Ground truth is a dictionary of three lists, detections are one list:

    images       [{id, ...}]
    annotations  [{image_id, category_id, bbox, area, iscrowd, id}]
    categories   [{id, name, ...}]

    detections   [{image_id, category_id, bbox, score}]

A bbox is [x, y, width, height] in pixels, an area is in square pixels. `iscrowd` (0 or 1) marks
what is neither to be found nor wrong to be found: a crowd in COCO, a difficult object in VOC.
"""

import json
import logging
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

GroundTruth = dict[str, Any]
Detection = dict[str, Any]

_Kind = tuple[str, Callable[[Any], bool]]  # what a key must hold: in words and as a test
_LARGEST = 1e100  # the area of a larger box might not be finite


class EvaluationError(ValueError):
    """Ground truth or detections that cannot be scored. The message names the entry and its key."""


def read_ground_truth(path: Path) -> GroundTruth:
    """Read a COCO-format annotation file; see `normalise_ground_truth` for what is returned.

    As in pycocotools, an annotation's `ignore` means nothing here; a warning counts those set.

    Raises:
        EvaluationError: the file is missing, is not JSON, or breaks the format.
    """
    content = _load(path)
    ground_truth = normalise_ground_truth(content, source=str(path))
    num_ignored = sum(
        bool(entry.get("ignore")) and not entry.get("iscrowd") for entry in content["annotations"]
    )
    if num_ignored:
        log.warning(
            "%s: %d annotations have 'ignore' and not 'iscrowd', and are objects to pycocotools",
            path,
            num_ignored,
        )
    return ground_truth


def read_detections(path: Path, ground_truth: GroundTruth) -> list[Detection]:
    """Read a COCO-format results file that belongs to `ground_truth`.

    Raises:
        EvaluationError: the file is missing, is not JSON, or `check_detections` refuses it.
    """
    detections: list[Detection] = _load(path)
    check_detections(ground_truth, detections, source=str(path))
    return detections


def write_detections(path: Path, detections: list[Detection]) -> None:
    """Write a COCO-format results file, every number in full, so that reading gives the same.

    Raises:
        EvaluationError: a detection breaks the format; nothing is written then.
    """
    _check_format(detections, "detections")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(detections), encoding="utf-8")


def normalise_ground_truth(dataset: Any, *, source: str = "ground truth") -> GroundTruth:
    """Return `dataset`, checked and completed, as a fresh dictionary.

    Annotations are numbered from 1 in their order: their own ids mean nothing to a metric, and
    pycocotools would lose the matches of an id 0 and confuse equal ones. A missing `iscrowd`
    becomes 0, a missing `area` that of the box; keys other than those above are left out of
    annotations and kept elsewhere.

    Args:
        dataset: COCO-format ground truth, as `json.load` gives it.
        source: what messages call it, such as the name of its file.

    Raises:
        EvaluationError: something is missing, of a wrong type, not finite, twice there (an image
            id, a category id or name), or refers to an image or category that is not there.
    """
    _check_keys(dataset, dict.fromkeys(("images", "annotations", "categories"), _LIST), source)
    _check_distinct(dataset["images"], {"id": _INTEGER}, f"{source}: images")
    _check_distinct(dataset["categories"], {"id": _INTEGER, "name": _TEXT}, f"{source}: categories")
    annotations = [
        _complete_annotation(annotation, position + 1, f"{source}: annotations[{position}]")
        for position, annotation in enumerate(dataset["annotations"])
    ]
    _check_references(dataset, annotations, f"{source}: annotations")
    copies = {key: [dict(entry) for entry in dataset[key]] for key in ("images", "categories")}
    return copies | {"annotations": annotations}


def check_detections(
    ground_truth: GroundTruth, detections: Any, *, source: str = "detections"
) -> None:
    """Refuse detections that cannot be scored against `ground_truth`.

    Args:
        ground_truth: as `normalise_ground_truth` returns it.
        detections: a list of COCO-format results; may be empty.
        source: what messages call them, such as the name of their file.

    Raises:
        EvaluationError: a key is missing, a value is of a wrong type or not finite, a box has a
            negative side, or an image or category is not in the ground truth.
    """
    _check_format(detections, source)
    _check_references(ground_truth, detections, source)


def _load(path: Path) -> Any:
    if path.exists() and not path.is_file():
        raise EvaluationError(f"{path}: cannot be read: is not a file")
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{path}: not valid JSON: {error}") from error


def _complete_annotation(annotation: Any, number: int, where: str) -> dict[str, Any]:
    _check_keys(annotation, _REFERENCES | {"bbox": _BOX}, where)
    box = [float(value) for value in annotation["bbox"]]
    optional = {"area": box[2] * box[3], "iscrowd": 0}
    optional |= {key: annotation[key] for key in optional if key in annotation}
    _check_keys(optional, {"area": _SIZE, "iscrowd": _FLAG}, where)
    references = {key: annotation[key] for key in _REFERENCES}
    return references | optional | {"id": number, "bbox": box}


def _check_format(detections: Any, source: str) -> None:
    if not _LIST[1](detections):
        raise EvaluationError(f"{source}: expected {_LIST[0]}, got {reprlib.repr(detections)}")
    for position, detection in enumerate(detections):
        _check_keys(detection, _DETECTION, f"{source}[{position}]")


def _check_keys(entry: Any, kinds: dict[str, _Kind], where: str) -> None:
    if not isinstance(entry, dict):
        raise EvaluationError(f"{where}: expected an object, got {reprlib.repr(entry)}")
    for key, (expected, accepts) in kinds.items():
        if key not in entry:
            raise EvaluationError(f"{where}: key {key!r} is missing")
        if not accepts(entry[key]):
            got = reprlib.repr(entry[key])
            raise EvaluationError(f"{where}: {key}: expected {expected}, got {got}")


def _check_references(ground_truth: GroundTruth, entries: list[Detection], where: str) -> None:
    for key, place in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in ground_truth[place]}
        for position, entry in enumerate(entries):
            if entry[key] not in known:
                message = f"{where}[{position}]: {key} {entry[key]} is not in the ground truth's "
                raise EvaluationError(message + place)


def _check_distinct(entries: list[Any], kinds: dict[str, _Kind], where: str) -> None:
    seen: dict[str, set[Any]] = {key: set() for key in kinds}
    for position, entry in enumerate(entries):
        _check_keys(entry, kinds, f"{where}[{position}]")
        for key in kinds:
            if entry[key] in seen[key]:
                raise EvaluationError(f"{where}[{position}]: {key} {entry[key]!r} is there twice")
            seen[key].add(entry[key])


def _is_encodable(text: str) -> bool:
    """False for half of a surrogate pair, which JSON can hold and no file can."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and -_LARGEST <= value <= _LARGEST  # False for nan


def _is_box(value: Any) -> bool:
    is_box = isinstance(value, list | tuple) and len(value) == 4 and all(map(_is_number, value))
    return is_box and value[2] >= 0 and value[3] >= 0


_LIST: _Kind = ("a list", lambda value: isinstance(value, list))
_TEXT: _Kind = ("a string", lambda value: isinstance(value, str) and _is_encodable(value))
_FLAG: _Kind = ("0 or 1", lambda value: value in (0, 1))
_INTEGER: _Kind = ("an integer", _is_integer)
_NUMBER: _Kind = ("a finite number", _is_number)
_SIZE: _Kind = ("a finite number >= 0", lambda value: _is_number(value) and value >= 0)
_BOX: _Kind = ("[x, y, width >= 0, height >= 0] in finite numbers", _is_box)

_REFERENCES = {"image_id": _INTEGER, "category_id": _INTEGER}
_DETECTION = _REFERENCES | {"bbox": _BOX, "score": _NUMBER}
