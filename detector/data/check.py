"""Checks data sets before a training: counts what they contain and lists what is wrong.

An error is a problem that training or evaluation would stop at; a warning is one that it would
continue with. Problems come from three sources: the reader reports images and objects that it
could not use (`DetectionDataset.faults`), `annotation_problems` examines the records that were
read, and `file_problems` examines their image files.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.dataset import DatasetError, DetectionDataset
from detector.data.errors import printable
from detector.data.file_problems import Wrap, file_problems
from detector.data.problems import Problem, Splits, annotation_problems, objects_by_class
from detector.tables import table

SMALL, LARGE = 32.0**2, 96.0**2  # square pixels: COCO's bounds of small, medium and large
SPREADS = ("image width", "image height", "object width", "object height")
SPREAD = ", pixels (minimum / median / maximum)"  # what the three numbers of a cell are
LISTED = 10  # the most problems of one kind that a table lists; the JSON report has all of them


@dataclass(frozen=True)
class Report:
    """The data sets that could be read, by split, and all problems of all splits."""

    splits: Splits
    problems: list[Problem]

    def count(self, severity: str) -> int:
        """Return the number of problems with this severity, "error" or "warning"."""
        return sum(problem.severity == severity for problem in self.problems)

    def lines(self) -> list[str]:
        """Return one line for each kind of problem, errors first: its count and an example."""
        return [
            f"{severity}: {len(group)} x {kind} in {split}, such as {_example(group[0])}"
            for (severity, split, kind), group in _by_kind(self.problems)
        ]

    def usable(self, on_error: str) -> dict[str, DetectionDataset]:
        """Return the data sets without the images that have an error.

        Args:
            on_error: "stop" raises the first error, "warn" leaves out the images with errors.

        Raises:
            DatasetError: there is an error and `on_error` is "stop"; or a split has no image left.
        """
        errors = [problem for problem in self.problems if problem.severity == "error"]
        if errors and on_error == "stop":
            others = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            raise DatasetError(f"{_as_line(errors[0])}{others}")
        usable = {}
        for split, dataset in self.splits.items():
            # The reader's errors have no file: it has left out these images and objects already.
            broken = [e for e in errors if e.split == split and e.file is not None]
            usable[split] = dataset.without(error.image_id for error in broken)
            if not len(usable[split]):
                raise DatasetError(f"{_as_line(broken[0])}; no image of {split} is left")
        return usable

    def to_json(self) -> dict[str, Any]:
        """Return the counts of each split, all problems, and the numbers of errors and warnings."""
        return {
            "splits": {split: counts(dataset) for split, dataset in self.splits.items()},
            "problems": [problem._asdict() for problem in self.problems],
            "errors": self.count("error"),
            "warnings": self.count("warning"),
        }

    def to_markdown(self) -> str:
        """Return tables of the counts and of the problems, errors first, and a summary line."""
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
    wrap: Wrap = iter,
) -> Report:
    """Examine the annotations and the image files of each split.

    Args:
        splits: the data sets by the name of their split.
        min_size, max_size: see `annotation_problems`.
        decode, num_workers, wrap: see `file_problems`.

    Raises:
        LoadingError: a worker process died or is stuck.
    """
    return Report(
        splits,
        [
            *annotation_problems(splits, min_size=min_size, max_size=max_size),
            *file_problems(splits, decode=decode, num_workers=num_workers, wrap=wrap),
        ],
    )


def unreadable_split(split: str, error: DatasetError) -> Problem:
    """Return the problem of a split that its reader refused with this error."""
    return Problem("error", split, "cannot be read", str(error))


def counts(dataset: DetectionDataset) -> dict[str, Any]:
    """Count the images, the objects, and the objects of each class; summarise their sizes.

    Returns:
        Counts as integers, and widths and heights in pixels as [minimum, median, maximum], or None
        where there is nothing to measure.
    """
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
        "classes": dict(zip(dataset.classes, objects_by_class(dataset).tolist(), strict=True)),
    }


def _spread(values: Any) -> list[float] | None:
    if len(values) == 0:
        return None
    return [float(np.min(values)), float(np.median(values)), float(np.max(values))]


def _count_tables(splits: Splits) -> list[str]:
    if not splits:
        return []
    columns = [counts(dataset) for dataset in splits.values()]
    by_class = [column.pop("classes") for column in columns]
    rows = [
        [f"{key}{SPREAD}" if key in SPREADS else key, *(_cell(column[key]) for column in columns)]
        for key in columns[0]
    ]
    rows.append(["classes", *(str(len(names)) for names in by_class)])
    names = dict.fromkeys(name for column in by_class for name in column)
    classes = [[name, *(str(column.get(name, 0)) for column in by_class)] for name in names]
    return [table(["", *splits], rows), table(["objects of class", *splits], classes)]


def _problem_tables(problems: list[Problem]) -> list[str]:
    """Return a table with the count of each kind, and one with the first problems of each kind."""
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
    """Group the problems by (severity, split, kind), errors first."""
    groups: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem[:3], []).append(problem)
    return sorted(groups.items())


def _example(problem: Problem) -> str:
    """Return the name of the problem's file without its folder, to keep the line short.

    A problem without a file is represented by its detail.
    """
    return problem.detail if problem.file is None else printable(Path(problem.file).name)


def _as_line(problem: Problem) -> str:
    """Return a problem in one line that begins with its file."""
    if problem.file is None:
        return problem.detail
    return f"{printable(problem.file)}: {problem.detail}; image id {problem.image_id}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return " / ".join(f"{v:.6g}" for v in value) if isinstance(value, list) else str(value)
