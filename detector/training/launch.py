"""Starts the processes that train together on this machine, and restarts them if one dies.

They are elastic workers of torch.distributed. The process that launches them does not train: it
passes signals on to them, and ends in the same way as they do.
"""

import json
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from detector.data.loading import SIGNALS
from detector.exit_codes import PREEMPTED
from detector.training.preemption import Preempted

log = logging.getLogger(__name__)


class WorkersError(RuntimeError):
    """The workers failed with an error that a restart would not fix, or failed too often.

    Attributes:
        kind: the class name of the worker's error, or `WorkersError` if they failed too often.
        exit_code: the exit code for that error.
    """

    def __init__(self, message: str, kind: str = "WorkersError", exit_code: int = 1) -> None:
        super().__init__(message)
        self.kind = kind
        self.exit_code = exit_code


def launch(
    function: Callable[..., None],
    *arguments: Any,
    num_ranks: int,
    max_restarts: int,
    exit_code: Callable[[BaseException], int | None],
) -> None:
    """Call a function in `num_ranks` new processes, and wait until all have ended.

    Args:
        function: an importable function. It joins the other processes by `distribution.joined`.
        arguments: the positional arguments of the function.
        max_restarts: how often all processes are started again after one was killed or failed.
        exit_code: maps an error that a restart would not fix to an exit code, and any other error
            to None.

    Raises:
        Preempted: the processes were asked to stop, and have stopped.
        WorkersError: a process failed with an error that a restart would not fix, or processes
            failed too often.
    """
    # If the workers share the store of the rendezvous, a restart may hang: pytorch issue 135712.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # logged below
    with tempfile.TemporaryDirectory() as folder, _signals_passed_on() as received:
        ending = Path(folder) / "ending.json"
        for restart in range(max_restarts + 1):
            workers = elastic_launch(_launch_config(num_ranks, folder), _worker)
            try:
                workers(ending, restart, exit_code, function, arguments)
            except ChildFailedError as error:
                rank, failure = error.get_first_failure()
                if ending.exists():
                    break
                if received:
                    raise Preempted(received[0].name) from error
                reason = f"rank {rank} ended with exit code {failure.exitcode}"
                if restart == max_restarts:
                    raise WorkersError(f"{reason}; restarted {restart} times") from error
                log.warning("%s: restart %d of %d", reason, restart + 1, max_restarts)
            else:
                break
        if ending.exists():
            code, kind, message = json.loads(ending.read_text())
            raise (Preempted(message) if code == PREEMPTED else WorkersError(message, kind, code))


def _launch_config(num_ranks: int, folder: str) -> LaunchConfig:
    """Describe the workers on this machine. torch restarts none of them: `launch` does that, as it
    knows which errors a restart would not fix.
    """
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=f"train-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=folder),
        local_addr="localhost",
        signals_to_handle="SIGHUP,SIGQUIT",  # the others are passed on
    )


def _worker(
    ending: Path,
    restart: int,
    exit_code: Callable[[BaseException], int | None],
    function: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    """Call the function in a new process.

    The first process that fails with an error a restart would not fix, or is asked to stop, writes
    the error to `ending`. The others then fail because they have lost that process.
    """
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(restart)
    launcher = os.getppid()
    try:
        function(*arguments)
    except BaseException as error:
        code = exit_code(error)
        if code is not None:
            _write_once(ending, json.dumps([code, type(error).__name__, str(error)]))
        elif not ending.exists():
            log.exception("failed")
        if code != PREEMPTED:
            raise
    # If the launcher was killed, do not return: torch would wait for it to take the result.
    if os.getppid() != launcher:
        sys.exit(PREEMPTED)


def _write_once(path: Path, text: str) -> None:
    """Write a file completely, unless another process has written it first."""
    own = path.with_name(f"{os.getpid()}.json")
    own.write_text(text)
    try:
        os.link(own, path)
    except FileExistsError:
        pass


@contextmanager
def _signals_passed_on() -> Iterator[list[signal.Signals]]:
    """Pass the signals that this process receives on to the workers, and list them.

    Raises:
        Preempted: from the signal handler, if there are no workers when a signal arrives.
    """
    received: list[signal.Signals] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        # A terminal sends SIGINT to the workers as well, and a second one would interrupt them.
        sent = signal.SIGTERM if number == signal.SIGINT else number
        received.append(signal.Signals(number))
        workers = multiprocessing.active_children()
        if not workers:
            raise Preempted(received[0].name)
        for worker in workers:
            if worker.pid is not None:
                os.kill(worker.pid, sent)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
