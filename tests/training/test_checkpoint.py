"""Checkpoints are whole, and run no code."""

import os
from pathlib import Path

import pytest
import torch

from detector.training.checkpoint import (
    KEYS,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)


def checkpoint(value: float = 1.0) -> dict:
    return dict.fromkeys(KEYS) | {"model": {"weight": torch.full((1000,), value)}}


def test_round_trip(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "new" / "last.pt", checkpoint())
    loaded = load_checkpoint(tmp_path / "new" / "last.pt")
    assert torch.equal(loaded["model"]["weight"], torch.ones(1000))
    assert os.listdir(tmp_path / "new") == ["last.pt"]


def test_a_failed_save_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, checkpoint(1.0))

    def half(content, file):
        file.write(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, checkpoint(2.0))
    assert load_checkpoint(path)["model"]["weight"][0] == 1


class Malicious:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_refusals_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    with pytest.raises(CheckpointError, match=r"last\.pt: no such checkpoint"):
        load_checkpoint(path)
    save_checkpoint(path, checkpoint())
    whole = path.read_bytes()
    for content in (whole[:1000], b"junk", b""):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"last\.pt: cannot be read"):
            load_checkpoint(path)
    torch.save({"weights": 3}, path)
    with pytest.raises(CheckpointError, match=r"last\.pt: is not a checkpoint"):
        load_checkpoint(path)
    torch.save(checkpoint() | {"config": Malicious(tmp_path / "owned")}, path)
    with pytest.raises(CheckpointError, match=r"last\.pt: cannot be read"):
        load_checkpoint(path)
    assert not (tmp_path / "owned").exists()
