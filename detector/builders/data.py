"""The data sets that a configuration names, their check, and the training transform."""

from pathlib import Path

from detector.builders.device import USEFUL_WORKERS
from detector.config import ConfigError
from detector.data.check import Report, check
from detector.data.coco import read_coco
from detector.data.dataset import DetectionDataset
from detector.data.file_problems import Watch
from detector.data.loading import num_cores
from detector.data.shapes import shapes_folder
from detector.data.transforms import TrainTransform
from detector.data.voc import read_voc
from detector.schema import (
    CocoConfig,
    CocoSplit,
    DataConfig,
    ShapesConfig,
    TrainConfig,
    TransformConfig,
    VocConfig,
    VocSplit,
)


def build_data(config: TrainConfig) -> dict[str, DetectionDataset]:
    """`train` and `val`, as far as the switches for debugging allow: one of `overfit` is `train`
    alone. None of their images has been looked at.

    Raises:
        DatasetError: the data cannot be used.
    """
    train_set = build_train_set(config.data)
    if config.overfit is not None:
        return {"train": train_set.first(config.overfit)}
    val_set = build_val_set(config.data, train_set.classes)
    if config.limit_val_batches is not None:
        val_set = val_set.first(config.limit_val_batches)
    return {"train": train_set, "val": val_set}


def check_data(
    splits: dict[str, DetectionDataset],
    data: DataConfig,
    *,
    decode: bool = False,
    watched: Watch = iter,
) -> Report:
    """What is in the data and what is wrong with it.

    Args:
        decode: every image, and not only where its header leaves a doubt. So it is done in any
            case where data.on_error goes on without what is broken.
        watched: around what is looked at, to end it early.

    Raises:
        LoadingError: a process that looks at files died.
    """
    workers = data.num_workers
    if workers == "auto":  # nothing else is done meanwhile
        workers = min(num_cores(), USEFUL_WORKERS)
    return check(
        splits,
        min_size=data.transform.min_size,
        max_size=data.transform.max_size,
        decode=decode or data.on_error == "warn",
        num_workers=int(workers),
        watched=watched,
    )


def build_train_set(data: DataConfig) -> DetectionDataset:
    """The training images, before any transform. Faults of single images and objects are collected
    in `faults`, which `check_data` reports.

    Raises:
        DatasetError: the data cannot be used.
    """
    match data:
        case CocoConfig():
            return _coco(data, data.train, None if data.classes is None else tuple(data.classes))
        case VocConfig():
            return _voc(data.train, None if data.classes is None else tuple(data.classes))
        case ShapesConfig():
            return _shapes(data, "train")


def build_val_set(data: DataConfig, classes: tuple[str, ...]) -> DetectionDataset:
    """The validation images, labelled by the classes of the training, which are found by name:
    their order, ids and number may be others.

    Raises:
        DatasetError: the data cannot be used, or an object is of another class.
    """
    match data:
        case CocoConfig():
            return _coco(data, data.val, classes)
        case VocConfig():
            return _voc(data.val, classes)
        case ShapesConfig():
            return _shapes(data, "val", classes)


def images_folder(data: DataConfig, split: str) -> Path:
    """The folder of the images of `train` or `val`, or of the first part of them."""
    match data:
        case CocoConfig():
            return Path(data.root) / getattr(data, split).images
        case VocConfig():
            root = Path(getattr(data, split).roots[0])
            return root if any(root.glob("*.xml")) else root / "JPEGImages"
        case ShapesConfig():
            return _shapes_folder(data) / split


def _coco(data: CocoConfig, split: CocoSplit, classes: tuple[str, ...] | None) -> DetectionDataset:
    root = Path(data.root)
    images, annotations = root / split.images, root / split.annotations
    return read_coco(images=images, annotations=annotations, classes=classes, on_error="warn")


def _voc(split: VocSplit, classes: tuple[str, ...] | None) -> DetectionDataset:
    roots = [Path(root) for root in split.roots]
    return read_voc(roots=roots, image_set=split.image_set, classes=classes, on_error="warn")


def _shapes_folder(data: ShapesConfig) -> Path:
    return shapes_folder(
        num_train=data.num_train,
        num_val=data.num_val,
        image_size=data.image_size,
        seed=data.seed,
        cache=None if data.cache is None else Path(data.cache),
    )


def _shapes(
    data: ShapesConfig, split: str, classes: tuple[str, ...] | None = None
) -> DetectionDataset:
    folder = _shapes_folder(data)
    annotations = folder / "annotations" / f"instances_{split}.json"
    return read_coco(images=folder / split, annotations=annotations, classes=classes)


def build_transform(transform: TransformConfig) -> TrainTransform:
    """The training transform.

    Raises:
        ConfigError: a value is out of its range.
    """
    try:
        return TrainTransform(
            min_sizes=transform.train_min_sizes,
            max_size=transform.max_size,
            flip_probability=transform.flip_probability,
            crop_probability=transform.crop_probability,
            brightness=transform.brightness,
            contrast=transform.contrast,
            saturation=transform.saturation,
            hue=transform.hue,
        )
    except ValueError as error:
        raise ConfigError(f"data.transform: {error}") from error
