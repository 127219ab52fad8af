"""What a run leaves behind: the log's progress line, metrics.jsonl, TensorBoard, summary.json."""

import json
import logging
import math
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from detector.evaluation.coco import Curve
from detector.evaluation.offset_sizes import LayerSizes

log = logging.getLogger(__name__)

IN_BAR = "in_bar"  # marks lines of the log that a bar on the terminal has as well
MUCH_WAITING = 0.2  # share of the time, from which on data.num_workers deserves a look


class Record:
    """Writes scalars and pictures of one run into its folder.

    On a terminal there is a live bar below the lines of the log, in place of those of progress.

    Args:
        folder: the run's folder; a resumed run appends to what is there. None: nothing is
            recorded, as another process does.
        num_steps, num_epochs: of the whole run.
        first_step: steps that were done before this process started.
    """

    def __init__(
        self, folder: Path | None, *, num_steps: int, num_epochs: int, first_step: int
    ) -> None:
        self.folder = folder
        self.num_steps = num_steps
        self.num_epochs = num_epochs
        self.first_step = first_step
        self.start = time.monotonic()
        self._far: set[str] = set()  # layers that were warned of
        if folder is None:
            return
        self._forget_after(folder, first_step)
        self.writer = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)
        self._close = ExitStack()
        self._close.callback(self.writer.close)
        if sys.stderr.isatty():
            self._close.enter_context(logging_redirect_tqdm())
            for handler in logging.root.handlers:  # those of before come back when it is closed
                if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
                    handler.addFilter(lambda line: not hasattr(line, IN_BAR))
        self.bar = self._close.enter_context(
            tqdm(
                desc=f"epoch {first_step * num_epochs // num_steps + 1}/{num_epochs}",
                total=num_steps,
                initial=first_step,
                bar_format="{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}, {remaining} left",
                dynamic_ncols=True,
                disable=None,
                leave=False,
            )
        )

    def advance(self) -> None:
        """A step is done."""
        if self.folder is not None:
            self.bar.update()

    def training(
        self, step: int, epoch: int, scalars: dict[str, float], speed: dict[str, float]
    ) -> None:
        """One line of progress: step and epoch count from 1."""
        if self.folder is None:
            return
        parts = [
            *(f"{name} {scalars[name]:.3g}" for name in ("loss", "lr") if name in scalars),
            *(f"{speed[name]:.3g} {name}" for name in ("images/s",) if name in speed),
        ]
        if speed.get("data wait", 0) > MUCH_WAITING:
            parts.append(f"{speed['data wait']:.0%} waiting for data")
        which = f"epoch {epoch}/{self.num_epochs}"
        self.bar.set_description_str(which, refresh=False)
        self.bar.set_postfix_str("  ".join(parts))
        seconds = (time.monotonic() - self.start) / (step - self.first_step)
        left = duration((self.num_steps - step) * seconds)
        line = [which, f"step {step}/{self.num_steps}", *parts, f"{left} left"]
        log.info("  ".join(line), extra={IN_BAR: True})
        self._write({"kind": "train", "step": step, "epoch": epoch, **scalars})
        for name, value in scalars.items():
            self.writer.add_scalar(f"train/{name}", value, step)
        for name, value in speed.items():
            self.writer.add_scalar(f"speed/{name.replace('/', ' per ')}", value, step)

    def validation(
        self, step: int, epoch: int, scalars: dict[str, float | None], *, seconds: float
    ) -> None:
        """Metrics of one evaluation; None stands for 'no such objects'.

        Args:
            seconds: of training until then.
        """
        if self.folder is None:
            return
        self._write({"kind": "val", "step": step, "epoch": epoch, "seconds": seconds, **scalars})
        for name, value in scalars.items():
            if value is not None:
                self.writer.add_scalar(f"val/{name}", value, step)
        self.writer.flush()

    def offsets(self, step: int, epoch: int, layers: dict[str, LayerSizes]) -> None:
        """How far the offsets of each layer reach at an evaluation. A layer whose 99th percentile
        passes a quarter of its map's shorter side is warned of, once.
        """
        if self.folder is None or not layers:
            return
        sizes = {name: asdict(layer) for name, layer in layers.items()}
        self._write({"kind": "offsets", "step": step, "epoch": epoch, "layers": sizes})
        for name, layer in layers.items():
            for number in ("mean", "p99", "largest"):
                self.writer.add_scalar(f"offsets {number}/{name}", getattr(layer, number), step)
            if layer.p99 > layer.side / 4 and name not in self._far:
                self._far.add(name)
                log.warning(
                    "%s: one offset of 100 is longer than %.1f pixels, more than a quarter of its "
                    "map's %.0f: see deform.offset_limit",
                    *(name, layer.p99, layer.side),
                )

    def curves(self, step: int, curves: dict[str, Curve]) -> None:
        """Precision over recall of each class."""
        if self.folder is None:
            return
        for name, curve in curves.items():
            # TensorBoard wants rising thresholds, hence falling recalls.
            recall, precision = np.linspace(1, 0, 101), curve.precision[::-1]
            found = recall * curve.num_objects
            wrong = found * (1 - precision) / np.maximum(precision, 1e-12)
            missed = curve.num_objects - found
            counts = (found, wrong, np.zeros(101), missed, precision, recall)
            self.writer.add_pr_curve_raw(
                f"val/{name}", *counts, global_step=step, num_thresholds=101
            )

    def sheet(self, picture: Tensor) -> None:
        """A picture uint8 (3, H, W) of training images before and after augmentation."""
        if self.folder is not None:
            self.writer.add_image("train/before and after augmentation", picture, 0)

    def images(self, step: int, pictures: list[Tensor]) -> None:
        """Pictures uint8 (3, H, W), with boxes drawn on them."""
        if self.folder is None:
            return
        for index, picture in enumerate(pictures):
            self.writer.add_image(f"val/image_{index}", picture, step)

    def hparams(self, config: dict[str, Any], metrics: dict[str, float | None]) -> None:
        """What the run was and what it reached, for TensorBoard's table of runs.

        Args:
            config: key -> value; what is no number, text or truth value is shown as text.
        """
        if self.folder is None:
            return
        shown = {
            key: value if isinstance(value, (bool, int, float, str)) else str(value)
            for key, value in config.items()
        }
        reached = {f"val/{name}": value for name, value in metrics.items() if value is not None}
        for summary in hparams(shown, reached):
            self.writer._get_file_writer().add_summary(summary)

    def close(self) -> None:
        if self.folder is not None:
            self._close.close()

    @staticmethod
    def _forget_after(folder: Path, step: int) -> None:
        """Drop the lines of steps that are about to be done again, and one cut short by a kill."""
        path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, path)

    def _write(self, line: dict[str, Any]) -> None:
        assert self.folder is not None
        with (self.folder / "metrics.jsonl").open("a") as file:
            finite = {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in line.items()
            }
            file.write(json.dumps(finite, allow_nan=False) + "\n")


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, such as 2:31 or 1:02:31."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, which need not exist, without one that is cut short."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def num_parameters(model: torch.nn.Module) -> int:
    """Of all parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())
