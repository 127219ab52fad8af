"""One training run: compose -> type -> build -> train -> evaluate -> summary.

    python train.py [group=choice] [key=value]

configs/train.yaml says what there is, `detector/commands/train.py` what is done and what is left in
the run folder.
"""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from detector import entry, exit_codes
from detector.config import check_root, typed_train


@hydra.main(version_base="1.3", config_path=str(entry.CONFIGS), config_name="train")
def main(cfg: DictConfig) -> None:
    """A run of its own, or one of several (-m), which end in a table."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        with entry.one_line_errors():
            run(cfg, folder)
        return
    try:
        run(cfg, folder)
    except Exception as error:  # Hydra goes on to the next run, unless all were told to stop
        if entry.exit_code(error) in exit_codes.STOPPED:
            with entry.one_line_errors():
                raise
        raise
    finally:
        from detector.commands import train

        train.sum_up(folder.parent)


def run(cfg: DictConfig, folder: Path) -> None:
    """Refuse what can be refused without torch, then train."""
    config = typed_train(cfg)
    check_root(config.data)
    from detector.commands import train  # torch, which takes seconds to import

    train.start(config, folder)


if __name__ == "__main__":
    entry.run(main)
