"""COCO-format annotations: one JSON file with `images`, `annotations` and `categories`.

Labels are 1..K in the order of ascending category id, whatever the ids are. A box in the file is
(x, y, w, h) in pixels from the image's corner; the edges of pixel 0 are at 0 and 1.
"""

import json
import reprlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from detector.data.dataset import DetectionDataset
from detector.data.errors import DatasetError, Faults, file_error, shown
from detector.data.folder import Folder, read_file
from detector.data.records import MAX_LENGTH, ImageEntry, ObjectEntry, build_dataset

Json = dict[str, Any]
T = TypeVar("T", int, str, list[Any])

KINDS = {int: "a 64-bit integer", str: "a string", list: "a list"}


def read_coco(*, images: Path, annotations: Path, on_error: str = "stop") -> DetectionDataset:
    """The images of a COCO-format file, in its order; none is decoded yet.

    `area` is the file's, or the box's where it has none; an object with `iscrowd` or `ignore`
    set is a crowd. Boxes are clipped and left out by the rules of `records.py`.

    Args:
        images: the folder that the `file_name`s are relative to.
        annotations: the JSON file.
        on_error: "stop" raises, "warn" leaves out and lists the image or object concerned, where
            it is one.

    Raises:
        DatasetError: the file cannot be read; a key is missing or of a wrong type; an id or a
            class name is there twice or, where referred to, not at all; an image file is missing
            or outside the folder; a box is not finite or outside its image.
    """
    content = _load(annotations)
    faults = Faults(on_error)
    categories = _categories(content, annotations)
    entries = _images(content, annotations, Folder(images), faults)
    objects, indices = _objects(
        content,
        annotations,
        image_index={image_id: index for index, image_id in enumerate(entries)},
        label={category_id: label for label, category_id in enumerate(categories, start=1)},
        faults=faults,
    )

    def name(index: int) -> str:
        entry = content["annotations"][indices[index]]
        return _place(annotations, "annotations", indices[index], entry)

    return build_dataset(
        images=list(entries.values()),
        objects=objects,
        classes=tuple(categories.values()),
        category_ids=tuple(categories),
        name=name,
        faults=faults,
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
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise DatasetError(f"{place}: 'name' is {name!r}, which is no text")
        if category_id in names:
            raise DatasetError(f"{place}: an earlier category has the same id")
        if name in names.values():
            raise DatasetError(
                f"{place}: an earlier category has the same name {shown(repr(name))}"
            )
        names[category_id] = name
    return dict(sorted(names.items()))


def _images(content: Json, file: Path, folder: Folder, faults: Faults) -> dict[int, ImageEntry]:
    """The images by id. Of two with one id neither is used: nothing tells whose an object is."""
    listed = list(_entries(content, "images", file))
    times = Counter(_id(entry, "id") for _, entry in listed)
    entries: dict[int, ImageEntry] = {}
    for place, entry in listed:
        try:
            image = _image(entry, place, folder)
            if times[image.image_id] > 1:
                raise DatasetError(f"{place}: another image has the same id")
        except DatasetError as error:
            faults.error("image left out", error, _id(entry, "id"))
        else:
            entries[image.image_id] = image
    if not entries:
        raise DatasetError(f"{faults.found[0].detail}; none of the images can be used")
    return entries


def _image(entry: Json, place: str, folder: Folder) -> ImageEntry:
    image_id = _field(entry, "id", int, place)
    path = folder.locate(_field(entry, "file_name", str, place), where=place)
    if not folder.holds(path, where=place):
        raise DatasetError(f"{place}: image file {shown(path)} does not exist")
    return ImageEntry(
        image_id, path, _length(entry, "height", place), _length(entry, "width", place)
    )


def _objects(
    content: Json,
    file: Path,
    *,
    image_index: dict[int, int],
    label: dict[int, int],
    faults: Faults,
) -> tuple[list[ObjectEntry], list[int]]:
    """The objects, and where each stands in the file's list."""
    left_out = {_id(entry, "id") for entry in content["images"]} - image_index.keys()
    objects: list[ObjectEntry] = []
    indices: list[int] = []
    ids: set[int] = set()
    nameless: list[str] = []
    for index, (place, entry) in enumerate(
        _entries(content, "annotations", file, may_be_empty=True)
    ):
        image_id = _id(entry, "image_id")
        if image_id is not None and image_id in left_out:
            continue  # with its image, which is a fault already
        try:
            objects.append(_object(entry, place, image_index=image_index, label=label))
        except DatasetError as error:
            faults.error("object left out", error, image_id)
            continue
        indices.append(index)
        # Unused here. pycocotools takes 0 for no match, and mixes up two of one id.
        annotation_id = _id(entry, "id")
        if annotation_id is None:
            nameless.append(place)
            continue
        if annotation_id == 0 or annotation_id in ids:
            what = "is 0" if annotation_id == 0 else "is there twice"
            faults.warning("annotation id", f"{place}: its id {what}", image_id)
        ids.add(annotation_id)
    if nameless:
        detail = f"{nameless[0]}: it has no id, as {len(nameless)} objects"
        faults.warning("annotation id", detail)
    return objects, indices


def _object(
    entry: Json, place: str, *, image_index: dict[int, int], label: dict[int, int]
) -> ObjectEntry:
    image_id = _field(entry, "image_id", int, place)
    if image_id not in image_index:
        raise DatasetError(f"{place}: image_id {image_id} is not among the images")
    category_id = _field(entry, "category_id", int, place)
    if category_id not in label:
        raise DatasetError(f"{place}: category_id {category_id} is not among the categories")
    return ObjectEntry(
        image_index=image_index[image_id],
        box=_box(entry, place),
        label=label[category_id],
        area=_area(entry, place),
        iscrowd=_flag(entry, "iscrowd", place) | _flag(entry, "ignore", place),
    )


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


def _id(entry: Any, key: str) -> int | None:
    """An id for a fault to name, if there is one."""
    value = entry.get(key) if type(entry) is dict else None
    return value if type(value) is int else None


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
