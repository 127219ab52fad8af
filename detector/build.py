"""Configuration -> model, data, optimizer: the only file that knows both sides.

Everything built here takes plain keyword arguments and has never heard of the configuration.
"""

from pathlib import Path

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchvision.models.detection import FasterRCNN

from detector.config import (
    CocoConfig,
    CocoSplit,
    ConfigError,
    DataConfig,
    DeformConfig,
    ModelConfig,
    ScheduleConfig,
    ShapesConfig,
    TransformConfig,
    VocConfig,
    VocSplit,
)
from detector.data.coco import read_coco
from detector.data.dataset import DatasetError, DetectionDataset
from detector.data.shapes import shapes_folder
from detector.data.transforms import TrainTransform
from detector.data.voc import read_voc
from detector.evaluation.metrics import METRICS
from detector.model.faster_rcnn import faster_rcnn
from detector.model.resnet import make_deformable, placement, resnet
from detector.model.weights import load_file, load_imagenet
from detector.training.schedule import lr_schedule


def build_model(
    model: ModelConfig, deform: DeformConfig, transform: TransformConfig, num_classes: int
) -> FasterRCNN:
    """The detector with its initial weights, in channels-last memory.

    Raises:
        ConfigError: a value is out of its range.
        WeightsError: the weights cannot be had or do not fit.
    """
    try:
        body = resnet(name=model.backbone, norm=model.norm, c5_dilation=model.c5_dilation)
        if model.weights == "imagenet":
            load_imagenet(body, model.backbone)
        if deform.version not in ("v1", "v2"):
            raise ConfigError(f"deform.version={deform.version} is none of v1, v2")
        make_deformable(
            body,
            placement(body, stages=deform.stages, last_layers=deform.last_layers),
            modulated=deform.version == "v2",
            offset_groups=deform.offset_groups,
            mask_start=deform.mask_start,
        )
        detector = faster_rcnn(
            body,
            num_classes=num_classes,
            fpn_channels=model.fpn_channels,
            trainable_layers=model.trainable_layers,
            anchor_sizes=model.anchor_sizes,
            aspect_ratios=model.aspect_ratios,
            rpn_top_n_train=model.rpn_top_n_train,
            rpn_top_n_test=model.rpn_top_n_test,
            rpn_batch_size=model.rpn_batch_size,
            box_batch_size=model.box_batch_size,
            box_head_channels=model.box_head_channels,
            score_threshold=model.score_threshold,
            detections_per_image=model.detections_per_image,
            min_size=transform.min_size,
            max_size=transform.max_size,
        )
    except ValueError as error:
        raise error if type(error) is not ValueError else ConfigError(str(error)) from error
    if model.weights not in (None, "imagenet"):
        load_file(detector, Path(model.weights))
    return detector.to(memory_format=torch.channels_last)


def check_from_scratch(model: ModelConfig) -> None:
    """Without weights every layer must learn.

    Raises:
        ConfigError: some would keep the random weights that they start with.
    """
    if model.weights is None and (model.norm == "frozen_batch" or model.trainable_layers < 5):
        raise ConfigError(
            "model.weights=null trains from scratch: it needs model.trainable_layers=5 and "
            f"model.norm=batch or group, not {model.trainable_layers} and {model.norm}"
        )


def build_train_set(data: DataConfig) -> DetectionDataset:
    """The training images, before any transform.

    Raises:
        DatasetError: the data cannot be used.
    """
    match data:
        case CocoConfig():
            return _coco(Path(data.root), data.train)
        case VocConfig():
            return _voc(data.train, None if data.classes is None else tuple(data.classes))
        case ShapesConfig():
            return _shapes(data, "train")


def build_val_set(data: DataConfig, classes: tuple[str, ...]) -> DetectionDataset:
    """The validation images, labelled by the classes of the training.

    Raises:
        DatasetError: the data cannot be used, or has other classes.
    """
    match data:
        case CocoConfig():
            val_set = _coco(Path(data.root), data.val)
        case VocConfig():
            val_set = _voc(data.val, classes)
        case ShapesConfig():
            val_set = _shapes(data, "val")
    if val_set.classes != classes:
        raise DatasetError(
            f"the validation set has the classes {', '.join(val_set.classes)}, "
            f"the training had {', '.join(classes)}"
        )
    return val_set


def _coco(root: Path, split: CocoSplit) -> DetectionDataset:
    return read_coco(images=root / split.images, annotations=root / split.annotations)


def _voc(split: VocSplit, classes: tuple[str, ...] | None) -> DetectionDataset:
    roots = [Path(root) for root in split.roots]
    return read_voc(roots=roots, image_set=split.image_set, classes=classes)


def _shapes(data: ShapesConfig, split: str) -> DetectionDataset:
    folder = shapes_folder(
        num_train=data.num_train,
        num_val=data.num_val,
        image_size=data.image_size,
        seed=data.seed,
        cache=None if data.cache is None else Path(data.cache),
    )
    annotations = folder / "annotations" / f"instances_{split}.json"
    return read_coco(images=folder / split, annotations=annotations)


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
            brightness=transform.brightness,
            contrast=transform.contrast,
            saturation=transform.saturation,
            hue=transform.hue,
        )
    except ValueError as error:
        raise ConfigError(f"data.transform: {error}") from error


def build_optimizer(
    model: nn.Module, schedule: ScheduleConfig, offset_lr_multiplier: float
) -> Optimizer:
    """SGD or AdamW over the trainable parameters, the offset convolutions with a rate of their own.

    Raises:
        ConfigError: the optimizer is unknown.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    offsets = [p for name, p in named if ".conv_offset." in name]
    others = [p for name, p in named if ".conv_offset." not in name]
    groups = [{"params": others, "lr": schedule.lr}]
    if offsets:
        groups.append({"params": offsets, "lr": schedule.lr * offset_lr_multiplier})
    match schedule.optimizer:
        case "sgd":
            decay = schedule.weight_decay
            return SGD(groups, momentum=schedule.momentum, weight_decay=decay, fused=True)
        case "adamw":
            return AdamW(groups, weight_decay=schedule.weight_decay, fused=True)
        case other:
            raise ConfigError(f"schedule.optimizer={other} is none of sgd, adamw")


def build_lr_schedule(
    optimizer: Optimizer, schedule: ScheduleConfig, steps_per_epoch: int
) -> LRScheduler:
    """Warm-up, then steps or a cosine.

    Raises:
        ConfigError: the decay is unknown.
    """
    if schedule.decay not in ("step", "cosine"):
        raise ConfigError(f"schedule.decay={schedule.decay} is none of step, cosine")
    return lr_schedule(
        optimizer,
        warmup_steps=schedule.warmup_steps,
        num_steps=schedule.epochs * steps_per_epoch,
        milestones=[epoch * steps_per_epoch for epoch in schedule.milestones]
        if schedule.decay == "step"
        else None,
        gamma=schedule.gamma,
    )


def build_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: there is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"device={device} cannot be used here ({reason})") from error


def build_precision(precision: str) -> torch.dtype:
    """The dtype of autocast; float32 means none.

    Raises:
        ConfigError: the precision is unknown.
    """
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if precision not in dtypes:
        raise ConfigError(f"precision={precision} is none of {', '.join(dtypes)}")
    return dtypes[precision]


def build_metric(metric: str) -> str:
    """The metric's name, checked before hours of training.

    Raises:
        ConfigError: it is unknown.
    """
    if metric not in METRICS:
        raise ConfigError(f"metric={metric} is none of {', '.join(METRICS)}")
    return metric
