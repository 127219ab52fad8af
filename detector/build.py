"""Configuration -> model, data, optimizer: the only file that knows both sides.

Everything built here takes plain keyword arguments and has never heard of the configuration.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
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
    TrainConfig,
    TransformConfig,
    VocConfig,
    VocSplit,
    to_plain,
)
from detector.data.check import Report, Watch, check
from detector.data.coco import read_coco
from detector.data.dataset import DatasetError, DetectionDataset
from detector.data.loading import Augmented, EpochBatchSampler, num_cores, train_loader
from detector.data.shapes import shapes_folder
from detector.data.transforms import TrainTransform
from detector.data.voc import read_voc
from detector.evaluation.metrics import METRICS
from detector.model.faster_rcnn import faster_rcnn
from detector.model.flops import forward_flops
from detector.model.memory_format import training_memory_format
from detector.model.resnet import make_deformable, placement, resnet
from detector.model.weights import load_file, load_imagenet, load_into, trained_weights
from detector.training.checkpoint import Checkpoint
from detector.training.distribution import ALONE, Ranks
from detector.training.loop import Optimization, seed_epoch
from detector.training.schedule import lr_schedule
from detector.training.speed import Speed
from detector.training.trainer import Trainer

USEFUL_WORKERS = 8  # of one process: more load no faster than a GPU trains


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
            offset_limit=deform.offset_limit,
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


def trained_model(trained: TrainConfig, checkpoint: Checkpoint) -> FasterRCNN:
    """The model of a checkpoint, with its weights, on the CPU.

    Args:
        trained: the checkpoint's own configuration.

    Raises:
        ConfigError: a value is out of its range.
        WeightsError: the weights do not fit.
    """
    blank = replace(trained.model, weights=None)  # the checkpoint's follow
    num_classes = len(checkpoint["classes"])
    model = build_model(blank, trained.deform, trained.data.transform, num_classes)
    load_into(model, trained_weights(checkpoint), "the checkpoint")
    return model


def check_from_scratch(model: ModelConfig) -> None:
    """Without weights every layer must learn.

    Raises:
        ConfigError: some would keep the random weights that they start with.
    """
    if model.weights is None and (model.norm == "frozen_batch" or model.trainable_layers < 5):
        raise ConfigError(
            "model.weights=null trains from scratch: it needs model.trainable_layers=5 and "
            f"model.norm=batch, sync_batch or group, not {model.trainable_layers} and {model.norm}"
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
    """The training images, before any transform. Of what is wrong with single images and objects
    there is a list, for `check_data`.

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
        order = "in another order " if sorted(val_set.classes) == sorted(classes) else ""
        raise DatasetError(
            f"{_source(data)}: the validation set has, by their ids, the classes "
            f"{', '.join(val_set.classes)}, the training had {order}{', '.join(classes)}"
        )
    return val_set


def val_images(data: DataConfig) -> Path:
    """The folder of the validation images, or of the first part of them."""
    match data:
        case CocoConfig():
            return Path(data.root) / data.val.images
        case VocConfig():
            return Path(data.val.roots[0]) / "JPEGImages"
        case ShapesConfig():
            return _shapes_folder(data) / "val"


def _source(data: DataConfig) -> str:
    """What a message calls the validation set."""
    return str(data.val.annotations) if isinstance(data, CocoConfig) else f"data={data.format}"


def _coco(root: Path, split: CocoSplit) -> DetectionDataset:
    return read_coco(
        images=root / split.images, annotations=root / split.annotations, on_error="warn"
    )


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


def _shapes(data: ShapesConfig, split: str) -> DetectionDataset:
    folder = _shapes_folder(data)
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
            crop_probability=transform.crop_probability,
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
    """SGD or AdamW over the trainable parameters: the offset convolutions with a rate of their own,
    the parameters of normalisation layers with a weight decay of theirs.

    Raises:
        ConfigError: the optimizer is unknown.
    """
    lr = schedule.lr
    if schedule.lr_batch_size is not None:  # the linear rule of Goyal et al. 2017
        lr *= schedule.batch_size / schedule.lr_batch_size
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (nn.GroupNorm, nn.modules.batchnorm._BatchNorm))
        for parameter in module.parameters(recurse=False)
    }
    groups: dict[str, dict[str, Any]] = {
        "others": {"lr": lr, "weight_decay": schedule.weight_decay},
        "norms": {"lr": lr, "weight_decay": schedule.norm_weight_decay},
        "offsets": {"lr": lr * offset_lr_multiplier, "weight_decay": schedule.weight_decay},
    }
    members: dict[str, list[nn.Parameter]] = {name: [] for name in groups}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_offset, is_norm = ".conv_offset." in name, id(parameter) in norms
            group = "offsets" if is_offset else "norms" if is_norm else "others"
            members[group].append(parameter)
    used = [{"params": members[name], **group} for name, group in groups.items() if members[name]]
    match schedule.optimizer:
        case "sgd":
            return SGD(used, lr=lr, momentum=schedule.momentum, fused=True)
        case "adamw":
            return AdamW(used, lr=lr, fused=True)
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


def build_device(device: str, ranks: Ranks = ALONE) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; each rank of a machine has its own GPU.

    Raises:
        ConfigError: there is no such device here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if ranks.num_ranks > 1 and device.startswith("cuda"):
        if device != "cuda":
            raise ConfigError(f"device={device} is one device, not one for each process")
        # A scheduler may show each process its own GPU alone.
        device = f"cuda:{ranks.local_rank if torch.cuda.device_count() > 1 else 0}"
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"device={device} cannot be used here ({reason})") from error
    if found.type == "cuda":
        torch.cuda.set_device(found)
    return found


def check_devices(device: str, devices: int) -> None:
    """Each of several processes needs a GPU of its own, unless all are to use the CPU.

    Raises:
        ConfigError: there are not as many.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return
    if device not in ("auto", "cuda"):
        raise ConfigError(f"device={device} is one device, not devices={devices}")
    if devices > torch.cuda.device_count():
        raise ConfigError(f"devices={devices}: this machine has {torch.cuda.device_count()}")


def build_num_workers(num_workers: int | str, device: torch.device, ranks: Ranks = ALONE) -> int:
    """The processes that load images for one that trains or detects.

    `auto` is none on a CPU, which they would share: what an image costs is paid there in any case,
    and its way between processes on top. Beside a GPU it is this process's share of the cores, as
    far as they help: at the 230 images/s a core of README, eight load 1800.
    """
    if num_workers != "auto":
        return int(num_workers)
    share = num_cores() // ranks.num_local
    return 0 if device.type == "cpu" else min(max(share, 1), USEFUL_WORKERS)


def build_precision(precision: str) -> torch.dtype:
    """The dtype of autocast; float32 means none.

    Raises:
        ConfigError: the precision is unknown.
    """
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
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


def build_sampler(
    config: TrainConfig, train_set: DetectionDataset, ranks: Ranks
) -> EpochBatchSampler:
    """The order of the training images, and this rank's part of each batch.

    Raises:
        ConfigError: the batch size does not go with the number of ranks.
        DatasetError: there are fewer images than a batch takes.
    """
    schedule = config.schedule
    num_batches = schedule.num_parts * ranks.num_ranks
    if schedule.batch_size % num_batches:
        raise ConfigError(
            f"schedule.batch_size={schedule.batch_size} must be a multiple of {num_batches}: "
            f"{schedule.num_parts} (schedule.num_parts) x {ranks.num_ranks} (devices)"
        )
    return EpochBatchSampler(
        train_set,
        batch_size=schedule.batch_size,
        seed=config.seed,
        keep_empty=config.data.keep_empty,
        group_by_aspect=config.data.group_by_aspect,
        max_steps=config.limit_train_batches,
        num_parts=schedule.num_parts,
        rank=ranks.rank,
        num_ranks=ranks.num_ranks,
    )


def build_optimization(
    config: TrainConfig, model: nn.Module, *, steps_per_epoch: int, device: torch.device
) -> Optimization:
    """How the model's losses become steps.

    Raises:
        ConfigError: a value is out of its range.
    """
    schedule, precision = config.schedule, build_precision(config.precision)
    average = None
    if schedule.ema_decay is not None:
        rule = get_ema_multi_avg_fn(schedule.ema_decay)
        average = AveragedModel(model, multi_avg_fn=rule, use_buffers=True)
    optimizer = build_optimizer(model, schedule, config.deform.offset_lr_multiplier)
    return Optimization(
        optimizer=optimizer,
        lr_schedule=build_lr_schedule(optimizer, schedule, steps_per_epoch),
        scaler=GradScaler(device.type, enabled=precision == torch.float16),
        device=device,
        precision=precision,
        clip_norm=schedule.clip_norm,
        ema=average,
        num_parts=schedule.num_parts,
    )


def build_trainer(
    config: TrainConfig,
    train_set: DetectionDataset,
    *,
    device: torch.device,
    ranks: Ranks,
    folder: Path,
    fingerprint: str,
) -> Trainer:
    """The model with its initial weights, its optimizer and its batches.

    Args:
        fingerprint: of what it is trained and evaluated on, which a resumed run must have again.

    Raises:
        ConfigError: a value is out of its range, or does not go with the number of ranks.
    """
    transform = config.data.transform
    if config.model.norm == "sync_batch" and ranks.num_ranks > 1 and device.type != "cuda":
        raise ConfigError("model.norm=sync_batch over several processes works on CUDA only")
    sampler = build_sampler(config, train_set, ranks)
    seed_epoch(config.seed, 0)  # the initial weights
    with ranks.one_of_machine_first():  # the others find fetched weights
        model = build_model(config.model, config.deform, transform, len(train_set.classes))
    model.to(
        device,
        memory_format=training_memory_format(
            device, fpn_channels=config.model.fpn_channels, min_size=transform.min_size
        ),
    )
    optimization = build_optimization(
        config, model, steps_per_epoch=sampler.num_steps, device=device
    )
    height, width = transform.min_size, transform.max_size
    flops_per_pixel = forward_flops(model, height, width) / (height * width)
    if config.compile:
        model.backbone.compile()
    batches = train_loader(
        Augmented(train_set, transform=build_transform(transform), seed=config.seed),
        sampler=sampler,
        num_workers=build_num_workers(config.data.num_workers, device, ranks),
        pin_memory=device.type == "cuda",
    )
    return Trainer(
        model=model,
        optimization=optimization,
        batches=batches,
        sampler=sampler,
        ranks=ranks,
        speed=Speed(batch_size=config.schedule.batch_size, flops_per_pixel=flops_per_pixel),
        seed=config.seed,
        max_skipped=config.max_skipped_steps,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        profile_steps=config.profile_steps,
        folder=folder,
        description={
            "config": to_plain(config),
            "classes": list(train_set.classes),
            "category_ids": list(train_set.category_ids),
            "data": fingerprint,
        },
    )
