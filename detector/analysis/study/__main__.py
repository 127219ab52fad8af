"""Reads the runs of one sweep or several as an experiment: is an arm better, and how sure is that?

    python -m detector.analysis.study multirun/2026-11-27_10-00-00
    python -m detector.analysis.study first_sweep second_sweep baseline=none output=study
    python -m detector.analysis.study sweep resamples=5000 seed=1

writes study.json, study.md and study.html into the first folder, or into output=DIR. An arm is all
runs that differ in the seed alone. Runs that failed, stopped, or differ in more than what the sweep
varies are named and left out.
"""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf

from detector import entry
from detector.config import ConfigError, typed


@dataclass
class StudyConfig:
    """What the command takes; `seed` is that of the resamples."""

    folders: list[str] = field(default_factory=list)
    baseline: str | None = None
    output: str | None = None
    resamples: int = 1000
    seed: int = 0


def main() -> None:
    """Folders, then key=value arguments as everywhere."""
    words = sys.argv[1:]
    folders = [word for word in words if "=" not in word or Path(word).exists()]
    options = OmegaConf.from_cli([word for word in words if word not in folders])
    options["folders"] = folders
    config = typed(StudyConfig, options)
    if not config.folders:
        raise ConfigError("give the folder of a sweep, such as multirun/DATE")
    if config.resamples < 2 or config.seed < 0:
        raise ConfigError(
            f"resamples={config.resamples} must be at least 2, and seed={config.seed} at least 0"
        )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from detector.commands import study

    study.write(
        [Path(folder) for folder in config.folders],
        Path(config.output or config.folders[0]),
        baseline=config.baseline,
        num_resamples=config.resamples,
        seed=config.seed,
    )


if __name__ == "__main__":
    entry.show_help(__doc__)
    entry.run(main)
