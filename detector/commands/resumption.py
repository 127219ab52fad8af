"""The checkpoint that a run resumes from, which must be the same for all of its processes."""

from pathlib import Path
from typing import Any

from detector.config import ConfigError, parse_train, to_plain
from detector.schema import TrainConfig
from detector.training.checkpoint import Checkpoint, CheckpointError
from detector.training.distribution import Ranks
from detector.training.resume import checkpoint_to_resume


def to_resume(config: TrainConfig, folder: Path) -> Checkpoint | None:
    """Load the checkpoint that the run resumes from, if there is one.

    Raises:
        CheckpointError: the checkpoint cannot be read, or it belongs to another run.
    """

    def completed(before: dict[str, Any]) -> dict[str, Any]:
        return to_plain(parse_train(before))

    return checkpoint_to_resume(config.resume, folder, to_plain(config), completed)


def check_one_folder(folder: Path, checkpoint: Checkpoint | None, ranks: Ranks) -> None:
    """Check that all ranks use the same run folder and see the same files in it.

    Raises:
        ConfigError: the paths differ. The default path contains the time, and every process that
            torchrun starts composes its own.
        CheckpointError: the ranks have found different checkpoints.
    """
    if len(set(ranks.all_gather(str(folder)))) > 1:
        raise ConfigError("the processes have different run folders: give hydra.run.dir=FOLDER")
    steps = ranks.all_gather(None if checkpoint is None else checkpoint["step"])
    if len(set(steps)) > 1:
        raise CheckpointError(
            f"{folder}: the processes find checkpoints of the steps {steps}: all machines must "
            "share the folder"
        )
