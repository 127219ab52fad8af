"""Looks at data before a training does, and makes public data sets ready.

    python -m detector.data check     what there is, and every problem with its file
    python -m detector.data sheet     a picture: images with boxes, before and after augmentation
    python -m detector.data benchmark images/s of our loading and of a plain torchvision loader
    python -m detector.data prepare   voc07, voc12, voc07+12 or coco below a folder

The first three take what train.py takes; each command has a --help of its own.
"""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from detector import entry
from detector.config import ConfigError, check_root, typed, typed_train
from detector.schema import DataCommandConfig, DataConfig

HELP = {
    "check": """Reports what is in a training and a validation set, and every problem with its file.

    python -m detector.data check data=voc data.root=VOCdevkit/VOC2007
    python -m detector.data check data=coco data.root=my data.train.images=train \\
        data.train.annotations=train.json data.val.images=val data.val.annotations=val.json
    python -m detector.data check +experiment=coco_r50_1x data.root=COCO decode=true json=check.json

Takes what train.py takes, and
    decode=true   decode every image, not only where its header leaves a doubt
    fix=FILE      write a mended copy of the annotations, COCO-format and without masks, and beside
                  it what was changed; those of validation go into a second file
    json=FILE     write the report to a file as well
    --json        print JSON in place of tables
The exit code is 1 where there are errors.""",
    "sheet": """Draws training images with their boxes, before and after augmentation.

    python -m detector.data sheet data=voc data.root=VOCdevkit/VOC2007
    python -m detector.data sheet augment=strong num_images=8 out=shapes.png
    python -m detector.data sheet +experiment=aquarium data.root=aquarium augment=strong

Takes what train.py takes, and
    out=FILE      the picture, sheet.png unless given
    num_images=N  how many images are on it, 16 unless given""",
    "benchmark": """Measures images/s a core: our loading, beside a plain torchvision loader.

    python -m detector.data benchmark
    python -m detector.data benchmark data=voc data.root=VOCdevkit/VOC2007
    python -m detector.data benchmark +experiment=aquarium data.root=aquarium num_images=64 rounds=9

Takes what train.py takes, and
    num_images=N  at most as many images, the same for every loader
    rounds=N      of which medians are taken
    json=FILE     write all of it to a file as well""",
    "prepare": """Puts a public data set below a folder, from archives that it finds or fetches.

    python -m detector.data prepare voc07 --root DIR
    python -m detector.data prepare voc07+12 --root DIR
    python -m detector.data prepare coco --root DIR      prints the commands that fetch it

The exit code is 1 where something is left to fetch.""",
}


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
    if command not in HELP:
        raise ConfigError(f"{command} is none of {', '.join(HELP)}")
    if {"-h", "--help"} & set(rest):
        print(HELP[command])
        return 0
    if command == "prepare":
        return prepare(rest)
    data, seed, config = configuration([word for word in rest if word != "--json"])
    from detector.commands import data as commands  # torch, which takes seconds to import

    match command:
        case "check":
            return commands.check(data, config, rest)
        case "sheet":
            return commands.sheet(data, seed, config)
    return commands.benchmark(data, config)


def prepare(arguments: list[str]) -> int:
    """Put a public data set below a folder; 1 where commands to fetch it are left to run."""
    parser = argparse.ArgumentParser(prog="python -m detector.data prepare")
    parser.add_argument("name", help="voc07, voc12, voc07+12 or coco")
    parser.add_argument("--root", type=Path, required=True, help="the folder it is put below")
    parsed = parser.parse_args(arguments)
    from detector.data import prepare as preparing

    return 0 if preparing.prepare(parsed.name, parsed.root) else 1


def configuration(overrides: list[str]) -> tuple[DataConfig, int, DataCommandConfig]:
    """The training's data and seed, and the command's own values.

    Raises:
        ConfigError: a key is unknown or missing, a value of a wrong type or out of its range.
    """
    with initialize_config_dir(version_base="1.3", config_dir=str(entry.CONFIGS)):
        composed = compose("data_command", overrides)
    OmegaConf.set_struct(composed, False)
    own = {field.name: composed.pop(field.name) for field in fields(DataCommandConfig)}
    command = typed(DataCommandConfig, own)
    for key in ("num_images", "rounds"):
        if getattr(command, key) < 1:
            raise ConfigError(f"{key}={getattr(command, key)} must be at least 1")
    train = typed_train(composed)
    check_root(train.data)
    return train.data, train.seed, command


if __name__ == "__main__":
    entry.run(lambda: sys.exit(main(sys.argv[1:])))
