"""Finds the annotation files of a VOC-format folder, and the folder that contains their images."""

from pathlib import Path, PurePosixPath
from typing import NamedTuple

from detector.data.errors import DatasetError, Faults, file_error, printable
from detector.data.folder import Folder, read_file
from detector.data.images import SUFFIXES


class Source(NamedTuple):
    """An annotation file, and the folder that contains its image."""

    xml: Path
    images: Folder


def find_sources(root: Path, image_set: str, faults: Faults) -> list[Source]:
    """Return the annotation files of a folder in the devkit's layout, or of a flat folder.

    The arguments are those of `read_voc`, for one of its `roots`.

    Raises:
        DatasetError: there is no such folder, or it has neither layout; the image list cannot be
            read or is empty; `faults` stops at errors, and a listed file is missing or repeated.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder")
    if (root / "ImageSets").is_dir():
        return _devkit_sources(root, root / "ImageSets" / "Main" / f"{image_set}.txt", faults)
    images = Folder(root)
    sources = [Source(xml, images) for xml in sorted(images.root.glob("*.xml"))]
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
    return f"holds neither a folder ImageSets nor XML files{_hint(root)}"


def _hint(root: Path) -> str:
    """Return "; did you mean ...?" with a folder inside that has a layout of VOC's, or "".

    If there is none but a JSON file, the annotations may be of COCO's format.
    """
    inside = next((path for path in sorted(root.glob("**/ImageSets")) if path.is_dir()), None)
    if inside is not None:
        return f"; did you mean {printable(inside.parent)}?"
    flat = next(iter(sorted(root.glob("*/*.xml"))), None)
    if flat is not None:
        return f"; did you mean {printable(flat.parent)}?"
    json = next(iter([*sorted(root.glob("*.json")), *sorted(root.glob("*/*.json"))]), None)
    if json is not None:
        return f"; for COCO's format, as {printable(json)} may have, give data=coco"
    return ""


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


def _devkit_sources(root: Path, list_file: Path, faults: Faults) -> list[Source]:
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
    sources: dict[Path, Source] = {}
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
            sources[xml] = Source(xml, images)
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
