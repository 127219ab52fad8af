"""Read and write files of ground truth and detections in COCO's format.

A usual file is decoded straight into the expected types, which is faster and needs less memory than
a dictionary for each entry. A file that does not fit them (ids as text, a nan, a missing key) is
decoded again as plain JSON, and is then either accepted or refused with the reason.
"""

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from detector.data.values import as_four_numbers, as_integer, as_number
from detector.evaluation.coco_format import (
    as_detections,
    as_ground_truth,
    detections_of,
    ground_truth_of,
)
from detector.evaluation.columns import (
    AnyDetections,
    Detections,
    GroundTruth,
    look_up_images_and_classes,
)
from detector.evaluation.entries import EvaluationError

log = logging.getLogger(__name__)

_Box = tuple[float, float, float, float]
UNDECODED = (  # what is raised for a file that does not have the usual types
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
    """Read a COCO-format annotation file; `as_ground_truth` says which keys may be missing.

    As in pycocotools, the key `ignore` of an annotation has no effect. A warning counts the
    annotations in which it is set and `iscrowd` is not.

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
            "%s: %d annotations have 'ignore' and not 'iscrowd': as in pycocotools, they count as "
            "objects to detect",
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
    look_up_images_and_classes(ground_truth, detections, source=str(path))
    return detections


def plain_detections(encoded: bytes) -> Detections | None:
    """Decode a COCO-format results file; return None if a value is not of the usual type."""
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
    """Write a COCO-format results file with all digits, so that reading gives equal numbers.

    Raises:
        EvaluationError: a detection breaks the format. Nothing is written in this case.
    """
    encoded = msgspec.json.encode(as_detections(detections).to_coco())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded)


def read_bytes(path: Path) -> bytes:
    """Read a file, and unpack it if it is gzip-compressed.

    Raises:
        EvaluationError: the path is not a file, or the file cannot be read or unpacked.
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
    """Decode the JSON of a file.

    Raises:
        EvaluationError: it is not valid JSON.
    """
    try:
        return json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{path}: not valid JSON: {str(error)[:200]}") from error


def _with_numbers(content: Any) -> Any:
    """Convert ids, boxes and areas that are text to numbers, and ids such as 1.0 to integers.

    Values that cannot be converted are kept, for the check that follows to refuse them.
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
        **dict.fromkeys(("id", "image_id", "category_id"), _converted_id),
        "bbox": as_four_numbers,
        "area": as_number,
    }
    return entry | {
        key: value
        for key, kind in kinds.items()
        if key in entry
        and (value := kind(entry[key])) is not None
        and (type(value) is int or value != entry[key])
    }


def _converted_id(value: Any) -> int | None:
    """Convert text or 1.0 to an integer; return None if that is not needed or not possible."""
    return None if type(value) is int else as_integer(value)
