"""Numbers as tools write them into JSON: as such, as 1.0 for 1, or as text."""

import reprlib
from typing import Any

MAX_SHOWN = 80  # characters of what a message shows of a file's content


def integer(value: Any) -> int | None:
    """A 64-bit integer; None of anything else."""
    if type(value) is str and value.strip().removeprefix("-").isdecimal() and len(value) < 20:
        value = int(value)
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and is_number(value) else None


def number(value: Any) -> float | None:
    """A number, finite or not; None of anything else."""
    if type(value) is str:
        try:
            return float(value)
        except ValueError:
            return None
    return float(value) if is_number(value) else None


def numbers(value: Any) -> list[float] | None:
    """Four numbers, also as one text such as "[1, 2, 3, 4]"; None of anything else."""
    if type(value) is str:
        value = value.strip().strip("[]()").replace(",", " ").split()
    if type(value) is not list or len(value) != 4:
        return None
    four = [one for one in map(number, value) if one is not None]
    return four if len(four) == 4 else None


def is_number(value: object) -> bool:
    """A number and no text, no bool; integers of 64 bits."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def brief(value: object) -> str:
    """A value for a message, in one line of at most MAX_SHOWN characters."""
    text = reprlib.repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
