"""One training run: compose -> type -> build -> train -> evaluate -> summary. Several (-m) end in a
study.

    python train.py [group=choice] [key=value]

configs/train.yaml says what there is, `detector/commands/train.py` what is done and what is left in
the run folder, `detector/commands/study.py` what is left in a sweep's.
"""

from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from detector import entry, exit_codes
from detector.config import check_root, typed_train
from detector.schema import TrainConfig
from detector.sweep import SweepFolder


@hydra.main(version_base="1.3", config_path=str(entry.CONFIGS), config_name="train")
def main(cfg: DictConfig) -> None:
    """A run of its own, or one of several."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        with entry.one_line_errors():
            run(checked(cfg), folder)
        return
    try:
        run(checked(cfg), folder)
    except Exception as error:  # Hydra goes on to the next run, unless all were told to stop
        if entry.exit_code(error) in exit_codes.STOPPED:
            with entry.one_line_errors():
                raise
        raise


def checked(cfg: DictConfig) -> TrainConfig:
    """Refuse what can be refused without torch."""
    config = typed_train(cfg)
    check_root(config.data)
    return config


def run(config: TrainConfig, folder: Path) -> None:
    """Train, or say how long that would take."""
    if config.plan:
        from detector.commands import plan

        plan.measure(config, folder)
        return
    from detector.commands import train  # torch, which takes seconds to import

    train.start(config, folder)


def run_or_sweep() -> None:
    """Train; a sweep whose runs have ended, well or not, is then summed up."""
    SweepFolder.path = None
    try:
        main()
    except Exception:  # not one that says that all were told to stop: there is no time then
        with suppress(ValueError):  # nothing to sum up; the error says why
            sum_up()
        raise
    sum_up()


def sum_up() -> None:
    """End a sweep, if this was one."""
    if SweepFolder.path is not None:
        from detector.commands import sweep

        sweep.sum_up(SweepFolder.path)


if __name__ == "__main__":
    entry.run(run_or_sweep)
