"""Parses the numbers that tools write into JSON: as numbers, as 1.0 for 1, or as text."""

import reprlib
from typing import Any

MAX_SHOWN = 80  # the most characters that a message quotes from a file


def as_integer(value: Any) -> int | None:
    """Return the value as a 64-bit integer, or None if it is not one."""
    if type(value) is str and value.strip().removeprefix("-").isdecimal() and len(value) < 20:
        value = int(value)
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and is_number(value) else None


def as_number(value: Any) -> float | None:
    """Return the value as a float, which may be infinite or NaN, or None if it is not a number."""
    if type(value) is str:
        try:
            return float(value)
        except ValueError:
            return None
    return float(value) if is_number(value) else None


def as_four_numbers(value: Any) -> list[float] | None:
    """Return a list of four numbers, or None if the value is not that.

    The value may be a list, or a string such as "[1, 2, 3, 4]".
    """
    if type(value) is str:
        value = value.strip().strip("[]()").replace(",", " ").split()
    if type(value) is not list or len(value) != 4:
        return None
    four = [one for one in map(as_number, value) if one is not None]
    return four if len(four) == 4 else None


def is_number(value: object) -> bool:
    """Return True for a float or a 64-bit integer; text and bool do not count as numbers."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def brief(value: object) -> str:
    """Return a value as text for a message, in at most MAX_SHOWN characters."""
    text = reprlib.repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
