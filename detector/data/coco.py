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

from collections import Counter
from pathlib import Path
from typing import Any

from detector.data.coco_boxes import read_area, read_box, refuse_corner_boxes
from detector.data.coco_categories import match_classes, read_categories
from detector.data.coco_files import load_annotations
from detector.data.dataset import DetectionDataset
from detector.data.errors import DatasetError, Faults, printable
from detector.data.folder import Folder
from detector.data.images import image_size
from detector.data.json_fields import (
    Json,
    entries_of,
    field,
    flag_field,
    id_field,
    length_field,
    place_in_file,
)
from detector.data.records import ImageEntry, ObjectEntry, build_dataset
from detector.data.values import as_integer


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
            "warn" leaves it out and adds a fault of severity "error" to the dataset's `faults`. An
            error of the whole file is always raised.

    Raises:
        DatasetError: the file cannot be read; a key is missing or has a wrong type; an image id, or
            a class that has objects, occurs twice; an object refers to an unknown image or
            category; an image file is missing or outside the folder; a box is not finite or outside
            its image.
    """
    faults = Faults(on_error)
    content = load_annotations(annotations)
    categories = read_categories(content, annotations, faults, wanted=classes)
    if classes is not None:
        categories = match_classes(classes, categories, faults)
    entries = _images(content, annotations, Folder(images), faults)
    refuse_corner_boxes(content, annotations)
    objects, indices = _objects(
        content,
        annotations,
        images=entries,
        label={category_id: label for label, category_id in enumerate(categories, start=1)},
        faults=faults,
    )

    def name(index: int) -> str:
        entry = content["annotations"][indices[index]]
        return place_in_file(annotations, "annotations", indices[index], entry)

    return build_dataset(
        images=list(entries.values()),
        objects=objects,
        classes=tuple(categories.values()),
        category_ids=tuple(categories),
        name=name,
        faults=faults,
    )


def _images(content: Json, file: Path, folder: Folder, faults: Faults) -> dict[int, ImageEntry]:
    """Return the images by id.

    If two images have the same id, neither is used, because their objects cannot be told apart.
    """
    listed = list(entries_of(content, "images", file))
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
    image_id = id_field(entry, "id", place, faults)
    path = _image_path(field(entry, "file_name", str, place), place, folder, faults)
    if entry.get("height") or entry.get("width"):
        height, width = (length_field(entry, key, place) for key in ("height", "width"))
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
    without_id: list[tuple[str, int | None]] = []  # place and image id
    for index, (place, entry) in enumerate(
        entries_of(content, "annotations", file, may_be_empty=True)
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
            without_id.append((place, image_id))
            continue
        if annotation_id == 0 or annotation_id in ids:
            what = "is 0" if annotation_id == 0 else "is used twice"
            faults.warning("annotation id", f"{place}: its id {what}", image_id)
        ids.add(annotation_id)
    if without_id:
        place, image_id = without_id[0]
        detail = f"{place}: has no integer id; {len(without_id)} objects in all have none"
        faults.warning("annotation id", detail, image_id)
    return objects, indices


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
    image_id = id_field(entry, "image_id", place, faults)
    if image_id not in image_index:
        raise DatasetError(f"{place}: image_id {image_id} is not among the images")
    image = images[image_id]
    category_id = id_field(entry, "category_id", place, faults)
    if category_id not in label:
        if category_id in names:
            name = printable(repr(names[category_id]))
            raise DatasetError(f"{place}: class {name} is not among the classes of the training")
        raise DatasetError(f"{place}: category_id {category_id} is not among the categories")
    return ObjectEntry(
        image_index=image_index[image_id],
        box=read_box(entry, place, (image.height, image.width), faults),
        label=label[category_id],
        area=read_area(entry, place),
        iscrowd=flag_field(entry, "iscrowd", place) | flag_field(entry, "ignore", place),
    )
