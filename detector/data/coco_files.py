"""Loads a COCO-format annotation file, and names the formats of other tools instead of it."""

import gzip
import json
import reprlib
from pathlib import Path

from detector.data.errors import DatasetError, file_error
from detector.data.folder import Folder, read_file
from detector.data.json_fields import Json

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


def load_annotations(file: Path) -> Json:
    """Return the JSON object in a file, which may be compressed with gzip.

    Raises:
        DatasetError: the file cannot be read, is not JSON, or is of another format; or it is a
            folder of XML files, as VOC's format has.
    """
    if not file.exists():
        raise file_error(
            file, f"cannot be read (No such file or directory){Folder(file.parent).hint(file.name)}"
        )
    if file.is_dir() and any(file.glob("*.xml")):
        raise DatasetError(
            f"{file}: is a folder of XML files, expected a JSON file: for VOC's format give "
            "data=voc"
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
