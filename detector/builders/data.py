"""Build and check the data sets that a configuration names, and build the training transform."""

from pathlib import Path

from detector.builders.device import USEFUL_WORKERS
from detector.config import ConfigError
from detector.data.check import Report, check
from detector.data.coco import read_coco
from detector.data.dataset import DetectionDataset
from detector.data.file_problems import Wrap
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
)


def build_data(config: TrainConfig) -> dict[str, DetectionDataset]:
    """Build the data sets `train` and `val`; no image file is read yet.

    `overfit` and `limit_val_batches` shorten them. With `overfit` there is no `val`.

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
    wrap: Wrap = iter,
) -> Report:
    """Check the annotations and the image files, and report every problem found.

    Args:
        decode: decode every image, not only those whose header leaves a doubt. With
            `data.on_error=warn`, which drops broken images, every image is always decoded.
        wrap: wraps the iterator over the checked files and may end it early.

    Raises:
        LoadingError: a worker process that reads files died.
    """
    workers = data.num_workers
    if workers == "auto":  # the checks may use all cores: nothing else runs meanwhile
        workers = min(num_cores(), USEFUL_WORKERS)
    return check(
        splits,
        min_size=data.transform.min_size,
        max_size=data.transform.max_size,
        decode=decode or data.on_error == "warn",
        num_workers=int(workers),
        wrap=wrap,
    )


def build_train_set(data: DataConfig) -> DetectionDataset:
    """Build the training set, without a transform.

    Faults of single images and objects do not raise an error. They are collected in the data set's
    `faults`, which `check_data` reports.

    Raises:
        DatasetError: the data cannot be used.
    """
    match data:
        case CocoConfig():
            return _coco(data, data.train, None if data.classes is None else tuple(data.classes))
        case VocConfig():
            return _voc(data, "train", None if data.classes is None else tuple(data.classes))
        case ShapesConfig():
            return _shapes(data, "train")


def build_val_set(data: DataConfig, classes: tuple[str, ...]) -> DetectionDataset:
    """Build the validation set, labelled with the training set's classes.

    Classes are matched by name: their order, ids and number may differ in the validation files.

    Raises:
        DatasetError: the data cannot be used, or an object has a class that is not in `classes`.
    """
    match data:
        case CocoConfig():
            return _coco(data, data.val, classes)
        case VocConfig():
            return _voc(data, "val", classes)
        case ShapesConfig():
            return _shapes(data, "val", classes)


def images_folder(data: DataConfig, split: str) -> Path:
    """Return the image folder of the split `train` or `val`; for VOC, that of its first root."""
    match data:
        case CocoConfig():
            return Path(data.root) / getattr(data, split).images
        case VocConfig():
            root = voc_roots(data, split)[0]
            return root if any(root.glob("*.xml")) else root / "JPEGImages"
        case ShapesConfig():
            return _shapes_folder(data) / split


def _coco(data: CocoConfig, split: CocoSplit, classes: tuple[str, ...] | None) -> DetectionDataset:
    root = Path(data.root)
    images, annotations = root / split.images, root / split.annotations
    return read_coco(images=images, annotations=annotations, classes=classes, on_error="warn")


def _voc(data: VocConfig, split: str, classes: tuple[str, ...] | None) -> DetectionDataset:
    return read_voc(
        roots=voc_roots(data, split),
        image_set=getattr(data, split).image_set,
        classes=classes,
        on_error="warn",
    )


def voc_roots(data: VocConfig, split: str) -> list[Path]:
    """Return the folders of the split `train` or `val`, whose paths are relative to `data.root`.

    A path that begins with `data.root`, as `${data.root}/VOC2007` does, already contains it. A path
    that names no folder in `data.root`, but one relative to the working directory, means that one.

    Raises:
        ConfigError: a path names a folder in `data.root` and another in the working directory.
    """
    roots = []
    for root in getattr(data, split).roots:
        given, inside = Path(root), Path(data.root, root)
        if given.is_relative_to(data.root) or (given.is_dir() and not inside.is_dir()):
            roots.append(given)
        elif given.is_dir() and not given.samefile(inside):
            raise ConfigError(
                f"data.{split}.roots: {given} could be {given.absolute()} or {inside.absolute()}; "
                "give one of these paths"
            )
        else:
            roots.append(inside)
    return roots


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
    """Build the training transform."""
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
