"""A run folder on a file system that is full or hangs, as shared file systems may."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from runs import EPOCHS, RUN, STEPS, Runs, assert_same_run, await_step, losses, output, summary

from detector.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def runs(environment: dict[str, str]) -> Iterator[Runs]:
    runs = Runs(Path(environment["XDG_CACHE_HOME"]))
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def unbroken(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    assert runs.wait(runs.start(folder)) == 0, output(folder)
    assert len(losses(folder)) == EPOCHS * STEPS
    return folder


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """Mount a file system on a folder."""
    folder.mkdir()
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=60)


def test_a_disk_that_is_full(runs: Runs, unbroken: Path, tmp_path: Path) -> None:
    """The run ends with one line, and its last checkpoint is whole.

    When the disk has more room, the same command resumes it.
    """
    disk, fits_once = tmp_path / "disk", "size=100m"
    with mounted(disk, "-t", "tmpfs", "-o", fits_once, "tmpfs"):
        folder = disk / "run"
        assert runs.wait(runs.start(folder)) == 1
        last = folder / "checkpoints" / "last.pt"
        reason = f"{last}: cannot be written (No space left on device)"
        assert output(folder).splitlines()[-1] == f"error: {reason}"
        assert summary(folder)["status"] == "failed" and reason in summary(folder)["error"]
        assert load_checkpoint(last)["step"] == 2  # there was no room for another one
        assert not list(folder.glob("checkpoints/*.tmp"))
        shutil.rmtree(folder / ".hydra")  # the folder that Hydra writes first
        with (disk / "filler").open("wb", buffering=0) as file:
            with pytest.raises(OSError, match="No space"):
                while True:
                    file.write(bytes(4096))
        pid = runs.ask([str(tmp_path / "out.txt"), f"hydra.run.dir={folder}", *RUN])
        assert runs.wait(pid) == 1
        errors = output(tmp_path).splitlines()
        assert errors[-1].startswith("error: ") and "No space left on device" in errors[-1]
        assert load_checkpoint(last)["step"] == 2
        (disk / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=400m", str(disk)], check=True)
        assert runs.wait(runs.start(folder)) == 0, output(folder)
        assert "resumed after epoch 0 and 2 steps" in output(folder)
        assert_same_run(folder, unbroken)


@pytest.mark.parametrize("killed", [False, True])
def test_a_file_system_that_hangs(runs: Runs, unbroken: Path, tmp_path: Path, killed: bool) -> None:
    """After ten seconds without an answer the run continues.

    If it was killed meanwhile, it resumes from its last checkpoint.
    """
    image, disk = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(600_000_000)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    with mounted(disk, "-o", "loop", str(image)):
        folder = disk / "run"
        pid = runs.start(folder)
        await_step(folder, 3)
        subprocess.run(["fsfreeze", "--freeze", str(disk)], check=True)
        try:
            time.sleep(8)
            before = len(losses(folder))
            if killed:
                os.kill(pid, signal.SIGKILL)
            time.sleep(2)
            assert len(losses(folder)) == before < EPOCHS * STEPS
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", str(disk)], check=True)
        assert runs.wait(pid) == (-signal.SIGKILL if killed else 0), output(folder)
        if killed:
            saved = load_checkpoint(folder / "checkpoints" / "last.pt")
            assert saved["step"] in (2, 4)
            assert runs.wait(runs.start(folder)) == 0, output(folder)
        assert_same_run(folder, unbroken)
