"""One training run: compose -> type -> build -> train -> evaluate -> summary.

    python train.py [group=choice] [key=value]

configs/train.yaml says what there is. The run folder then holds config.yaml, metrics.jsonl,
summary.json, train.log, checkpoints/last.pt, previous.pt and best.pt, and TensorBoard events.
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
    check_from_scratch,
)
from detector.config import TrainConfig, config_hash, to_plain, typed_train
from detector.data.dataset import DetectionDataset
from detector.data.loading import (
    Augmented,
    EpochBatchSampler,
    eval_loader,
    kill_workers,
    train_loader,
)
from detector.evaluation.inference import detect
from detector.evaluation.metrics import score
from detector.evaluation.pictures import draw
from detector.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint, load_newest
from detector.training.loop import seed_epoch
from detector.training.preemption import Preempted, StopRequest
from detector.training.record import Record, num_parameters, write_json
from detector.training.trainer import Trainer

log = logging.getLogger("train")

NUM_PICTURES = 4  # of the validation set, drawn into TensorBoard
CONFIGS = Path(__file__).resolve().parent / "configs"


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def main(cfg: DictConfig) -> None:
    """A run of its own, or one of several (-m), which end in a table."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        with entry.one_line_errors():
            run(typed_train(cfg), folder)
        return
    try:  # an arm that fails does not keep Hydra from the next
        run(typed_train(cfg), folder)
    finally:
        log.info("%s\n%s", folder.parent / "ablation.md", write_table(folder.parent))


def run(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Train and evaluate in a run folder; return what its summary.json holds."""
    check_from_scratch(config.model)
    found = checkpoint_to_resume(config.resume, folder)
    checkpoint = None
    if found is not None:
        path, checkpoint = found
        check_same_run(checkpoint["config"], to_plain(config), str(path))
    OmegaConf.save(OmegaConf.create(to_plain(config)), folder / "config.yaml")
    summary: dict[str, Any] = {"seed": config.seed, "config_hash": config_hash(config)}
    try:
        with StopRequest() as stop:
            summary = {"status": "done", **summary, **train(config, folder, checkpoint, stop)}
    except Preempted as request:
        log.info("%s: saved; the same command goes on", request)
        summary = {"status": "preempted", **summary, "signal": str(request)}
        raise
    except BaseException as error:
        summary = {"status": "failed", **summary, "error": f"{type(error).__name__}: {error}"}
        if not isinstance(error, entry.USER_ERRORS):
            log.exception("failed")
        raise
    finally:
        write_json(folder / "summary.json", summary)
        kill_workers()
    return summary


def train(
    config: TrainConfig, folder: Path, checkpoint: Checkpoint | None, stop: StopRequest
) -> dict[str, Any]:
    """Build everything, then train, evaluate and save epoch by epoch, from a checkpoint or anew.

    Raises:
        Preempted: a stop was requested, and the state is saved.
    """
    device, precision = build_device(config.device), build_precision(config.precision)
    metric = build_metric(config.metric)
    train_set = build_train_set(config.data)
    val_set = build_val_set(config.data, train_set.classes)
    log.info("training: %s", train_set.describe())
    log.info("validation: %s", val_set.describe())
    warn_of_shared_images(train_set, val_set)
    trainer = build_trainer(config, train_set, device, precision, folder)
    if checkpoint is not None:
        trainer.restore(checkpoint)
        log.info("resumed after epoch %d and %d steps", trainer.epoch, trainer.position)
    log.info("%.2f M parameters on %s", num_parameters(trainer.model) / 1e6, device)
    log.info("run folder %s", folder)

    epochs = config.schedule.epochs
    num_steps = epochs * len(trainer.sampler)
    record = Record(folder, num_steps=num_steps, first_step=trainer.step)
    try:
        while trainer.epoch < epochs:
            trainer.train_epoch(record, stop)
            epoch, is_best = trainer.epoch + 1, False
            if epoch % config.schedule.evaluate_every == 0 or epoch == epochs:
                is_best = trainer.note(validate(trainer, val_set, metric, config, stop))
                record.validation(trainer.step, epoch, trainer.validation["metrics"])
                samples = [val_set[index] for index in range(min(NUM_PICTURES, len(val_set)))]
                record.images(trainer.step, draw(trainer.model, samples, val_set.classes, device))
            trainer.finish_epoch()
            is_nth = config.keep_every is not None and epoch % config.keep_every == 0
            trainer.save(is_best=is_best, is_nth=is_nth)
    except Preempted:
        trainer.save()
        raise
    finally:
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
    """The model with its initial weights, its optimizer and its batches."""
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
    return Trainer(
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
        checkpoint_every=config.checkpoint_every,
        folder=folder,
        description={
            "config": to_plain(config),
            "classes": list(train_set.classes),
            "category_ids": list(train_set.category_ids),
        },
    )


def checkpoint_to_resume(resume: str, folder: Path) -> tuple[Path, Checkpoint] | None:
    """`auto`: the run folder's own newest, if there is one; `none`; or the path of another."""
    if resume == "auto":
        return load_newest(folder / "checkpoints")
    return None if resume == "none" else (Path(resume), load_checkpoint(Path(resume)))


def check_same_run(before: dict[str, Any], now: dict[str, Any], path: str) -> None:
    """A run goes on with the configuration that it began with, or it would be neither's result.

    Raises:
        CheckpointError: something else changed than how long, where and how talkative it is.
    """
    free = {"device", "log_every", "checkpoint_every", "keep_every", "resume", "data.num_workers"}
    free |= {"schedule.epochs", "schedule.evaluate_every"}
    before, now = flat(before), flat(now)
    for key in sorted((before.keys() | now.keys()) - free):
        if before.get(key) != now.get(key):
            raise CheckpointError(
                f"{path} was trained with {key}={before.get(key)}, not {now.get(key)}: "
                "take another run folder, or resume=none"
            )


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, its keys joined by dots."""
    items: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, dict)
        items |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return items


def warn_of_shared_images(train_set: DetectionDataset, val_set: DetectionDataset) -> None:
    """Say so where a network is validated on what it was trained on."""
    shared = {r.path for r in train_set.records} & {r.path for r in val_set.records}
    if shared:
        log.warning(
            "%d of %d validation images are training images too, such as %s",
            *(len(shared), len(val_set), min(shared)),
        )


def validate(
    trainer: Trainer, val_set: DetectionDataset, metric: str, config: TrainConfig, stop: StopRequest
) -> dict[str, Any]:
    """Detect and score; what summary.json says of it."""
    batches = eval_loader(val_set, num_workers=config.data.num_workers)
    detections, seconds = detect(
        trainer.model,
        stop.between(batches),
        category_ids=val_set.category_ids,
        device=trainer.device,
        precision=trainer.precision,
    )
    metrics = score(metric, val_set.ground_truth(), detections)
    log.info(
        "epoch %d, %d images, %s:\n%s", trainer.epoch + 1, len(val_set), metric, metrics.table()
    )
    return {
        "metrics": metrics.summary,
        "per_class": metrics.per_class,
        "seconds_per_image": seconds,
    }


if __name__ == "__main__":
    entry.run(main)
