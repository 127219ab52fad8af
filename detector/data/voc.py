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

import codecs
import math
import re
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

from defusedxml.ElementTree import XMLParser

from detector.class_names import class_named
from detector.data.dataset import DetectionDataset
from detector.data.errors import DatasetError, Faults, file_error, printable
from detector.data.folder import Folder, read_file
from detector.data.images import SUFFIXES, image_size
from detector.data.masks import Box, box_around_rotated, clip_box
from detector.data.records import MAX_LENGTH, ImageEntry, ObjectEntry, build_dataset

MULTIBYTE = ("gb2312", "gbk", "gb18030", "big5", "shift_jis", "cp932", "euc_jp", "euc_kr", "cp949")
MAX_BYTES = 2**20  # of an XML file; a thousand objects take a quarter of that
MAX_ELEMENTS = 50_000  # in an XML file; enough for four thousand objects
MAX_DEPTH = 32  # of nested elements in an XML file; the devkit has 4
FLAGS = dict.fromkeys(("", "0", "false", "no", "unspecified"), False)
FLAGS |= dict.fromkeys(("1", "true", "yes"), True)


class _Source(NamedTuple):
    """An annotation file, and the folder that contains its image."""

    xml: Path
    images: Folder


class _Object(NamedTuple):
    """An `<object>` whose class has no label yet; `place` names its file and its number there."""

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
    sources = [source for root in roots for source in _sources(root, image_set, faults)]
    for image_id, source in enumerate(sources, start=1):
        try:
            tree = _parse(source.xml)
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


# ---- The files ----------------------------------------------------------------------------------


def _sources(root: Path, image_set: str, faults: Faults) -> list[_Source]:
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder")
    if (root / "ImageSets").is_dir():
        return _devkit_sources(root, root / "ImageSets" / "Main" / f"{image_set}.txt", faults)
    images = Folder(root)
    sources = [_Source(xml, images) for xml in sorted(images.root.glob("*.xml"))]
    if not sources:
        raise DatasetError(f"{root}: {_no_sources(root, image_set)}")
    _warn_of_unannotated_images(images.root, {source.xml.stem for source in sources}, faults)
    return sources


def _no_sources(root: Path, image_set: str) -> str:
    if (root / "Annotations").is_dir():
        return (
            "has Annotations but no ImageSets, which lists the images to read: write their names, "
            f"one per line, into ImageSets/Main/{image_set}.txt; or put the XML files and images "
            "of each split into a folder of their own and give that folder"
        )
    inside = next((path for path in sorted(root.glob("**/ImageSets")) if path.is_dir()), None)
    hint = "" if inside is None else f"; did you mean {printable(inside.parent)}?"
    return f"holds neither a folder ImageSets nor XML files{hint}"


def _warn_of_unannotated_images(folder: Path, annotated: set[str], faults: Faults) -> None:
    """Warn about images of a flat folder that have no XML file."""
    alone = [
        path.name
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES and path.stem not in annotated
    ]
    if alone:
        named = ", ".join(map(printable, alone[:3])) + (", ..." if len(alone) > 3 else "")
        detail = f"{folder}: {len(alone)} images have no XML file and are not used: {named}"
        faults.warning("image without annotations", detail)


def _devkit_sources(root: Path, list_file: Path, faults: Faults) -> list[_Source]:
    """Return the images that a file of `ImageSets/Main` lists.

    Each line has the id of an image, optionally followed by the flag -1, 0 or 1.
    """
    if not list_file.exists():
        others = sorted(path.stem for path in list_file.parent.glob("*.txt"))
        known = f"; there are {', '.join(others[:8])}" if others else ""
        raise file_error(list_file, f"cannot be read (No such file or directory){known}")
    encoded = read_file(list_file)
    try:
        lines = encoded.decode("utf-8-sig").splitlines()
    except ValueError as error:
        raise file_error(list_file, f"cannot be read ({error})") from error
    annotations, images = Folder(root / "Annotations"), Folder(root / "JPEGImages")
    listed = [line.strip() for line in lines if line.strip()]
    if not listed:
        raise DatasetError(f"{list_file}: lists no images")
    sources: dict[Path, _Source] = {}
    for line in listed:
        name = _listed_name(line, annotations, list_file, faults)
        place = f"{list_file}: {printable(name)}"
        try:
            xml = annotations.locate(f"{name}.xml", where=place)
            if not annotations.holds(xml, where=place):
                hint = annotations.hint(f"{name}.xml")
                raise DatasetError(
                    f"{place}: annotation file {printable(xml)} does not exist{hint}"
                )
            if xml in sources:
                raise DatasetError(f"{place} is listed twice")
        except DatasetError as error:
            faults.error("image left out", error)
        else:
            sources[xml] = _Source(xml, images)
    return list(sources.values())


def _listed_name(line: str, annotations: Folder, list_file: Path, faults: Faults) -> str:
    """Return the id of the image that a line means.

    It is the first of these that has an annotation file: the whole line, the line without its
    flag, or either of them without folders and extension. If none has one, it is the line without
    its flag.
    """
    words = line.split()
    first = words[0] if len(words) == 1 or words[1] in ("-1", "0", "1") else line
    with_blanks = "image name with blanks" if " " in line else None
    for name, how in (
        (line, with_blanks),
        (first, None),
        (_stem(first), "image list with file names"),
        (_stem(line), "image list with file names"),
    ):
        if how is not None and "/" in name:
            continue
        try:
            if annotations.holds(annotations.locate(f"{name}.xml", where=line), where=line):
                if how is not None:
                    faults.accepted(how, f"{list_file}: {printable(line)}")
                return name
        except DatasetError:  # the name leads out of the folder
            continue
    return first


def _stem(name: str) -> str:
    """Return an image's file name without its extension and folder; return other names unchanged.

    The folder must be absent or named JPEGImages.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    in_its_place = path.parent.name == "JPEGImages" or path.name == name
    return path.stem if in_its_place and path.suffix.lower() in SUFFIXES else name


class _LimitedTree(TreeBuilder):
    """Builds the element tree with limits on the number of elements and on their nesting.

    A megabyte of nothing but elements would take seconds to parse.
    """

    number = 0
    depth = 0

    def start(self, tag: Any, attrs: Any, /) -> Element:
        self.number += 1
        self.depth += 1
        if self.number > MAX_ELEMENTS:
            raise ValueError(f"over {MAX_ELEMENTS} elements")
        if self.depth > MAX_DEPTH:
            raise ValueError(f"over {MAX_DEPTH} elements deep")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> Element:
        self.depth -= 1
        return super().end(tag)


def _parse(xml: Path) -> Element:
    encoded = read_file(xml, max_bytes=MAX_BYTES)
    try:
        parser = XMLParser(target=_LimitedTree())
        parser.feed(_readable(encoded))
        tree: Element = parser.close()
    except (ParseError, ValueError, LookupError) as error:
        raise file_error(xml, f"cannot be read as XML ({error})") from error
    return tree


def _readable(encoded: bytes) -> bytes:
    """Convert an XML file to UTF-8 if it declares a multi-byte encoding that the parser lacks.

    An example of such an encoding is gb2312.
    """
    declared = re.match(rb"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([\w.-]+)[\"'][^>]*\?>", encoded)
    if declared is None:
        return encoded
    codec = codecs.lookup(declared[1].decode("ascii")).name
    if codec not in MULTIBYTE:
        return encoded
    codec = "gb18030" if codec in ("gb2312", "gbk") else codec  # a superset of both
    return encoded[declared.end() :].decode(codec).encode()


# ---- Their contents -----------------------------------------------------------------------------


def _image(source: _Source, tree: Element, image_id: int, faults: Faults) -> ImageEntry:
    path, place = _image_path(source, tree, faults), printable(source.xml)
    sides = [(tree.findtext(f"size/{key}") or "0").strip() for key in ("height", "width")]
    if all(side in ("", "0", "0.0") for side in sides):
        faults.accepted("image without a size", f"{place}: its size is read from the image file")
        height, width = image_size(path)
    else:
        height, width = (_length(tree, f"size/{key}", place) for key in ("height", "width"))
    return ImageEntry(image_id, path, height, width)


def _image_path(source: _Source, tree: Element, faults: Faults) -> Path:
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
    objects, size, image_id = [], (image.height, image.width), image.image_id
    for number, element in enumerate(tree.findall("object"), start=1):
        if (element.findtext("deleted") or "").strip() == "1":  # LabelMe marks deleted objects
            continue
        try:
            objects.append(
                _object(element, f"{printable(xml)}: object {number}", image_index, size, faults)
            )
        except DatasetError as error:
            faults.error("object left out", error, image_id)
    return objects


def _object(
    element: Element, place: str, image_index: int, size: tuple[int, int], faults: Faults
) -> _Object:
    name, difficult = _text(element, "name", place), _flag(element, "difficult", place, faults)
    return _Object(place, image_index, name, _box(element, place, size, faults), difficult)


def _box(element: Element, place: str, size: tuple[int, int], faults: Faults) -> Box:
    """Return the box, xyxy counted from 0, of a `<bndbox>`, or around a rotated box or polygon."""
    if element.find("bndbox") is None:
        for shape, around in (("robndbox", _around_rotated), ("polygon", _around_polygon)):
            if element.find(shape) is not None:
                faults.accepted(f"<{shape}>", f"{place}: the upright box around it is used")
                return around(element, place, size)
    if len(element.findall("bndbox")) > 1:
        raise DatasetError(f"{place}: has {len(element.findall('bndbox'))} <bndbox>, expected one")
    x1, y1, x2, y2 = (
        _number(element, f"bndbox/{key}", place) for key in ("xmin", "ymin", "xmax", "ymax")
    )
    if x1 - 1 > x2 or y1 - 1 > y2:  # a box thinner than a pixel has x1 - 1 <= x2 < x1
        detail = f"{place}: box [{x1:g}, {y1:g}, {x2:g}, {y2:g}] has its corners swapped"
        faults.warning("corners in another order", detail)
        x1, x2 = sorted((x1, x2))
        y1, y2 = sorted((y1, y2))
    rotation = _rotation(element, place)
    if rotation:
        faults.accepted("rotated box", f"{place}: the upright box around it is used")
        sides = (x2 - x1 + 1, y2 - y1 + 1)
        centre = ((x1 - 1 + x2) / 2, (y1 - 1 + y2) / 2)
        return box_around_rotated(*centre, *sides, math.radians(rotation), size)
    return x1 - 1, y1 - 1, x2, y2


def _rotation(element: Element, place: str) -> float:
    """Return CVAT's attribute "rotation" in degrees; CVAT writes the box before its rotation."""
    for attribute in element.iterfind("attributes/attribute"):
        if (attribute.findtext("name") or "").strip() == "rotation":
            return _number(attribute, "value", place)
    return 0.0


def _around_rotated(element: Element, place: str, size: tuple[int, int]) -> Box:
    """Return the box around roLabelImg's `<robndbox>`: centre, sides and an angle in radians."""
    cx, cy, width, height, angle = (
        _number(element, f"robndbox/{key}", place) for key in ("cx", "cy", "w", "h", "angle")
    )
    if abs(angle) > 2 * math.pi:
        raise DatasetError(
            f"{place}: <angle> is {angle:g}, expected radians of at most a full turn"
        )
    return box_around_rotated(cx, cy, width, height, angle, size)


def _around_polygon(element: Element, place: str, size: tuple[int, int]) -> Box:
    """Return the box around a polygon of <x1> <y1> <x2> ... or of <pt> with <x> and <y>."""
    numbers: dict[str, list[float]] = {"x": [], "y": []}
    for node in element.iterfind("polygon//*"):
        axis = node.tag[:1]
        if axis in numbers and (node.tag[1:] == "" or node.tag[1:].isdecimal()):
            numbers[axis].append(_as_number(node.text or "", f"polygon/{node.tag}", place))
    if not numbers["x"] or not numbers["y"]:
        raise DatasetError(f"{place}: <polygon> has no points <x1>, <y1> or <pt>")
    low = min(numbers["x"]), min(numbers["y"])
    return clip_box((*low, max(numbers["x"]), max(numbers["y"])), size)


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


def _text(element: Element, key: str, place: str) -> str:
    text = (element.findtext(key) or "").strip()
    if not text:
        raise DatasetError(f"{place}: <{key}> is missing or empty")
    return text


def _number(element: Element, key: str, place: str) -> float:
    return _as_number(_text(element, key, place), key, place)


def _as_number(text: str, key: str, place: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DatasetError(
            f"{place}: <{key}> is {printable(repr(text))}, expected a number"
        ) from None


def _length(element: Element, key: str, place: str) -> int:
    length = _number(element, key, place)
    if not (1 <= length <= MAX_LENGTH and length.is_integer()):
        raise DatasetError(
            f"{place}: <{key}> is {length:g}, expected a whole number of 1 to {MAX_LENGTH} pixels"
        )
    return int(length)


def _flag(element: Element, key: str, place: str, faults: Faults) -> bool:
    text = (element.findtext(key) or "").strip()
    if text.lower() not in FLAGS:
        raise DatasetError(f"{place}: <{key}> is {printable(repr(text))}, expected 0 or 1")
    if text not in ("0", "1", "") or (not text and element.find(key) is not None):
        faults.accepted("flag that is no number", f"{place}: <{key}> is {printable(repr(text))}")
    return FLAGS[text.lower()]
