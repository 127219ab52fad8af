"""Lets only one job at a time train in a run folder, even if several machines share it.

The lock is a POSIX lock of the kernel on the file `run.lock`, which network file systems such as
NFS pass on to all machines. It ends with the process that holds it, so a job that was killed leaves
no lock behind. The content of the file says which process holds the lock.

A scheduler that has lost contact with a machine starts its job again elsewhere, while the former
processes may still run on the lost machine. The new start then creates `run.claim`, which asks the
former processes to stop, and waits until they have saved.
"""

import errno
import fcntl
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from detector import exit_codes
from detector.training.distribution import Ranks

log = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
POLL_SECONDS = 2.0  # seconds between two checks for run.claim
CLAIM_TIMEOUT = 600.0  # for how long a job waits for its former processes to end


class RunFolderError(ValueError):
    """Another job trains in the run folder. The message names the folder and the job."""

    exit_code = exit_codes.FAILED


@contextmanager
def locked(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Lock the run folder against other jobs; the first rank holds the lock for all ranks.

    Raises:
        RunFolderError: on every rank, if another job holds the lock.
    """
    refused, file = None, None
    if ranks.is_first:
        try:
            file = _lock(folder)
        except RunFolderError as error:
            refused = str(error)
    refused = ranks.broadcast(refused)
    if refused is not None:
        raise RunFolderError(refused)
    ended = threading.Event()
    if file is not None:
        threading.Thread(target=_watch_for_claim, args=(folder, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        if file is not None:
            file.close()


def _lock(folder: Path) -> IO[str] | None:
    """Lock run.lock and return the open file: closing it ends the lock.

    Returns None if the file system does not support locks.
    """
    file = (folder / "run.lock").open("a+")
    deadline = time.monotonic() + CLAIM_TIMEOUT
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno in NO_LOCKS:
                log.warning("%s: no file locks here, so a second job would not be noticed", folder)
                file.close()
                return None
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
        file.seek(0)
        holder = _parsed(file.read())
        if not _is_of_this_job(holder) or time.monotonic() > deadline:
            file.close()
            raise RunFolderError(
                f"{folder}: {_described(holder)} trains here: wait for its end, or give another "
                "hydra.run.dir"
            )
        if not (folder / "run.claim").exists():
            who = _described(holder)
            log.warning("%s is of this job and still trains: it is asked to stop", who)
            (folder / "run.claim").touch()
        time.sleep(POLL_SECONDS / 4)
    (folder / "run.claim").unlink(missing_ok=True)
    file.truncate(0)
    json.dump({"host": socket.gethostname(), "pid": os.getpid(), "job": _job()}, file)
    file.flush()
    return file


def _watch_for_claim(folder: Path, ended: threading.Event) -> None:
    """Send this process SIGTERM if run.claim appears: its own job was started again and waits for
    the folder.
    """
    while not ended.wait(POLL_SECONDS):
        if (folder / "run.claim").exists():
            log.warning("this job was started again elsewhere: this process stops")
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _job() -> str | None:
    """Return the job's id, which stays the same when SLURM starts it again, or None."""
    return os.environ.get("SLURM_JOB_ID")


def _is_of_this_job(holder: dict[str, Any]) -> bool:
    return _job() is not None and holder.get("job") == _job()


def _parsed(text: str) -> dict[str, Any]:
    """Parse the content of run.lock; it is empty while the holder is about to write it."""
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        return {}


def _described(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    job = f" (job {holder['job']})" if holder.get("job") else ""
    return f"process {holder.get('pid')} on {holder.get('host')}{job}"
