"""What the log of a run says at its beginning and at its end."""

import json
import logging
import shlex
from pathlib import Path

import torch

from detector.builders.data import images_folder
from detector.evaluation.metrics import Metrics
from detector.schema import ScheduleConfig, TrainConfig
from detector.training.record import duration, num_parameters
from detector.training.trainer import Trainer

log = logging.getLogger("train")


def describe(trainer: Trainer, schedule: ScheduleConfig, folder: Path) -> None:
    """Log the size of the model, the device and the run folder, and what may be unintended."""
    parameters, ranks = num_parameters(trainer.model) / 1e6, trainer.ranks.num_ranks
    log.info("%.2f M parameters on %s, %d process(es)", parameters, trainer.device, ranks)
    if trainer.ranks.is_first and trainer.sampler.num_batches > 1 and has_batch_norm(trainer.model):
        size = trainer.sampler.batch_size // trainer.sampler.num_batches
        log.warning("batch norm sees %d images at a time, not the whole batch", size)
    log.info("run folder %s", shortest(folder))
    num_steps = schedule.epochs * trainer.sampler.num_steps
    if schedule.warmup_steps >= num_steps:
        log.warning(
            "schedule.warmup_steps=%d of a run of %d steps: the learning rate never reaches %g",
            *(schedule.warmup_steps, num_steps, schedule.lr),
        )


def has_batch_norm(model: torch.nn.Module) -> bool:
    """Return whether the model has batch norm layers that are neither frozen nor synchronised."""
    return any(type(module) is torch.nn.BatchNorm2d for module in model.modules())


def ending(config: TrainConfig, folder: Path, *, was_done: bool) -> str:
    """Return the text that ends a run: its last metrics, its best checkpoint and the next commands.

    A run that resumed from the checkpoint of another run, and did not improve on it, has no best
    checkpoint; the text then names the last one.

    Args:
        was_done: the run had finished before it was started, and trained no further.
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
    done = "already done" if was_done else "done"
    done += f" in {duration(summary['train_seconds'])} of training"
    return f"""{done}, {config.metric} in percent:

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
