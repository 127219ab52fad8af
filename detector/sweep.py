"""Remembers the folder of a sweep, so that its runs can be studied when they have ended."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class SweepFolder(Callback):
    """A Hydra callback that stores the folder of this process's sweep; configs/train.yaml
    registers it.
    """

    path: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Store the sweep's folder before the first run starts."""
        SweepFolder.path = Path(config.hydra.sweep.dir)
