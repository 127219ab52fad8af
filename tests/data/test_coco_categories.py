"""Tests of the categories of COCO-format files, and of their match with the classes of a training.

Categories that tools add or repeat are left out where that has only one possible meaning.
"""

from pathlib import Path
from typing import Any

import pytest

from detector.data.coco_categories import match_classes, read_categories
from detector.data.errors import DatasetError, Faults

FISH, STAR = {"id": 1, "name": "fish"}, {"id": 2, "name": "star"}


def read(
    *categories: dict[str, Any], used: tuple[int, ...] = (1, 2), wanted: Any = None
) -> tuple[dict[int, str], list[str]]:
    """Return the class names by id, and the kinds of the faults.

    Args:
        used: the ids of the categories that have objects.
    """
    faults = Faults("stop")
    objects = [{"category_id": category_id} for category_id in used]
    content = {"categories": list(categories), "annotations": objects}
    names = read_categories(content, Path("gt.json"), faults, wanted)
    return names, [fault.kind for fault in faults.found]


def match(classes: tuple[str, ...], categories: dict[int, str]) -> tuple[dict[int, str], list[str]]:
    faults = Faults("stop")
    return match_classes(classes, categories, faults), [fault.kind for fault in faults.found]


def test_ascending_ids() -> None:
    names, kinds = read(STAR, FISH)
    assert list(names.items()) == [(1, "fish"), (2, "star")] and kinds == []


def test_a_category_that_stands_for_all() -> None:
    """Roboflow adds a category without objects that all others have as their supercategory."""
    placeholder = {"id": 0, "name": "animals", "supercategory": "none"}
    named = [entry | {"supercategory": "animals"} for entry in (FISH, STAR)]
    assert read(placeholder, *named) == ({1: "fish", 2: "star"}, ["no class"])
    wanted = ("animals", "fish", "star")
    assert read(placeholder, *named, wanted=wanted) == (dict(enumerate(wanted)), [])
    assert read(placeholder, *named, used=(0, 1, 2))[0] == dict(enumerate(wanted))


def test_a_category_that_is_its_own_kind_is_a_class() -> None:
    """A category that is its own supercategory, as "person" in COCO, is one without objects too."""
    crab = {"id": 3, "name": "crab", "supercategory": "crab"}
    assert read(FISH, STAR, crab) == ({1: "fish", 2: "star", 3: "crab"}, [])


def test_two_categories_of_one_name() -> None:
    twin = {"id": 7, "name": "fish"}
    assert read(FISH, STAR, twin) == ({1: "fish", 2: "star"}, ["category twice"])
    assert read(FISH, STAR, twin, used=(2, 7))[0] == {2: "star", 7: "fish"}
    with pytest.raises(DatasetError, match=r"same name 'fish', and both have objects: rename one"):
        read(FISH, STAR, twin, used=(1, 2, 7))


def test_classes_that_differ_in_capitals() -> None:
    two = {1: "fish", 2: "FISH"}
    assert match(("FISH", "Fish", "fish"), two) == ({2: "FISH", 3: "Fish", 1: "fish"}, [])
    names, kinds = match(("Fish", "star", "fish"), {1: "fish", 2: "star"})
    assert list(names.items()) == [(3, "Fish"), (2, "star"), (1, "fish")] and kinds == []
    assert match(("STAR",), {5: "star "}) == ({5: "STAR"}, ["class in other capitals"])


def test_a_class_that_is_listed_twice() -> None:
    with pytest.raises(DatasetError, match="classes star, star: a name is listed twice"):
        match(("star", "star"), {2: "star"})
