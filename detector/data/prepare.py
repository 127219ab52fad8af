"""Downloads and unpacks public data sets.

torchvision downloads and unpacks VOC, and verifies its checksums. For the 20 GB of COCO, the
commands for curl and unzip are printed. Files that exist are not downloaded or unpacked again.
"""

import os
import shlex
from pathlib import Path

from torchvision.datasets import VOCDetection
from torchvision.datasets.voc import DATASET_YEAR_DICT

from detector.data.dataset import DatasetError

# name -> the (year, image set) pairs that it consists of
VOC = {
    "voc07": [("2007", "trainval"), ("2007", "test")],
    "voc12": [("2012", "trainval")],  # the annotations of its test set are not public
    "voc07+12": [("2007", "trainval"), ("2007", "test"), ("2012", "trainval")],
}
VOC_IMAGES = {("2007", "trainval"): 5011, ("2007", "test"): 4952, ("2012", "trainval"): 11540}

COCO_URL = "http://images.cocodataset.org"
# archive -> its size in bytes, and the folders (with their number of images) and files (1) in it
COCO = {
    "zips/train2017.zip": (19_336_861_798, {"train2017": 118_287}),
    "zips/val2017.zip": (815_585_330, {"val2017": 5_000}),
    "annotations/annotations_trainval2017.zip": (
        252_907_541,
        {"annotations/instances_train2017.json": 1, "annotations/instances_val2017.json": 1},
    ),
}

NAMES = (*VOC, "coco")


def prepare(name: str, root: Path) -> bool:
    """Prepare a data set in the folder `root`, and print the command that trains on it.

    Args:
        name: one of NAMES.

    Returns:
        True if the data set is complete; False if commands that download it were printed.

    Raises:
        DatasetError: the name is unknown, a download failed, or an archive lacks images.
    """
    if name not in NAMES:
        raise DatasetError(f"{name} must be one of {', '.join(NAMES)}")
    complete = _prepare_coco(root) if name == "coco" else _prepare_voc(name, root)
    print(f"{'Train' if complete else 'Then train'} on it:\n\n    {train_command(name, root)}")
    return complete


def train_command(name: str, root: Path) -> str:
    """Return the command line that trains on a prepared data set."""
    voc07, voc12 = (root / "VOCdevkit" / f"VOC{year}" for year in ("2007", "2012"))
    match name:
        case "coco":
            overrides = ["+experiment=coco_r50_1x", f"data.root={root}"]
        case "voc07":
            overrides = ["model=resnet50_fpn", "data=voc", f"data.root={voc07}", "metric=voc07"]
        case "voc12":
            overrides = ["model=resnet50_fpn", "data=voc", f"data.root={voc12}", "metric=voc12"]
            overrides += ["data.train.image_set=train", "data.val.image_set=val"]
        case _:
            overrides = ["+experiment=voc0712_r50", f"data.root={root / 'VOCdevkit'}"]
    return " ".join(["python train.py", *map(shlex.quote, overrides)])


# ---- VOC ----------------------------------------------------------------------------------------


def _prepare_voc(name: str, root: Path) -> bool:
    for year, image_set in VOC[name]:
        folder = root / "VOCdevkit" / f"VOC{year}"
        expected = VOC_IMAGES[year, image_set]
        if _num_voc_images(folder, image_set) != expected:
            _fetch_voc(root, year, image_set)
            found = _num_voc_images(folder, image_set)
            if found != expected:
                raise DatasetError(
                    f"{folder}: {image_set} has {found} images with annotations after unpacking, "
                    f"expected {expected}"
                )
        print(f"{folder}: {image_set} is there, {expected} images")
    return True


def _fetch_voc(root: Path, year: str, image_set: str) -> None:
    """Unpack an archive; download it first unless it exists with the right checksum."""
    archive = DATASET_YEAR_DICT["2007-test" if image_set == "test" else year]
    print(f"{root / archive['filename']}: unpacking, after a download if it is missing")
    try:
        VOCDetection(root, year=year, image_set=image_set, download=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise DatasetError(
            f"VOC{year} {image_set} cannot be downloaded from {archive['url']} ({error}): "
            f"put the archive into {root} by hand and run this again"
        ) from error


def _num_voc_images(folder: Path, image_set: str) -> int:
    """Count the images of an image set that exist together with their annotation."""
    try:
        lines = (folder / "ImageSets" / "Main" / f"{image_set}.txt").read_text().splitlines()
        images = set(os.listdir(folder / "JPEGImages"))
        annotations = set(os.listdir(folder / "Annotations"))
    except OSError:
        return 0
    names = [line.split()[0] for line in lines if line.strip()]
    return sum(f"{name}.jpg" in images and f"{name}.xml" in annotations for name in names)


# ---- COCO ---------------------------------------------------------------------------------------


def _prepare_coco(root: Path) -> bool:
    commands = []
    for path, (size, content) in COCO.items():
        archive = root / Path(path).name
        missing = [name for name, number in content.items() if _num_files(root / name) < number]
        if not missing:
            print(f"{root}: {', '.join(content)} is there")
            continue
        fetched = archive.stat().st_size if archive.is_file() else 0
        if fetched != size:
            at, left = shlex.quote(str(archive)), (size - fetched) / 1e9
            url = f"{COCO_URL}/{path}"
            commands.append(
                f"curl --fail --location --continue-at - --create-dirs --output {at} {url}"
                f"  # {left:.2f} GB"
            )
        # -o overwrites the files that an interrupted unpacking left behind.
        commands.append(f"unzip -q -o {shlex.quote(str(archive))} -d {shlex.quote(str(root))}")
    if commands:
        print("Download and unpack what is missing:\n")
        print("\n".join(f"    {command}" for command in commands) + "\n")
    return not commands


def _num_files(path: Path) -> int:
    """Return 1 for a file, the number of .jpg files for a folder, and 0 if neither exists."""
    if path.is_dir():
        return sum(name.endswith(".jpg") for name in os.listdir(path))
    return int(path.is_file())
