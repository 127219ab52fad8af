"""One training run: compose -> type -> build -> train -> evaluate -> summary.

    python train.py [group=choice] [key=value]

configs/train.yaml says what there is. The run folder then holds config.yaml, metrics.jsonl,
summary.json, train.log, checkpoints/last.pt and best.pt, and TensorBoard events.
"""

import logging
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from detector import entry
from detector.analysis.ablation import write_table
from detector.build import (
    build_device,
    build_lr_schedule,
    build_metric,
    build_model,
    build_optimizer,
    build_precision,
    build_train_set,
    build_transform,
    build_val_set,
)
from detector.config import TrainConfig, config_hash, to_plain, typed_train
from detector.data.dataset import DetectionDataset
from detector.data.loading import Augmented, EpochBatchSampler, eval_loader, train_loader
from detector.evaluation.inference import detect
from detector.evaluation.metrics import score
from detector.evaluation.pictures import draw
from detector.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from detector.training.loop import seed_epoch
from detector.training.record import Record, num_parameters, write_json
from detector.training.trainer import Trainer

log = logging.getLogger("train")

NUM_PICTURES = 4  # of the validation set, drawn into TensorBoard
CONFIGS = Path(__file__).resolve().parent / "configs"


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def main(cfg: DictConfig) -> None:
    """A run of its own, or one of several (-m), which end in a table."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with entry.one_line_errors():
        run(typed_train(cfg), folder)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        log.info("%s\n%s", folder.parent / "ablation.md", write_table(folder.parent))


def run(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Train and evaluate in a run folder; return what its summary.json holds."""
    OmegaConf.save(OmegaConf.create(to_plain(config)), folder / "config.yaml")
    summary: dict[str, Any] = {"seed": config.seed, "config_hash": config_hash(config)}
    try:
        summary = {"status": "done", **summary, **train(config, folder)}
    except BaseException as error:
        summary = {"status": "failed", **summary, "error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        write_json(folder / "summary.json", summary)
    return summary


def train(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Build everything, then train, evaluate and save epoch by epoch."""
    device, precision = build_device(config.device), build_precision(config.precision)
    metric = build_metric(config.metric)
    train_set = build_train_set(config.data)
    val_set = build_val_set(config.data, train_set.classes)
    log.info("training: %s", train_set.describe())
    log.info("validation: %s", val_set.describe())
    trainer = build_trainer(config, train_set, device, precision, folder)
    log.info("%.2f M parameters on %s", num_parameters(trainer.model) / 1e6, device)
    log.info("run folder %s", folder)

    epochs = config.schedule.epochs
    num_steps = epochs * len(trainer.sampler)
    record = Record(folder, num_steps=num_steps, first_step=trainer.step)
    while trainer.epoch < epochs:
        trainer.train_epoch(record)
        is_best = False
        if trainer.epoch % config.schedule.evaluate_every == 0 or trainer.epoch == epochs:
            is_best = trainer.note(validate(trainer, val_set, metric, config))
            record.validation(trainer.step, trainer.epoch, trainer.validation["metrics"])
            samples = [val_set[index] for index in range(min(NUM_PICTURES, len(val_set)))]
            record.images(trainer.step, draw(trainer.model, samples, val_set.classes, device))
        trainer.save(is_best=is_best)
    record.close()
    return {
        **trainer.validation,
        "train_seconds": trainer.seconds,
        "images_per_second": trainer.num_images / trainer.seconds,
        "num_parameters": num_parameters(trainer.model),
    }


def build_trainer(
    config: TrainConfig,
    train_set: DetectionDataset,
    device: torch.device,
    precision: torch.dtype,
    folder: Path,
) -> Trainer:
    """Model, optimizer and batches, from the run's last checkpoint on if there is one."""
    seed_epoch(config.seed, 0)  # the initial weights
    schedule = config.schedule
    sampler = EpochBatchSampler(
        train_set,
        batch_size=schedule.batch_size,
        seed=config.seed,
        keep_empty=config.data.keep_empty,
    )
    transform = build_transform(config.data.transform)
    model = build_model(config.model, config.deform, config.data.transform, len(train_set.classes))
    model.to(device)
    optimizer = build_optimizer(model, schedule, config.deform.offset_lr_multiplier)
    trainer = Trainer(
        model=model,
        optimizer=optimizer,
        lr_schedule=build_lr_schedule(optimizer, schedule, len(sampler)),
        batches=train_loader(
            Augmented(train_set, transform=transform, seed=config.seed),
            sampler=sampler,
            num_workers=config.data.num_workers,
        ),
        sampler=sampler,
        device=device,
        precision=precision,
        clip_norm=schedule.clip_norm,
        seed=config.seed,
        log_every=config.log_every,
        folder=folder,
        description={
            "config": to_plain(config),
            "classes": list(train_set.classes),
            "category_ids": list(train_set.category_ids),
        },
    )
    last = checkpoint_to_resume(config.resume, folder)
    if last is not None:
        checkpoint = load_checkpoint(last)
        check_same_run(checkpoint, trainer.description, last)
        trainer.restore(checkpoint)
        log.info("resumed from %s after epoch %d", last, trainer.epoch)
    return trainer


def check_same_run(checkpoint: Checkpoint, description: dict[str, Any], path: Path) -> None:
    """A run goes on with the model and classes that it began with; what else changed is logged.

    Raises:
        CheckpointError: the model or the classes are others.
    """
    before, now = checkpoint["config"], description["config"]
    if any(before[part] != now[part] for part in ("model", "deform")):
        raise CheckpointError(
            f"{path} is of another model: give another run folder, or resume=none"
        )
    if checkpoint["classes"] != description["classes"]:
        raise CheckpointError(f"{path} is for the classes {', '.join(checkpoint['classes'])}")
    for part in now:
        if before[part] != now[part]:
            log.warning("%s was %s when %s was written", part, before[part], path)


def checkpoint_to_resume(resume: str, folder: Path) -> Path | None:
    """`auto`: the run folder's own last one, if it is there; `none`; or the path of another."""
    last = folder / "checkpoints" / "last.pt"
    if resume == "auto":
        return last if last.exists() else None
    return None if resume == "none" else Path(resume)


def validate(
    trainer: Trainer, val_set: DetectionDataset, metric: str, config: TrainConfig
) -> dict[str, Any]:
    """Detect and score; what summary.json says of it."""
    batches = eval_loader(
        val_set, batch_size=config.schedule.batch_size, num_workers=config.data.num_workers
    )
    detections, seconds = detect(
        trainer.model,
        batches,
        category_ids=val_set.category_ids,
        device=trainer.device,
        precision=trainer.precision,
    )
    metrics = score(metric, val_set.ground_truth(), detections)
    log.info("epoch %d, %d images, %s:\n%s", trainer.epoch, len(val_set), metric, metrics.table())
    return {
        "metrics": metrics.summary,
        "per_class": metrics.per_class,
        "seconds_per_image": seconds,
    }


if __name__ == "__main__":
    entry.run(main)
