"""Checkpoints survive kills, damage, malicious files and full disks.

Children are forked, and end without returning to the test.
"""

import logging
import os
import pickle
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from detector.training.checkpoint import (
    KEYS,
    CheckpointError,
    keep_checkpoint,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)

NUM_TENSORS = 4


def checkpoint(step: int, size: int = 1000) -> dict:
    """Return a checkpoint in which every value of every tensor is the step."""
    model = {str(index): torch.full((size,), step) for index in range(NUM_TENSORS)}
    return dict.fromkeys(KEYS) | {"model": model, "step": step}


def check_whole(loaded: dict) -> None:
    """Check that a loaded checkpoint is one saved state, and not a mixture of two."""
    assert len(loaded["model"]) == NUM_TENSORS
    for tensor in loaded["model"].values():
        assert tensor.numel() and bool((tensor == loaded["step"]).all())


def keep(folder: Path, step: int, *, size: int = 1000, is_best: bool = False) -> None:
    keep_checkpoint(folder, checkpoint(step, size), is_best=is_best, is_nth=is_best)


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip fsync, to save many times fast: only after a power cut does it make a difference."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def forked(work: Callable[[], None]) -> int:
    """Do the work in a forked child, and return its process id.

    The child's exit status is 0 if nothing was raised. A fork is used rather than a new
    interpreter because torch takes seconds to import.
    """
    child = os.fork()
    if child == 0:
        status = 1
        torch.set_num_threads(1)  # the fork has no OpenMP threads: waiting for them would never end
        try:
            work()
            status = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(status)
    return child


# ---- kills ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_100_kills_at_random_times(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A save that has returned is never lost.

    The checkpoint that loads is whole, and at least as new as the last one the child reported.
    """
    rng = random.Random(0)
    size = 125_000  # int64: 4 tensors are 4 MB
    keep(tmp_path, 0, size=size)
    step, first, inside = 0, time.perf_counter(), 0
    keep(tmp_path, 0, size=size)
    duration = time.perf_counter() - first
    for _ in range(100):
        ours, childs = os.pipe()

        def save_on(first: int = step + 1, childs: int = childs) -> None:
            for step in range(first, first + 1000):
                keep(tmp_path, step, size=size, is_best=step % 3 == 0)
                os.write(childs, step.to_bytes(4, "big"))

        child = forked(save_on)
        os.close(childs)
        with os.fdopen(ours, "rb") as pipe:
            began = pipe.read(4)  # wait: forking a large process may take longer than many saves
            time.sleep(rng.uniform(0, 3 * duration))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            said = int.from_bytes((began + pipe.read())[-4:], "big")
        inside += any(tmp_path.glob("*.tmp"))
        for path in tmp_path.glob("*.pt"):
            check_whole(load_checkpoint(path))
        found = load_newest(tmp_path)
        assert found is not None and found[0].name == "last.pt"
        assert found[1]["step"] >= max(said, step)
        step = found[1]["step"]
        for path in tmp_path.glob("step_*"):
            path.unlink()
    assert not caplog.records  # no file was refused or read without its digest
    assert inside > 20  # many kills happened during a save


@pytest.mark.slow
@pytest.mark.usefixtures("unsynced")
def test_a_kill_before_every_call_to_the_file_system(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In every state that a kill can leave, all checkpoints load and the next save works."""
    num_calls = 0
    for with_sidecar in (True, False):
        for stop in range(1000):
            folder = tmp_path / f"{with_sidecar}_{stop}"
            keep(folder, 1, is_best=True)
            keep(folder, 2)
            if not with_sidecar:
                for path in folder.glob("*.sha256"):
                    path.unlink()
            finished = die_before_call(stop, lambda folder=folder: keep(folder, 3, is_best=True))
            caplog.clear()
            newest = load_all(folder)
            assert newest == 3 if finished else newest in (2, 3)
            keep(folder, 4)  # replaces the files that the kill left
            assert load_all(folder) == 4 and not list(folder.glob("*.tmp"))
            assert load_checkpoint(folder / "best.pt")["step"] in (1, 3)
            assert load_checkpoint(folder / "previous.pt")["step"] == newest
            if with_sidecar:
                assert not caplog.records
            if finished:
                num_calls += stop
                break
    assert num_calls > 60


def load_all(folder: Path) -> int:
    """Load and check every checkpoint of a folder; return the step of the newest."""
    for path in folder.glob("*.pt"):
        check_whole(load_checkpoint(path))
    found = load_newest(folder)
    assert found is not None and found[0].name == "last.pt"
    return found[1]["step"]


def die_before_call(stop: int, work: Callable[[], None]) -> bool:
    """Do the work in a child that is killed before its file system call number `stop`, from 0.

    Calls that open, link, rename or unlink count. Returns whether the work ended before that.
    """

    def count(event: str, arguments: tuple) -> None:
        nonlocal stop
        if event in ("open", "os.rename", "os.link", "os.remove"):
            stop -= 1
            if stop < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def counted() -> None:
        sys.addaudithook(count)  # a hook cannot be removed: never set it outside a child
        work()

    _, status = os.waitpid(forked(counted), 0)
    assert status in (0, signal.SIGKILL)
    return status == 0


# ---- damage and malice ---------------------------------------------------------------------------


class CallsWhenUnpickled:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function: Callable, *arguments: str) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def truncated(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def bit_flipped(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def sidecar_bit_flipped(path: Path, rng: random.Random) -> None:
    bit_flipped(path.with_name(path.name + ".sha256"), rng)


def sidecar_truncated(path: Path, rng: random.Random) -> None:
    truncated(path.with_name(path.name + ".sha256"), rng)


def junk(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(rng.randrange(5000)))


def junk_without_a_sidecar(path: Path, rng: random.Random) -> None:
    junk(path, rng)
    path.with_name(path.name + ".sha256").unlink()


def malicious(path: Path, rng: random.Random) -> None:
    """Write a checkpoint that runs code when it is unpickled, in a random file format.

    The formats are all those that torch.load reads. The digest fits, or there is none.
    """
    owned = path.with_name("owned")
    code = f"__import__('os').mkdir({str(owned)!r})"
    attack = rng.choice(
        [
            CallsWhenUnpickled(os.system, f"mkdir {owned}"),
            CallsWhenUnpickled(eval, code),
            CallsWhenUnpickled(exec, code),
            CallsWhenUnpickled(os.mkdir, str(owned)),
        ]
    )
    content = checkpoint(2) | {rng.choice(["config", "model", "new"]): attack}
    way = rng.choice(["saved", "zip", "legacy", "pickle"])
    if way == "saved":
        save_checkpoint(path, content)
        return
    path.with_name(path.name + ".sha256").unlink()
    if way == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=rng.randrange(6)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=way == "zip")


FAULTS = {
    truncated: 50,
    bit_flipped: 50,
    sidecar_bit_flipped: 30,
    sidecar_truncated: 10,
    junk: 15,
    junk_without_a_sidecar: 15,
    malicious: 30,
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_200_broken_checkpoints(
    fault: Callable[[Path, random.Random], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(0)
    for _ in range(FAULTS[fault]):
        for step in (1, 2):
            keep(tmp_path, step)
        last = tmp_path / "last.pt"
        caplog.clear()
        fault(last, rng)
        with pytest.raises(CheckpointError, match=r"last\.pt: "):
            load_checkpoint(last)
        found = load_newest(tmp_path)
        assert found is not None and found[0].name == "previous.pt" and found[1]["step"] == 1
        warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert any("last.pt: " in warning and "the one before" in warning for warning in warnings)
        assert not (tmp_path / "owned").exists()


@pytest.mark.usefixtures("unsynced")
def test_the_malice_is_real(tmp_path: Path) -> None:
    """Without `weights_only` each file of `malicious` runs its code: it is a real attack."""
    rng = random.Random(0)
    for _ in range(FAULTS[malicious]):
        save_checkpoint(tmp_path / "last.pt", checkpoint(1))
        malicious(tmp_path / "last.pt", rng)
        try:
            torch.load(tmp_path / "last.pt", weights_only=False)
        except Exception:  # for a bare pickle, torch.load then finds no tensors
            pass
        (tmp_path / "owned").rmdir()


# ---- disks that are full, folders that are read-only ---------------------------------------------


def limit_file_size(limit: int) -> None:
    """Let writes beyond a file size fail as on a full disk, but with the error File too large."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def forbid_writing(folder: Path) -> None:
    """Make a folder read-only, and give up being root, who may write anyway."""
    os.chdir(folder)
    folder.chmod(0o555)
    if os.getuid() == 0:
        os.setuid(65534)


@pytest.mark.parametrize("part", [0, 0.002, 0.5, 0.999])
def test_a_full_disk(tmp_path: Path, part: float) -> None:
    """The disk is full after a part of the file: in its head, a tensor, or the zip directory.

    A tensor is larger than the file's buffer, and torch.save hides an error within a tensor.
    """
    for step in (1, 2):
        keep(tmp_path, step, size=20_000)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    full_at = int(part * len(before["last.pt"]))

    def save() -> None:
        limit_file_size(full_at)
        with pytest.raises(CheckpointError, match=r"last\.pt: cannot be written \(File too large"):
            keep(tmp_path, 3, size=20_000, is_best=True)

    assert os.waitpid(forked(save), 0)[1] == 0
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert load_all(tmp_path) == 2


def test_a_read_only_folder(tmp_path: Path) -> None:
    for step in (1, 2):
        keep(tmp_path, step)

    def save() -> None:
        forbid_writing(tmp_path)
        with pytest.raises(CheckpointError, match=r"last\.pt: cannot be written \(Permission den"):
            keep(Path(), 3)
        check_whole(load_checkpoint(Path("last.pt")))

    try:
        assert os.waitpid(forked(save), 0)[1] == 0
    finally:
        tmp_path.chmod(0o755)
    assert load_all(tmp_path) == 2
    assert len(os.listdir(tmp_path)) == 4
