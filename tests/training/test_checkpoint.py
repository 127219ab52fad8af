"""Checkpoints are whole, the right ones are kept, and loading one runs no code."""

import hashlib
import logging
import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from detector.training import durable
from detector.training.checkpoint import (
    KEYS,
    CheckpointError,
    keep_checkpoint,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)


def checkpoint(step: int = 1) -> dict:
    return dict.fromkeys(KEYS) | {"model": {"weight": torch.full((1000,), step)}, "step": step}


def keep(folder: Path, step: int, *, is_best: bool = False, is_nth: bool = False) -> None:
    keep_checkpoint(folder, checkpoint(step), is_best=is_best, is_nth=is_nth)


def steps(folder: Path) -> dict[str, int]:
    """Return the step of each checkpoint in a folder, by file name."""
    return {path.name: load_checkpoint(path)["step"] for path in sorted(folder.glob("*.pt"))}


def test_round_trip(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "new" / "last.pt", checkpoint(7))
    loaded = load_checkpoint(tmp_path / "new" / "last.pt")
    assert torch.equal(loaded["model"]["weight"], torch.full((1000,), 7))
    assert sorted(os.listdir(tmp_path / "new")) == ["last.pt", "last.pt.sha256"]


def equal(a: object, b: object) -> bool:
    """Compare types, keys and values of dictionaries, lists and tensors."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def test_training_state_is_equal_after_a_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1)
    ).to(memory_format=torch.channels_last)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = LambdaLR(optimizer, lambda step: 0.5**step)
    for _ in range(3):
        model(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        schedule.step()
    states = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
    }
    assert states["optimizer"]["state"] and states["model"]["1.num_batches_tracked"] == 3
    others = {
        "validation": {"metrics": {"AP": 0.25, "APs": None}, "per_class": {"fish": {"AP": 0.25}}},
        "config": {"deform": {"last_layers": None}, "schedule": {"milestones": [8, 11]}},
        "classes": ["fish"],
        "category_ids": [3],
        "data": "of all images",
        "seconds": 0.1 + 0.2,
    }
    saved = dict.fromkeys(KEYS, 3) | states | others
    save_checkpoint(tmp_path / "last.pt", saved)
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert equal(loaded, saved)


def test_the_digest_is_sha256sums(tmp_path: Path) -> None:
    for step in (1, 2):
        keep(tmp_path, step, is_best=True)
    whole = hashlib.sha256((tmp_path / "best.pt").read_bytes()).hexdigest()
    assert (tmp_path / "best.pt.sha256").read_text() == f"{whole}  best.pt\n"
    sidecars = sorted(path.name for path in tmp_path.glob("*.sha256"))
    assert sidecars == ["best.pt.sha256", "last.pt.sha256", "previous.pt.sha256"]
    subprocess.run(["sha256sum", "--check", "--strict", *sidecars], cwd=tmp_path, check=True)


def test_what_is_kept(tmp_path: Path) -> None:
    keep(tmp_path, 8, is_best=True)
    assert steps(tmp_path) == {"best.pt": 8, "last.pt": 8}
    keep(tmp_path, 9, is_nth=True)
    keep(tmp_path, 10, is_nth=True)
    kept = {"best.pt": 8, "last.pt": 10, "previous.pt": 9, "step_10.pt": 10, "step_9.pt": 9}
    assert steps(tmp_path) == kept
    assert len(os.listdir(tmp_path)) == 2 * len(kept)  # every file and its digest, nothing else


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    keep(tmp_path, 1, is_best=True)
    keep(tmp_path, 2, is_nth=True)
    assert steps(tmp_path) == {"best.pt": 1, "last.pt": 2, "previous.pt": 1, "step_2.pt": 2}


def test_everything_is_synced_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a rename may be on the disk although data that were not synced are not."""
    events: list[int | str] = []  # inodes that were synced, and new names of renamed files
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        fsync(descriptor)
        events.append(os.fstat(descriptor).st_ino)

    def note_replace(old: Path, new: Path) -> None:
        assert old.stat().st_ino in events, new
        replace(old, new)
        events.append(new.name)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    save_checkpoint(tmp_path / "last.pt", checkpoint())
    renamed = [index for index, event in enumerate(events) if isinstance(event, str)]
    assert [events[index] for index in renamed] == ["last.pt.sha256", "last.pt", "last.pt.sha256"]
    assert all(events[index + 1] == tmp_path.stat().st_ino for index in renamed)


def test_the_newest_that_loads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_newest(tmp_path) is None and load_newest(tmp_path / "nowhere") is None
    for step in (8, 9, 10, 11):
        keep(tmp_path, step, is_nth=step < 11)
    (tmp_path / "step_x.pt").write_bytes(b"not ours")
    order = [("last.pt", 11), ("previous.pt", 10), ("step_10.pt", 10)]
    order += [("step_9.pt", 9), ("step_8.pt", 8)]
    for position, (name, step) in enumerate(order):
        caplog.clear()
        found = load_newest(tmp_path)
        assert found is not None
        path, loaded = found
        assert (path.name, loaded["step"]) == (name, step)
        assert [record.levelno for record in caplog.records] == [logging.WARNING] * position
        for record, (broken, _) in zip(caplog.records, order, strict=False):
            assert f"{tmp_path / broken}: is damaged" in record.getMessage()
        path.unlink()
        path.write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="checkpoints can be read: last.pt, previous.pt"):
        load_newest(tmp_path)


def test_a_damaged_last_does_not_become_the_previous(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        keep(tmp_path, step)
    (tmp_path / "last.pt").write_bytes(b"junk")
    keep(tmp_path, 3)
    assert "last.pt is damaged and replaced" in caplog.text
    assert steps(tmp_path) == {"last.pt": 3, "previous.pt": 1}


def test_without_a_digest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(checkpoint(1), tmp_path / "last.pt")  # as an older version saved it
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 1
    assert "last.pt has no last.pt.sha256 beside it: it is not checked" in caplog.text
    caplog.clear()
    keep(tmp_path, 2)
    assert steps(tmp_path) == {"last.pt": 2, "previous.pt": 1}
    assert not caplog.records


def test_a_failed_save_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint(1))
    before = sorted(os.listdir(tmp_path))

    def half(content, file):
        file.write(b"half of it")
        raise RuntimeError("CUDA error")  # not an error of the disk: it is raised unchanged

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(RuntimeError, match="^CUDA error$"):
        save_checkpoint(path, checkpoint(2))
    assert load_checkpoint(path)["step"] == 1 and sorted(os.listdir(tmp_path)) == before


def test_what_a_kill_left_is_unlinked_not_overwritten(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.pt", checkpoint(1))
    os.link(tmp_path / "best.pt", tmp_path / "last.pt.tmp")  # killed before the second rename
    save_checkpoint(tmp_path / "last.pt", checkpoint(2))
    assert steps(tmp_path) == {"best.pt": 1, "last.pt": 2}


def test_read_while_a_run_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint(1))
    named_digests = durable.named_digests

    def late(path: Path) -> list[str] | None:
        monkeypatch.undo()
        save_checkpoint(path, checkpoint(2))  # after the old file was opened
        return named_digests(path)

    monkeypatch.setattr("detector.training.checkpoint.named_digests", late)
    assert load_checkpoint(path)["step"] == 2


def test_refusals_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with pytest.raises(CheckpointError, match=r"last\.pt: no such checkpoint"):
        load_checkpoint(path)
    torch.save({"weights": 3}, path)
    with pytest.raises(CheckpointError, match=r"last\.pt: is not a checkpoint .* lacks best, cat"):
        load_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(CheckpointError, match=r"last\.pt: is not a checkpoint"):
        load_checkpoint(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"last\.pt: cannot be read"):
        load_checkpoint(path)
