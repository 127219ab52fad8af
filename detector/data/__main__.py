"""Checks and shows training data, times its loading, and downloads public data sets.

    python -m detector.data check     report counts, and every problem with the file it is in
    python -m detector.data sheet     draw images with boxes, before and after augmentation
    python -m detector.data benchmark measure images/s of this loader and of a plain torchvision one
    python -m detector.data prepare   put voc07, voc12, voc07+12 or coco into a folder

The first three take the same arguments as train.py. Each command has its own --help.
"""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from detector import entry
from detector.config import ConfigError, check_root, parse, parse_train
from detector.schema import DataCommandConfig, DataConfig

HELP = {
    "check": """Reports what the training and validation sets contain, and every problem in them.

    python -m detector.data check data=voc data.root=VOCdevkit/VOC2007
    python -m detector.data check data=coco data.root=my data.train.images=train \\
        data.train.annotations=train.json data.val.images=val data.val.annotations=val.json
    python -m detector.data check +experiment=coco_r50_1x data.root=COCO decode=true json=check.json

Takes the arguments of train.py, and
    decode=true   decode every image, not only those whose first or last bytes leave a doubt
    fix=FILE      write a corrected copy of the annotations, in COCO format and without masks, and
                  next to it a list of the changes; the validation set goes into a second file
    json=FILE     also write the report to a file
    --json        print JSON instead of tables
The exit code is 1 if there are errors.""",
    "sheet": """Draws training images with their boxes, before and after augmentation.

    python -m detector.data sheet data=voc data.root=VOCdevkit/VOC2007
    python -m detector.data sheet augment=strong num_images=8 out=shapes.png
    python -m detector.data sheet +experiment=aquarium data.root=aquarium augment=strong

Takes the arguments of train.py, and
    out=FILE      the picture to write (default: sheet.png)
    num_images=N  the number of images to draw (default: 16)""",
    "benchmark": """Measures images/s per core of this loader and of a plain torchvision loader.

    python -m detector.data benchmark
    python -m detector.data benchmark data=voc data.root=VOCdevkit/VOC2007
    python -m detector.data benchmark +experiment=aquarium data.root=aquarium num_images=64 rounds=9

Takes the arguments of train.py, and
    num_images=N  load at most N images, the same ones with every loader (default: 16)
    rounds=N      the number of rounds that the median is taken over (default: 5)
    json=FILE     also write all measurements to a file""",
    "prepare": """Unpacks a public data set into a folder, downloading its archives if needed.

    python -m detector.data prepare voc07 --root DIR
    python -m detector.data prepare voc07+12 --root DIR
    python -m detector.data prepare coco --root DIR      prints the commands that download it

The exit code is 1 if something still has to be downloaded or unpacked.""",
}


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code.

    Raises:
        ConfigError: the command or a key is unknown, or a value is out of its range.
        DatasetError: the data cannot be used.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    command, *rest = arguments
    if command not in HELP:
        raise ConfigError(f"{command} must be one of {', '.join(HELP)}")
    if {"-h", "--help"} & set(rest):
        print(HELP[command])
        return 0
    if command == "prepare":
        return prepare(rest)
    data, seed, config = configuration([word for word in rest if word != "--json"])
    from detector.commands import data as commands  # imports torch, which takes seconds

    match command:
        case "check":
            return commands.check(data, config, rest)
        case "sheet":
            return commands.sheet(data, seed, config)
    return commands.benchmark(data, config)


def prepare(arguments: list[str]) -> int:
    """Prepare a public data set; return 1 if the user still has to run the printed commands."""
    parser = argparse.ArgumentParser(prog="python -m detector.data prepare")
    parser.add_argument("name", help="voc07, voc12, voc07+12 or coco")
    parser.add_argument("--root", type=Path, required=True, help="the folder to put it into")
    parsed = parser.parse_args(arguments)
    from detector.data import prepare as preparing

    return 0 if preparing.prepare(parsed.name, parsed.root) else 1


def configuration(overrides: list[str]) -> tuple[DataConfig, int, DataCommandConfig]:
    """Return the training's data configuration and seed, and the values of the command itself.

    Raises:
        ConfigError: a key is unknown or missing, or a value has a wrong type or is out of range.
    """
    with initialize_config_dir(version_base="1.3", config_dir=str(entry.CONFIGS)):
        composed = compose("data_command", overrides)
    OmegaConf.set_struct(composed, False)
    own = {field.name: composed.pop(field.name) for field in fields(DataCommandConfig)}
    command = parse(DataCommandConfig, own)
    for key in ("num_images", "rounds"):
        if getattr(command, key) < 1:
            raise ConfigError(f"{key}={getattr(command, key)} must be at least 1")
    train = parse_train(composed)
    check_root(train.data)
    return train.data, train.seed, command


if __name__ == "__main__":
    entry.run(lambda: sys.exit(main(sys.argv[1:])))
