"""Build the optimizer, the learning rate schedule, the batches and the trainer."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.models.detection import FasterRCNN

from detector.builders.data import build_transform
from detector.builders.device import build_num_workers, build_precision
from detector.builders.model import build_model
from detector.config import ConfigError, to_plain
from detector.data.dataset import DetectionDataset
from detector.data.loading import Augmented, EpochBatchSampler, train_loader
from detector.model.compiling import compile_parts
from detector.model.flops import forward_flops
from detector.model.memory_format import training_memory_format
from detector.schema import ScheduleConfig, TrainConfig
from detector.training.distribution import Ranks
from detector.training.loop import Optimization, seed_epoch
from detector.training.schedule import lr_schedule
from detector.training.speed import Speed
from detector.training.trainer import Trainer


def build_optimizer(
    model: nn.Module,
    schedule: ScheduleConfig,
    offset_lr_multiplier: float,
    roi_offset_lr_multiplier: float,
) -> Optimizer:
    """Build SGD or AdamW over the trainable parameters.

    Layers that predict offsets have their own learning rates, and normalisation layers have their
    own weight decay.

    Args:
        offset_lr_multiplier: scales the learning rate of the layers that predict the offsets of
            deformable convolutions.
        roi_offset_lr_multiplier: the same for the layers that predict the offsets of RoI bins.
    """
    lr = schedule.lr
    if schedule.lr_batch_size is not None:  # the linear scaling rule of Goyal et al. 2017
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
        "roi_offsets": {"lr": lr * roi_offset_lr_multiplier, "weight_decay": schedule.weight_decay},
    }
    members: dict[str, list[nn.Parameter]] = {name: [] for name in groups}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            if ".conv_offset." in name:
                group = "offsets"
            elif ".fc_offset." in name:
                group = "roi_offsets"
            else:
                group = "norms" if id(parameter) in norms else "others"
            members[group].append(parameter)
    used = [{"params": members[name], **group} for name, group in groups.items() if members[name]]
    if schedule.optimizer == "adamw":
        return AdamW(used, lr=lr, fused=True)
    return SGD(used, lr=lr, momentum=schedule.momentum, fused=True)


def build_lr_schedule(
    optimizer: Optimizer, schedule: ScheduleConfig, steps_per_epoch: int
) -> LRScheduler:
    """Build the learning rate schedule: a warm-up, then a decay in steps or along a cosine."""
    return lr_schedule(
        optimizer,
        warmup_steps=schedule.warmup_steps,
        num_steps=schedule.epochs * steps_per_epoch,
        milestones=[epoch * steps_per_epoch for epoch in schedule.milestones]
        if schedule.decay == "step"
        else None,
        gamma=schedule.gamma,
    )


def build_sampler(
    config: TrainConfig, train_set: DetectionDataset, ranks: Ranks
) -> EpochBatchSampler:
    """Build the sampler: the order of the training images, and this rank's part of each batch.

    Raises:
        ConfigError: the batch size is not a multiple of the parts times the ranks.
        DatasetError: there is no image to train on.
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
    """Build what turns losses into optimizer steps: optimizer, schedule, loss scaler, average."""
    schedule, precision = config.schedule, build_precision(config.precision)
    average = None
    if schedule.ema_decay is not None:
        rule = get_ema_multi_avg_fn(schedule.ema_decay)
        average = AveragedModel(model, multi_avg_fn=rule, use_buffers=True)
    optimizer = build_optimizer(
        model,
        schedule,
        config.deform.offset_lr_multiplier,
        config.model.roi_offset_lr_multiplier,
    )
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


def build_initial_model(
    config: TrainConfig, classes: tuple[str, ...], device: torch.device, ranks: Ranks
) -> FasterRCNN:
    """Build the model with its initial weights, on the device that trains it.

    Raises:
        ConfigError: a value is out of its range, or does not fit the number of ranks.
        WeightsError: the initial weights cannot be downloaded or read, or do not fit.
    """
    transform = config.data.transform
    if config.model.norm == "sync_batch" and ranks.num_ranks > 1 and device.type != "cuda":
        raise ConfigError("model.norm=sync_batch over several processes works on CUDA only")
    seed_epoch(config.seed, 0)  # for the random initial weights
    with ranks.local_main_first():  # which downloads weights for the others
        model = build_model(config.model, config.deform, transform, len(classes), classes)
    memory_format = training_memory_format(
        device, fpn_channels=config.model.fpn_channels, min_size=transform.min_size
    )
    return model.to(device, memory_format=memory_format)


def build_trainer(
    config: TrainConfig,
    train_set: DetectionDataset,
    *,
    device: torch.device,
    ranks: Ranks,
    folder: Path,
    fingerprint: str,
) -> Trainer:
    """Build the trainer: the model with its initial weights, its optimizer and its batches.

    Args:
        folder: the run folder.
        fingerprint: identifies the training and validation data. A run can only be resumed on
            data with the same fingerprint.

    Raises:
        ConfigError: a value is out of its range, or does not fit the number of ranks.
        DatasetError: there is no image to train on.
        WeightsError: the initial weights cannot be downloaded or read, or do not fit.
    """
    transform = config.data.transform
    sampler = build_sampler(config, train_set, ranks)
    model = build_initial_model(config, train_set.classes, device, ranks)
    optimization = build_optimization(
        config, model, steps_per_epoch=sampler.num_steps, device=device
    )
    height, width = transform.min_size, transform.max_size
    flops_per_pixel = forward_flops(model, height, width) / (height * width)
    if config.compile:
        compile_parts(model)
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
