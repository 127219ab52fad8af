"""What a run records: progress lines in the log, metrics.jsonl, and TensorBoard's event files."""

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

IN_BAR = "in_bar"  # marks lines of the log that the progress bar shows as well
# If a larger share of the time is spent waiting for data, the progress line shows it, as a hint to
# raise data.num_workers.
MUCH_WAITING = 0.2


class Record:
    """Writes the scalars and images of one run into its folder.

    On a terminal a progress bar below the log replaces the log's progress lines.

    Args:
        folder: the run's folder; a resumed run appends to the files in it. None on all ranks but
            the first: nothing is recorded.
        num_steps, num_epochs: the length of the whole run.
        first_step: the number of steps that were finished before this process started.
    """

    def __init__(
        self, folder: Path | None, *, num_steps: int, num_epochs: int, first_step: int
    ) -> None:
        self.folder = folder
        self.num_steps = num_steps
        self.num_epochs = num_epochs
        self.first_step = first_step
        self.start = time.monotonic()
        self._far: set[str] = set()  # layers about which a warning was given
        if folder is None:
            return
        self._drop_lines_after(folder, first_step)
        self.writer = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)
        self._close = ExitStack()
        self._close.callback(self.writer.close)
        if sys.stderr.isatty():
            self._close.enter_context(logging_redirect_tqdm())
            for handler in logging.root.handlers:  # the former handlers come back on close
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
        """Move the progress bar by one step."""
        if self.folder is not None:
            self.bar.update()

    def training(
        self, step: int, epoch: int, scalars: dict[str, float], speed: dict[str, float]
    ) -> None:
        """Record the scalars of a training step, and log one line of progress.

        Args:
            step, epoch: count from 1.
            scalars: the losses and the learning rate.
            speed: what `Speed.report` returns.
        """
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
        """Record the metrics of one evaluation.

        Args:
            scalars: the metrics; None where there are no objects to compute one from.
            seconds: the time spent in training so far.
        """
        if self.folder is None:
            return
        self._write({"kind": "val", "step": step, "epoch": epoch, "seconds": seconds, **scalars})
        for name, value in scalars.items():
            if value is not None:
                self.writer.add_scalar(f"val/{name}", value, step)
        self.writer.flush()

    def offsets(self, step: int, epoch: int, layers: dict[str, LayerSizes]) -> None:
        """Record the lengths of each deformable layer's offsets at an evaluation.

        Warns once about a layer if the 99th percentile of its offsets' lengths exceeds a quarter
        of its feature map's shorter side.
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
                    "%s: 1 in 100 offsets is longer than %.1f pixels, more than a quarter of its "
                    "feature map's shorter side, %.0f pixels: see deform.offset_limit",
                    *(name, layer.p99, layer.side),
                )

    def curves(self, step: int, curves: dict[str, Curve]) -> None:
        """Record the precision-recall curve of each class."""
        if self.folder is None:
            return
        for name, curve in curves.items():
            # TensorBoard expects ascending thresholds, hence descending recalls.
            recall, precision = np.linspace(1, 0, 101), curve.precision[::-1]
            found = recall * curve.num_objects
            wrong = found * (1 - precision) / np.maximum(precision, 1e-12)
            missed = curve.num_objects - found
            counts = (found, wrong, np.zeros(101), missed, precision, recall)
            self.writer.add_pr_curve_raw(
                f"val/{name}", *counts, global_step=step, num_thresholds=101
            )

    def augmentation_sheet(self, picture: Tensor) -> None:
        """Record an image, uint8 (3, H, W), of training images before and after augmentation."""
        if self.folder is not None:
            self.writer.add_image("train/before and after augmentation", picture, 0)

    def images(self, step: int, pictures: list[Tensor]) -> None:
        """Record validation images, uint8 (3, H, W), with boxes drawn on them."""
        if self.folder is None:
            return
        for index, picture in enumerate(pictures):
            self.writer.add_image(f"val/image_{index}", picture, step)

    def hparams(self, config: dict[str, Any], metrics: dict[str, float | None]) -> None:
        """Record the configuration and the final metrics, for TensorBoard's HPARAMS tab.

        Args:
            config: key -> value; values other than numbers, strings and booleans are converted to
                strings.
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
    def _drop_lines_after(folder: Path, step: int) -> None:
        """Drop the lines of metrics.jsonl after a step, and one that a kill has cut off.

        A resumed run repeats the steps after its checkpoint, and records them again.
        """
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
    """Format seconds as minutes and seconds or with hours, such as 2:31 or 1:02:31."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl, if it exists, without one that is cut off."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def num_parameters(model: torch.nn.Module) -> int:
    """Return the number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())
