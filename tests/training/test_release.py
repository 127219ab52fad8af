"""An exported model loads as its model card says, and equals the checkpoint's model."""

import re
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from detector.builders.model import build_model
from detector.config import parse_train, to_plain
from detector.model.weights.files import WeightsError
from detector.model.weights.loading import load_file
from detector.training.checkpoint import KEYS, CheckpointError, save_checkpoint
from detector.training.release import export, main

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TINY = [
    "model.backbone=resnet10",
    "model.weights=null",
    "model.norm=batch",
    "model.trainable_layers=5",
    "model.fpn_channels=16",
    "model.box_head_channels=16",
    "model.score_threshold=0",
    "data.transform.min_size=64",
    "data.transform.max_size=64",
]


@pytest.fixture(scope="module")
def model_and_checkpoint() -> tuple[torch.nn.Module, dict]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = parse_train(compose("train", TINY))
    torch.manual_seed(0)
    model = build_model(config.model, config.deform, config.data.transform, 2).eval()
    checkpoint = dict.fromkeys(KEYS) | {
        "model": model.state_dict(),
        "config": to_plain(config),
        "classes": ["sea|lion", "fish: {small}"],
        "category_ids": [7, 2],
        "data": "of all images",
        "step": 30,
        "epoch": 3,
        "validation": {"metrics": {"AP": 0.123456, "APs": None}},
    }
    return model, checkpoint


def exported(folder: Path, checkpoint: dict) -> Path:
    save_checkpoint(folder / "best.pt", checkpoint)
    export(folder / "best.pt", folder / "new" / "export")
    return folder / "new" / "export"


def test_the_card_loads_the_model(model_and_checkpoint: tuple, tmp_path: Path) -> None:
    model, checkpoint = model_and_checkpoint
    folder = exported(tmp_path, checkpoint)
    (code,) = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(code.replace("DIRECTORY", str(folder)), names)
    images = [torch.rand(3, 60, 50)]
    with torch.no_grad():
        expected, actual = model(images)[0], names["model"](images)[0]
    assert len(expected["scores"]) > 0
    for key in ("boxes", "labels", "scores"):
        assert torch.equal(actual[key], expected[key])


def test_what_is_written(model_and_checkpoint: tuple, tmp_path: Path) -> None:
    _, checkpoint = model_and_checkpoint
    folder = exported(tmp_path, checkpoint)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.yaml",
        "model.safetensors",
    ]
    state = safetensors.torch.load_file(folder / "model.safetensors")
    assert state.keys() == checkpoint["model"].keys()
    for name, tensor in checkpoint["model"].items():
        assert torch.equal(state[name], tensor) and state[name].dtype == tensor.dtype
    assert OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")) == checkpoint["config"]
    card = (folder / "README.md").read_text()
    for row in ("| 1 | sea\\|lion | 7 |", "| 2 | fish: {small} | 2 |", "| AP | 0.1235 |"):
        assert row in card.splitlines()
    assert "| APs | - |" in card and "`best.pt`: step 30, epoch 3" in card
    assert "Apache-2.0" in card and "model.weights=DIRECTORY/model.safetensors" in card


def test_the_front_matter(model_and_checkpoint: tuple, tmp_path: Path) -> None:
    _, checkpoint = model_and_checkpoint
    _, front, _ = (exported(tmp_path, checkpoint) / "README.md").read_text().split("---\n", 2)
    content = OmegaConf.to_container(OmegaConf.create(front))
    assert isinstance(content, dict)
    assert content["license"] == "apache-2.0"
    assert content["tags"] == ["object-detection", "faster-rcnn", "deformable-convolution"]
    (model,) = content["model-index"]
    assert model["name"] == "Faster R-CNN resnet10 FPN, deformable c3-c5 (v2)"
    assert model["results"][0]["metrics"] == [{"type": "AP", "value": 0.123456}]


def test_a_checkpoint_that_was_not_evaluated(model_and_checkpoint: tuple, tmp_path: Path) -> None:
    _, checkpoint = model_and_checkpoint
    card = exported(tmp_path, checkpoint | {"validation": {}}) / "README.md"
    assert "model-index" not in card.read_text()


def test_a_damaged_export_is_refused(model_and_checkpoint: tuple, tmp_path: Path) -> None:
    model, checkpoint = model_and_checkpoint
    path = exported(tmp_path, checkpoint) / "model.safetensors"
    content = path.read_bytes()
    for broken in (content[:-1], content[:100], b"", b"junk" * 100):
        path.write_bytes(broken)
        with pytest.raises(
            WeightsError, match=r"model\.safetensors is (safeten|no file of weights)"
        ):
            load_file(model, path)
    path.unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors: no such file"):
        load_file(model, path)


def test_the_command_line(
    model_and_checkpoint: tuple,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def command(*arguments: str | Path) -> None:
        monkeypatch.setattr(sys, "argv", ["checkpoint", *map(str, arguments)])
        main()

    def fails(code: int, culprit: str, *arguments: str | Path) -> None:
        with pytest.raises(SystemExit) as stop:
            command(*arguments)
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert stop.value.code == code and "error: " in line and culprit in line

    path = tmp_path / "last.pt"
    save_checkpoint(path, model_and_checkpoint[1])
    command("export", path, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()
    fails(1, "nowhere.pt: no such checkpoint", "export", tmp_path / "nowhere.pt", tmp_path / "out")
    fails(1, "last.pt: cannot be written (File exists)", "export", path, path)
    fails(2, "directory", "export", path)
    with pytest.raises(CheckpointError, match="cannot be written"):
        export(path, path / "below")
