"""The work of `python -m detector.data check`, `sheet` and `benchmark`."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from detector.builders.data import build_train_set, build_transform, build_val_set, check_data
from detector.config import ConfigError
from detector.data import benchmark as loading_benchmark
from detector.data.check import Report, unreadable_split
from detector.data.dataset import DatasetError, DetectionDataset
from detector.data.loading import Augmented
from detector.data.problems import Problem
from detector.data.resizing import resize_words
from detector.data.sheet import picture_sheet
from detector.schema import DataCommandConfig, DataConfig


def check(data: DataConfig, command: DataCommandConfig, words: list[str]) -> int:
    """Check both splits, print a report and, if `fix` is set, write a mended copy.

    Args:
        words: the arguments of the command line, to repeat in the proposed next command.

    Returns:
        The exit code: 1 if there are errors, otherwise 0.
    """
    splits, refusals = read(data)
    report = check_data(splits, data, decode=command.decode)
    report = Report(splits, [*refusals, *report.problems])
    write_json(command.json, report.to_json())
    print_json = "--json" in words
    print(json.dumps(report.to_json(), indent=1) if print_json else report.to_markdown())
    if command.fix is not None:
        for line in fix(report, Path(command.fix)):
            print(line, file=sys.stderr)
    if not print_json:
        resized = resize_words(
            splits,
            train_min_sizes=data.transform.train_min_sizes,
            min_size=data.transform.min_size,
            max_size=data.transform.max_size,
        )
        print("\n".join(["", *resized, "", next_step(report, words)]))
    return 1 if report.count("error") else 0


def next_step(report: Report, words: list[str]) -> str:
    """Return a text that proposes the next commands."""
    own = ("decode=", "fix=", "json=", "--json")
    same = shlex.join(word for word in words if not word.startswith(own))
    if any(problem.kind == "cannot be read" for problem in report.problems):
        return "Next: what cannot be read must be mended first; its message says what was expected."
    if report.count("error"):
        return (
            "Next: mend what is wrong, or let fix=FILE write a copy without it, or train without "
            f"it:\n  python train.py {same} data.on_error=warn"
        )
    return f"Next: look at the boxes, then train:\n  python -m detector.data sheet {same}\n" + (
        f"  python train.py {same}"
    )


def fix(report: Report, file: Path) -> list[str]:
    """Write the usable part of each split, and a list of the changes, into new files.

    Returns:
        A line for each split that names its files.

    Raises:
        ConfigError: a file exists already or cannot be written.
        DatasetError: a split has no image that can be used.
    """
    told = []
    for split, dataset in report.usable("warn").items():
        out = file if split == "train" else file.with_suffix(f".{split}{file.suffix}")
        changes = [
            f"{problem.severity}: {problem.kind}: {problem.file or ''} {problem.detail}"
            for problem in report.problems
            if problem.split == split
        ]
        folder = Path(os.path.commonpath([record.path.parent for record in dataset.records]))
        listed = out.with_suffix(".changes.txt")
        for path, content in (
            (out, json.dumps(mended(dataset, folder))),
            (listed, "\n".join(changes) + "\n"),
        ):
            write_new(path, content)
        told.append(f"{split}: {out}, for images in {folder}; {listed} has {len(changes)} changes")
    return told


def mended(dataset: DetectionDataset, folder: Path) -> dict[str, Any]:
    """Convert a data set to COCO format, with file names relative to `folder`."""
    content = dataset.ground_truth()
    for image, record in zip(content["images"], dataset.records, strict=True):
        image["file_name"] = Path(os.path.relpath(record.path, folder)).as_posix()
    return content


def write_new(path: Path, content: str) -> None:
    """Write a new file.

    Raises:
        ConfigError: the file exists already or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError as error:
        raise ConfigError(f"fix: {path} exists already; give another name") from error
    except OSError as error:
        raise ConfigError(f"fix={path} cannot be written ({error.strerror})") from error


def read(data: DataConfig) -> tuple[dict[str, DetectionDataset], list[Problem]]:
    """Read both splits.

    Returns:
        The splits that can be read, and a problem for a split that cannot. The validation split is
        not read without the training split, whose classes it needs.
    """
    try:
        train_set = build_train_set(data)
    except DatasetError as error:
        return {}, [unreadable_split("train", error)]
    try:
        return {"train": train_set, "val": build_val_set(data, train_set.classes)}, []
    except DatasetError as error:
        return {"train": train_set}, [unreadable_split("val", error)]


def usable_train_set(data: DataConfig) -> DetectionDataset:
    """Return the training images that can be used, and print all problems to stderr.

    Raises:
        DatasetError: there is an error and data.on_error=stop, or no image can be used.
    """
    report = check_data({"train": build_train_set(data)}, data)
    for line in report.lines():
        print(line, file=sys.stderr)
    return report.usable(data.on_error)["train"]


def sheet(data: DataConfig, seed: int, command: DataCommandConfig) -> int:
    """Write the picture sheet of training images; return the exit code."""
    transform = build_transform(data.transform)
    samples = Augmented(usable_train_set(data), transform=transform, seed=seed)
    picture = picture_sheet(samples, num_images=command.num_images, epoch=0)
    try:
        Path(command.out).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(command.out)
    except (OSError, ValueError) as error:  # ValueError: a suffix that Pillow does not know
        raise ConfigError(f"out={command.out} cannot be written ({error})") from error
    print(command.out)
    return 0


def benchmark(data: DataConfig, command: DataCommandConfig) -> int:
    """Print the images per second of our loading and of a plain loader; return the exit code."""
    transform = data.transform
    rates = loading_benchmark.benchmark(
        usable_train_set(data),
        build_transform(transform),
        min_sizes=transform.train_min_sizes,
        max_size=transform.max_size,
        flip_probability=transform.flip_probability,
        num_images=command.num_images,
        rounds=command.rounds,
    )
    write_json(command.json, {"summary": loading_benchmark.summary(rates), "rounds": rates})
    print(loading_benchmark.to_markdown(rates))
    return 0


def write_json(file: str | None, content: dict[str, Any]) -> None:
    """Write a report as JSON; do nothing if `file` is None.

    Raises:
        ConfigError: the file cannot be written.
    """
    if file is None:
        return
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"json={file} cannot be written ({error})") from error
