"""Runs a training: builds, trains, evaluates and writes a summary.

Afterwards the run folder holds config.yaml, metrics.jsonl, summary.json, data_check.json,
train.log, TensorBoard events, and checkpoints/ with last.pt, previous.pt and best.pt. For a study
of several runs it also holds ground_truth.json, the annotations of the validation images, and
detections.json, the detections of the last evaluation.
"""

import logging
import os
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from omegaconf import OmegaConf

from detector import entry
from detector.builders.data import build_transform
from detector.builders.device import build_device, build_num_workers, check_devices
from detector.builders.model import conventions_of
from detector.builders.training import build_trainer
from detector.commands.resumption import check_one_folder, to_resume
from detector.commands.run_log import describe, ending
from detector.commands.run_summary import broken_off, finished, results, seconds_if_done
from detector.commands.training_data import load_data
from detector.config import ConfigError, to_plain
from detector.data.dataset import DetectionDataset
from detector.data.loading import Augmented, kill_workers, num_cores
from detector.data.sheet import picture_sheet
from detector.evaluation.pictures import draw
from detector.schema import TrainConfig
from detector.training.checkpoint import Checkpoint
from detector.training.distribution import SINGLE_PROCESS, Ranks, joined, ranks_of_environment
from detector.training.durable import write_json
from detector.training.launch import WorkersError, launch
from detector.training.loop import use_deterministic_algorithms
from detector.training.preemption import Preempted, StopRequest
from detector.training.record import Record
from detector.training.resume import flat
from detector.training.run_lock import RunFolderError, locked
from detector.training.trainer import Trainer
from detector.training.validation import validate

log = logging.getLogger("train")

NUM_PICTURES = 4  # images of the training set and of the validation set, shown in TensorBoard


def start(config: TrainConfig, folder: Path) -> None:
    """Train in this process or, with several devices, in one new process for each device.

    If torchrun or SLURM started this process, it is one of several ranks, and starts no others.

    Raises:
        ConfigError: `config.devices` does not suit this machine, or torchrun or SLURM started
            several processes and it is not 1.
    """
    config.model.conventions = conventions_of(config.model)
    seconds_before = seconds_if_done(folder)
    if config.devices == 1:
        run_here(config, folder)
    else:
        run_in_new_processes(config, folder)
    if ranks_of_environment().is_first:
        was_done = seconds_if_done(folder) == seconds_before
        log.info(ending(config, folder, was_done=was_done))


def run_here(config: TrainConfig, folder: Path) -> None:
    """Run in this process, and put the traceback of a bug into the log."""
    try:
        run(config, folder)
    except Exception as error:
        if entry.exit_code(error) is None:
            log.exception("failed")
        raise


def run_in_new_processes(config: TrainConfig, folder: Path) -> None:
    """Run in one new process for each device, and write the summary if they end with an error.

    Raises:
        ConfigError: `config.devices` does not suit this machine, or torchrun or SLURM started
            several processes.
    """
    if ranks_of_environment().num_ranks > 1:
        raise ConfigError(
            f"devices={config.devices}: leave it at 1 where torchrun or SLURM starts the processes"
        )
    check_devices(config.device, config.devices)
    with locked(folder, SINGLE_PROCESS):  # the first rank locks the folder later
        to_resume(config, folder)  # fail now if the checkpoint does not suit the configuration
    job_logging = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
    try:
        launch(
            *(worker, config, folder, job_logging),
            num_ranks=config.devices,
            max_restarts=config.max_restarts,
            exit_code=entry.exit_code,
        )
    except (WorkersError, Preempted) as error:  # it holds the error of the rank that failed first
        if isinstance(error, Preempted) or error.kind != RunFolderError.__name__:
            write_json(folder / "summary.json", broken_off(config, error))
        raise


def worker(config: TrainConfig, folder: Path, job_logging: Any) -> None:
    """Run in one of the new processes."""
    configure_log(OmegaConf.create(job_logging))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, num_cores() // config.devices))
    run(config, folder)


def run(config: TrainConfig, folder: Path) -> None:
    """Train and evaluate in a run folder, and write into its summary.json how the run ended."""
    with joined(config.rank_timeout) as ranks, locked(folder, ranks):
        if not ranks.is_first:
            logging.getLogger().setLevel(logging.WARNING)
        checkpoint = to_resume(config, folder)
        check_one_folder(folder, checkpoint, ranks)
        if ranks.is_first:
            OmegaConf.save(OmegaConf.create(to_plain(config)), folder / "config.yaml")
        try:
            with StopRequest() as stop:
                result = train(config, folder, checkpoint, ranks, stop)
            summary = finished(config, result)
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in entry.DISK_ERRNOS:
                error.filename = error.filename or str(folder)
            summary = broken_off(config, error)
            if isinstance(error, Preempted):
                log.info(
                    "%s: saved; the same command with hydra.run.dir=%s resumes the run",
                    *(error, folder),
                )
            raise
        finally:
            if ranks.is_first:
                # If a failed run cannot write its summary, as on a full disk, the error of the run
                # is the one to report.
                with nullcontext() if summary["status"] == "done" else suppress(OSError):
                    write_json(folder / "summary.json", summary)
            kill_workers()
            if summary["status"] == "preempted":
                ranks.barrier()  # the launcher may stop all ranks when the first one has ended


def train(
    config: TrainConfig,
    folder: Path,
    checkpoint: Checkpoint | None,
    ranks: Ranks,
    stop: StopRequest,
) -> dict[str, Any]:
    """Build everything, then train, evaluate and save a checkpoint epoch by epoch.

    Args:
        checkpoint: the checkpoint to resume from, or None to start from the beginning.

    Returns:
        The results that summary.json holds.

    Raises:
        Preempted: a signal asked the run to stop, and its state was saved.
    """
    device = build_device(config.device, ranks)
    use_deterministic_algorithms(config.deterministic)
    train_set, val_set = load_data(config, folder, ranks, stop)
    trainer = build_trainer(
        config,
        train_set,
        device=device,
        ranks=ranks,
        folder=folder,
        fingerprint=f"{train_set.fingerprint()} {val_set.fingerprint()}",
    )
    describe(trainer, config.schedule, folder)
    if checkpoint is not None:
        trainer.restore(checkpoint)
        log.info("resumed after epoch %d and %d steps", trainer.epoch, trainer.position)
    record = Record(
        folder if ranks.is_first else None,
        num_steps=config.schedule.epochs * trainer.sampler.num_steps,
        num_epochs=config.schedule.epochs,
        first_step=trainer.step,
    )
    try:
        if trainer.step == 0 and ranks.is_first:
            augment = build_transform(config.data.transform)
            samples = Augmented(train_set, transform=augment, seed=config.seed)
            record.augmentation_sheet(picture_sheet(samples, num_images=NUM_PICTURES, epoch=0))
        train_epochs(config, trainer, val_set, record, stop)
        record.hparams(flat(to_plain(config)), trainer.validation["metrics"])
    except Preempted:
        kill_workers()  # the signal has reached them too; they must not disturb a long save
        trainer.save()
        raise
    finally:
        record.close()
    return results(trainer, config)


def train_epochs(
    config: TrainConfig,
    trainer: Trainer,
    val_set: DetectionDataset,
    record: Record,
    stop: StopRequest,
) -> None:
    """Train, evaluate and save a checkpoint epoch by epoch."""
    schedule = config.schedule
    while trainer.epoch < schedule.epochs and not stops_early(trainer, schedule.patience):
        trainer.train_epoch(record, stop)
        epoch, is_best = trainer.epoch + 1, False
        if epoch % schedule.evaluate_every == 0 or epoch == schedule.epochs:
            is_best = evaluate(config, trainer, val_set, record, stop)
        trainer.finish_epoch()
        is_nth = config.keep_every is not None and epoch % config.keep_every == 0
        trainer.save(is_best=is_best, is_nth=is_nth)
    if not trainer.validation:  # resumed with fewer epochs than it was trained for already
        evaluate(config, trainer, val_set, record, stop)


def evaluate(
    config: TrainConfig,
    trainer: Trainer,
    val_set: DetectionDataset,
    record: Record,
    stop: StopRequest,
) -> bool:
    """Validate, record the results, and return whether they are the best so far."""
    model, device = trainer.evaluated_model, trainer.device
    validation = validate(
        model,
        val_set,
        config.metric,
        ranks=trainer.ranks,
        device=device,
        precision=trainer.optimization.precision,
        batch_size=config.eval_batch_size,
        num_workers=build_num_workers(config.data.num_workers, device, trainer.ranks),
        stop=stop,
    )
    summary, metrics = validation.summary, validation.metrics
    step, epoch = trainer.step, trainer.epoch + 1
    record.validation(step, epoch, summary["metrics"], seconds=trainer.seconds)
    record.curves(step, metrics.curves)
    record.offsets(step, epoch, validation.offsets.summary())
    is_best = trainer.keep_validation(summary)
    if trainer.ranks.is_first:
        write_json(trainer.folder / "detections.json", validation.detections.to_coco(), indent=None)
        best = "  (the best so far)" if is_best else ""
        which = f"epoch {epoch}/{config.schedule.epochs}"
        log.info("%s  %d images  %s%s", which, len(val_set), metrics.line(), best)
        samples = [val_set[index] for index in range(min(NUM_PICTURES, len(val_set)))]
        record.images(step, draw(model, samples, val_set.classes, device))
    return is_best


def stops_early(trainer: Trainer, patience: int | None) -> bool:
    """Return whether the last `patience` evaluations brought no improvement."""
    if patience is None or trainer.since_best < patience:
        return False
    log.info("no improvement in the last %d evaluations: the run ends", trainer.since_best)
    return True
