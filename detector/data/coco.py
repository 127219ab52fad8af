"""Reads COCO-format annotations: one JSON file with `images`, `annotations` and `categories`.

Labels are 1..K in the order of ascending category id; the ids themselves may be any integers. A box
in the file is (x, y, w, h) in pixels from the image's upper left corner; pixel 0 has its edges at 0
and 1.

Deviations that have only one possible meaning are accepted, with one warning for each kind:

- ids and boxes written as text, and ids written as 1.0;
- file names with backslashes, or that repeat the name of the image folder;
- images without a size: it is read from the image file;
- masks without a box: the bounding box of the mask is used; rotated boxes: the upright box around;
- two categories with one name, if one of them has no object;
- the category that Roboflow adds as the parent of all others;
- class names that differ from those of the training in upper and lower case or blanks only.

A gzip'd file, and other numbers written as text, are read without a warning.
"""

import gzip
import json
import math
import reprlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from detector.class_names import class_named
from detector.data.dataset import DetectionDataset
from detector.data.errors import DatasetError, Faults, file_error, printable
from detector.data.folder import Folder, read_file
from detector.data.images import image_size
from detector.data.masks import box_around_rotated, box_of_mask
from detector.data.records import MAX_LENGTH, ImageEntry, ObjectEntry, build_dataset
from detector.data.values import as_four_numbers, as_integer, as_number, is_number

Json = dict[str, Any]
T = TypeVar("T", int, str, list[Any])

# Keys by which the formats of other tools are recognised, and the name of the format.
OTHERS = {
    frozenset({"shapes", "imagePath"}): "a file of labelme",
    frozenset({"_via_settings"}): "a project of VIA",
    frozenset({"filename", "regions"}): "an export of VIA",
    frozenset({"items", "infos"}): "Datumaro's",
    frozenset({"items", "categories"}): "Datumaro's",
    frozenset({"data", "annotations"}): "an export of Label Studio",
    frozenset({"image", "annotations"}): "CreateML's",
}
KINDS = {int: "a 64-bit integer", str: "a string", list: "a list"}


def read_coco(
    *,
    images: Path,
    annotations: Path,
    classes: tuple[str, ...] | None = None,
    on_error: str = "stop",
) -> DetectionDataset:
    """Read a COCO-format file into a dataset of its images, in the order of the file.

    No image is decoded yet. An object without an `area` gets the area of its box; an object with
    `iscrowd` or `ignore` set is a crowd. The rules in `records.py` say which boxes are clipped or
    left out.

    Args:
        images: the folder that each `file_name` is relative to.
        annotations: the JSON file, which may be compressed with gzip.
        classes: the names of the classes with the labels 1..K, which the file need not all have;
            an object of another class is an error. None takes the classes of the file.
        on_error: what happens if a single image or object cannot be used. "stop" raises an error;
            "warn" leaves it out and adds an error to the dataset's `faults`. An error of the
            whole file is always raised.

    Raises:
        DatasetError: the file cannot be read; a key is missing or has a wrong type; an id or a
            class name occurs twice; an object refers to an unknown image or category; an image
            file is missing or outside the folder; a box is not finite or outside its image.
    """
    faults = Faults(on_error)
    content = _load(annotations, faults)
    categories = _categories(content, annotations, faults, wanted=classes)
    if classes is not None:
        categories = _given_classes(classes, categories, faults)
    entries = _images(content, annotations, Folder(images), faults)
    _check_boxes_are_xywh(content, annotations)
    objects, indices = _objects(
        content,
        annotations,
        images=entries,
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


def _load(file: Path, faults: Faults) -> Json:
    if not file.exists():
        raise file_error(
            file, f"cannot be read (No such file or directory){Folder(file.parent).hint(file.name)}"
        )
    encoded = read_file(file)
    try:
        if encoded.startswith(b"\x1f\x8b"):
            encoded = gzip.decompress(encoded)
        content = json.loads(encoded)
    except (ValueError, RecursionError, OSError, EOFError) as error:
        raise file_error(file, f"cannot be read as JSON ({error})") from error
    for keys, tool in OTHERS.items():
        first = content[0] if type(content) is list and content else content
        if type(first) is dict and keys <= first.keys():
            raise DatasetError(
                f"{file}: is {tool}, not COCO's format: export or convert it to COCO or VOC there"
            )
    if type(content) is list and content and type(content[0]) is dict and "score" in content[0]:
        raise DatasetError(f"{file}: holds a list of results, expected annotations")
    if type(content) is not dict:
        raise DatasetError(f"{file}: holds {reprlib.repr(content)}, expected a JSON object")
    return content


def _categories(
    content: Json, file: Path, faults: Faults, wanted: tuple[str, ...] | None
) -> dict[int, str]:
    """Return the class names by category id, in the order of ascending ids.

    A category without objects is left out if another one has the same name, or if another one has
    it as its `supercategory` (as Roboflow writes) and `wanted` does not list it.
    """
    objects = content.get("annotations")
    used = {
        as_integer(entry.get("category_id"))
        for entry in (objects if type(objects) is list else ())
        if type(entry) is dict
    }
    names: dict[int, str] = {}
    parents = set()
    for place, entry in _entries(content, "categories", file):
        category_id = _id_field(entry, "id", place, faults)
        name = _field(entry, "name", str, place).strip()
        parent = entry.get("supercategory")
        if type(parent) is str and parent != name:
            parents.add(parent)
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise DatasetError(f"{place}: 'name' is {name!r}, which is not valid Unicode text")
        if category_id in names:
            raise DatasetError(f"{place}: an earlier category has the same id")
        twin = next((other for other, known in names.items() if known == name), None)
        if twin is not None:
            unused = next((one for one in (category_id, twin) if one not in used), None)
            if unused is None:
                raise DatasetError(
                    f"{place}: an earlier category has the same name {printable(repr(name))}, and "
                    f"both have objects: rename one, or give the objects of this one the id {twin}"
                )
            detail = f"{place}: an earlier category has the same name {printable(repr(name))}"
            faults.accepted("category twice", f"{detail}; the one without objects is left out")
            names.pop(unused, None)
            if unused == category_id:
                continue
        names[category_id] = name
    for category_id in list(names):
        name = names[category_id]
        is_placeholder = name in parents and category_id not in used and len(names) > 1
        if is_placeholder and name not in (wanted or ()):
            del names[category_id]
            detail = (
                f"{file}: category {printable(repr(name))} has no object and is a supercategory"
            )
            faults.warning("no class", f"{detail}: it is left out unless data.classes lists it")
    return dict(sorted(names.items()))


def _given_classes(
    classes: tuple[str, ...], categories: dict[int, str], faults: Faults
) -> dict[int, str]:
    """Return the given classes by category id, in the given order.

    A class that the file has keeps the file's category id; any other class gets a new id. The
    file's other categories are left out, so that an object of one of them is an error.
    """
    if len(set(classes)) != len(classes):
        raise DatasetError(f"classes {', '.join(classes)}: a name is listed twice")
    ids = {name: category_id for category_id, name in categories.items()}
    exact = {name: ids.pop(name) for name in classes if name in ids}
    new = max(categories, default=0)
    result = {}
    for name in classes:
        theirs = None if name in exact else class_named(name, ids)
        if name in exact:
            category_id = exact[name]
        elif theirs is not None:
            faults.accepted(
                "class in other capitals", f"{printable(theirs)} is read as {printable(name)}"
            )
            category_id = ids.pop(theirs)
        else:
            category_id = new = new + 1
        result[category_id] = name
    return result


def _images(content: Json, file: Path, folder: Folder, faults: Faults) -> dict[int, ImageEntry]:
    """Return the images by id.

    If two images have the same id, neither is used, because their objects cannot be told apart.
    """
    listed = list(_entries(content, "images", file))
    times = Counter(as_integer(entry.get("id")) for _, entry in listed)
    entries: dict[int, ImageEntry] = {}
    for place, entry in listed:
        try:
            image = _image(entry, place, folder, faults)
            if times[image.image_id] > 1:
                raise DatasetError(f"{place}: another image has the same id")
        except DatasetError as error:
            faults.error("image left out", error, as_integer(entry.get("id")))
        else:
            entries[image.image_id] = image
    if not entries:
        raise DatasetError(f"{faults.found[0].detail}; none of the images can be used")
    return entries


def _image(entry: Json, place: str, folder: Folder, faults: Faults) -> ImageEntry:
    image_id = _id_field(entry, "id", place, faults)
    path = _image_path(_field(entry, "file_name", str, place), place, folder, faults)
    if entry.get("height") or entry.get("width"):
        height, width = (_length(entry, key, place) for key in ("height", "width"))
    else:  # both are missing, null or 0
        faults.accepted("image without a size", f"{place}: its size is read from the image file")
        height, width = image_size(path)
    return ImageEntry(image_id, path, height, width)


def _image_path(name: str, place: str, folder: Folder, faults: Faults) -> Path:
    """Return the path of the image file that `file_name` means."""
    given = name
    if "\\" in name and not folder.holds(folder.locate(name, where=place), where=place):
        name = name.replace("\\", "/")
        faults.accepted("file name with backslashes", f"{place}: {printable(repr(given))}")
    try:
        path = folder.locate(name, where=place)
    except DatasetError as error:
        raise DatasetError(f"{error}{folder.hint(name)}") from error
    if folder.holds(path, where=place):
        return path
    shorter = folder.without_own_name(name, where=place)
    if shorter is None:
        raise DatasetError(
            f"{place}: image file {printable(path)} does not exist{folder.hint(name)}"
        )
    faults.accepted("file name with the images' folder", f"{place}: {printable(repr(given))}")
    return folder.locate(shorter, where=place)


def _objects(
    content: Json,
    file: Path,
    *,
    images: dict[int, ImageEntry],
    label: dict[int, int],
    faults: Faults,
) -> tuple[list[ObjectEntry], list[int]]:
    """Return the objects that can be used, and the index of each in the file's `annotations`."""
    image_index = {image_id: index for index, image_id in enumerate(images)}
    left_out = {as_integer(entry.get("id")) for entry in content["images"]} - image_index.keys()
    names = {as_integer(entry.get("id")): entry.get("name") for entry in content["categories"]}
    objects: list[ObjectEntry] = []
    indices: list[int] = []
    ids: set[int] = set()
    without_id: list[str] = []
    for index, (place, entry) in enumerate(
        _entries(content, "annotations", file, may_be_empty=True)
    ):
        image_id = as_integer(entry.get("image_id"))
        if image_id is not None and image_id in left_out:
            continue  # its image is left out, which is reported already
        try:
            objects.append(
                _object(
                    *(entry, place),
                    image_index=image_index,
                    label=label,
                    names=names,
                    images=images,
                    faults=faults,
                )
            )
        except DatasetError as error:
            faults.error("object left out", error, image_id)
            continue
        indices.append(index)
        # The id is not used here, but pycocotools reads 0 as "no match" and confuses equal ids.
        annotation_id = as_integer(entry.get("id"))
        if annotation_id is None:
            without_id.append(place)
            continue
        if annotation_id == 0 or annotation_id in ids:
            what = "is 0" if annotation_id == 0 else "is used twice"
            faults.warning("annotation id", f"{place}: its id {what}", image_id)
        ids.add(annotation_id)
    if without_id:
        detail = f"{without_id[0]}: has no integer id; {len(without_id)} objects in all have none"
        faults.warning("annotation id", detail)
    return objects, indices


def _check_boxes_are_xywh(content: Json, file: Path) -> None:
    """Refuse a file whose boxes are written as two corners, which the `area` of objects reveals.

    Raises:
        DatasetError: the area fits two corners and not (x, y, w, h) for at least two objects and
            90% of those that have an area and no mask. A single object proves nothing: an area
            that is measured inside an outline may fit two corners by chance.
    """
    corners = total = 0
    objects = content.get("annotations")
    for entry in objects if type(objects) is list else ():
        if type(entry) is not dict or entry.get("segmentation"):  # the area is the mask's
            continue
        box, area = as_four_numbers(entry.get("bbox")), as_number(entry.get("area"))
        if box is None or area is None:
            continue
        total += 1
        x, y, w, h = box
        fits = w > x and h > y and abs(area - (w - x) * (h - y)) <= 0.01 * area
        corners += fits and abs(area - w * h) > 0.01 * area
    if corners > 1 and corners >= 0.9 * total:
        raise DatasetError(
            f"{file}: the 'area' of {corners} objects shows that their 'bbox' holds two corners "
            "(x1, y1, x2, y2), expected x, y, width, height: convert the boxes"
        )


def _object(
    entry: Json,
    place: str,
    *,
    image_index: dict[int, int],
    label: dict[int, int],
    names: dict[int | None, Any],
    images: dict[int, ImageEntry],
    faults: Faults,
) -> ObjectEntry:
    image_id = _id_field(entry, "image_id", place, faults)
    if image_id not in image_index:
        raise DatasetError(f"{place}: image_id {image_id} is not among the images")
    image = images[image_id]
    category_id = _id_field(entry, "category_id", place, faults)
    if category_id not in label:
        if category_id in names:
            name = printable(repr(names[category_id]))
            raise DatasetError(f"{place}: class {name} is not among the classes of the training")
        raise DatasetError(f"{place}: category_id {category_id} is not among the categories")
    return ObjectEntry(
        image_index=image_index[image_id],
        box=_box(entry, place, (image.height, image.width), faults),
        label=label[category_id],
        area=_area(entry, place),
        iscrowd=_flag(entry, "iscrowd", place) | _flag(entry, "ignore", place),
    )


# ---- Typed reading of JSON ----------------------------------------------------------------------


def _entries(
    content: Json, key: str, file: Path, *, may_be_empty: bool = False
) -> Iterator[tuple[str, Json]]:
    """Yield each entry of a list, preceded by its place in the file for error messages."""
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
    if type(value) is not kind or (kind is int and not is_number(value)):
        raise DatasetError(f"{place}: {key!r} is {reprlib.repr(value)}, expected {KINDS[kind]}")
    return value


def _id_field(entry: Json, key: str, place: str, faults: Faults) -> int:
    value = as_integer(entry.get(key))
    if value is None:
        return _field(entry, key, int, place)  # raises the error that says why
    if type(entry[key]) is not int:
        faults.accepted("id that is no integer", f"{place}: {key!r} is {entry[key]!r}")
    return value


def _length(entry: Json, key: str, place: str) -> int:
    length = as_integer(entry.get(key))
    if length is None:
        length = _field(entry, key, int, place)  # raises the error that says why
    if not 1 <= length <= MAX_LENGTH:
        raise DatasetError(f"{place}: {key!r} is {length}, expected 1 to {MAX_LENGTH} pixels")
    return length


def _flag(entry: Json, key: str, place: str) -> bool:
    value = entry.get(key)
    if value not in (0, 1, None, "0", "1"):
        raise DatasetError(f"{place}: {key!r} is {reprlib.repr(value)}, expected 0 or 1")
    return bool(value) and value != "0"


def _box(
    entry: Json, place: str, size: tuple[int, int], faults: Faults
) -> tuple[float, float, float, float]:
    given = entry.get("bbox")
    is_missing = not given or as_four_numbers(given) == [0, 0, 0, 0]  # also null or empty
    if is_missing and entry.get("segmentation"):
        box = box_of_mask(entry["segmentation"], size)
        if box is None:
            raise DatasetError(
                f"{place}: has no 'bbox', and its 'segmentation' is not a valid mask of its image"
            )
        faults.accepted("mask without a box", f"{place}: its mask's bounding box is used")
        return box
    bbox = as_four_numbers(given)
    if bbox is None:
        bbox = _field(entry, "bbox", list, place)
        raise DatasetError(
            f"{place}: 'bbox' is {reprlib.repr(bbox)}, expected 4 numbers x, y, w, h"
        )
    if given != bbox:
        faults.accepted("box as text", f"{place}: 'bbox' is {reprlib.repr(given)}")
    x, y, w, h = bbox
    attributes = entry.get("attributes")
    rotation = as_number(attributes.get("rotation")) if type(attributes) is dict else None
    if rotation:  # CVAT writes the box before its rotation, and the angle in degrees
        faults.accepted("rotated box", f"{place}: the upright box around it is used")
        centre = (x + w / 2, y + h / 2)
        return box_around_rotated(*centre, w, h, math.radians(rotation), size)
    return x, y, x + w, y + h


def _area(entry: Json, place: str) -> float | None:
    area = entry.get("area")
    if area is None:
        return None
    value = as_number(area)
    if value is None or not 0 <= value < 2**63:
        raise DatasetError(
            f"{place}: 'area' is {reprlib.repr(area)}, expected square pixels, 0 or more"
        )
    return value
