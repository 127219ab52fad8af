"""One training run: compose -> type -> build -> train -> evaluate -> summary.

    python train.py [group=choice] [key=value]

configs/train.yaml says what there is. The run folder then holds config.yaml, metrics.jsonl,
summary.json, train.log, checkpoints/last.pt, previous.pt and best.pt, and TensorBoard events.
"""

import logging
import os
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import Subset

from detector import entry
from detector.analysis.ablation import write_table
from detector.build import (
    build_data,
    build_device,
    build_metric,
    build_trainer,
    check_from_scratch,
)
from detector.config import ConfigError, TrainConfig, config_hash, to_plain, typed_train
from detector.data.dataset import DetectionDataset
from detector.data.loading import eval_loader, kill_workers
from detector.evaluation.inference import detect, to_coco
from detector.evaluation.metrics import score
from detector.evaluation.pictures import draw
from detector.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint, load_newest
from detector.training.distribution import Ranks, joined, ranks_of_environment
from detector.training.launch import WorkersLostError, launch
from detector.training.loop import use_deterministic_algorithms
from detector.training.preemption import EXIT_CODE, Preempted, StopRequest
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
            start(typed_train(cfg), folder)
        return
    try:  # an arm that fails does not keep Hydra from the next, one that is told to leave does
        start(typed_train(cfg), folder)
    except Preempted:
        with entry.one_line_errors():
            raise
    finally:
        log.info("%s\n%s", folder.parent / "ablation.md", write_table(folder.parent))


def start(config: TrainConfig, folder: Path) -> None:
    """Train in this process, or in as many new ones as there are devices.

    A process that torchrun or SLURM started is one of many already.
    """
    alone = ranks_of_environment().num_ranks == 1
    if not alone and config.devices > 1:
        raise ConfigError(f"devices={config.devices}: leave it at 1 where torchrun or SLURM starts")
    if config.devices == 1:
        run(config, folder)
        return
    check_devices(config)
    job_logging = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
    try:
        launch(
            *(worker, config, folder, job_logging),
            num_ranks=config.devices,
            max_restarts=config.max_restarts,
            exit_code=entry.exit_code,
        )
    except WorkersLostError as error:
        write_json(folder / "summary.json", ending(config, error))
        raise


def check_devices(config: TrainConfig) -> None:
    """Each process needs a GPU of its own, unless all are to use the CPU.

    Raises:
        ConfigError: there are not as many.
    """
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return
    if config.device not in ("auto", "cuda"):
        raise ConfigError(f"device={config.device} is one device, not devices={config.devices}")
    if config.devices > torch.cuda.device_count():
        raise ConfigError(f"devices={config.devices}: this machine has {torch.cuda.device_count()}")


def worker(config: TrainConfig, folder: Path, job_logging: Any) -> None:
    """One of the processes that `start` launches."""
    configure_log(OmegaConf.create(job_logging))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // config.devices))
    run(config, folder)


def run(config: TrainConfig, folder: Path) -> None:
    """Train and evaluate in a run folder; its summary.json says how that ended."""
    with joined() as ranks:
        if not ranks.is_first:
            logging.getLogger().setLevel(logging.WARNING)
        check_from_scratch(config.model)
        check_one_folder(folder, ranks)
        checkpoint = checkpoint_to_resume(config, folder)
        if ranks.is_first:
            OmegaConf.save(OmegaConf.create(to_plain(config)), folder / "config.yaml")
        try:
            with StopRequest() as stop:
                result = train(config, folder, checkpoint, ranks, stop)
            summary = {"status": "done", **identity(config), **result}
        except BaseException as error:
            summary = ending(config, error)
            if summary["status"] == "preempted":
                log.info("%s: saved; the same command goes on", error)
            elif entry.exit_code(error) is None:
                log.exception("failed")
            raise
        finally:
            if ranks.is_first:
                write_json(folder / "summary.json", summary)
            kill_workers()


def identity(config: TrainConfig) -> dict[str, Any]:
    """What tells a run from another."""
    return {"seed": config.seed, "config_hash": config_hash(config)}


def ending(config: TrainConfig, error: BaseException) -> dict[str, Any]:
    """The summary of a run that an error ended."""
    if entry.exit_code(error) == EXIT_CODE:
        return {"status": "preempted", **identity(config), "signal": str(error)}
    return {"status": "failed", **identity(config), "error": f"{type(error).__name__}: {error}"}


def train(
    config: TrainConfig,
    folder: Path,
    checkpoint: Checkpoint | None,
    ranks: Ranks,
    stop: StopRequest,
) -> dict[str, Any]:
    """Build everything, then train, evaluate and save epoch by epoch, from a checkpoint or anew.

    Raises:
        Preempted: a stop was requested, and the state is saved.
    """
    device, metric = build_device(config.device, ranks), build_metric(config.metric)
    use_deterministic_algorithms(config.deterministic)
    with ranks.one_of_machine_first():  # the others find generated images
        train_set, val_set = build_data(config)
    trainer = build_trainer(config, train_set, device=device, ranks=ranks, folder=folder)
    describe(train_set, val_set, trainer, folder)
    if checkpoint is not None:
        trainer.restore(checkpoint)
        log.info("resumed after epoch %d and %d steps", trainer.epoch, trainer.position)

    epochs, patience = config.schedule.epochs, config.schedule.patience
    num_steps = epochs * trainer.sampler.num_steps
    record = Record(
        folder if ranks.is_first else None, num_steps=num_steps, first_step=trainer.step
    )
    try:
        while trainer.epoch < epochs and not stops_early(trainer, patience):
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
        record.hparams(flat(to_plain(config)), trainer.validation["metrics"])
    except Preempted:
        trainer.save()
        ranks.barrier()  # who starts the processes may end all when one has ended
        raise
    finally:
        record.close()
    return {
        **trainer.validation,
        "epochs": trainer.epoch,
        "skipped_steps": trainer.skipped,
        "train_seconds": trainer.seconds,
        "images_per_second": trainer.num_images / trainer.seconds,
        "num_parameters": num_parameters(trainer.model),
    }


def check_one_folder(folder: Path, ranks: Ranks) -> None:
    """Processes that torchrun started have each composed the name of their run folder.

    Raises:
        ConfigError: it is not the same, as it holds the time.
    """
    if len(set(ranks.all_gather(str(folder)))) > 1:
        raise ConfigError("the processes have different run folders: give hydra.run.dir=FOLDER")


def describe(
    train_set: DetectionDataset, val_set: DetectionDataset, trainer: Trainer, folder: Path
) -> None:
    """The first lines of the log."""
    log.info("training: %s", train_set.describe())
    log.info("validation: %s", val_set.describe())
    warn_of_shared_images(train_set, val_set)
    parameters, ranks = num_parameters(trainer.model) / 1e6, trainer.ranks.num_ranks
    log.info("%.2f M parameters on %s, %d process(es)", parameters, trainer.device, ranks)
    log.info("run folder %s", folder)


def stops_early(trainer: Trainer, patience: int | None) -> bool:
    """Whether the last evaluations were none of them the best."""
    if patience is None or trainer.since_best < patience:
        return False
    log.info("no better evaluation in the last %d: the run ends", trainer.since_best)
    return True


def checkpoint_to_resume(config: TrainConfig, folder: Path) -> Checkpoint | None:
    """`auto`: the run folder's own newest, if there is one; `none`; or the path of another.

    Raises:
        CheckpointError: it cannot be read, or is another run's.
    """
    if config.resume == "none":
        return None
    if config.resume == "auto":
        found = load_newest(folder / "checkpoints")
    else:
        found = Path(config.resume), load_checkpoint(Path(config.resume))
    if found is None:
        return None
    path, checkpoint = found
    check_same_run(checkpoint["config"], to_plain(config), str(path))
    return checkpoint


def check_same_run(before: dict[str, Any], now: dict[str, Any], path: str) -> None:
    """A run goes on with the configuration that it began with, or it would be neither's result.

    Raises:
        CheckpointError: something else changed than how long, where and how talkative it is.
    """
    free = {"device", "devices", "max_restarts", "data.num_workers", "schedule.num_parts"}
    free |= {"log_every", "checkpoint_every", "keep_every", "resume", "profile_steps"}
    free |= {"schedule.epochs", "schedule.evaluate_every", "schedule.patience", "max_skipped_steps"}
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
    """Detect and score; what summary.json says of it, on every rank.

    Each rank takes every n-th image, and the first one scores what all of them found.

    Raises:
        Preempted: a rank was told to leave.
    """
    model, ranks = trainer.evaluated_model, trainer.ranks
    ranks.broadcast_buffers(model)
    own = Subset(val_set, range(ranks.rank, len(val_set), ranks.num_ranks))
    batches = eval_loader(own, num_workers=config.data.num_workers)
    found, seconds = detect(
        model,
        stop.before(batches),
        device=trainer.device,
        precision=trainer.optimization.precision,
    )
    stop.raise_for(ranks)
    parts, total_seconds = ranks.gather(found), sum(ranks.all_gather(seconds))
    result: dict[str, Any] = {}
    if ranks.is_first:
        where = (divmod(index, ranks.num_ranks) for index in range(len(val_set)))
        in_order = [parts[rank][number] for number, rank in where]
        metrics = score(metric, val_set.ground_truth(), to_coco(in_order, val_set.category_ids))
        log.info(
            "epoch %d, %d images, %s:\n%s", trainer.epoch + 1, len(val_set), metric, metrics.table()
        )
        result = {
            "metrics": metrics.summary,
            "per_class": metrics.per_class,
            "seconds_per_image": total_seconds / len(val_set),
        }
    return ranks.broadcast(result)


if __name__ == "__main__":
    entry.run(main)
