"""An exported detector gives the same detections as the model, in a process without torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from detector import entry
from detector.builders.model import build_model
from detector.commands import export
from detector.config import ConfigError, parse_train, to_plain
from detector.export.agreement import Agreement, ExportError, agreement
from detector.schema import ExportConfig
from detector.training.checkpoint import KEYS, save_checkpoint

pytest.importorskip("onnxruntime")

CLASSES = ["fish", "sea star", "crab"]
TINY = [
    *("model.backbone=resnet10", "model.fpn_channels=16", "model.box_head_channels=16"),
    *("model.score_threshold=0.2", "model.detections_per_image=20", "model.rpn_top_n_test=60"),
    *("data.transform.min_size=96", "data.transform.max_size=150"),
]
# A few networks that together cover all options of a network.
NETWORKS = {
    "plain": ["deform=none"],
    "v2, torchvision": ["deform=c3-c5_v2", "model.norm=group"],
    "v1, two groups, detectron2": [
        *("deform=c4-c5_v1", "deform.offset_groups=2", "conventions=detectron2"),
    ],
    "v2, limited, mmdetection, dilated": [
        *("deform=c5_v2", "deform.mask_start=0.5", "deform.offset_limit=2.0"),
        *("conventions=mmdetection", "model.c5_dilation=2"),
    ],
    "groups": ["model.backbone=resnext50_32x4d", "deform=c5_v2"],
    "without an FPN": [
        *("model.neck=dc5", "model.c5_dilation=4", "deform=c5_v1", "model.rpn_channels=24"),
        *("model.anchor_sizes=[16,32,64]", "model.rpn_pre_nms_top_n_test=100"),
    ],
}


def checkpoint_of(folder: Path, *words: str) -> Path:
    """Write a checkpoint of a model that detects many objects in noise and has nonzero offsets."""
    with initialize_config_dir(version_base="1.3", config_dir=str(entry.CONFIGS)):
        config = parse_train(compose("train", [*TINY, *words]))
    torch.manual_seed(0)
    model = build_model(config.model, config.deform, config.data.transform, len(CLASSES))
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if "conv_offset.weight" in name:
            torch.nn.init.normal_(value, std=0.05)
        elif "running_mean" in name:
            torch.nn.init.normal_(value, std=0.1)
        elif "running_var" in name:
            torch.nn.init.uniform_(value, 0.5, 1.5)
        elif "rpn.head" in name or "box_predictor" in name:
            torch.nn.init.normal_(value, std=0.1)
    if "conventions=detectron2" in words:  # it does not divide pixels by their standard deviation
        model.backbone.body.conv1.weight.data /= 58
    content = dict.fromkeys(KEYS) | {"classes": CLASSES, "category_ids": [1, 2, 3]}
    content |= {"config": to_plain(config), "model": model.state_dict()}
    save_checkpoint(folder / "last.pt", content)
    return folder / "last.pt"


def config_of(checkpoint: Path, output: Path, **others: Any) -> ExportConfig:
    values = {"format": "onnx", "images": None, "size": None, "nms": None} | others
    return ExportConfig(checkpoint=str(checkpoint), output=str(output), **values)


@pytest.fixture
def generated_images(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Replace the images of the embedded task, in which an untrained model detects nothing."""
    images = [export.generated(seed, *size) for seed, size in enumerate(export.SIZES)]
    monkeypatch.setattr(export, "own_images", lambda *_: images)
    return images


RUN = """
import sys
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
arrays = np.load(sys.argv[2])
outputs = [session.run(None, {"images": arrays[name]}) for name in arrays.files]
names = ("boxes", "scores", "labels", "num")
found = {f"{n} {name}": v for name, o in zip(arrays.files, outputs) for n, v in zip(names, o)}
np.savez(sys.argv[3], **found)
assert "torch" not in sys.modules
print(session.get_modelmeta().custom_metadata_map["classes"])
"""


@pytest.mark.parametrize(
    "network",
    [pytest.param(name, marks=pytest.mark.slow if name == "groups" else ()) for name in NETWORKS],
)
def test_onnx(network: str, tmp_path: Path, generated_images: list[np.ndarray]) -> None:
    """onnxruntime alone runs single images of any size, and batches of images."""
    checkpoint = checkpoint_of(tmp_path, *NETWORKS[network])
    export.run(config_of(checkpoint, tmp_path / "model.onnx"))  # raises if the detections differ
    arrays = {f"one {n}": image[None] for n, image in enumerate(generated_images)}
    first = generated_images[0]
    arrays["batch"] = np.stack([first, first[::-1], first[:, ::-1]])
    np.savez(tmp_path / "in.npz", **arrays)
    files = [tmp_path / "model.onnx", tmp_path / "in.npz", tmp_path / "out.npz"]
    command = [sys.executable, "-c", RUN, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == CLASSES

    saved = torch.load(checkpoint, weights_only=True)
    config = parse_train(saved["config"])
    model = build_model(config.model, config.deform, config.data.transform, len(CLASSES)).eval()
    model.load_state_dict(saved["model"])
    found = np.load(tmp_path / "out.npz")
    for name, images in arrays.items():
        for index, pixels in enumerate(images):
            number = found[f"num {name}"][index]
            assert not found[f"scores {name}"][index, number:].any()

            def theirs(_: np.ndarray, i: int = index, n: str = name, k: int = number) -> Any:
                keys = ("boxes", "scores", "labels")
                return {key: torch.from_numpy(found[f"{key} {n}"][i, :k]) for key in keys}

            result = agreement(model, theirs, [np.ascontiguousarray(pixels)])
            assert result.detections >= 3, name
            assert result.holds, (name, result)


@pytest.mark.parametrize("network", ["v2, torchvision", "without an FPN"])
def test_a_program_of_torch(
    network: str, tmp_path: Path, generated_images: list[np.ndarray]
) -> None:
    checkpoint = checkpoint_of(tmp_path, *NETWORKS[network])
    output = tmp_path / "model.pt2"
    export.run(config_of(checkpoint, output, format="torch", size=[120, 140]))
    program = torch.export.load(output).module()
    boxes, scores, labels = program(torch.from_numpy(export.of_size(generated_images[1], 120, 140)))
    assert len(boxes) == len(scores) == len(labels) >= 3


def test_an_exported_model_with_other_detections_is_an_error(
    tmp_path: Path, generated_images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_of(tmp_path, *NETWORKS["plain"])
    to_onnx = export.to_onnx

    def shifted(*arguments: Any) -> export.Run:
        run = to_onnx(*arguments)
        return lambda pixels: (found := run(pixels)) | {"boxes": found["boxes"] + 0.2}

    monkeypatch.setattr(export, "to_onnx", shifted)
    with pytest.raises(ExportError, match="gives other detections than"):
        export.run(config_of(checkpoint, tmp_path / "model.onnx"))


def test_soft_nms_is_refused(tmp_path: Path, generated_images: list[np.ndarray]) -> None:
    checkpoint = checkpoint_of(tmp_path, *NETWORKS["plain"], "model.nms=soft_linear")
    for form in ("onnx", "torch"):
        with pytest.raises(
            ConfigError, match="model.nms=soft_linear cannot be exported, only hard"
        ):
            export.run(config_of(checkpoint, tmp_path / "model", format=form))
    export.run(config_of(checkpoint, tmp_path / "model.onnx", nms="hard"))


def test_tolerances_of_an_agreement() -> None:
    assert Agreement(box=0.1, score=1e-3).holds
    assert not Agreement(box=0.11).holds
    assert not Agreement(score=2e-3).holds
    assert not Agreement(unmatched=1).holds


def test_the_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = [sys.executable, "-m", "detector.export", "output=x.onnx"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=entry.CONFIGS.parent)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: missing: give checkpoint=FILE"
