"""One job at a time in a run folder, on whatever machine of those that share it.

The lock on `run.lock` is the kernel's, of the kind that NFS and its like pass on to every machine.
It ends with the process that holds it: a job that was killed leaves none behind. The file says
whose it is.

A job that its scheduler starts again while its former processes live on, on a machine that the
scheduler has lost sight of, asks them to leave by `run.claim`, and waits until they have saved.
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
LOOK = 2.0  # seconds between two looks for a claim
WAIT = 600.0  # seconds that a job waits for its former processes


class RunFolderError(ValueError):
    """Another job trains in the run folder. The message names both."""

    exit_code = exit_codes.FAILED


@contextmanager
def locked(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Keep other jobs out of the run folder; the first rank does it for all.

    Raises:
        RunFolderError: on every rank: another job is there.
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
        threading.Thread(target=_heed_claims, args=(folder, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        if file is not None:
            file.close()


def _lock(folder: Path) -> IO[str] | None:
    """The locked file, which is to be kept open; None where there are no locks."""
    file = (folder / "run.lock").open("a+")
    deadline = time.monotonic() + WAIT
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno in NO_LOCKS:
                log.warning("%s: locks no files, so a second job would not be noticed", folder)
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
            log.warning("%s, of this job, trains here: it is asked to leave", _described(holder))
            (folder / "run.claim").touch()
        time.sleep(LOOK / 4)
    (folder / "run.claim").unlink(missing_ok=True)
    file.truncate(0)
    json.dump({"host": socket.gethostname(), "pid": os.getpid(), "job": _job()}, file)
    file.flush()
    return file


def _heed_claims(folder: Path, ended: threading.Event) -> None:
    """Tell this process to leave as soon as its own job, started again, wants the folder."""
    while not ended.wait(LOOK):
        if (folder / "run.claim").exists():
            log.warning("this job was started again elsewhere")
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _job() -> str | None:
    """What a job keeps when it is started again."""
    return os.environ.get("SLURM_JOB_ID")


def _is_of_this_job(holder: dict[str, Any]) -> bool:
    return _job() is not None and holder.get("job") == _job()


def _parsed(text: str) -> dict[str, Any]:
    """Nothing, while the holder writes it."""
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        return {}


def _described(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    job = f" (job {holder['job']})" if holder.get("job") else ""
    return f"process {holder.get('pid')} on {holder.get('host')}{job}"
