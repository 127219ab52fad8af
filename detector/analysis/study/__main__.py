"""Compares the arms of one or more sweeps: is an arm better than the baseline, and how certainly?

    python -m detector.analysis.study multirun/2026-11-27_10-00-00
    python -m detector.analysis.study first_sweep second_sweep baseline=none output=study
    python -m detector.analysis.study sweep resamples=5000 seed=1

The command writes study.json, study.md and study.html into the first folder, or into output=DIR.
An arm consists of the runs that differ in nothing but the seed. Runs that failed, that were
stopped, or that differ in more than what the sweep varies are left out, and the study names them.

    baseline=ARM    the arm that the others are compared with; by default `none`, or the first arm
    resamples=N     how many times the images are resampled, by default 1000
    seed=N          the random seed of the resamples, by default 0
"""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf

from detector import entry
from detector.config import ConfigError, parse


@dataclass
class StudyConfig:
    """Arguments of the command; `seed` is the random seed of the resamples."""

    folders: list[str] = field(default_factory=list)
    baseline: str | None = None
    output: str | None = None
    resamples: int = 1000
    seed: int = 0


def main() -> None:
    """Run the command with the folders and key=value arguments of the command line."""
    words = sys.argv[1:]
    folders = [word for word in words if "=" not in word or Path(word).exists()]
    options = OmegaConf.from_cli([word for word in words if word not in folders])
    options["folders"] = folders
    config = parse(StudyConfig, options)
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
