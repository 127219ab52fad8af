"""Trains and evaluates a detector. A sweep of several runs (-m) ends in a study.

    python train.py [group=choice] [key=value]

configs/train.yaml lists the choices and values. `detector/commands/train.py` describes the files of
a run folder, and `detector/commands/study.py` those of a sweep's folder.
"""

from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from detector import entry, exit_codes
from detector.config import ConfigError, check_from_scratch, check_root, parse_train
from detector.schema import TrainConfig
from detector.sweep import SweepFolder
from detector.training.durable import write_json


@hydra.main(version_base="1.3", config_path=str(entry.CONFIGS), config_name="train")
def main(cfg: DictConfig) -> None:
    """Do a single run, or one run of a sweep."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        with entry.one_line_errors():
            run(checked(cfg), folder)
        return
    try:
        run(checked_arm(cfg, folder), folder)
    except Exception as error:  # Hydra starts the next run, unless a signal stopped this one
        if entry.exit_code(error) in exit_codes.STOPPED:
            with entry.one_line_errors():
                raise
        raise


def checked(cfg: DictConfig) -> TrainConfig:
    """Check everything in the configuration that can be checked without importing torch."""
    config = parse_train(cfg)
    check_root(config.data)
    if not config.plan:  # which discards what it trains
        check_from_scratch(config.model)
    return config


def checked_arm(cfg: DictConfig, folder: Path) -> TrainConfig:
    """Check the configuration of one run of a sweep. If it is refused, write the reason into the
    run's summary.json, where the study of the sweep finds it.
    """
    try:
        return checked(cfg)
    except ConfigError as error:
        path = folder / "summary.json"
        if not cfg.plan and not path.exists():
            write_json(path, {"status": "failed", "error": f"ConfigError: {error}"})
        raise


def run(config: TrainConfig, folder: Path) -> None:
    """Train or, with plan=true, estimate how long that would take."""
    if config.plan:
        from detector.commands import plan

        plan.measure(config, folder)
        return
    from detector.commands import train  # torch, which takes seconds to import

    train.start(config, folder)


def run_or_sweep() -> None:
    """Train; after the runs of a sweep have ended, even if some failed, study them."""
    SweepFolder.path = None
    try:
        main()
    except Exception:  # not the SystemExit of a run that a signal stopped: there is no time then
        with suppress(ValueError):  # no run has finished; the error of the runs says why
            sum_up()
        raise
    sum_up()


def sum_up() -> None:
    """Write the study of a sweep; do nothing after a single run."""
    if SweepFolder.path is not None:
        from detector.commands import sweep

        sweep.sum_up(SweepFolder.path)


if __name__ == "__main__":
    entry.run(run_or_sweep)
