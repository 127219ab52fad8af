"""What a run leaves behind: the log's progress line, metrics.jsonl, TensorBoard, summary.json."""

import json
import logging
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)


class Record:
    """Writes scalars and pictures of one run into its folder.

    Args:
        folder: the run's folder; a resumed run appends to what is there.
        num_steps: of the whole run, for the time that is left.
        first_step: steps that were done before this process started.
    """

    def __init__(self, folder: Path, *, num_steps: int, first_step: int) -> None:
        self.folder = folder
        self.num_steps = num_steps
        self.first_step = first_step
        self.start = time.monotonic()
        self._forget_after(first_step)
        self.writer = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)

    def training(self, step: int, epoch: int, scalars: dict[str, float]) -> None:
        """One line of progress: step and epoch count from 1."""
        seconds = (time.monotonic() - self.start) / (step - self.first_step)
        left = timedelta(seconds=round((self.num_steps - step) * seconds))
        parts = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
        log.info(
            "epoch %d  step %d/%d  %s  %.2f s/step  ETA %s",
            *(epoch, step, self.num_steps, parts, seconds, left),
        )
        self._write({"kind": "train", "step": step, "epoch": epoch, **scalars})
        for name, value in scalars.items():
            self.writer.add_scalar(f"train/{name}", value, step)

    def validation(self, step: int, epoch: int, scalars: dict[str, float | None]) -> None:
        """Metrics of one evaluation; None stands for 'no such objects'."""
        self._write({"kind": "val", "step": step, "epoch": epoch, **scalars})
        for name, value in scalars.items():
            if value is not None:
                self.writer.add_scalar(f"val/{name}", value, step)
        self.writer.flush()

    def images(self, step: int, pictures: list[Tensor]) -> None:
        """Pictures uint8 (3, H, W), with boxes drawn on them."""
        for index, picture in enumerate(pictures):
            self.writer.add_image(f"val/image_{index}", picture, step)

    def close(self) -> None:
        self.writer.close()

    def _forget_after(self, step: int) -> None:
        """Drop the lines of steps that are about to be done again, and one cut short by a kill."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("}\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, path)

    def _write(self, line: dict[str, Any]) -> None:
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all. NaN is refused: JSON has none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    os.replace(temporary, path)


def num_parameters(model: torch.nn.Module) -> int:
    """Of all parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())
