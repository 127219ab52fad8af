"""Reads VOC-format annotations: one XML file per image.

Pixels are counted from 1, and the pixels at xmax and ymax belong to the box: its edges are
(xmin - 1, ymin - 1, xmax, ymax). Coordinates may be fractions. Labels are 1..K in the order of the
classes. `difficult` objects are treated as crowds.

Deviations that have only one possible meaning are accepted, with a warning:

- images without a size: it is read from the image file;
- flags written as words;
- polygons and rotated boxes: the upright box around them is used;
- swapped corners of a box;
- class names that differ from those of the training in upper and lower case or blanks only;
- image lists with file names instead of ids, and names with blanks;
- file names that repeat the name of the image folder.

There is one such warning for each kind of deviation, but one for every box with swapped corners.
"""

from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree.ElementTree import Element

from detector.class_names import class_named
from detector.data.dataset import DetectionDataset
from detector.data.errors import DatasetError, Faults, printable
from detector.data.images import SUFFIXES, image_size
from detector.data.masks import Box
from detector.data.records import ImageEntry, ObjectEntry, build_dataset
from detector.data.voc_boxes import read_box
from detector.data.voc_folders import Source, find_sources
from detector.data.xml_fields import flag_field, length_field, text_field
from detector.data.xml_files import parse_xml


class _Object(NamedTuple):
    """An `<object>` whose class has no label yet; `place` names its file and its number there."""

    place: str
    image_index: int
    class_name: str
    box: Box  # xyxy
    difficult: bool


def read_voc(
    *,
    roots: list[Path],
    image_set: str,
    classes: tuple[str, ...] | None,
    on_error: str = "stop",
) -> DetectionDataset:
    """Read VOC-format folders into a dataset of their images, one folder after the other.

    No image is decoded yet. Image ids count from 1 in the order of the files, category ids are
    1..K. The rules in `records.py` say which boxes are clipped or left out.

    Args:
        roots: the folders. Each has the layout of VOCdevkit/VOC2007 (`Annotations`,
            `ImageSets/Main`, `JPEGImages`); or it has no `ImageSets` and contains XML files
            together with their images.
        image_set: the name of the image list, such as "trainval" for
            `ImageSets/Main/trainval.txt`; not used for folders without `ImageSets`.
        classes: the names of the classes with the labels 1..K, or None for the classes of the
            objects, sorted.
        on_error: what happens if a single image or object cannot be used. "stop" raises an error;
            "warn" leaves it out and adds an error to the dataset's `faults`. An error of a whole
            folder is always raised.

    Raises:
        DatasetError: a file is missing or cannot be read; an element is missing or invalid; a class
            is not among `classes`; a file name leads out of its folder; a box is not finite or
            outside its image.
    """
    faults = Faults(on_error)
    images: list[ImageEntry] = []
    found: list[_Object] = []
    sources = [source for root in roots for source in find_sources(root, image_set, faults)]
    for image_id, source in enumerate(sources, start=1):
        try:
            tree = parse_xml(source.xml)
            image = _image(source, tree, image_id, faults)
        except DatasetError as error:
            faults.error("image left out", error, image_id)
            continue
        found += _objects(tree, source.xml, len(images), image, faults)
        images.append(image)
    if not roots:
        raise DatasetError("no VOC-format folder is given")
    if not images:
        raise DatasetError(f"{faults.found[0].detail}; none of the images can be used")
    if classes is None:
        classes = _collect_classes(found, roots, faults)
    else:
        found = _of_known_classes(classes, found, images, faults)
    label = {name: index for index, name in enumerate(classes, start=1)}
    return build_dataset(
        images=images,
        objects=[
            ObjectEntry(
                image_index=thing.image_index,
                box=thing.box,
                label=label[thing.class_name],
                area=None,
                iscrowd=thing.difficult,
            )
            for thing in found
        ],
        classes=classes,
        category_ids=tuple(label.values()),
        name=lambda index: found[index].place,
        faults=faults,
    )


def _image(source: Source, tree: Element, image_id: int, faults: Faults) -> ImageEntry:
    path, place = _image_path(source, tree, faults), printable(source.xml)
    sides = [(tree.findtext(f"size/{key}") or "0").strip() for key in ("height", "width")]
    if all(side in ("", "0", "0.0") for side in sides):
        faults.accepted("image without a size", f"{place}: its size is read from the image file")
        height, width = image_size(path)
    else:
        height, width = (length_field(tree, f"size/{key}", place) for key in ("height", "width"))
    return ImageEntry(image_id, path, height, width)


def _image_path(source: Source, tree: Element, faults: Faults) -> Path:
    """Return the path of the image: the file in `<filename>`, or else the XML file's namesake."""
    place, images = printable(source.xml), source.images
    given = (tree.findtext("filename") or "").strip() or f"{source.xml.stem}.jpg"
    suffixes = [*SUFFIXES, *(suffix.upper() for suffix in SUFFIXES)]
    namesakes = [images.root / (source.xml.stem + suffix) for suffix in suffixes]
    own = next((path for path in namesakes if images.holds(path, where=place)), None)
    if own is not None and own.name == PurePosixPath(given.replace("\\", "/")).name:
        return own  # regardless of the folder that it was in when it was annotated
    named = images.locate(given, where=place)
    if "\\" in given and not images.holds(named, where=place):
        given = given.replace("\\", "/")
        named = images.locate(given, where=place)
    if images.holds(named, where=place):
        if own is not None and own != named:
            raise DatasetError(
                f"{place}: <filename> is {printable(given)}, but {printable(own.name)} has the XML "
                "file's name and exists as well: remove one of the images, or correct <filename>"
            )
        return named
    if own is not None:
        return own
    shorter = images.without_own_name(given, where=place)
    if shorter is not None:
        faults.accepted("file name with the images' folder", f"{place}: {printable(repr(given))}")
        return images.locate(shorter, where=place)
    raise DatasetError(
        f"{place}: image file {printable(named)} does not exist, "
        f"nor is there {printable(source.xml.stem)}{{{','.join(SUFFIXES)}}}{images.hint(given)}"
    )


def _objects(
    tree: Element, xml: Path, image_index: int, image: ImageEntry, faults: Faults
) -> list[_Object]:
    objects = []
    for number, element in enumerate(tree.findall("object"), start=1):
        if (element.findtext("deleted") or "").strip() == "1":  # LabelMe marks deleted objects
            continue
        try:
            objects.append(
                _object(element, f"{printable(xml)}: object {number}", image_index, image, faults)
            )
        except DatasetError as error:
            faults.error("object left out", error, image.image_id)
    return objects


def _object(
    element: Element, place: str, image_index: int, image: ImageEntry, faults: Faults
) -> _Object:
    return _Object(
        place=place,
        image_index=image_index,
        class_name=text_field(element, "name", place),
        difficult=flag_field(element, "difficult", place, faults),
        box=read_box(element, place, image, faults),
    )


def _collect_classes(found: list[_Object], roots: list[Path], faults: Faults) -> tuple[str, ...]:
    if not found:
        first = next((fault.detail for fault in faults.found if fault.severity == "error"), None)
        reason = "no XML file has an <object>" if first is None else f"the first: {first}"
        where = ", ".join(map(str, roots))
        raise DatasetError(f"{where}: no object to collect classes from; {reason}")
    return tuple(sorted({thing.class_name for thing in found}))


def _of_known_classes(
    classes: tuple[str, ...], found: list[_Object], images: list[ImageEntry], faults: Faults
) -> list[_Object]:
    """Return the objects of these classes, with their class names in the spelling of `classes`."""
    if len(set(classes)) != len(classes):
        raise DatasetError(f"classes {', '.join(classes)}: a name is listed twice")
    known = []
    for thing in found:
        name = class_named(thing.class_name, classes)
        if name is None:
            error = DatasetError(
                f"{thing.place}: class {printable(repr(thing.class_name))} is not among "
                f"{', '.join(classes)}"
            )
            faults.error("unknown class", error, images[thing.image_index].image_id)
            continue
        if name != thing.class_name:
            faults.accepted(
                "class in other capitals", f"{thing.place}: {printable(thing.class_name)}"
            )
        known.append(thing._replace(class_name=name))
    return known
