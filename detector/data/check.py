"""What is in a data set and what is wrong with it, before hours of training on it.

An error is what training or evaluation would stop at, a warning what it would go on with. What is
wrong with single images and objects their reader says (`DetectionDataset.faults`); here is what can
be said of records that were read (`annotation_problems`) and of their image files
(`file_problems`).
"""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from detector.data.dataset import DatasetError, DetectionDataset, Record
from detector.data.errors import shown
from detector.data.images import JPEG_END, KINDS, MAX_BYTES, ORIENTATION, PNG_END
from detector.data.loading import START, TIME_LIMIT, worker_errors_named, worker_init

SMALL, LARGE = 32.0**2, 96.0**2  # square pixels: COCO's bounds of small, medium and large
TINY = 4.0  # pixels after the resize: the step of the finest features
LISTED = 10  # problems of a kind in a table; the JSON has all
CHUNK = 32  # files that a worker looks at before it reports

Splits = Mapping[str, DetectionDataset]
Watch = Callable[[Iterator["_Look"]], Iterator["_Look"]]


class Problem(NamedTuple):
    """One thing that is wrong, and where."""

    severity: str  # "error" or "warning"
    split: str
    kind: str
    detail: str
    file: str | None = None
    image_id: int | None = None


@dataclass(frozen=True)
class Report:
    """The data sets that could be read, by split, and all that is wrong."""

    splits: Splits
    problems: list[Problem]

    def count(self, severity: str) -> int:
        """Problems of a severity."""
        return sum(problem.severity == severity for problem in self.problems)

    def lines(self) -> list[str]:
        """A line for each kind of problem, errors first: how often, and the first of them."""
        return [
            f"{severity}: {len(group)} x {kind} in {split}, such as {_example(group[0])}"
            for (severity, split, kind), group in _by_kind(self.problems)
        ]

    def usable(self, on_error: str) -> dict[str, DetectionDataset]:
        """The data sets without the images that have an error.

        Args:
            on_error: "stop" or "warn".

        Raises:
            DatasetError: there is an error, and it is to stop; or no image is left.
        """
        errors = [problem for problem in self.problems if problem.severity == "error"]
        if errors and on_error == "stop":
            others = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            raise DatasetError(f"{_named(errors[0])}{others}")
        usable = {}
        for split, dataset in self.splits.items():
            # An error without a file is the reader's, which has left out what it is about.
            broken = [e for e in errors if e.split == split and e.file is not None]
            usable[split] = dataset.without(error.image_id for error in broken)
            if not len(usable[split]):
                raise DatasetError(f"{_named(broken[0])}; no image of {split} is left")
        return usable

    def to_json(self) -> dict[str, Any]:
        """Counts by split, every problem, and how many of them are errors and warnings."""
        return {
            "splits": {split: counts(dataset) for split, dataset in self.splits.items()},
            "problems": [problem._asdict() for problem in self.problems],
            "errors": self.count("error"),
            "warnings": self.count("warning"),
        }

    def to_markdown(self) -> str:
        """Tables of the counts and of the problems, errors first, and a line that sums up."""
        parts = [*_count_tables(self.splits), *_problem_tables(self.problems)]
        sum_up = f"{self.count('error')} errors, {self.count('warning')} warnings"
        return "\n\n".join([*parts, sum_up])


def check(
    splits: Splits,
    *,
    min_size: int,
    max_size: int,
    decode: bool,
    num_workers: int,
    watched: Watch = iter,
) -> Report:
    """Everything that is looked at; the arguments are those of the two parts.

    Raises:
        LoadingError: a process that looks at files died.
    """
    return Report(
        splits,
        [
            *annotation_problems(splits, min_size=min_size, max_size=max_size),
            *file_problems(splits, decode=decode, num_workers=num_workers, watched=watched),
        ],
    )


def refusal(split: str, error: DatasetError) -> Problem:
    """A split that its reader refuses; the message names the file and the object."""
    return Problem("error", split, "cannot be read", str(error))


# ---- What is there ------------------------------------------------------------------------------


def counts(dataset: DetectionDataset) -> dict[str, Any]:
    """Images, objects and classes by number, sizes in pixels as [min, median, max], or None."""
    records = dataset.records
    boxes = np.concatenate([np.zeros((0, 4)), *(record.boxes for record in records)])
    area = np.concatenate([np.zeros(0), *(record.area for record in records)])
    sides = boxes[:, 2:] - boxes[:, :2]
    return {
        "images": len(records),
        "images without objects": sum(len(record.boxes) == 0 for record in records),
        "image width": _spread([record.width for record in records]),
        "image height": _spread([record.height for record in records]),
        "objects": len(boxes),
        "crowd or difficult": sum(int(record.iscrowd.sum()) for record in records),
        "object width": _spread(sides[:, 0]),
        "object height": _spread(sides[:, 1]),
        "small objects": int((area < SMALL).sum()),
        "medium objects": int(((area >= SMALL) & (area < LARGE)).sum()),
        "large objects": int((area >= LARGE).sum()),
        "classes": dict(zip(dataset.classes, _objects_by_class(dataset).tolist(), strict=True)),
    }


def _objects_by_class(dataset: DetectionDataset) -> np.ndarray:
    """Objects (K,) of each class, crowds included."""
    labels = [np.zeros(0, dtype=np.int64), *(record.labels for record in dataset.records)]
    return np.bincount(np.concatenate(labels) - 1, minlength=len(dataset.classes))


def _spread(values: Any) -> list[float] | None:
    if len(values) == 0:
        return None
    return [float(np.min(values)), float(np.median(values)), float(np.max(values))]


# ---- What the annotations say -------------------------------------------------------------------


def annotation_problems(splits: Splits, *, min_size: int, max_size: int) -> list[Problem]:
    """What the reader found, and what is odd about what it read; no image file is opened.

    Args:
        min_size, max_size: pixels of the shorter side after the resize, unless the longer side
            would exceed the latter.
    """
    problems = []
    for split, dataset in splits.items():
        problems += [
            Problem(fault.severity, split, fault.kind, fault.detail, None, fault.image_id)
            for fault in dataset.faults
        ]
        problems += _listed_twice(split, dataset.records)
        if split == "train" and all(record.iscrowd.all() for record in dataset.records):
            problems.append(Problem("error", split, "nothing to train on", "no object is a target"))
        for name, number in zip(dataset.classes, _objects_by_class(dataset), strict=True):
            if number == 0:
                problems.append(Problem("warning", split, "class without objects", shown(name)))
        for index, kind, detail in _oddities(dataset.records, min_size, max_size):
            problems.append(_of_image("warning", split, kind, detail, dataset.records[index]))
    return problems


def _listed_twice(split: str, records: list[Record]) -> Iterator[Problem]:
    first: dict[Path, Record] = {}
    for record in records:
        twin = first.setdefault(record.path, record)
        if twin is not record:
            detail = f"the same file as of image id {twin.image_id}"
            yield _of_image("warning", split, "image listed twice", detail, record)


def _oddities(
    records: list[Record], min_size: int, max_size: int
) -> Iterator[tuple[int, str, str]]:
    """Image, kind and detail of what is odd about the objects; of all N at once, for speed."""
    numbers = np.array([len(record.boxes) for record in records])
    for index in np.flatnonzero(numbers == 0).tolist():
        yield index, "image without objects", "no object"
    if not numbers.any():
        return
    image = np.repeat(np.arange(len(records)), numbers)  # (N,)
    boxes = np.concatenate([record.boxes for record in records])
    labels = np.concatenate([record.labels for record in records])

    order = np.lexsort((*boxes.T, labels, image))
    rows = np.column_stack([image, labels, boxes])[order]
    starts = np.flatnonzero(np.r_[True, (rows[1:] != rows[:-1]).any(axis=1)])
    times = np.diff(np.r_[starts, len(rows)])
    for start, number in zip(starts[times > 1].tolist(), times[times > 1].tolist(), strict=True):
        box = rows[start, 2:].tolist()
        detail = f"box {box} (xyxy) is there {number} times with one class"
        yield int(rows[start, 0]), "duplicate box", detail

    sizes = np.array([(record.height, record.width) for record in records])
    scale = np.minimum(min_size / sizes.min(axis=1), max_size / sizes.max(axis=1))
    shorter = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) * scale[image]
    is_target = ~np.concatenate([record.iscrowd for record in records])
    tiny = np.bincount(image[(shorter < TINY) & is_target], minlength=len(records))
    for index in np.flatnonzero(tiny).tolist():
        detail = f"{tiny[index]} less than {TINY:g} pixels wide or high once resized"
        yield index, "tiny object", detail


def _of_image(severity: str, split: str, kind: str, detail: str, record: Record) -> Problem:
    return Problem(severity, split, kind, detail, str(record.path), record.image_id)


# ---- What the image files say -------------------------------------------------------------------


class _Look(NamedTuple):
    """What one image file gave away."""

    size: tuple[int, int] | None  # (h, w) of its header, which says nothing of EXIF
    orientation: int
    refusal: str | None  # why the dataset would not load it
    digest: bytes | None


class _Files(Dataset[_Look]):
    """The image files of a dataset, looked at one by one.

    Whether a file can be used is for the dataset to say, by loading it. That is spared where the
    header is that of an upright image of the annotated size, and the end is that of a whole file.
    """

    def __init__(self, dataset: DetectionDataset, *, decode: bool, hashed: frozenset[int]) -> None:
        self.dataset = dataset
        self.decode = decode
        self.hashed = hashed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> _Look:
        record, refusal, digest = self.dataset.records[index], None, None
        size, orientation = _header(record.path)
        is_as_annotated = size == (record.height, record.width) and orientation == 1
        if self.decode or not is_as_annotated or not _ends_whole(record.path):
            try:
                self.dataset[index]
            except DatasetError as error:
                refusal = str(error)
        if index in self.hashed:
            digest = _digest(record.path)
        return _Look(size, orientation, refusal, digest)


def file_problems(
    splits: Splits, *, decode: bool, num_workers: int, watched: Watch = iter
) -> list[Problem]:
    """What is wrong with the image files, and which are in more than one split.

    Args:
        decode: load every image; else only those of which the header leaves a doubt.
        num_workers: processes that look; 0 for this one.
        watched: around what is looked at, to end it early; the rest is then not reported.

    Raises:
        LoadingError: a process died or is stuck.
    """
    problems: list[Problem] = []
    first: dict[bytes, tuple[str, Record]] = {}  # of each content: the split it is first in
    hashed = _same_length(splits)
    for split, dataset in splits.items():
        files = _Files(dataset, decode=decode, hashed=hashed[split])
        looks = watched(_looks(files, num_workers, split))
        for record, look in zip(dataset.records, looks, strict=False):
            problems += [
                _of_image(severity, split, kind, detail, record)
                for severity, kind, detail in _findings(record, look)
            ]
            if look.digest is not None:
                other, twin = first.setdefault(look.digest, (split, record))
                if other != split:
                    detail = f"the same file as {shown(twin.path)} (id {twin.image_id}) of {other}"
                    problems.append(_of_image("warning", split, "image shared", detail, record))
    return problems


def _findings(record: Record, look: _Look) -> Iterator[tuple[str, str, str]]:
    """Severity, kind and detail of what one file gave away."""
    if look.refusal is not None:
        differs = look.size not in (None, (record.height, record.width))
        kind = "size differs" if differs else "image unreadable"
        reason = look.refusal.removesuffix(f"; image id {record.image_id}")
        yield "error", kind, reason.removeprefix(f"{shown(record.path)}: ")
    if look.orientation != 1:
        yield "warning", "EXIF orientation", f"orientation {look.orientation}, not upright"


def _looks(files: _Files, num_workers: int, split: str) -> Iterator[_Look]:
    chunks: DataLoader[_Look] = DataLoader(
        files,
        batch_size=CHUNK,
        collate_fn=list,
        num_workers=num_workers,
        worker_init_fn=worker_init,
        multiprocessing_context=START if num_workers else None,
        timeout=TIME_LIMIT if num_workers else 0,
    )
    with worker_errors_named():
        for chunk in tqdm(chunks, desc=f"images of {split}", leave=False, disable=None):
            yield from chunk


def _header(path: Path) -> tuple[tuple[int, int] | None, int]:
    """Size (h, w) and EXIF orientation, or None and 1 where Pillow cannot tell."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=tuple(KINDS.values())) as file:
                # Asked of a PNG that has none before its pixels, Pillow would decode them.
                turned = file.getexif().get(ORIENTATION, 1) if "exif" in file.info else 1
                # What a broken tag holds may be anything; 0 is used for unknown.
                orientation = turned if type(turned) is int and 1 <= turned <= 8 else 1
                return (file.height, file.width), orientation
    except Exception:  # of a broken file Pillow raises what it likes; the dataset will say more
        return None, 1


def _ends_whole(path: Path) -> bool:
    """Whether the end of an image file shows all of it to be there; False leaves that open."""
    try:
        with path.open("rb") as file:
            start, length = file.read(8), file.seek(0, os.SEEK_END)
            file.seek(max(0, length - 8))
            end = file.read()
    except OSError:
        return False
    match next((kind for magic, kind in KINDS.items() if start.startswith(magic)), None):
        case "JPEG":
            whole = end.endswith(JPEG_END)
        case "PNG":
            whole = end == PNG_END
        case "WEBP":
            whole = True  # Pillow reads all of it for its header
        case "BMP":
            whole = length >= int.from_bytes(start[2:6], "little")
        case _:
            whole = False
    return whole and length <= MAX_BYTES


def _digest(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:  # reported as unreadable
        return None


def _same_length(splits: Splits) -> dict[str, frozenset[int]]:
    """By split, the images whose file has the length of a file of another split."""
    lengths = {
        split: [_length(record.path) for record in dataset.records]
        for split, dataset in splits.items()
    }
    splits_with = Counter(length for of_split in lengths.values() for length in set(of_split))
    return {
        split: frozenset(i for i, length in enumerate(of_split) if splits_with[length] > 1)
        for split, of_split in lengths.items()
    }


def _length(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


# ---- Tables -------------------------------------------------------------------------------------


def _count_tables(splits: Splits) -> list[str]:
    if not splits:
        return []
    columns = [counts(dataset) for dataset in splits.values()]
    by_class = [column.pop("classes") for column in columns]
    rows = [[key, *(_cell(column[key]) for column in columns)] for key in columns[0]]
    rows.append(["classes", *(str(len(names)) for names in by_class)])
    names = dict.fromkeys(name for column in by_class for name in column)
    classes = [[name, *(str(column.get(name, 0)) for column in by_class)] for name in names]
    return [table(["", *splits], rows), table(["objects of class", *splits], classes)]


def _problem_tables(problems: list[Problem]) -> list[str]:
    """All problems summed up by kind, then the first of each kind one by one."""
    if not problems:
        return []
    groups = _by_kind(problems)
    rows = []
    for (severity, split, kind), group in groups:
        for problem in group[:LISTED]:
            place = "" if problem.image_id is None else str(problem.image_id)
            rows.append([severity, split, kind, problem.file or "", place, problem.detail])
        if len(group) > LISTED:
            rows.append([severity, split, kind, "", "", f"... and {len(group) - LISTED} more"])
    sums = [[*key, str(len(group))] for key, group in groups]
    return [
        table(["severity", "split", "problem", "number"], sums),
        table(["severity", "split", "problem", "file", "image id", "detail"], rows),
    ]


def _by_kind(problems: list[Problem]) -> list[tuple[tuple[str, str, str], list[Problem]]]:
    """The problems of each (severity, split, kind), errors first."""
    groups: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem[:3], []).append(problem)
    return sorted(groups.items())


def _example(problem: Problem) -> str:
    """The file's name, short enough for a line; who wants the folder has the report."""
    return problem.detail if problem.file is None else shown(Path(problem.file).name)


def _named(problem: Problem) -> str:
    """A problem in one line, after the file that it is about."""
    if problem.file is None:
        return problem.detail
    return f"{shown(problem.file)}: {problem.detail}; image id {problem.image_id}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return " / ".join(f"{v:.6g}" for v in value) if isinstance(value, list) else str(value)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table; what would break a row, or a terminal, is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_escape, line)) + " |" for line in lines)


def _escape(text: str) -> str:
    return one_line(text).replace("|", "\\|")


def one_line(text: str) -> str:
    """A text without line ends, and without what would disturb a terminal."""
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
