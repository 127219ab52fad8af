"""Only one job at a time trains in a run folder; a job that is killed leaves no lock behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from detector.training import run_lock
from detector.training.distribution import SINGLE_PROCESS
from detector.training.run_lock import RunFolderError, locked

HOLD = """
import sys, time
from pathlib import Path
from detector.training.distribution import SINGLE_PROCESS
from detector.training.run_lock import locked
with locked(Path(sys.argv[1]), SINGLE_PROCESS):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold(tmp_path: Path):
    """Return a function that starts a process which holds the folder's lock.

    Its argument is the process's SLURM job id, or None. The processes are killed after the test.
    """
    started = []

    def start(job: str | None) -> subprocess.Popen:
        environment = {key: value for key, value in os.environ.items() if key != "SLURM_JOB_ID"}
        environment |= {"SLURM_JOB_ID": job} if job else {}
        command = [sys.executable, "-c", HOLD, str(tmp_path)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_second_job_is_refused(
    hold: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second job has another id, or none. The error names the folder and the first process."""
    first = hold("7")
    for job in ("8", None):
        if job:
            monkeypatch.setenv("SLURM_JOB_ID", job)
        else:
            monkeypatch.delenv("SLURM_JOB_ID")
        before = (tmp_path / "run.lock").read_text()
        with pytest.raises(RunFolderError) as caught, locked(tmp_path, SINGLE_PROCESS):
            pytest.fail("two hold it")
        line = f"{tmp_path}: process {first.pid} on {os.uname().nodename} (job 7) trains here"
        assert str(caught.value).startswith(line)
        assert (tmp_path / "run.lock").read_text() == before
        assert not (tmp_path / "run.claim").exists()


def test_a_job_that_was_killed_blocks_nobody(hold: Callable, tmp_path: Path) -> None:
    process = hold(None)
    process.kill()
    process.wait()
    with locked(tmp_path, SINGLE_PROCESS):
        assert f'"pid": {os.getpid()}' in (tmp_path / "run.lock").read_text()
    with locked(tmp_path, SINGLE_PROCESS):  # it is free again when the first has left
        pass


def test_a_job_that_begins_again_has_its_former_process_leave(
    hold: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = hold("7")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with locked(tmp_path, SINGLE_PROCESS):
        assert former.wait(10) == -signal.SIGTERM
        assert not (tmp_path / "run.claim").exists()


def test_a_former_process_that_never_leaves(
    hold: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.kill(hold("7").pid, signal.SIGSTOP)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(run_lock, "CLAIM_TIMEOUT", 1.0)
    began = time.monotonic()
    with pytest.raises(RunFolderError), locked(tmp_path, SINGLE_PROCESS):
        pytest.fail("two hold it")
    assert 1 < time.monotonic() - began < 10


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lacks(*_: object) -> None:
        raise OSError(run_lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "lockf", lacks)
    with locked(tmp_path, SINGLE_PROCESS):
        assert "a second job would not be noticed" in caplog.text
