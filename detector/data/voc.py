"""VOC-format annotations: one XML file an image.

Pixels are counted from 1 and the last one belongs to the box, so its edges are
(xmin - 1, ymin - 1, xmax, ymax). Numbers may be fractions. Labels are 1..K in the order of the
classes; `difficult` objects are crowds.
"""

from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

from defusedxml.ElementTree import XMLParser

from detector.data.dataset import DetectionDataset
from detector.data.errors import DatasetError, Faults, file_error, shown
from detector.data.folder import Folder, read_file
from detector.data.records import MAX_LENGTH, ImageEntry, ObjectEntry, build_dataset

MAX_BYTES = 2**20  # of an XML file: one of an image with a thousand objects has a quarter of that
MAX_ELEMENTS = 50_000  # of an XML file: of four thousand objects
MAX_DEPTH = 32  # of elements within each other: the devkit has 4
SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


class _Source(NamedTuple):
    """An annotation file, and the folder that its image is in."""

    xml: Path
    images: Folder


class _Object(NamedTuple):
    """An `<object>` before its class has a label, and the words that say where it stands."""

    place: str
    image_index: int
    class_name: str
    box: tuple[float, float, float, float]  # xyxy
    difficult: bool


def read_voc(
    *,
    roots: list[Path],
    image_set: str,
    classes: tuple[str, ...] | None,
    on_error: str = "stop",
) -> DetectionDataset:
    """The images of VOC-format folders, one root after the other; none is decoded yet.

    A root is laid out as VOCdevkit/VOC2007 is (`Annotations`, `ImageSets/Main`, `JPEGImages`), or,
    if it has no `ImageSets`, is a folder of XML files beside their images. Image ids are 1..N,
    category ids 1..K. Boxes are clipped and left out by the rules of `records.py`.

    Args:
        roots: the folders.
        image_set: "trainval" for `ImageSets/Main/trainval.txt`; unused where there is none.
        classes: the class names, or None for those found, sorted.
        on_error: "stop" raises, "warn" leaves out and lists the image or object concerned, where
            it is one.

    Raises:
        DatasetError: a file cannot be read or is missing; an element is missing or not what it
            should be; a class is not among `classes`; a file name leads out of its folder; a box
            is not finite or outside its image.
    """
    faults = Faults(on_error)
    images: list[ImageEntry] = []
    found: list[_Object] = []
    sources = [source for root in roots for source in _sources(root, image_set, faults)]
    for image_id, source in enumerate(sources, start=1):
        try:
            tree = _parse(source.xml)
            image = _image(source, tree, image_id)
        except DatasetError as error:
            faults.error("image left out", error, image_id)
            continue
        found += _objects(tree, source.xml, len(images), image_id, faults)
        images.append(image)
    if not roots:
        raise DatasetError("no VOC-format folder is given")
    if not images:
        raise DatasetError(f"{faults.found[0].detail}; none of the images can be used")
    if classes is None:
        classes = _collect(found, roots)
    else:
        found = _known(classes, found, images, faults)
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


# ---- The files ----------------------------------------------------------------------------------


def _sources(root: Path, image_set: str, faults: Faults) -> list[_Source]:
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder")
    if (root / "ImageSets").is_dir():
        return _devkit_sources(root, root / "ImageSets" / "Main" / f"{image_set}.txt", faults)
    images = Folder(root)
    sources = [_Source(xml, images) for xml in sorted(images.root.glob("*.xml"))]
    if not sources:
        raise DatasetError(f"{root}: holds neither a folder ImageSets nor XML files")
    return sources


def _devkit_sources(root: Path, list_file: Path, faults: Faults) -> list[_Source]:
    """The images that a file of `ImageSets/Main` lists: an id a line, maybe with a flag behind."""
    encoded = read_file(list_file)
    try:
        lines = encoded.decode("utf-8-sig").splitlines()
    except ValueError as error:
        raise file_error(list_file, f"cannot be read ({error})") from error
    annotations, images = Folder(root / "Annotations"), Folder(root / "JPEGImages")
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise DatasetError(f"{list_file}: lists no images")
    sources: dict[Path, _Source] = {}
    for name in names:
        place = f"{list_file}: {shown(name)}"
        try:
            xml = annotations.locate(f"{name}.xml", where=place)
            if not annotations.holds(xml, where=place):
                raise DatasetError(f"{place}: annotation file {shown(xml)} does not exist")
            if xml in sources:
                raise DatasetError(f"{place} is listed twice")
        except DatasetError as error:
            faults.error("image left out", error)
        else:
            sources[xml] = _Source(xml, images)
    return list(sources.values())


class _SmallTree(TreeBuilder):
    """Elements to a limit in number and depth: a megabyte of nothing else would take seconds."""

    number = 0
    depth = 0

    def start(self, tag: Any, attrs: Any, /) -> Element:
        self.number += 1
        self.depth += 1
        if self.number > MAX_ELEMENTS:
            raise ValueError(f"over {MAX_ELEMENTS} elements")
        if self.depth > MAX_DEPTH:
            raise ValueError(f"over {MAX_DEPTH} elements within each other")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> Element:
        self.depth -= 1
        return super().end(tag)


def _parse(xml: Path) -> Element:
    encoded = read_file(xml, max_bytes=MAX_BYTES)
    try:
        parser = XMLParser(target=_SmallTree())
        parser.feed(encoded)
        tree: Element = parser.close()
    except (ParseError, ValueError, LookupError) as error:
        raise file_error(xml, f"cannot be read as XML ({error})") from error
    return tree


# ---- Their contents -----------------------------------------------------------------------------


def _image(source: _Source, tree: Element, image_id: int) -> ImageEntry:
    height, width = (_length(tree, key, shown(source.xml)) for key in ("size/height", "size/width"))
    return ImageEntry(image_id, _image_path(source, tree), height, width)


def _image_path(source: _Source, tree: Element) -> Path:
    """The file that `<filename>` names; if there is none, one named as the XML file is."""
    place = shown(source.xml)
    named = source.images.locate(_text(tree, "filename", place), where=place)
    namesakes = [source.images.root / (source.xml.stem + suffix) for suffix in SUFFIXES]
    for path in (named, *namesakes):
        if source.images.holds(path, where=place):
            return path
    raise DatasetError(
        f"{place}: image file {shown(named)} does not exist, "
        f"nor is there {shown(source.xml.stem)}{{{','.join(SUFFIXES)}}}"
    )


def _objects(
    tree: Element, xml: Path, image_index: int, image_id: int, faults: Faults
) -> list[_Object]:
    objects = []
    for number, element in enumerate(tree.findall("object"), start=1):
        try:
            objects.append(_object(element, f"{shown(xml)}: object {number}", image_index))
        except DatasetError as error:
            faults.error("object left out", error, image_id)
    return objects


def _object(element: Element, place: str, image_index: int) -> _Object:
    name, difficult = _text(element, "name", place), _flag(element, "difficult", place)
    xmin, ymin, xmax, ymax = (
        _number(element, f"bndbox/{key}", place) for key in ("xmin", "ymin", "xmax", "ymax")
    )
    return _Object(place, image_index, name, (xmin - 1, ymin - 1, xmax, ymax), difficult)


def _collect(found: list[_Object], roots: list[Path]) -> tuple[str, ...]:
    if not found:
        raise DatasetError(f"{', '.join(map(str, roots))}: no object to collect classes from")
    return tuple(sorted({thing.class_name for thing in found}))


def _known(
    classes: tuple[str, ...], found: list[_Object], images: list[ImageEntry], faults: Faults
) -> list[_Object]:
    """The objects of these classes."""
    if len(set(classes)) != len(classes):
        raise DatasetError(f"classes {', '.join(classes)}: a name is there twice")
    for thing in found:
        if thing.class_name not in classes:
            error = DatasetError(
                f"{thing.place}: class {shown(repr(thing.class_name))} is not among "
                f"{', '.join(classes)}"
            )
            faults.error("unknown class", error, images[thing.image_index].image_id)
    return [thing for thing in found if thing.class_name in classes]


def _text(element: Element, key: str, place: str) -> str:
    text = (element.findtext(key) or "").strip()
    if not text:
        raise DatasetError(f"{place}: <{key}> is missing or empty")
    return text


def _number(element: Element, key: str, place: str) -> float:
    text = _text(element, key, place)
    try:
        return float(text)
    except ValueError:
        raise DatasetError(f"{place}: <{key}> is {shown(repr(text))}, expected a number") from None


def _length(element: Element, key: str, place: str) -> int:
    length = _number(element, key, place)
    if not (1 <= length <= MAX_LENGTH and length.is_integer()):
        raise DatasetError(
            f"{place}: <{key}> is {length:g}, expected a whole number of 1 to {MAX_LENGTH} pixels"
        )
    return int(length)


def _flag(element: Element, key: str, place: str) -> bool:
    text = (element.findtext(key) or "0").strip()
    if text not in ("0", "1"):
        raise DatasetError(f"{place}: <{key}> is {shown(repr(text))}, expected 0 or 1")
    return text == "1"
