"""COCO-format annotations: one JSON file with `images`, `annotations` and `categories`.

Labels are 1..K in the order of ascending category id, whatever the ids are. A box in the file is
(x, y, w, h) in pixels from the image's corner; the edges of pixel 0 are at 0 and 1.
"""

import json
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from detector.data.dataset import DetectionDataset
from detector.data.errors import DatasetError, file_error, shown
from detector.data.folder import Folder, read_file
from detector.data.records import MAX_LENGTH, ImageEntry, ObjectEntry, build_dataset

Json = dict[str, Any]
T = TypeVar("T", int, str, list[Any])

KINDS = {int: "a 64-bit integer", str: "a string", list: "a list"}


def read_coco(*, images: Path, annotations: Path) -> DetectionDataset:
    """The images of a COCO-format file, in its order; none is decoded yet.

    `area` is the file's, or the box's where it has none; an object with `iscrowd` set is a
    crowd. Boxes are clipped and left out by the rules of `records.py`.

    Args:
        images: the folder that the `file_name`s are relative to.
        annotations: the JSON file.

    Raises:
        DatasetError: the file cannot be read; a key is missing or of a wrong type; an id or a
            class name is there twice or, where referred to, not at all; an image file is missing
            or outside the folder; a box is not finite or outside its image.
    """
    content = _load(annotations)
    categories = _categories(content, annotations)
    entries = _images(content, annotations, Folder(images))
    objects = _objects(
        content,
        annotations,
        image_index={entry.image_id: index for index, entry in enumerate(entries)},
        label={category_id: label for label, category_id in enumerate(categories, start=1)},
    )

    def name(index: int) -> str:
        return _place(annotations, "annotations", index, content["annotations"][index])

    return build_dataset(
        images=entries,
        objects=objects,
        classes=tuple(categories.values()),
        category_ids=tuple(categories),
        name=name,
    )


def _load(file: Path) -> Json:
    encoded = read_file(file)
    try:
        content = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise file_error(file, f"cannot be read as JSON ({error})") from error
    if type(content) is not dict:
        raise DatasetError(f"{file}: holds {reprlib.repr(content)}, expected a JSON object")
    return content


def _categories(content: Json, file: Path) -> dict[int, str]:
    """The class names by category id, ids ascending."""
    names: dict[int, str] = {}
    for place, entry in _entries(content, "categories", file):
        category_id, name = _field(entry, "id", int, place), _field(entry, "name", str, place)
        if category_id in names:
            raise DatasetError(f"{place}: an earlier category has the same id")
        if name in names.values():
            raise DatasetError(
                f"{place}: an earlier category has the same name {shown(repr(name))}"
            )
        names[category_id] = name
    return dict(sorted(names.items()))


def _images(content: Json, file: Path, folder: Folder) -> list[ImageEntry]:
    entries: dict[int, ImageEntry] = {}
    for place, entry in _entries(content, "images", file):
        image_id = _field(entry, "id", int, place)
        if image_id in entries:
            raise DatasetError(f"{place}: an earlier image has the same id")
        path = folder.locate(_field(entry, "file_name", str, place), where=place)
        if not folder.holds(path, where=place):
            raise DatasetError(f"{place}: image file {shown(path)} does not exist")
        height, width = _length(entry, "height", place), _length(entry, "width", place)
        entries[image_id] = ImageEntry(image_id, path, height, width)
    return list(entries.values())


def _objects(
    content: Json, file: Path, *, image_index: dict[int, int], label: dict[int, int]
) -> list[ObjectEntry]:
    objects = []
    for place, entry in _entries(content, "annotations", file, may_be_empty=True):
        image_id = _field(entry, "image_id", int, place)
        if image_id not in image_index:
            raise DatasetError(f"{place}: image_id {image_id} is not among the images")
        category_id = _field(entry, "category_id", int, place)
        if category_id not in label:
            raise DatasetError(f"{place}: category_id {category_id} is not among the categories")
        objects.append(
            ObjectEntry(
                image_index=image_index[image_id],
                box=_box(entry, place),
                label=label[category_id],
                area=_area(entry, place),
                iscrowd=_flag(entry, "iscrowd", place),
            )
        )
    return objects


# ---- Typed reading of JSON ----------------------------------------------------------------------


def _entries(
    content: Json, key: str, file: Path, *, may_be_empty: bool = False
) -> Iterator[tuple[str, Json]]:
    """Each entry of a list, after the words that say where it stands."""
    entries = _field(content, key, list, str(file))
    if not entries and not may_be_empty:
        raise DatasetError(f"{file}: {key!r} is empty")
    for index, entry in enumerate(entries):
        if type(entry) is not dict:
            raise DatasetError(
                f"{file}: {key}[{index}] is {reprlib.repr(entry)}, expected an object"
            )
        yield _place(file, key, index, entry), entry


def _place(file: Path, key: str, index: int, entry: Json) -> str:
    return f"{file}: {key}[{index}] (id {reprlib.repr(entry.get('id'))})"


def _field(entry: Json, key: str, kind: type[T], place: str) -> T:
    if key not in entry:
        raise DatasetError(f"{place}: key {key!r} is missing")
    value: Any = entry[key]
    if type(value) is not kind or (kind is int and not _is_number(value)):
        raise DatasetError(f"{place}: {key!r} is {reprlib.repr(value)}, expected {KINDS[kind]}")
    return value


def _length(entry: Json, key: str, place: str) -> int:
    length = _field(entry, key, int, place)
    if not 1 <= length <= MAX_LENGTH:
        raise DatasetError(f"{place}: {key!r} is {length}, expected 1 to {MAX_LENGTH} pixels")
    return length


def _flag(entry: Json, key: str, place: str) -> bool:
    value = entry.get(key, 0)
    if value not in (0, 1):
        raise DatasetError(f"{place}: {key!r} is {reprlib.repr(value)}, expected 0 or 1")
    return bool(value)


def _box(entry: Json, place: str) -> tuple[float, float, float, float]:
    bbox = _field(entry, "bbox", list, place)
    if len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise DatasetError(
            f"{place}: 'bbox' is {reprlib.repr(bbox)}, expected 4 numbers x, y, w, h"
        )
    x, y, w, h = map(float, bbox)
    return x, y, x + w, y + h


def _area(entry: Json, place: str) -> float | None:
    if "area" not in entry:
        return None
    area = entry["area"]
    if not (_is_number(area) and 0 <= area < 2**63):
        raise DatasetError(f"{place}: 'area' is {reprlib.repr(area)}, expected square pixels")
    return float(area)


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)
