"""What the entry points share: a user's error is one line and an exit code, not a traceback."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from detector.config import ConfigError
from detector.data.dataset import DatasetError
from detector.evaluation.results import EvaluationError
from detector.model.weights import WeightsError
from detector.training.checkpoint import CheckpointError
from detector.training.launch import WorkersError
from detector.training.loop import StepError, is_out_of_memory
from detector.training.preemption import EXIT_CODE, Preempted

CONFIG_ERRORS = (ConfigError, HydraException, OmegaConfBaseException)
STOPPED = (EXIT_CODE, 130)  # codes of a run that was told to leave, and of a hasty Ctrl-C
USER_ERRORS = (DatasetError, EvaluationError, WeightsError, CheckpointError, StepError)


def run(main: Callable[[], None]) -> None:
    """Run a Hydra main, so that composing the configuration fails in one line as well."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra prints and exits by itself
    with one_line_errors():
        main()


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Exit with an error's code, and with one line of it, where it has a code."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code(error)
        if code is None:
            raise
        if code != EXIT_CODE:
            print("error: " + (one_line(error) or "interrupted"), file=sys.stderr)
        sys.exit(code)


def exit_code(error: BaseException) -> int | None:
    """75 for a run that was told to leave and has saved its state, 2 for an error of the
    configuration, 1 for any other of the user's, 130 for a hasty Ctrl-C; None for a bug.
    """
    match error:
        case Preempted():
            return EXIT_CODE
        case WorkersError():
            return error.exit_code
        case KeyboardInterrupt():
            return 130
    if isinstance(error, CONFIG_ERRORS):
        return 2
    is_users = isinstance(error, USER_ERRORS) or is_out_of_memory(error) or _names_a_file(error)
    return 1 if is_users else None


def _names_a_file(error: BaseException) -> bool:
    """A file or folder that cannot be read or written."""
    return isinstance(error, OSError) and error.filename is not None


def one_line(error: BaseException) -> str:
    """The message, without the traceback that a worker process wraps it in."""
    if _names_a_file(error):
        assert isinstance(error, OSError)
        return f"{error.filename}: {error.strerror}"
    if is_out_of_memory(error):
        return f"out of memory: {' '.join(str(error).split())}"
    message = str(error).rpartition(f"{type(error).__name__}: ")[2]
    return " ".join(message.split())
