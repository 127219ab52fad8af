"""What `python -m detector.data` does with data, once its configuration is there."""

import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from detector.build import build_train_set, build_transform, build_val_set, check_data
from detector.config import ConfigError, DataCommandConfig, DataConfig
from detector.data import benchmark as loading_benchmark
from detector.data.check import Problem, Report, refusal
from detector.data.dataset import DatasetError, DetectionDataset
from detector.data.loading import Augmented
from detector.data.sheet import picture_sheet


def check(data: DataConfig, command: DataCommandConfig, *, print_json: bool) -> int:
    """Report on both splits; 1 where there are errors."""
    splits, refusals = read(data)
    report = check_data(splits, data, decode=command.decode)
    report = Report(splits, [*refusals, *report.problems])
    write_json(command.json, report.to_json())
    print(json.dumps(report.to_json(), indent=1) if print_json else report.to_markdown())
    return 1 if report.count("error") else 0


def read(data: DataConfig) -> tuple[dict[str, DetectionDataset], list[Problem]]:
    """The splits that their reader takes, and what it says of the other."""
    try:
        train_set = build_train_set(data)
    except DatasetError as error:  # without its classes, the other is not read
        return {}, [refusal("train", error)]
    try:
        return {"train": train_set, "val": build_val_set(data, train_set.classes)}, []
    except DatasetError as error:
        return {"train": train_set}, [refusal("val", error)]


def usable_train_set(data: DataConfig) -> DetectionDataset:
    """The training images; what is wrong with them is told on stderr.

    Raises:
        DatasetError: they cannot be used, as far as data.on_error does not overlook it.
    """
    report = check_data({"train": build_train_set(data)}, data)
    for line in report.lines():
        print(line, file=sys.stderr)
    return report.usable(data.on_error)["train"]


def sheet(data: DataConfig, seed: int, command: DataCommandConfig) -> int:
    """Write the picture sheet of training images."""
    transform = build_transform(data.transform)
    samples = Augmented(usable_train_set(data), transform=transform, seed=seed)
    picture = picture_sheet(samples, num_images=command.num_images, epoch=0)
    try:
        Path(command.out).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(command.out)
    except (OSError, ValueError) as error:  # ValueError: an ending that Pillow does not know
        raise ConfigError(f"out={command.out} cannot be written ({error})") from error
    print(command.out)
    return 0


def benchmark(data: DataConfig, command: DataCommandConfig) -> int:
    """Print images a second of our loading and of a plain loader."""
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
    """Write a report, if a file is given.

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
