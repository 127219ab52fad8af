"""VOC-format annotations: one XML file an image.

Pixels are counted from 1 and the last one belongs to the box, so its edges are
(xmin - 1, ymin - 1, xmax, ymax). Numbers may be fractions. Labels are 1..K in the order of the
classes; `difficult` objects are crowds.

Deviations that have only one possible meaning are accepted, with one warning for each kind:
images without a size (theirs is read), words for flags, polygons and rotated boxes (the upright box
around them), corners in another order, other capitals than the training's, lists with file names.
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
from detector.data.errors import DatasetError, Faults, file_error, shown
from detector.data.folder import Folder, read_file
from detector.data.images import SUFFIXES, image_size
from detector.data.masks import Box, box_around_rotated, within
from detector.data.records import MAX_LENGTH, ImageEntry, ObjectEntry, build_dataset

MULTIBYTE = ("gb2312", "gbk", "gb18030", "big5", "shift_jis", "cp932", "euc_jp", "euc_kr", "cp949")
MAX_BYTES = 2**20  # of an XML file: one of an image with a thousand objects has a quarter of that
MAX_ELEMENTS = 50_000  # of an XML file: of four thousand objects
MAX_DEPTH = 32  # of elements within each other: the devkit has 4
FLAGS = dict.fromkeys(("", "0", "false", "no", "unspecified"), False)
FLAGS |= dict.fromkeys(("1", "true", "yes"), True)


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
        classes = _collect(found, roots, faults)
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
        raise DatasetError(f"{root}: {_no_sources(root, image_set)}")
    _name_images_alone(images.root, {source.xml.stem for source in sources}, faults)
    return sources


def _no_sources(root: Path, image_set: str) -> str:
    if (root / "Annotations").is_dir():
        return (
            "has Annotations and no ImageSets, so nothing says which of its images are for "
            f"training. Write their names, one a line, into ImageSets/Main/{image_set}.txt; or put "
            "XML files and images of each part into one folder of their own and give that"
        )
    inside = next((path for path in sorted(root.glob("**/ImageSets")) if path.is_dir()), None)
    hint = "" if inside is None else f"; did you mean {shown(inside.parent)}?"
    return f"holds neither a folder ImageSets nor XML files{hint}"


def _name_images_alone(folder: Path, annotated: set[str], faults: Faults) -> None:
    """Images of a flat folder that no XML file is about."""
    alone = [
        path.name
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES and path.stem not in annotated
    ]
    if alone:
        named = ", ".join(map(shown, alone[:3])) + (", ..." if len(alone) > 3 else "")
        detail = f"{folder}: {len(alone)} images have no XML file and are not used: {named}"
        faults.warning("image without annotations", detail)


def _devkit_sources(root: Path, list_file: Path, faults: Faults) -> list[_Source]:
    """The images that a file of `ImageSets/Main` lists: an id a line, maybe with a flag behind."""
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
        place = f"{list_file}: {shown(name)}"
        try:
            xml = annotations.locate(f"{name}.xml", where=place)
            if not annotations.holds(xml, where=place):
                hint = annotations.hint(f"{name}.xml")
                raise DatasetError(f"{place}: annotation file {shown(xml)} does not exist{hint}")
            if xml in sources:
                raise DatasetError(f"{place} is listed twice")
        except DatasetError as error:
            faults.error("image left out", error)
        else:
            sources[xml] = _Source(xml, images)
    return list(sources.values())


def _listed_name(line: str, annotations: Folder, list_file: Path, faults: Faults) -> str:
    """The name that a line means: as it is, before a flag, or without folders and extension."""
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
                    faults.taken(how, f"{list_file}: {shown(line)}")
                return name
        except DatasetError:  # leads out of the folder
            continue
    return first


def _stem(name: str) -> str:
    """Of the name of an image, alone or in a folder JPEGImages, its stem; of others themselves."""
    path = PurePosixPath(name.replace("\\", "/"))
    in_its_place = path.parent.name == "JPEGImages" or path.name == name
    return path.stem if in_its_place and path.suffix.lower() in SUFFIXES else name


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
        parser.feed(_readable(encoded))
        tree: Element = parser.close()
    except (ParseError, ValueError, LookupError) as error:
        raise file_error(xml, f"cannot be read as XML ({error})") from error
    return tree


def _readable(encoded: bytes) -> bytes:
    """In UTF-8, where the file declares an encoding of several bytes a character that the parser
    does not know, such as gb2312.
    """
    declared = re.match(rb"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([\w.-]+)[\"'][^>]*\?>", encoded)
    if declared is None:
        return encoded
    codec = codecs.lookup(declared[1].decode("ascii")).name
    if codec not in MULTIBYTE:
        return encoded
    codec = "gb18030" if codec in ("gb2312", "gbk") else codec  # which holds both
    return encoded[declared.end() :].decode(codec).encode()


# ---- Their contents -----------------------------------------------------------------------------


def _image(source: _Source, tree: Element, image_id: int, faults: Faults) -> ImageEntry:
    path, place = _image_path(source, tree, faults), shown(source.xml)
    sides = [(tree.findtext(f"size/{key}") or "0").strip() for key in ("height", "width")]
    if all(side in ("", "0", "0.0") for side in sides):
        faults.taken("image without a size", f"{place}: its image is read for it")
        height, width = image_size(path)
    else:
        height, width = (_length(tree, f"size/{key}", place) for key in ("height", "width"))
    return ImageEntry(image_id, path, height, width)


def _image_path(source: _Source, tree: Element, faults: Faults) -> Path:
    """The file that `<filename>` names; if there is none, one named as the XML file is."""
    place, images = shown(source.xml), source.images
    given = (tree.findtext("filename") or "").strip() or f"{source.xml.stem}.jpg"
    suffixes = [*SUFFIXES, *(suffix.upper() for suffix in SUFFIXES)]
    namesakes = [images.root / (source.xml.stem + suffix) for suffix in suffixes]
    own = next((path for path in namesakes if images.holds(path, where=place)), None)
    if own is not None and own.name == PurePosixPath(given.replace("\\", "/")).name:
        return own  # whatever folder it was in when it was labelled
    named = images.locate(given, where=place)
    if "\\" in given and not images.holds(named, where=place):
        given = given.replace("\\", "/")
        named = images.locate(given, where=place)
    if images.holds(named, where=place):
        if own is not None and own != named:
            raise DatasetError(
                f"{place}: <filename> is {shown(given)}, and there is {shown(own.name)} as well: "
                "make them one"
            )
        return named
    if own is not None:
        return own
    shorter = images.without_own_name(given, where=place)
    if shorter is not None:
        faults.taken("file name with the images' folder", f"{place}: {shown(repr(given))}")
        return images.locate(shorter, where=place)
    raise DatasetError(
        f"{place}: image file {shown(named)} does not exist, "
        f"nor is there {shown(source.xml.stem)}{{{','.join(SUFFIXES)}}}{images.hint(given)}"
    )


def _objects(
    tree: Element, xml: Path, image_index: int, image: ImageEntry, faults: Faults
) -> list[_Object]:
    objects, size, image_id = [], (image.height, image.width), image.image_id
    for number, element in enumerate(tree.findall("object"), start=1):
        if (element.findtext("deleted") or "").strip() == "1":  # LabelMe's: it is no more
            continue
        try:
            objects.append(
                _object(element, f"{shown(xml)}: object {number}", image_index, size, faults)
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
    """xyxy, from 0: of `<bndbox>`, or around a `<polygon>` or a rotated `<robndbox>`."""
    if element.find("bndbox") is None:
        for shape, around in (("robndbox", _around_rotated), ("polygon", _around_polygon)):
            if element.find(shape) is not None:
                faults.taken(f"<{shape}>", f"{place}: its box is the upright one around it")
                return around(element, place, size)
    if len(element.findall("bndbox")) > 1:
        raise DatasetError(f"{place}: has {len(element.findall('bndbox'))} <bndbox>, expected one")
    x1, y1, x2, y2 = (
        _number(element, f"bndbox/{key}", place) for key in ("xmin", "ymin", "xmax", "ymax")
    )
    if x1 - 1 > x2 or y1 - 1 > y2:  # a box of less than a pixel ends before the next one begins
        detail = f"{place}: box [{x1:g}, {y1:g}, {x2:g}, {y2:g}] is swapped"
        faults.warning("corners in another order", detail)
        x1, x2 = sorted((x1, x2))
        y1, y2 = sorted((y1, y2))
    rotation = _rotation(element, place)
    if rotation:
        faults.taken("rotated box", f"{place}: its box is the upright one around it")
        sides = (x2 - x1 + 1, y2 - y1 + 1)
        centre = ((x1 - 1 + x2) / 2, (y1 - 1 + y2) / 2)
        return box_around_rotated(*centre, *sides, math.radians(rotation), size)
    return x1 - 1, y1 - 1, x2, y2


def _rotation(element: Element, place: str) -> float:
    """CVAT's attribute, in degrees; its box is the one before the turn."""
    for attribute in element.iterfind("attributes/attribute"):
        if (attribute.findtext("name") or "").strip() == "rotation":
            return _number(attribute, "value", place)
    return 0.0


def _around_rotated(element: Element, place: str, size: tuple[int, int]) -> Box:
    """roLabelImg's: centre, sides and an angle in radians."""
    cx, cy, width, height, angle = (
        _number(element, f"robndbox/{key}", place) for key in ("cx", "cy", "w", "h", "angle")
    )
    if abs(angle) > 2 * math.pi:
        raise DatasetError(
            f"{place}: <angle> is {angle:g}, expected radians of at most a full turn"
        )
    return box_around_rotated(cx, cy, width, height, angle, size)


def _around_polygon(element: Element, place: str, size: tuple[int, int]) -> Box:
    """Of <x1> <y1> <x2> ..., or of <pt> <x> <y>."""
    numbers: dict[str, list[float]] = {"x": [], "y": []}
    for node in element.iterfind("polygon//*"):
        axis = node.tag[:1]
        if axis in numbers and (node.tag[1:] == "" or node.tag[1:].isdecimal()):
            numbers[axis].append(_as_number(node.text or "", f"polygon/{node.tag}", place))
    if not numbers["x"] or not numbers["y"]:
        raise DatasetError(f"{place}: <polygon> has no points <x1>, <y1> or <pt>")
    low = min(numbers["x"]), min(numbers["y"])
    return within((*low, max(numbers["x"]), max(numbers["y"])), size)


def _collect(found: list[_Object], roots: list[Path], faults: Faults) -> tuple[str, ...]:
    if not found:
        first = next((fault.detail for fault in faults.found if fault.severity == "error"), None)
        reason = "no XML file has an <object>" if first is None else f"the first: {first}"
        where = ", ".join(map(str, roots))
        raise DatasetError(f"{where}: no object to collect classes from; {reason}")
    return tuple(sorted({thing.class_name for thing in found}))


def _known(
    classes: tuple[str, ...], found: list[_Object], images: list[ImageEntry], faults: Faults
) -> list[_Object]:
    """The objects of these classes."""
    if len(set(classes)) != len(classes):
        raise DatasetError(f"classes {', '.join(classes)}: a name is there twice")
    known = []
    for thing in found:
        name = class_named(thing.class_name, classes)
        if name is None:
            error = DatasetError(
                f"{thing.place}: class {shown(repr(thing.class_name))} is not among "
                f"{', '.join(classes)}"
            )
            faults.error("unknown class", error, images[thing.image_index].image_id)
            continue
        if name != thing.class_name:
            faults.taken("class in other capitals", f"{thing.place}: {shown(thing.class_name)}")
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
        raise DatasetError(f"{place}: <{key}> is {shown(repr(text))}, expected a number") from None


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
        raise DatasetError(f"{place}: <{key}> is {shown(repr(text))}, expected 0 or 1")
    if text not in ("0", "1", "") or (not text and element.find(key) is not None):
        faults.taken("flag that is no number", f"{place}: <{key}> is {shown(repr(text))}")
    return FLAGS[text.lower()]
