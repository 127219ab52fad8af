"""Commands for data, before training on it.

    python -m detector.data check     [--json] [decode=true] [json=FILE]    data=... [key=value]
    python -m detector.data sheet     [out=FILE] [num_images=N]             data=... [key=value]
    python -m detector.data benchmark [num_images=N] [rounds=N] [json=FILE] data=... [key=value]
    python -m detector.data prepare   voc07|voc12|voc07+12|coco --root DIR

The first three take what train.py takes. `check` exits with 1 where there are errors, and with
--json prints JSON in place of tables; `prepare` exits with 1 where something is left to fetch.
"""

import argparse
import json
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from detector import entry
from detector.build import build_train_set, build_transform, build_val_set, check_data
from detector.config import ConfigError, DataConfig, typed, typed_train
from detector.data.benchmark import benchmark, summary, to_markdown
from detector.data.check import Problem, Report, refusal
from detector.data.dataset import DatasetError, DetectionDataset
from detector.data.loading import Augmented
from detector.data.prepare import NAMES, prepare
from detector.data.sheet import picture_sheet

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
COMMANDS = ("check", "sheet", "benchmark", "prepare")


@dataclass
class CommandConfig:
    """What configs/data_command.yaml adds to a training's configuration."""

    decode: bool
    json: str | None
    out: str
    num_images: int
    rounds: int


def main(arguments: list[str]) -> int:
    """Run one command; return the exit code.

    Raises:
        ConfigError: a value is out of its range, or unknown.
        DatasetError: the data cannot be used.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    command, *rest = arguments
    match command:
        case "check":
            return run_check([a for a in rest if a != "--json"], print_json="--json" in rest)
        case "sheet":
            return run_sheet(rest)
        case "benchmark":
            return run_benchmark(rest)
        case "prepare":
            return run_prepare(rest)
    raise ConfigError(f"{command} is none of {', '.join(COMMANDS)}")


def run_check(overrides: list[str], *, print_json: bool) -> int:
    """Report on both splits; 1 where there are errors."""
    data, _, command = configuration(overrides)
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


def run_sheet(overrides: list[str]) -> int:
    """Write the picture sheet of training images."""
    data, seed, command = configuration(overrides)
    transform = build_transform(data.transform)
    samples = Augmented(usable_train_set(data), transform=transform, seed=seed)
    sheet = picture_sheet(samples, num_images=command.num_images, epoch=0)
    try:
        Path(command.out).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(command.out)
    except (OSError, ValueError) as error:  # ValueError: an ending that Pillow does not know
        raise ConfigError(f"out={command.out} cannot be written ({error})") from error
    print(command.out)
    return 0


def run_benchmark(overrides: list[str]) -> int:
    """Print images a second of our loading and of a plain loader."""
    data, _, command = configuration(overrides)
    transform = data.transform
    rates = benchmark(
        usable_train_set(data),
        build_transform(transform),
        min_sizes=transform.train_min_sizes,
        max_size=transform.max_size,
        flip_probability=transform.flip_probability,
        num_images=command.num_images,
        rounds=command.rounds,
    )
    write_json(command.json, {"summary": summary(rates), "rounds": rates})
    print(to_markdown(rates))
    return 0


def run_prepare(arguments: list[str]) -> int:
    """Put a public data set below a folder; 1 where commands to fetch it are left to run."""
    parser = argparse.ArgumentParser(prog="python -m detector.data prepare")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--root", type=Path, required=True, help="the folder it is put below")
    parsed = parser.parse_args(arguments)
    return 0 if prepare(parsed.name, parsed.root) else 1


def configuration(overrides: list[str]) -> tuple[DataConfig, int, CommandConfig]:
    """The training's data and seed, and the command's own values.

    Raises:
        ConfigError: a key is unknown or missing, a value of a wrong type or out of its range.
    """
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        composed = compose("data_command", overrides)
    OmegaConf.set_struct(composed, False)
    command = typed(
        CommandConfig, {field.name: composed.pop(field.name) for field in fields(CommandConfig)}
    )
    for key in ("num_images", "rounds"):
        if getattr(command, key) < 1:
            raise ConfigError(f"{key}={getattr(command, key)} must be at least 1")
    train = typed_train(composed)
    return train.data, train.seed, command


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


if __name__ == "__main__":
    with entry.one_line_errors():
        sys.exit(main(sys.argv[1:]))
