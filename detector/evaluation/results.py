"""Files of ground truth and detections in COCO's format, read into columns and written.

What a file usually holds is decoded straight into the types that it must have, which is quicker and
needs less memory than a dictionary for each entry. Whatever does not fit (ids as text, a nan, a
missing key) is read again the plain way, which takes it or says what is odd.
"""

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from detector.data.values import integer, number, numbers
from detector.evaluation.columns import (
    AnyDetections,
    Detections,
    GroundTruth,
    as_detections,
    as_ground_truth,
    detections_of,
    ground_truth_of,
    placed,
)
from detector.evaluation.entries import EvaluationError

log = logging.getLogger(__name__)

_Box = tuple[float, float, float, float]
UNDECODED = (
    msgspec.MsgspecError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    RecursionError,
)


class _Detection(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: _Box
    score: float


class _Annotation(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: _Box
    area: float | None = None
    iscrowd: int | bool | None = None
    ignore: int | bool | None = None


class _Dataset(msgspec.Struct):
    images: list[dict[str, Any]]
    annotations: list[_Annotation]
    categories: list[dict[str, Any]]


def read_ground_truth(path: Path) -> GroundTruth:
    """Read a COCO-format annotation file; see `as_ground_truth` for what may be missing.

    As in pycocotools, an annotation's `ignore` means nothing here; a warning counts those set.

    Raises:
        EvaluationError: the file is missing, is not JSON, or breaks the format.
    """
    encoded = read_bytes(path)
    try:
        dataset = msgspec.json.decode(encoded, type=_Dataset)
        annotations = dataset.annotations
        columns: dict[str, list[Any]] = {
            "image_id": [one.image_id for one in annotations],
            "category_id": [one.category_id for one in annotations],
            "bbox": [one.bbox for one in annotations],
            "area": [one.area for one in annotations],
            "iscrowd": [one.iscrowd for one in annotations],
        }
        ground_truth = ground_truth_of(
            dataset.images, dataset.categories, columns, lambda: None, source=str(path)
        )
        num_ignored = sum(bool(one.ignore) and not one.iscrowd for one in annotations)
    except UNDECODED:
        content = _with_numbers(decoded(encoded, path))
        ground_truth = as_ground_truth(content, source=str(path))
        num_ignored = sum(
            bool(one.get("ignore")) and not one.get("iscrowd") for one in content["annotations"]
        )
    if num_ignored:
        log.warning(
            "%s: %d annotations have 'ignore' and not 'iscrowd', and are objects to pycocotools",
            path,
            num_ignored,
        )
    return ground_truth


def read_detections(path: Path, ground_truth: GroundTruth) -> Detections:
    """Read a COCO-format results file that belongs to `ground_truth`.

    Raises:
        EvaluationError: the file is missing, is not JSON, breaks the format, or names an image or
            category that is not in the ground truth.
    """
    encoded = read_bytes(path)
    detections = plain_detections(encoded)
    if detections is None:
        detections = as_detections(decoded(encoded, path), source=str(path))
    placed(ground_truth, detections, source=str(path))
    return detections


def plain_detections(encoded: bytes) -> Detections | None:
    """The detections of a COCO-format results file; None where anything in it is not as usual."""
    try:
        entries = msgspec.json.decode(encoded, type=list[_Detection])
        return detections_of(
            {
                "image_id": [one.image_id for one in entries],
                "category_id": [one.category_id for one in entries],
                "bbox": [one.bbox for one in entries],
                "score": [one.score for one in entries],
            }
        )
    except UNDECODED:
        return None


def write_detections(path: Path, detections: AnyDetections) -> None:
    """Write a COCO-format results file, every number in full, so that reading gives the same.

    Raises:
        EvaluationError: a detection breaks the format; nothing is written then.
    """
    encoded = msgspec.json.encode(as_detections(detections).to_coco())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded)


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked where it is gzip's.

    Raises:
        EvaluationError: it is no file, or cannot be read or unpacked.
    """
    if path.exists() and not path.is_file():
        raise EvaluationError(f"{path}: cannot be read: is not a file")
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read: {error.strerror}") from error
    if not encoded.startswith(b"\x1f\x8b"):
        return encoded
    try:
        return gzip.decompress(encoded)
    except (OSError, EOFError, ValueError) as error:
        raise EvaluationError(f"{path}: cannot be unpacked: {error}") from error


def decoded(encoded: bytes, path: Path) -> Any:
    """What a JSON text says.

    Raises:
        EvaluationError: it is none.
    """
    try:
        return json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{path}: not valid JSON: {str(error)[:200]}") from error


def _with_numbers(content: Any) -> Any:
    """The content with ids, boxes and areas that are text, or 1.0 for 1, as numbers. What is none
    of these stays, to be refused.
    """
    if not isinstance(content, dict):
        return content
    result = dict(content)
    for place in ("images", "annotations", "categories"):
        if isinstance(content.get(place), list):
            result[place] = [
                _entry_with_numbers(entry) if isinstance(entry, dict) else entry
                for entry in content[place]
            ]
    return result


def _entry_with_numbers(entry: dict[str, Any]) -> dict[str, Any]:
    kinds: dict[str, Callable[[Any], Any]] = {
        **dict.fromkeys(("id", "image_id", "category_id"), _as_integer),
        "bbox": numbers,
        "area": number,
    }
    return entry | {
        key: value
        for key, kind in kinds.items()
        if key in entry
        and (value := kind(entry[key])) is not None
        and (type(value) is int or value != entry[key])
    }


def _as_integer(value: Any) -> int | None:
    """Of a text or of 1.0; None of what is an integer already, or of what is none."""
    return None if type(value) is int else integer(value)
