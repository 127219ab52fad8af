"""COCO-format annotations: one JSON file with `images`, `annotations` and `categories`.

Labels are 1..K in the order of ascending category id, whatever the ids are. A box in the file is
(x, y, w, h) in pixels from the image's corner; the edges of pixel 0 are at 0 and 1.

Deviations that have only one possible meaning are accepted, with one warning for each kind:
numbers as text, ids such as 1.0, backslashes, file names that repeat the images' folder, images
without a size (theirs is read), masks without a box (the box around them), a category for all that
Roboflow adds, gzip.
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
from detector.data.errors import DatasetError, Faults, file_error, shown
from detector.data.folder import Folder, read_file
from detector.data.images import image_size
from detector.data.masks import box_around_rotated, box_of_mask
from detector.data.records import MAX_LENGTH, ImageEntry, ObjectEntry, build_dataset
from detector.data.values import integer, is_number, number, numbers

Json = dict[str, Any]
T = TypeVar("T", int, str, list[Any])

# Keys of what other tools write, and what it is.
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
    """The images of a COCO-format file, in its order; none is decoded yet.

    `area` is the file's, or the box's where it has none; an object with `iscrowd` or `ignore`
    set is a crowd. Boxes are clipped and left out by the rules of `records.py`.

    Args:
        images: the folder that the `file_name`s are relative to.
        annotations: the JSON file, perhaps gzip'd.
        classes: the class names by label, whether the file has them all or not; None: those of
            the file. An object of another class is an error.
        on_error: "stop" raises, "warn" leaves out and lists the image or object concerned, where
            it is one.

    Raises:
        DatasetError: the file cannot be read; a key is missing or of a wrong type; an id or a
            class name is there twice or, where referred to, not at all; an image file is missing
            or outside the folder; a box is not finite or outside its image.
    """
    faults = Faults(on_error)
    content = _load(annotations, faults)
    categories = _categories(content, annotations, faults, wanted=classes)
    if classes is not None:
        categories = _of_classes(classes, categories, faults)
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
    """The class names by category id, ids ascending; without what is no class."""
    objects = content.get("annotations")
    used = {
        integer(entry.get("category_id"))
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
            raise DatasetError(f"{place}: 'name' is {name!r}, which is no text")
        if category_id in names:
            raise DatasetError(f"{place}: an earlier category has the same id")
        twin = next((other for other, known in names.items() if known == name), None)
        if twin is not None:
            idle = next((one for one in (category_id, twin) if one not in used), None)
            if idle is None:
                raise DatasetError(
                    f"{place}: an earlier category has the same name {shown(repr(name))}, and both "
                    f"have objects: rename one, or give its objects the id {twin}"
                )
            faults.taken("category twice", f"{place}: so is {shown(repr(name))}; one has no object")
            names.pop(idle, None)
            if idle == category_id:
                continue
        names[category_id] = name
    for category_id in list(names):
        name = names[category_id]
        is_placeholder = name in parents and category_id not in used and len(names) > 1
        if is_placeholder and name not in (wanted or ()):
            del names[category_id]
            detail = f"{file}: category {shown(repr(name))} stands for all others and has no object"
            faults.warning("no class", f"{detail}; with data.classes it can be one")
    return dict(sorted(names.items()))


def _of_classes(
    classes: tuple[str, ...], categories: dict[int, str], faults: Faults
) -> dict[int, str]:
    """The classes by category id, in their own order: by the file's id where it has them, by a new
    one where it does not. What the file has besides is left out, and so refused where an object
    has it.
    """
    if len(set(classes)) != len(classes):
        raise DatasetError(f"classes {', '.join(classes)}: a name is there twice")
    ids = {name: category_id for category_id, name in categories.items()}
    exact = {name: ids.pop(name) for name in classes if name in ids}
    new = max(categories, default=0)
    result = {}
    for name in classes:
        theirs = None if name in exact else class_named(name, ids)
        if name in exact:
            category_id = exact[name]
        elif theirs is not None:
            faults.taken("class in other capitals", f"{shown(theirs)} for {shown(name)}")
            category_id = ids.pop(theirs)
        else:
            category_id = new = new + 1
        result[category_id] = name
    return result


def _images(content: Json, file: Path, folder: Folder, faults: Faults) -> dict[int, ImageEntry]:
    """The images by id. Of two with one id neither is used: nothing tells whose an object is."""
    listed = list(_entries(content, "images", file))
    times = Counter(integer(entry.get("id")) for _, entry in listed)
    entries: dict[int, ImageEntry] = {}
    for place, entry in listed:
        try:
            image = _image(entry, place, folder, faults)
            if times[image.image_id] > 1:
                raise DatasetError(f"{place}: another image has the same id")
        except DatasetError as error:
            faults.error("image left out", error, integer(entry.get("id")))
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
    else:  # missing, null or 0, both of them
        faults.taken("image without a size", f"{place}: its file is read for it")
        height, width = image_size(path)
    return ImageEntry(image_id, path, height, width)


def _image_path(name: str, place: str, folder: Folder, faults: Faults) -> Path:
    """The file that `file_name` names."""
    given = name
    if "\\" in name and not folder.holds(folder.locate(name, where=place), where=place):
        name = name.replace("\\", "/")
        faults.taken("file name with backslashes", f"{place}: {shown(repr(given))}")
    try:
        path = folder.locate(name, where=place)
    except DatasetError as error:
        raise DatasetError(f"{error}{folder.hint(name)}") from error
    if folder.holds(path, where=place):
        return path
    shorter = folder.without_own_name(name, where=place)
    if shorter is None:
        raise DatasetError(f"{place}: image file {shown(path)} does not exist{folder.hint(name)}")
    faults.taken("file name with the images' folder", f"{place}: {shown(repr(given))}")
    return folder.locate(shorter, where=place)


def _objects(
    content: Json,
    file: Path,
    *,
    images: dict[int, ImageEntry],
    label: dict[int, int],
    faults: Faults,
) -> tuple[list[ObjectEntry], list[int]]:
    """The objects, and where each stands in the file's list."""
    image_index = {image_id: index for index, image_id in enumerate(images)}
    left_out = {integer(entry.get("id")) for entry in content["images"]} - image_index.keys()
    names = {integer(entry.get("id")): entry.get("name") for entry in content["categories"]}
    objects: list[ObjectEntry] = []
    indices: list[int] = []
    ids: set[int] = set()
    nameless: list[str] = []
    for index, (place, entry) in enumerate(
        _entries(content, "annotations", file, may_be_empty=True)
    ):
        image_id = integer(entry.get("image_id"))
        if image_id is not None and image_id in left_out:
            continue  # with its image, which is a fault already
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
        # Unused here. pycocotools takes 0 for no match, and mixes up two of one id.
        annotation_id = integer(entry.get("id"))
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


def _check_boxes_are_xywh(content: Json, file: Path) -> None:
    """Refuse a file whose areas say that its boxes are two corners.

    Raises:
        DatasetError: so it is for nearly all objects: an area may be that of an outline, which some
            box or other fits by chance.
    """
    corners = total = 0
    objects = content.get("annotations")
    for entry in objects if type(objects) is list else ():
        if type(entry) is not dict or entry.get("segmentation"):  # then the area is the mask's
            continue
        box, area = numbers(entry.get("bbox")), number(entry.get("area"))
        if box is None or area is None:
            continue
        total += 1
        x, y, w, h = box
        fits = w > x and h > y and abs(area - (w - x) * (h - y)) <= 0.01 * area
        corners += fits and abs(area - w * h) > 0.01 * area
    if corners > 1 and corners >= 0.9 * total:
        raise DatasetError(
            f"{file}: the 'area' of {corners} objects is that of a 'bbox' of two corners "
            "(x1, y1, x2, y2); COCO's is x, y, width, height: convert the boxes"
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
            name = shown(repr(names[category_id]))
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
    if type(value) is not kind or (kind is int and not is_number(value)):
        raise DatasetError(f"{place}: {key!r} is {reprlib.repr(value)}, expected {KINDS[kind]}")
    return value


def _id_field(entry: Json, key: str, place: str, faults: Faults) -> int:
    value = integer(entry.get(key))
    if value is None:
        return _field(entry, key, int, place)  # which says why not
    if type(entry[key]) is not int:
        faults.taken("id that is no integer", f"{place}: {key!r} is {entry[key]!r}")
    return value


def _length(entry: Json, key: str, place: str) -> int:
    length = integer(entry.get(key))
    if length is None:
        length = _field(entry, key, int, place)  # which says why not
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
    is_missing = not given or numbers(given) == [0, 0, 0, 0]  # or null, or empty
    if is_missing and entry.get("segmentation"):
        box = box_of_mask(entry["segmentation"], size)
        if box is None:
            raise DatasetError(
                f"{place}: there is no 'bbox', and 'segmentation' is no mask of its image"
            )
        faults.taken("mask without a box", f"{place}: its box is the one around the mask")
        return box
    bbox = numbers(given)
    if bbox is None:
        bbox = _field(entry, "bbox", list, place)
        raise DatasetError(
            f"{place}: 'bbox' is {reprlib.repr(bbox)}, expected 4 numbers x, y, w, h"
        )
    if given != bbox:
        faults.taken("box as text", f"{place}: 'bbox' is {reprlib.repr(given)}")
    x, y, w, h = bbox
    attributes = entry.get("attributes")
    rotation = number(attributes.get("rotation")) if type(attributes) is dict else None
    if rotation:  # CVAT's, in degrees; its box is the one before the turn
        faults.taken("rotated box", f"{place}: its box is the upright one around it")
        centre = (x + w / 2, y + h / 2)
        return box_around_rotated(*centre, w, h, math.radians(rotation), size)
    return x, y, x + w, y + h


def _area(entry: Json, place: str) -> float | None:
    area = entry.get("area")
    if area is None:
        return None
    value = number(area)
    if value is None or not 0 <= value < 2**63:
        raise DatasetError(f"{place}: 'area' is {reprlib.repr(area)}, expected square pixels")
    return value
