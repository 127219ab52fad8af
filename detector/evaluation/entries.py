"""Checks of single entries of COCO-format content, with messages that name the invalid entry."""

import reprlib
from collections.abc import Callable
from typing import Any

from detector import exit_codes

Kind = tuple[str, Callable[[Any], bool]]  # what a value must be, in words, and its check
LARGEST = 1e100  # limit of the numbers: the area of a box with larger sides might not be finite


class EvaluationError(ValueError):
    """Raised for ground truth, detections or options that cannot be scored.

    The message names the entry and its key, or the option.
    """

    exit_code = exit_codes.FAILED


def check_keys(entry: Any, kinds: dict[str, Kind], where: str) -> None:
    """Refuse an entry that lacks a key, or that has a value of the wrong kind.

    Args:
        kinds: what each key must hold. Keys in `OPTIONAL` may be missing.
        where: the place of the entry, with which the message begins.

    Raises:
        EvaluationError: the entry is not an object, a key is missing, or a value is invalid.
    """
    if not isinstance(entry, dict):
        raise EvaluationError(f"{where}: expected an object, got {reprlib.repr(entry)}")
    for key, (expected, accepts) in kinds.items():
        if key not in entry:
            if key in OPTIONAL:
                continue
            raise EvaluationError(f"{where}: key {key!r} is missing")
        if not accepts(entry[key]):
            got = reprlib.repr(entry[key])
            raise EvaluationError(f"{where}: {key}: expected {expected}, got {got}")


def check_distinct(entries: list[Any], kinds: dict[str, Kind], where: str) -> None:
    """Refuse a list with an invalid entry, or with two entries that share the value of a key.

    Args:
        kinds: the keys whose values must be distinct, and what each must hold.
        where: the place of the list, with which the message begins.

    Raises:
        EvaluationError: `check_keys` refuses an entry, or a value appears twice.
    """
    seen: dict[str, set[Any]] = {key: set() for key in kinds}
    for position, entry in enumerate(entries):
        check_keys(entry, kinds, f"{where}[{position}]")
        for key in kinds:
            if entry[key] in seen[key]:
                raise EvaluationError(f"{where}[{position}]: {key} {entry[key]!r} is there twice")
            seen[key].add(entry[key])


def _is_encodable(text: str) -> bool:
    """Return False for half of a surrogate pair, which JSON can hold but UTF-8 cannot encode."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and -LARGEST <= value <= LARGEST  # False for nan


def _is_box(value: Any) -> bool:
    is_box = type(value) in (list, tuple) and len(value) == 4 and all(map(_is_number, value))
    return is_box and value[2] >= 0 and value[3] >= 0


def _is_size(value: Any) -> bool:
    return value is None or (_is_number(value) and value >= 0)


def _is_flag(value: Any) -> bool:
    return isinstance(value, int | float | None) and value in (0, 1, None)


LIST: Kind = ("a list", lambda value: isinstance(value, list))
TEXT: Kind = ("a string", lambda value: isinstance(value, str) and _is_encodable(value))
INTEGER: Kind = ("an integer", _is_integer)
NUMBER: Kind = ("a finite number", _is_number)
BOX: Kind = ("[x, y, width >= 0, height >= 0] in finite numbers", _is_box)
OPTIONAL = {"area", "iscrowd"}
REFERENCES = {"image_id": INTEGER, "category_id": INTEGER}
ANNOTATION = REFERENCES | {
    "bbox": BOX,
    "area": ("a finite number >= 0", _is_size),
    "iscrowd": ("0 or 1", _is_flag),
}
DETECTION = REFERENCES | {"bbox": BOX, "score": NUMBER}
