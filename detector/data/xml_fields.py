"""Reads the texts of XML elements as checked values. Every error names the place and the tag."""

from xml.etree.ElementTree import Element

from detector.data.errors import DatasetError, Faults, printable
from detector.data.records import MAX_LENGTH

FLAGS = dict.fromkeys(("", "0", "false", "no", "unspecified"), False)
FLAGS |= dict.fromkeys(("1", "true", "yes"), True)


def text_field(element: Element, key: str, place: str) -> str:
    """Return the text of a child element, without blanks around it.

    Args:
        key: the tag of the child, or a path to it such as "size/width".
        place: the place of the element in the file, with which every message begins.

    Raises:
        DatasetError: the child is missing or has no text.
    """
    text = (element.findtext(key) or "").strip()
    if not text:
        raise DatasetError(f"{place}: <{key}> is missing or empty")
    return text


def number_field(element: Element, key: str, place: str) -> float:
    """Return the number in a child element, which may be infinite or NaN.

    Raises:
        DatasetError: the child is missing, or its text is not a number.
    """
    return parse_number(text_field(element, key, place), key, place)


def parse_number(text: str, key: str, place: str) -> float:
    """Return the number that a text is; the element's tag is only used in the error message.

    Raises:
        DatasetError: the text is not a number.
    """
    try:
        return float(text)
    except ValueError:
        raise DatasetError(
            f"{place}: <{key}> is {printable(repr(text))}, expected a number"
        ) from None


def length_field(element: Element, key: str, place: str) -> int:
    """Return the side of an image in pixels.

    Raises:
        DatasetError: the child is missing, or its text is not a whole number of 1 to `MAX_LENGTH`.
    """
    length = number_field(element, key, place)
    if not (1 <= length <= MAX_LENGTH and length.is_integer()):
        raise DatasetError(
            f"{place}: <{key}> is {length:g}, expected a whole number of 1 to {MAX_LENGTH} pixels"
        )
    return int(length)


def flag_field(element: Element, key: str, place: str, faults: Faults) -> bool:
    """Return a flag, which is False if the child is missing. Words are one accepted deviation.

    Raises:
        DatasetError: the text is neither 0 nor 1, nor one of the words in `FLAGS`.
    """
    text = (element.findtext(key) or "").strip()
    if text.lower() not in FLAGS:
        raise DatasetError(f"{place}: <{key}> is {printable(repr(text))}, expected 0 or 1")
    if text not in ("0", "1", "") or (not text and element.find(key) is not None):
        faults.accepted("flag that is no number", f"{place}: <{key}> is {printable(repr(text))}")
    return FLAGS[text.lower()]
