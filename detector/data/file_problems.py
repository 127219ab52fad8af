"""Examines the image files of data sets for problems, in several processes."""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from detector.data.dataset import DatasetError, DetectionDataset, Record
from detector.data.errors import printable
from detector.data.images import JPEG_END, KINDS, MAX_BYTES, ORIENTATION, PNG_END
from detector.data.loading import START, TIME_LIMIT, converted_worker_errors, init_worker
from detector.data.problems import Problem, Splits, problem_of_image

CHUNK = 32  # files that a worker examines before it returns its results
# Wraps the iterator over the results of a split, and may end it early.
Wrap = Callable[[Iterator["_Inspection"]], Iterator["_Inspection"]]


class _Inspection(NamedTuple):
    """What was found out about one image file."""

    size: tuple[int, int] | None  # (h, w) as stored, before any EXIF rotation; None if unreadable
    orientation: int  # EXIF, 1 to 8; 1 is upright
    refusal: str | None  # the dataset's error message, if it could not load the image
    digest: bytes | None  # SHA-256 of the file, if it was asked for


class _Files(Dataset[_Inspection]):
    """Examines the image files of a dataset, one per index.

    A file can be used if the dataset loads it. To save time, a file is assumed to load if its
    header has the annotated size and no EXIF rotation, and its last bytes show that it is complete.

    Args:
        decode: load every image, without this assumption.
        hashed: indices of the images whose files are hashed.
    """

    def __init__(self, dataset: DetectionDataset, *, decode: bool, hashed: frozenset[int]) -> None:
        self.dataset = dataset
        self.decode = decode
        self.hashed = hashed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> _Inspection:
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
        return _Inspection(size, orientation, refusal, digest)


def file_problems(
    splits: Splits, *, decode: bool, num_workers: int, wrap: Wrap = iter
) -> list[Problem]:
    """Find image files that cannot be used, have an EXIF rotation, or are in more than one split.

    Args:
        splits: the data sets by the name of their split.
        decode: load every image; otherwise only those whose first or last bytes leave a doubt.
        num_workers: number of worker processes; 0 examines the files in this process.
        wrap: wraps the iterator over the files of a split and may end it early, for example
            when the process is asked to stop; the remaining files are then not reported.

    Raises:
        LoadingError: a worker process died or is stuck.
    """
    problems: list[Problem] = []
    first: dict[bytes, tuple[str, Record]] = {}  # digest -> first split and record that have it
    hashed = _same_length(splits)
    for split, dataset in splits.items():
        files = _Files(dataset, decode=decode, hashed=hashed[split])
        inspections = wrap(_inspect(files, num_workers, split))
        for record, inspection in zip(dataset.records, inspections, strict=False):
            problems += [
                problem_of_image(severity, split, kind, detail, record)
                for severity, kind, detail in _problems_of_file(record, inspection)
            ]
            if inspection.digest is not None:
                other, twin = first.setdefault(inspection.digest, (split, record))
                if other != split:
                    detail = (
                        f"the same file as {printable(twin.path)} (id {twin.image_id}) of {other}"
                    )
                    problems.append(
                        problem_of_image("warning", split, "image shared", detail, record)
                    )
    return problems


def _problems_of_file(record: Record, inspection: _Inspection) -> Iterator[tuple[str, str, str]]:
    """Yield the severity, kind and detail of each problem of one file."""
    if inspection.refusal is not None:
        differs = inspection.size not in (None, (record.height, record.width))
        kind = "size differs" if differs else "image unreadable"
        reason = inspection.refusal.removesuffix(f"; image id {record.image_id}")
        yield "error", kind, reason.removeprefix(f"{printable(record.path)}: ")
    if inspection.orientation != 1:
        yield "warning", "EXIF orientation", f"orientation {inspection.orientation}, not upright"


def _inspect(files: _Files, num_workers: int, split: str) -> Iterator[_Inspection]:
    chunks: DataLoader[_Inspection] = DataLoader(
        files,
        batch_size=CHUNK,
        collate_fn=list,
        num_workers=num_workers,
        worker_init_fn=init_worker,
        multiprocessing_context=START if num_workers else None,
        timeout=TIME_LIMIT if num_workers else 0,
    )
    with converted_worker_errors():
        for chunk in tqdm(chunks, desc=f"images of {split}", leave=False, disable=None):
            yield from chunk


def _header(path: Path) -> tuple[tuple[int, int] | None, int]:
    """Return the stored size (h, w) and the EXIF orientation, or None and 1 if Pillow fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=tuple(KINDS.values())) as file:
                # `getexif` decodes a PNG if there is no EXIF block before its pixels.
                turned = file.getexif().get(ORIENTATION, 1) if "exif" in file.info else 1
                # A broken tag may hold any value, and some tools write 0 for "unknown".
                orientation = turned if type(turned) is int and 1 <= turned <= 8 else 1
                return (file.height, file.width), orientation
    except Exception:  # a damaged file can raise any; loading it will give the reason
        return None, 1


def _ends_whole(path: Path) -> bool:
    """Return True if an image file is certainly not cut off; False means that it may be."""
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
            whole = True  # Pillow reads the whole file for the header
        case "BMP":
            whole = length >= int.from_bytes(start[2:6], "little")
        case _:
            whole = False
    return whole and length <= MAX_BYTES


def _digest(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:  # loading the image reports it
        return None


def _same_length(splits: Splits) -> dict[str, frozenset[int]]:
    """Return, by split, the indices of images whose file is as long as one of another split.

    Only these files can be in both splits, so only these are hashed.
    """
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
