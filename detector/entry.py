"""What the entry points share: a user's error is one line and an exit code, not a traceback."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from detector.config import ConfigError
from detector.data.dataset import DatasetError
from detector.evaluation.results import EvaluationError
from detector.model.weights import WeightsError
from detector.training.checkpoint import CheckpointError
from detector.training.loop import StepError
from detector.training.preemption import EXIT_CODE, Preempted

CONFIG_ERRORS = (ConfigError, HydraException, OmegaConfBaseException)
USER_ERRORS = (DatasetError, EvaluationError, WeightsError, CheckpointError, StepError)


def run(main: Callable[[], None]) -> None:
    """Run a Hydra main, so that composing the configuration fails in one line as well."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra prints and exits by itself
    with one_line_errors():
        main()


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Exit with code 2 for an error of the configuration, with 1 for any other of the user's.

    A run that was told to leave and has saved its state exits with code 75.
    """
    try:
        yield
    except Preempted:
        sys.exit(EXIT_CODE)
    except CONFIG_ERRORS as error:
        _stop(error, 2)
    except USER_ERRORS as error:
        _stop(error, 1)


def _stop(error: Exception, code: int) -> NoReturn:
    # A worker process wraps its error in a traceback, which ends in the error itself.
    message = str(error).rpartition(f"{type(error).__name__}: ")[2]
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
