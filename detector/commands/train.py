"""Runs a training: builds, trains, evaluates and writes a summary.

Afterwards the run folder holds config.yaml, metrics.jsonl, summary.json, data_check.json,
train.log, TensorBoard events, and checkpoints/ with last.pt, previous.pt and best.pt. For a study
of several runs it also holds ground_truth.json, the annotations of the validation images, and
detections.json, the detections of the last evaluation.
"""

import json
import logging
import os
import shlex
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from omegaconf import OmegaConf

from detector import entry
from detector.builders.data import build_data, build_transform, check_data, images_folder
from detector.builders.device import build_device, build_num_workers, check_devices
from detector.builders.model import check_from_scratch, conventions_of
from detector.builders.training import build_metric, build_trainer
from detector.config import ConfigError, config_hash, parse_train, to_plain
from detector.data.check import Report
from detector.data.dataset import DetectionDataset
from detector.data.loading import Augmented, kill_workers, num_cores
from detector.data.problems import Problem
from detector.data.sheet import picture_sheet
from detector.evaluation.metrics import Metrics
from detector.evaluation.pictures import draw
from detector.schema import TrainConfig
from detector.training.checkpoint import Checkpoint, CheckpointError
from detector.training.distribution import SINGLE_PROCESS, Ranks, joined, ranks_of_environment
from detector.training.durable import write_json
from detector.training.launch import WorkersError, launch
from detector.training.loop import use_deterministic_algorithms
from detector.training.preemption import Preempted, StopRequest
from detector.training.record import Record, duration, num_parameters
from detector.training.resume import checkpoint_to_resume, flat
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
    if config.devices == 1:
        try:
            run(config, folder)
        except Exception as error:
            if entry.exit_code(error) is None:
                log.exception("failed")
            raise
        if ranks_of_environment().is_first:
            log.info(ending(config, folder))
        return
    if ranks_of_environment().num_ranks > 1:
        raise ConfigError(
            f"devices={config.devices}: leave it at 1 where torchrun or SLURM starts the processes"
        )
    check_devices(config.device, config.devices)
    check_from_scratch(config.model)
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
    log.info(ending(config, folder))


def worker(config: TrainConfig, folder: Path, job_logging: Any) -> None:
    """Run one of the processes that `start` launches."""
    configure_log(OmegaConf.create(job_logging))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, num_cores() // config.devices))
    run(config, folder)


def run(config: TrainConfig, folder: Path) -> None:
    """Train and evaluate in a run folder, and write into its summary.json how the run ended."""
    with joined(config.rank_timeout) as ranks, locked(folder, ranks):
        if not ranks.is_first:
            logging.getLogger().setLevel(logging.WARNING)
        check_from_scratch(config.model)
        checkpoint = to_resume(config, folder)
        check_one_folder(folder, checkpoint, ranks)
        if ranks.is_first:
            OmegaConf.save(OmegaConf.create(to_plain(config)), folder / "config.yaml")
        try:
            with StopRequest() as stop:
                result = train(config, folder, checkpoint, ranks, stop)
            summary = {"status": "done", **identity(config), **result}
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


def to_resume(config: TrainConfig, folder: Path) -> Checkpoint | None:
    """Load the checkpoint that the run resumes from, if there is one.

    Raises:
        CheckpointError: the checkpoint cannot be read, or it belongs to another run.
    """

    def completed(before: dict[str, Any]) -> dict[str, Any]:
        return to_plain(parse_train(before))

    return checkpoint_to_resume(config.resume, folder, to_plain(config), completed)


def identity(config: TrainConfig) -> dict[str, Any]:
    """Return the values that distinguish a run from others."""
    return {"seed": config.seed, "config_hash": config_hash(config)}


def broken_off(config: TrainConfig, error: BaseException) -> dict[str, Any]:
    """Return the summary of a run that an error or a signal ended."""
    if isinstance(error, Preempted):
        return {"status": "preempted", **identity(config), "signal": str(error)}
    kind = error.kind if isinstance(error, WorkersError) else type(error).__name__
    return {"status": "failed", **identity(config), "error": f"{kind}: {error}"}


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
    device, metric = build_device(config.device, ranks), build_metric(config.metric)
    schedule = config.schedule
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
    describe(trainer, folder)
    if checkpoint is not None:
        trainer.restore(checkpoint)
        log.info("resumed after epoch %d and %d steps", trainer.epoch, trainer.position)

    num_steps = schedule.epochs * trainer.sampler.num_steps
    if schedule.warmup_steps >= num_steps:
        log.warning(
            "schedule.warmup_steps=%d of a run of %d steps: the learning rate never reaches %g",
            *(schedule.warmup_steps, num_steps, schedule.lr),
        )
    record = Record(
        folder if ranks.is_first else None,
        num_steps=num_steps,
        num_epochs=schedule.epochs,
        first_step=trainer.step,
    )
    try:
        if trainer.step == 0 and ranks.is_first:
            augment = build_transform(config.data.transform)
            samples = Augmented(train_set, transform=augment, seed=config.seed)
            record.augmentation_sheet(picture_sheet(samples, num_images=NUM_PICTURES, epoch=0))
        while trainer.epoch < schedule.epochs and not stops_early(trainer, schedule.patience):
            trainer.train_epoch(record, stop)
            epoch, is_best = trainer.epoch + 1, False
            if epoch % schedule.evaluate_every == 0 or epoch == schedule.epochs:
                is_best = evaluate(trainer, val_set, metric, config, record, stop)
            trainer.finish_epoch()
            is_nth = config.keep_every is not None and epoch % config.keep_every == 0
            trainer.save(is_best=is_best, is_nth=is_nth)
        if not trainer.validation:  # resumed with fewer epochs than it was trained for already
            evaluate(trainer, val_set, metric, config, record, stop)
        record.hparams(flat(to_plain(config)), trainer.validation["metrics"])
    except Preempted:
        kill_workers()  # the signal has reached them too; they must not disturb a long save
        trainer.save()
        raise
    finally:
        record.close()
    transform = config.data.transform
    return {
        **trainer.validation,
        "epochs": trainer.epoch,
        "skipped_steps": trainer.skipped,
        "train_seconds": trainer.seconds,
        "images_per_second": trainer.num_images / trainer.seconds,
        "seconds_per_step": trainer.seconds / max(trainer.step, 1),
        "peak_memory": trainer.peak_memory,
        "num_parameters": num_parameters(trainer.model),
        "gflops": trainer.speed.flops_per_pixel * transform.min_size * transform.max_size / 1e9,
        "best": trainer.best,
    }


def load_data(
    config: TrainConfig, folder: Path, ranks: Ranks, stop: StopRequest
) -> tuple[DetectionDataset, DetectionDataset]:
    """Read the training and the validation set. The first rank checks them and writes all problems
    to data_check.json.

    Raises:
        DatasetError: there is an error and data.on_error=stop, or no image can be used.
        Preempted: a signal asked a rank to stop.
    """
    with ranks.local_main_first():  # one rank generates images, the others read them
        splits = build_data(config)
    problems: list[Problem] = []
    if ranks.is_first:
        wrap = partial(stop.until_stopped, ranks=ranks)
        problems = check_data(splits, config.data, wrap=wrap).problems
    stop.raise_if_stopped(ranks)
    report = Report(splits, ranks.broadcast(problems))
    if ranks.is_first:
        write_json(folder / "data_check.json", report.to_json())
        for split, dataset in splits.items():
            log.info("%s: %s", split, dataset.describe())
        lines = report.lines()
        for line in lines:
            log.warning(line)
        if lines:
            log.info("every problem, with its file: %s", shortest(folder / "data_check.json"))
        if "val" not in splits:
            log.warning("overfit: validation is on the training images")
    usable = report.usable(config.data.on_error)
    train_set, val_set = usable["train"], usable.get("val", usable["train"])
    if ranks.is_first:
        write_json(folder / "ground_truth.json", val_set.ground_truth(), indent=None)
    return train_set, val_set


def evaluate(
    trainer: Trainer,
    val_set: DetectionDataset,
    metric: str,
    config: TrainConfig,
    record: Record,
    stop: StopRequest,
) -> bool:
    """Validate, record the results, and return whether they are the best so far."""
    model, device = trainer.evaluated_model, trainer.device
    validation = validate(
        model,
        val_set,
        metric,
        ranks=trainer.ranks,
        device=device,
        precision=trainer.optimization.precision,
        num_workers=build_num_workers(config.data.num_workers, trainer.device, trainer.ranks),
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


def ending(config: TrainConfig, folder: Path) -> str:
    """Return the text that ends a run: its last metrics, its best checkpoint and the next commands.

    A run that resumed from the checkpoint of another run, and did not improve on it, has no best
    checkpoint; the text then names the last one.
    """
    summary = json.loads((folder / "summary.json").read_text())
    folder = shortest(folder)
    metrics = Metrics(summary["metrics"], summary["per_class"])
    kept, name = folder / "checkpoints" / "best.pt", next(iter(metrics.summary))
    which = f"The best checkpoint, with {name} {100 * summary['best']:.1f}, is"
    if not kept.exists():
        kept, which = kept.with_name("last.pt"), "The last checkpoint is"
    checkpoint = shlex.quote(f"checkpoint={kept}")
    images = shlex.quote(f"images={shortest(images_folder(config.data, 'val'))}")
    return f"""done in {duration(summary["train_seconds"])} of training, {config.metric} in percent:

{metrics.table(all_in=str(folder / "summary.json"))}

{which} {kept}
Next:
  tensorboard --logdir {shlex.quote(str(folder))}
  python evaluate.py {checkpoint}
  python predict.py {checkpoint} {images}
"""


def shortest(path: Path) -> Path:
    """Return the path relative to the current directory, if it is inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def check_one_folder(folder: Path, checkpoint: Checkpoint | None, ranks: Ranks) -> None:
    """Check that all ranks use the same run folder and see the same files in it.

    Raises:
        ConfigError: the paths differ. The default path contains the time, and every process that
            torchrun starts composes its own.
        CheckpointError: the ranks have found different checkpoints.
    """
    if len(set(ranks.all_gather(str(folder)))) > 1:
        raise ConfigError("the processes have different run folders: give hydra.run.dir=FOLDER")
    steps = ranks.all_gather(None if checkpoint is None else checkpoint["step"])
    if len(set(steps)) > 1:
        raise CheckpointError(
            f"{folder}: the processes find checkpoints of the steps {steps}: all machines must "
            "share the folder"
        )


def describe(trainer: Trainer, folder: Path) -> None:
    """Log the size of the model, the device and the run folder."""
    parameters, ranks = num_parameters(trainer.model) / 1e6, trainer.ranks.num_ranks
    log.info("%.2f M parameters on %s, %d process(es)", parameters, trainer.device, ranks)
    if trainer.ranks.is_first and trainer.sampler.num_batches > 1 and has_batch_norm(trainer.model):
        size = trainer.sampler.batch_size // trainer.sampler.num_batches
        log.warning("batch norm sees %d images at a time, not the whole batch", size)
    log.info("run folder %s", shortest(folder))


def has_batch_norm(model: torch.nn.Module) -> bool:
    """Return whether the model has batch norm layers that are neither frozen nor synchronised."""
    return any(type(module) is torch.nn.BatchNorm2d for module in model.modules())


def stops_early(trainer: Trainer, patience: int | None) -> bool:
    """Return whether the last `patience` evaluations brought no improvement."""
    if patience is None or trainer.since_best < patience:
        return False
    log.info("no improvement in the last %d evaluations: the run ends", trainer.since_best)
    return True
