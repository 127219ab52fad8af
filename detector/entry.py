"""What the entry points share. It is imported before torch, which takes seconds to import: help and
errors of the configuration are there at once, and what torch reads from its environment is set.

A user's error is one line and an exit code, not a traceback.
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

WAITS = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}  # how OpenMP's threads wait
FRUGAL = {
    "OMP_WAIT_POLICY": "passive",  # LLVM's and Intel's
    "GOMP_SPINCOUNT": "4000",  # GNU's, which is torch's on Linux
}
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)  # what writing may meet
CONFIG_ERRORS = (ConfigError, HydraException, OmegaConfBaseException)


def run(main: Callable[[], Any]) -> None:
    """Run a Hydra main, so that composing the configuration fails in one line as well."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # else Hydra prints and exits by itself
    share_the_machine()
    with one_line_errors():
        main()


def share_the_machine() -> None:
    """Let threads that wait for others soon sleep, unless the user has said what they do.

    OpenMP's spin, and so take the cores from those that they wait for as soon as anything else
    wants one. What that costs, `detector/step_benchmark.py` measures and docs/benchmarks.md says.
    """
    if not WAITS & os.environ.keys():
        os.environ.update(FRUGAL)


def show_help(text: str | None) -> None:
    """Print a command's help and exit, if it is asked for."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(text)
        sys.exit(0)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Exit with an error's code, and with one line of it, where it has a code."""
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
    """One of `exit_codes`, or None for a bug."""
    if isinstance(error, CONFIG_ERRORS):
        return exit_codes.REFUSED
    if isinstance(error, KeyboardInterrupt):
        return exit_codes.INTERRUPTED
    if _names_a_file(error) or is_out_of_memory(error):
        return exit_codes.FAILED
    is_ours = type(error).__module__.startswith("detector.")
    return getattr(error, "exit_code", None) if is_ours else None


def _names_a_file(error: BaseException) -> bool:
    """A file or folder that cannot be read or written; an open one does not know its name."""
    if not isinstance(error, OSError):
        return False
    return error.filename is not None or error.errno in DISK_ERRNOS


def one_line(error: BaseException) -> str:
    """The message, without the traceback that a worker process wraps it in."""
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
    """Hydra's message without what is no help here, and with the key that may have been meant."""
    unknown = re.match(r"Could not (?:override|delete from config\.) '([^'@]+)'", message)
    if unknown is None and ("mismatched input" in message or "no viable" in message):
        what = " ".join(message.split("See https:")[0].split())
        return f"{what}; a value with such signs needs quotes of its own: \"key='a (1).png'\""
    if unknown is None:
        return " ".join(re.split(r"Config search path:|See https:", message)[0].split())
    key, owners = unknown[1], known_keys()
    if key in owners:
        return f"{key} belongs to {' and '.join(owners[key])}, which this command does not use"
    if (CONFIGS / key).is_dir():  # a group of which nothing is chosen by default
        return f"{key} is added to what is chosen: +{key}=..., with a plus"
    meant = get_close_matches(key, owners, n=1)
    hint = f"did you mean {meant[0]}?" if meant else "--help lists what there is"
    return f"there is no {key}: {hint}"


def known_keys() -> dict[str, list[str]]:
    """Every group and every key of the configuration -> the commands or choices that have it."""
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
        if group.startswith(("experiment", "ablation")):  # these set keys of the others
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
