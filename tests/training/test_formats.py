"""Checkpoints of every format ever written still load, serve as initial weights, and resume.

`formats/format_<N>.pt.gz` is a checkpoint of a tiny run, written by the first version with that
format. Each of its tensors is filled with one number that depends on its name, so that the file
takes a few kilobytes. For a new format, add a file by
`python tests/training/test_formats.py CHECKPOINT` with a checkpoint of this run:

    python train.py model.fpn_channels=8 model.box_head_channels=8 deform=c5_v2 overfit=2 \\
        schedule.epochs=1 schedule.batch_size=2 data.num_train=4 data.num_val=2 data.image_size=64
"""

import gzip
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detector.builders.model import build_model, trained_model
from detector.config import conventions, parse_train, to_plain
from detector.model.weights.loading import load_file
from detector.training.checkpoint import FORMAT, CheckpointError, load_checkpoint
from detector.training.resume import checkpoint_to_resume

FOLDER = Path(__file__).parent / "formats"
FORMATS = range(1, FORMAT + 1)


def number(name: str, like: Tensor) -> Tensor:
    """Return a tensor like the given one, filled with a number that depends on its name."""
    return torch.full_like(like, zlib.crc32(name.encode()) % 1000 / 1000)


@pytest.fixture(params=FORMATS)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "last.pt"
    path.write_bytes(gzip.decompress((FOLDER / f"format_{request.param}.pt.gz").read_bytes()))
    return path


def test_weights_load(checkpoint: Path) -> None:
    content = load_checkpoint(checkpoint)
    model = trained_model(parse_train(content["config"]), content)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, number(name, value)), name
    assert parse_train(content["config"]).model.conventions == conventions("torchvision")


def test_they_are_weights_to_begin_with(checkpoint: Path) -> None:
    content = load_checkpoint(checkpoint)
    config = parse_train(content["config"])
    model = build_model(config.model, config.deform, config.data.transform, 6)
    load_file(model, checkpoint, tuple(content["classes"]))
    weight = model.backbone.body.conv1.weight
    assert torch.equal(weight, number("backbone.body.conv1.weight", weight))


def test_a_run_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    config = to_plain(parse_train(load_checkpoint(checkpoint)["config"]))

    def completed(before: dict[str, Any]) -> dict[str, Any]:
        return to_plain(parse_train(before))

    resumed = checkpoint_to_resume(str(checkpoint), tmp_path, config, completed)
    assert resumed is not None and resumed["step"] == 1


def test_a_format_of_the_future_is_refused(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content | {"format": FORMAT + 1}, checkpoint)
    with pytest.raises(CheckpointError, match=rf"of format {FORMAT + 1}, written by a newer"):
        load_checkpoint(checkpoint)


def shrunk(value: Any, name: str) -> Any:
    """Copy nested dictionaries, with every floating-point tensor filled with its number."""
    if isinstance(value, dict):
        return {key: shrunk(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, Tensor) and value.is_floating_point():
        return number(name, value)
    return value


if __name__ == "__main__":
    source = torch.load(sys.argv[1], weights_only=True)
    torch.save(shrunk(source, ""), "shrunk.pt")
    FOLDER.mkdir(exist_ok=True)
    target = FOLDER / f"format_{source.get('format', 1)}.pt.gz"
    target.write_bytes(gzip.compress(Path("shrunk.pt").read_bytes(), 9, mtime=0))
    Path("shrunk.pt").unlink()
