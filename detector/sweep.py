"""Where the runs of a sweep are, for what is done when they have ended."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class SweepFolder(Callback):
    """Remembers the folder of this process's sweep; configs/train.yaml names it for Hydra."""

    path: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before the first run."""
        SweepFolder.path = Path(config.hydra.sweep.dir)
