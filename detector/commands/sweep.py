"""The end of a sweep: a study of its runs or, of one that was only planned, how long they take."""

from pathlib import Path

from detector.commands import plan, study
from detector.training.distribution import ranks_of_environment


def sum_up(folder: Path) -> None:
    """Write what the runs below the folder amount to.

    Raises:
        StudyError: none of them has finished.
    """
    if not ranks_of_environment().is_first:
        return
    if plan.is_planned(folder):
        plan.sum_up(folder)
    else:
        study.write([folder], folder)
