"""Ends a sweep with a study of its runs or, if it was only planned, an estimate of its time."""

from pathlib import Path

from detector.commands import plan, study
from detector.training.distribution import ranks_of_environment


def sum_up(folder: Path) -> None:
    """Study the runs in the folder of a sweep, or log the estimated time if they were only planned.

    Raises:
        StudyError: none of the runs has finished.
    """
    if not ranks_of_environment().is_first:
        return
    if plan.is_planned(folder):
        plan.sum_up(folder)
    else:
        study.write([folder], folder)
