"""The formats in which detectors write results, each split into entries of a single detection."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from detector.data.values import brief
from detector.evaluation.entries import EvaluationError
from detector.evaluation.results import decoded

LISTS = ("annotations", "predictions", "results", "detections")  # keys of the list of results
ID_KEYS = ("image_id", "img_id")  # the value of every other image key is a file name
IMAGE_KEYS = (*ID_KEYS, "file_name", "filename", "file", "image")


class Reading(NamedTuple):
    """How to read the box and the category of an entry, in the words of `choices.py`.

    Some formats define this themselves; for the others, the user's options apply.
    """

    box_format: str
    categories: str


USUAL = Reading("xywh", "ids")
Entries = Iterator[tuple[str, Any, Reading]]  # place of an entry, the entry, how to read it


def content_of(encoded: bytes, path: Path) -> Any:
    """Decode a file of JSON or of JSON lines, or a pickle, none of whose code is run.

    Raises:
        EvaluationError: the file is none of these.
    """
    if encoded[:1] == b"\x80" or encoded[:2] == b"PK":  # a pickle, or torch's archive of one
        from detector.model.weights import files  # imports torch, which takes seconds

        try:
            return _plain(files.read(path).objects)
        except files.WeightsError as error:
            raise EvaluationError(str(error)) from error
    return _json(encoded, path)


def _json(encoded: bytes, path: Path) -> Any:
    """Decode a JSON text, or one JSON text per line."""
    try:
        return decoded(encoded, path)
    except EvaluationError:
        lines = encoded.splitlines()
        if len(lines) < 2 or not lines[0].lstrip().startswith(b"{"):
            raise
        try:
            return [json.loads(line) for line in lines if line.strip()]
        except (ValueError, RecursionError):
            pass
        raise


def _plain(value: Any) -> Any:
    """Convert tensors and arrays, also nested ones, to lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def entries_of(content: Any, where: str, given: Reading, image_ids: list[int]) -> Entries:
    """Yield the single detections of a file.

    Args:
        content: the content of the file, see `content_of`.
        where: the name of the file in messages.
        given: how to read entries of formats that do not define it.
        image_ids: the image ids of the ground truth in its order, for the format without ids.

    Raises:
        EvaluationError: the content has none of the known formats.
    """
    if isinstance(content, dict):
        key = next((key for key in LISTS if isinstance(content.get(key), list)), None)
        if key is None:
            found = ", ".join(map(str, list(content)[:5]))
            raise EvaluationError(
                f"{where}: expected a list of results, or one under {', '.join(LISTS)}; "
                f"got an object with {brief(found)}"
            )
        if isinstance(content.get("images"), list):  # the file has image ids of its own
            content = content | {key: _by_their_names(content, content[key])}
        content, where = content[key], f"{where}: {key}"
    if not isinstance(content, list):
        raise EvaluationError(f"{where}: expected a list, got {brief(content)}")
    if content and all(isinstance(image, list) for image in content):
        yield from _by_image_and_class(content, where, image_ids)
        return
    for position, entry in enumerate(content):
        place = f"{where}[{position}]"
        if isinstance(entry, dict) and isinstance(entry.get("pred_instances"), dict):
            yield from _of_mmdetection(entry, place)
            continue
        if isinstance(entry, dict):
            for key, reading in (
                ("instances", Reading("xywh", "from_zero")),  # detectron2's
                ("predictions", Reading("xyxy", "ids")),  # predict.py's
            ):
                if isinstance(entry.get(key), list):
                    image = {name: entry[name] for name in IMAGE_KEYS if name in entry}
                    for number_, inner in enumerate(entry[key]):
                        one = image | inner if isinstance(inner, dict) else inner
                        yield f"{place}: {key}[{number_}]", one, reading
                    break
            else:
                yield place, entry, given
            continue
        yield place, entry, given


def _by_their_names(content: dict[str, Any], entries: list[Any]) -> list[Any]:
    """Replace ids in the entries by the names of the images and categories that the file lists."""
    names: dict[str, dict[Any, Any]] = {}
    for key, name in (("images", "file_name"), ("categories", "name")):
        listed = content.get(key)
        names[key] = {
            one.get("id"): one[name]
            for one in (listed if isinstance(listed, list) else [])
            if isinstance(one, dict) and isinstance(one.get(name), str)
        }
    return [
        entry
        | _named(entry, "image_id", names["images"])
        | _named(entry, "category_id", names["categories"])
        if isinstance(entry, dict)
        else entry
        for entry in entries
    ]


def _named(entry: dict[str, Any], key: str, names: dict[Any, Any]) -> dict[str, Any]:
    value = entry.get(key)
    return {key: names[value]} if isinstance(value, int | str) and value in names else {}


def _of_mmdetection(entry: dict[str, Any], place: str) -> Entries:
    found = entry["pred_instances"]
    columns = [found.get(key) for key in ("bboxes", "scores", "labels")]
    if not all(isinstance(column, list) for column in columns) or len({*map(len, columns)}) != 1:
        raise EvaluationError(
            f"{place}: pred_instances: expected lists bboxes, scores and labels of one length, got "
            f"{brief(found)}"
        )
    rows = zip(*columns, strict=True)
    for position, (box, score, label) in enumerate(rows):
        one = {
            "image_id": entry.get("img_id", entry.get("img_path")),
            "category_id": label,
            "bbox": box,
            "score": score,
        }
        yield f"{place}: pred_instances[{position}]", one, Reading("xyxy", "from_zero")


def _by_image_and_class(content: list[Any], where: str, image_ids: list[int]) -> Entries:
    """Yield the detections of mmdetection 2's format, without ids: a list by image and class."""
    if len(content) != len(image_ids):
        raise EvaluationError(
            f"{where}: has {len(content)} images, the ground truth {len(image_ids)}: this format "
            "has no image ids, so it must hold the same images in the same order"
        )
    for image_id, classes in zip(image_ids, content, strict=True):
        for label, rows in enumerate(classes):
            for row in rows:
                place = f"{where}: image {image_id}, class {label}"
                if not isinstance(row, list) or len(row) != 5:
                    raise EvaluationError(f"{place}: expected 5 numbers, got {brief(row)}")
                one = {"image_id": image_id, "category_id": label, "bbox": row[:4], "score": row[4]}
                yield place, one, Reading("xyxy", "from_zero")


def of_yolo(folder: Path) -> Entries:
    """Yield the single detections of YOLO's format: a folder with a text file for each image.

    A file has the stem of its image. An image without a file has no detections.

    Raises:
        EvaluationError: the folder has no text files, a file cannot be read, or a line does not
            have six values.
    """
    texts = sorted(path for path in folder.rglob("*.txt") if path.name != "classes.txt")
    if not texts:
        raise EvaluationError(f"{folder}: holds no .txt files")
    for path in texts:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise EvaluationError(f"{path}: cannot be read: {error}") from error
        for position, line in enumerate(lines, start=1):
            where, words = f"{path}, line {position}", line.split()
            if not words:
                continue
            if len(words) != 6:
                raise EvaluationError(
                    f"{where}: expected class, cx, cy, w, h and score (YOLO's save_conf=True), got "
                    f"{brief(line)}"
                )
            name = path.relative_to(folder).with_suffix("").as_posix()
            one = {"file_name": name, "category_id": words[0]}
            one |= {"bbox": " ".join(words[1:5]), "score": words[5]}
            yield where, one, Reading("cxcywh_normalised", "from_zero")
