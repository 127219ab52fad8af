"""Reads the entries of a JSON annotation file, and their fields with checked types.

Every error names the place of the entry: the file, the list, the index and the id.
"""

import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from detector.data.errors import DatasetError, Faults
from detector.data.records import MAX_LENGTH
from detector.data.values import as_integer, is_number

Json = dict[str, Any]
T = TypeVar("T", int, str, list[Any])
KINDS = {int: "a 64-bit integer", str: "a string", list: "a list"}


def entries_of(
    content: Json, key: str, file: Path, *, may_be_empty: bool = False
) -> Iterator[tuple[str, Json]]:
    """Yield each entry of a list, preceded by its place in the file for error messages.

    Raises:
        DatasetError: there is no such list, it is empty, or an entry is not an object.
    """
    entries = field(content, key, list, str(file))
    if not entries and not may_be_empty:
        raise DatasetError(f"{file}: {key!r} is empty")
    for index, entry in enumerate(entries):
        if type(entry) is not dict:
            raise DatasetError(
                f"{file}: {key}[{index}] is {reprlib.repr(entry)}, expected an object"
            )
        yield place_in_file(file, key, index, entry), entry


def place_in_file(file: Path, key: str, index: int, entry: Json) -> str:
    """Return the place of an entry for messages: its file, list, index and id."""
    return f"{file}: {key}[{index}] (id {reprlib.repr(entry.get('id'))})"


def field(entry: Json, key: str, kind: type[T], place: str) -> T:
    """Return the value of a key that must be present and of this type.

    Raises:
        DatasetError: the key is missing, or its value is of another type.
    """
    if key not in entry:
        raise DatasetError(f"{place}: key {key!r} is missing")
    value: Any = entry[key]
    if type(value) is not kind or (kind is int and not is_number(value)):
        raise DatasetError(f"{place}: {key!r} is {reprlib.repr(value)}, expected {KINDS[kind]}")
    return value


def id_field(entry: Json, key: str, place: str, faults: Faults) -> int:
    """Return an id, which may also be written as text or as 1.0; that is one accepted deviation.

    Raises:
        DatasetError: the key is missing, or its value is not an integer.
    """
    value = as_integer(entry.get(key))
    if value is None:
        return field(entry, key, int, place)  # raises the error that says why
    if type(entry[key]) is not int:
        faults.accepted("id that is no integer", f"{place}: {key!r} is {entry[key]!r}")
    return value


def length_field(entry: Json, key: str, place: str) -> int:
    """Return a side of an image in pixels.

    Raises:
        DatasetError: the key is missing, or its value is not an integer of 1 to `MAX_LENGTH`.
    """
    length = as_integer(entry.get(key))
    if length is None:
        length = field(entry, key, int, place)  # raises the error that says why
    if not 1 <= length <= MAX_LENGTH:
        raise DatasetError(f"{place}: {key!r} is {length}, expected 1 to {MAX_LENGTH} pixels")
    return length


def flag_field(entry: Json, key: str, place: str) -> bool:
    """Return a flag, which is False if the key is missing or null.

    Raises:
        DatasetError: the value is not 0, 1, or either of them as text.
    """
    value = entry.get(key)
    if value not in (0, 1, None, "0", "1"):
        raise DatasetError(f"{place}: {key!r} is {reprlib.repr(value)}, expected 0 or 1")
    return bool(value) and value != "0"
