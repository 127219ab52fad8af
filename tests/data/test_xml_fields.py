"""Tests of the texts of XML elements: what is taken as a number or a flag, and what is refused."""

from xml.etree.ElementTree import Element

import pytest
from defusedxml.ElementTree import fromstring

from detector.data.errors import DatasetError, Faults
from detector.data.xml_fields import flag_field, length_field, number_field, text_field


def with_text(text: str | None) -> Element:
    element: Element = fromstring("<a/>" if text is None else f"<a><key>{text}</key></a>")
    return element


def test_texts_and_numbers() -> None:
    assert text_field(with_text(" dog "), "key", "here") == "dog"
    assert number_field(with_text(" 4.5 "), "key", "here") == 4.5
    assert length_field(with_text("30.0"), "key", "here") == 30
    for odd in (None, "", "  "):
        with pytest.raises(DatasetError, match="here: <key> is missing or empty"):
            text_field(with_text(odd), "key", "here")
    with pytest.raises(DatasetError, match="here: <key> is '3,5', expected a number"):
        number_field(with_text("3,5"), "key", "here")
    for odd in ("0", "30.5", "nan", "2147483648"):
        with pytest.raises(DatasetError, match="<key> is .*, expected a whole number of 1 to"):
            length_field(with_text(odd), "key", "here")


@pytest.mark.parametrize(
    ("text", "flag", "odd"),
    [
        ("True", True, True),
        ("False", False, True),
        ("Unspecified", False, True),
        ("", False, True),
        ("1", True, False),
        (None, False, False),
    ],
)
def test_flags_in_words(text: str | None, flag: bool, odd: bool) -> None:
    faults = Faults("stop")
    assert flag_field(with_text(text), "key", "here", faults) is flag
    assert [fault.kind for fault in faults.found] == ["flag that is no number"] * odd


def test_a_flag_that_is_neither_a_number_nor_a_word() -> None:
    with pytest.raises(DatasetError, match="here: <key> is 'perhaps', expected 0 or 1"):
        flag_field(with_text("perhaps"), "key", "here", Faults("stop"))
