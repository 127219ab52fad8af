"""Shared start-up code of the commands: help, environment variables, and errors in one line.

This module does not import torch, which takes seconds to import. Help and configuration errors
therefore appear at once, and the environment variables that torch reads are set before its import.
An error of the user ends a command with one line and an exit code instead of a traceback.
"""

import errno
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detector import exit_codes
from detector.config import CONFIGS, ConfigError
from detector.out_of_memory import is_out_of_memory

# These set how OpenMP threads wait.
OPENMP_WAIT_VARIABLES = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
OPENMP_PASSIVE_WAIT = {
    "OMP_WAIT_POLICY": "passive",  # for LLVM's and Intel's OpenMP
    "GOMP_SPINCOUNT": "4000",  # for GNU's OpenMP, which torch uses on Linux
}
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)  # errors of writing to a disk
CONFIG_ERRORS = (ConfigError, HydraException, OmegaConfBaseException)


def run(main: Callable[[], Any]) -> None:
    """Run a Hydra main function, and report errors of composing the configuration in one line."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # otherwise Hydra prints the error and exits
    set_openmp_waiting()
    with one_line_errors():
        main()


def set_openmp_waiting() -> None:
    """Make waiting OpenMP threads go to sleep soon, unless the user has configured how they wait.

    By default OpenMP threads spin while they wait. When another program competes for the cores,
    spinning threads occupy cores that the threads they wait for need. The cost is measured by
    `detector/settings_benchmark.py`, and docs/benchmarks.md reports it.
    """
    if not OPENMP_WAIT_VARIABLES & os.environ.keys():
        os.environ.update(OPENMP_PASSIVE_WAIT)


def show_help(text: str | None) -> None:
    """Print a command's help and exit, if the command line has -h or --help."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(text)
        sys.exit(0)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error that has an exit code into one line on stderr and exit with that code; let
    every other error pass.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code(error)
        if code is None:
            raise
        if code != exit_codes.PREEMPTED:
            print("error: " + (one_line(error) or "interrupted"), file=sys.stderr)
        sys.exit(code)


def exit_code(error: BaseException) -> int | None:
    """Return the exit code for an error, one of `exit_codes`; None if the error is a bug."""
    if isinstance(error, CONFIG_ERRORS):
        return exit_codes.REFUSED
    if isinstance(error, KeyboardInterrupt):
        return exit_codes.INTERRUPTED
    if _names_a_file(error) or is_out_of_memory(error):
        return exit_codes.FAILED
    is_ours = type(error).__module__.startswith("detector.")
    return getattr(error, "exit_code", None) if is_ours else None


def _names_a_file(error: BaseException) -> bool:
    """Return whether an error says that a file, a folder or the disk cannot be read or written.

    An error of a file that is already open has no file name, hence the check of its number.
    """
    if not isinstance(error, OSError):
        return False
    return error.filename is not None or error.errno in DISK_ERRNOS


def one_line(error: BaseException) -> str:
    """Return an error's message in one line, without the traceback that a worker process adds."""
    if _names_a_file(error):
        assert isinstance(error, OSError)
        return f"{error.filename or 'the disk'}: {error.strerror}"
    if isinstance(error, HydraException):
        return _of_hydra(str(error))
    if not isinstance(error, (*CONFIG_ERRORS, KeyboardInterrupt)) and is_out_of_memory(error):
        return f"out of memory: {' '.join(str(error).split())}"
    message = str(error).rpartition(f"{type(error).__name__}: ")[2]
    return " ".join(message.split())


def _of_hydra(message: str) -> str:
    """Return Hydra's message without its search path and links, and with a hint at the key that may
    have been meant.
    """
    unknown = re.match(r"Could not (?:override|delete from config\.) '([^'@]+)'", message)
    if unknown is None and ("mismatched input" in message or "no viable" in message):
        what = " ".join(message.split("See https:")[0].split())
        return f"{what}; a value with special characters needs its own quotes: \"key='a (1).png'\""
    if unknown is None:
        return " ".join(re.split(r"Config search path:|See https:", message)[0].split())
    key, owners = unknown[1], known_keys()
    if key in owners:
        return f"{key} belongs to {' and '.join(owners[key])}, which this command does not use"
    if (CONFIGS / key).is_dir():  # a group without a default choice
        return f"{key} has no default choice to replace: add one with a plus, +{key}=..."
    meant = get_close_matches(key, owners, n=1)
    hint = f"did you mean {meant[0]}?" if meant else "--help lists the keys that exist"
    return f"there is no {key}: {hint}"


def known_keys() -> dict[str, list[str]]:
    """Map every group and key of the configuration to the commands or choices that have it."""
    commands = {
        "train": "train.py",
        "evaluate": "evaluate.py",
        "predict": "predict.py",
        "export": "python -m detector.export",
        "data_command": "python -m detector.data",
        "offsets": "python -m detector.analysis.offsets",
        "sampling": "python -m detector.analysis.sampling",
    }
    owners: dict[str, list[str]] = defaultdict(list)
    for path in sorted(CONFIGS.glob("**/*.yaml")):
        group = path.relative_to(CONFIGS).parent.as_posix()
        if group.startswith(("experiment", "ablation")):  # these only set keys of other groups
            continue
        content = OmegaConf.to_container(OmegaConf.load(path))
        if group == ".":
            owner, prefix = commands[path.stem], ""
        else:
            owner = f"{group}={path.stem}"
            prefix = "model.conventions." if group == "conventions" else f"{group}."
            owners[group] = [commands["train"]]
        for key in _keys_of(content, prefix):
            if not key.startswith(("hydra", "defaults")):
                owners[key].append(owner)
    return owners


def _keys_of(content: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(content, dict):
        for name, value in content.items():
            yield f"{prefix}{name}"
            yield from _keys_of(value, f"{prefix}{name}.")
