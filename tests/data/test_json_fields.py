"""Tests of the fields of JSON entries: the types that are taken, and the places in messages."""

from pathlib import Path
from typing import Any

import pytest

from detector.data.errors import DatasetError, Faults
from detector.data.json_fields import entries_of, field, flag_field, id_field, length_field

FILE = Path("gt.json")


def test_entries_have_their_place() -> None:
    content = {"images": [{"id": 7}, {}]}
    places = [place for place, _ in entries_of(content, "images", FILE)]
    assert places == ["gt.json: images[0] (id 7)", "gt.json: images[1] (id None)"]
    assert list(entries_of({"images": []}, "images", FILE, may_be_empty=True)) == []
    for odd, words in (([], "'images' is empty"), ([5], r"images\[0\] is 5"), (5, "a list")):
        with pytest.raises(DatasetError, match=rf"gt\.json: .*{words}"):
            list(entries_of({"images": odd}, "images", FILE))


def test_a_field_is_present_and_of_its_type() -> None:
    assert field({"name": "a"}, "name", str, "here") == "a"
    with pytest.raises(DatasetError, match="here: key 'name' is missing"):
        field({}, "name", str, "here")
    with pytest.raises(DatasetError, match="here: 'name' is 3, expected a string"):
        field({"name": 3}, "name", str, "here")


@pytest.mark.parametrize(("value", "kinds"), [(7, 0), (7.0, 1), (" 7", 1), ("7", 1)])
def test_ids_as_text_and_as_fractions(value: Any, kinds: int) -> None:
    faults = Faults("stop")
    assert id_field({"id": value}, "id", "here", faults) == 7
    assert [fault.kind for fault in faults.found] == ["id that is no integer"] * kinds


@pytest.mark.parametrize("value", [True, "one", 1.5, None, [1], "1.5", "١x", 2**63])
def test_ids_that_could_be_read_in_several_ways_are_refused(value: Any) -> None:
    with pytest.raises(DatasetError, match="here: 'id' is .*, expected a 64-bit integer"):
        id_field({"id": value}, "id", "here", Faults("stop"))


def test_lengths() -> None:
    assert length_field({"width": "30"}, "width", "here") == 30
    for odd in (0, 2**31):
        with pytest.raises(DatasetError, match=f"'width' is {odd}, expected 1 to 2147483647"):
            length_field({"width": odd}, "width", "here")


def test_flags() -> None:
    values = (0, 1, None, "0", "1", True)
    flags = [flag_field({"iscrowd": value}, "iscrowd", "here") for value in values]
    assert flags == [False, True, False, False, True, True]
    assert flag_field({}, "iscrowd", "here") is False
    with pytest.raises(DatasetError, match="here: 'iscrowd' is 2, expected 0 or 1"):
        flag_field({"iscrowd": 2}, "iscrowd", "here")
