"""Files of weights of other frameworks in every format, and files that are not weights."""

import gzip
import json
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from hydra import compose, initialize_config_dir
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from detector.builders.model import build_model, conventions_of
from detector.commands.weights import convert, described
from detector.config import CONFIGS, ConfigError, conventions, parse_train, to_plain
from detector.model.weights import files
from detector.model.weights.architecture import architecture
from detector.model.weights.files import WeightsError
from detector.model.weights.loading import load_file
from detector.model.weights.metadata import _classes_of_torchvision
from detector.model.weights.reading import read_weights

SMALL = ["model.backbone=resnet18", "model.fpn_channels=8", "model.box_head_channels=8"]
CLASSES = ("disc", "ring", "star")


def config_of(*words: str) -> Any:
    """Compose a configuration, with `model.weights` set later because Hydra parses its commas."""
    others = [word for word in words if not word.startswith("model.weights=")]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        config = parse_train(compose("train", [*SMALL, *others]))
    for word in words:
        if word not in others:
            config.model.weights = word.removeprefix("model.weights=")
    return config


def model_of(*words: str, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> FasterRCNN:
    config = config_of(*words)
    torch.manual_seed(seed)
    return build_model(config.model, config.deform, config.data.transform, len(classes), classes)


def as_mmdetection(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give a state dict the names and rows of mmdetection 3, without the code of the loader."""
    result: dict[str, Tensor] = OrderedDict()
    for key, value in state.items():
        key = key.replace("backbone.body.", "backbone.")
        for ours, theirs in (("inner_blocks", "lateral_convs"), ("layer_blocks", "fpn_convs")):
            key = key.replace(f"backbone.fpn.{ours}", f"neck.{theirs}")
        if key.startswith("neck."):
            key = key.replace(".0.weight", ".conv.weight").replace(".0.bias", ".conv.bias")
        key = key.replace("rpn.head.conv.0.0", "rpn_head.rpn_conv")
        key = key.replace("rpn.head.cls_logits", "rpn_head.rpn_cls")
        key = key.replace("rpn.head.bbox_pred", "rpn_head.rpn_reg")
        key = key.replace("roi_heads.box_head.fc6", "roi_head.bbox_head.shared_fcs.0")
        key = key.replace("roi_heads.box_head.fc7", "roi_head.bbox_head.shared_fcs.1")
        if key.startswith("roi_heads.box_predictor.cls_score"):
            value = torch.cat([value[1:], value[:1]])
        if key.startswith("roi_heads.box_predictor.bbox_pred"):
            value = value[4:]
        key = key.replace("roi_heads.box_predictor.cls_score", "roi_head.bbox_head.fc_cls")
        result[key.replace("roi_heads.box_predictor.bbox_pred", "roi_head.bbox_head.fc_reg")] = (
            value
        )
    return result


def as_detectron2(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Give a state dict the names and rows of detectron2, as numpy arrays as in its model zoo."""
    result = {}
    for key, value in state.items():
        if "num_batches" in key:
            continue
        if key.startswith("backbone.body."):
            key = key.replace("backbone.body.", "backbone.bottom_up.")
            for layer in (1, 2, 3, 4):
                key = key.replace(f"layer{layer}.", f"res{layer + 1}.")
            key = key.replace("bottom_up.bn1.", "bottom_up.stem.conv1.norm.")
            key = key.replace("bottom_up.conv1.", "bottom_up.stem.conv1.")
            key = key.replace("downsample.0.", "shortcut.").replace(
                "downsample.1.", "shortcut.norm."
            )
            key = key.replace("conv2.conv_offset", "conv2_offset")
            for number in (1, 2, 3):
                key = key.replace(f".bn{number}.", f".conv{number}.norm.")
        for index in range(4):
            key = key.replace(f"fpn.inner_blocks.{index}.0.", f"fpn_lateral{index + 2}.")
            key = key.replace(f"fpn.layer_blocks.{index}.0.", f"fpn_output{index + 2}.")
        key = key.replace("rpn.head.conv.0.0.", "proposal_generator.rpn_head.conv.")
        key = key.replace("rpn.head.cls_logits.", "proposal_generator.rpn_head.objectness_logits.")
        key = key.replace("rpn.head.bbox_pred.", "proposal_generator.rpn_head.anchor_deltas.")
        key = key.replace("box_head.fc6", "box_head.fc1").replace("box_head.fc7", "box_head.fc2")
        if "cls_score" in key:
            value = torch.cat([value[1:], value[:1]])
        if key.startswith("roi_heads.box_predictor.bbox_pred"):
            value = value[4:]
        result[key] = value.numpy().copy()
    return result


def same_but_for_background_boxes(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for key, value in expected.items():
        if "num_batches" in key:
            continue
        got = ours[key]
        if "box_predictor.bbox_pred" in key:
            assert not got[:4].any()
            got, value = got[4:], value[4:]
        assert torch.equal(got, value), key


# ---- Formats -------------------------------------------------------------------------------------


class HistoryBuffer:
    """Like mmengine's class: it holds a bound method, which is pickled as getattr(...)."""

    def __init__(self) -> None:
        self.log = np.arange(3.0)
        self.method = self.mean

    def mean(self) -> float:
        return float(self.log.mean())


def written(form: str, folder: Path, state: dict[str, Tensor]) -> Path:
    """Write a file of the kind `form` with these weights, without code of this project."""
    path = folder / f"{form}.pth"
    mmdet = as_mmdetection(state)
    meta = {"CLASSES": CLASSES, "config": "model = dict(style='pytorch')", "epoch": 12}
    match form:
        case "mmdetection 2, zoo":
            old = {"meta": meta, "state_dict": mmdet}
            torch.save(old, path, _use_new_zipfile_serialization=False)
        case "mmdetection 3, training":
            hub = {"log_scalars": {"train/loss": HistoryBuffer(), "lr": np.float64(0.1)}}
            meta = {"dataset_meta": {"classes": CLASSES}, "cfg": ""}
            torch.save({"meta": meta, "state_dict": mmdet, "message_hub": hub}, path)
        case "mmdetection 1, offsets beside":
            early = {
                key.replace("conv2.conv_offset", "conv2_offset").replace("roi_head.", ""): value
                for key, value in mmdet.items()
            }
            torch.save({"meta": meta, "state_dict": early}, path)
        case "detectron2, zoo":
            path = path.with_suffix(".pkl")
            content = {"model": as_detectron2(state), "__author__": "Detectron2 Model Zoo"}
            path.write_bytes(pickle.dumps(content, protocol=2))
        case "detectron2, training":
            tensors = {key: torch.from_numpy(one) for key, one in as_detectron2(state).items()}
            tensors["pixel_mean"] = torch.tensor([103.53, 116.28, 123.675]).reshape(3, 1, 1)
            tensors["pixel_std"] = torch.ones(3, 1, 1)
            tensors["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
            torch.save({"model": tensors, "optimizer": {}, "iteration": 9}, path)
        case "detectron2, bare":
            torch.save({k: torch.from_numpy(one) for k, one in as_detectron2(state).items()}, path)
        case "torchvision, distributed":
            torch.save({"model": {f"module.{key}": one for key, one in state.items()}}, path)
        case "safetensors of mmdetection":
            path = path.with_suffix(".safetensors")
            safetensors.torch.save_file({k: one.contiguous() for k, one in mmdet.items()}, path)
    return path


FORMS = [
    "mmdetection 2, zoo",
    "mmdetection 3, training",
    "mmdetection 1, offsets beside",
    "detectron2, zoo",
    "detectron2, training",
    "detectron2, bare",
    "torchvision, distributed",
    "safetensors of mmdetection",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("deform", ["none", "c3-c5_v1"])
def test_every_form_loads(form: str, deform: str, tmp_path: Path) -> None:
    if deform != "none" and form.startswith(("detectron2", "mmdetection 1")):
        deform, words = "c3-c5_v1", ["model.backbone=resnet50"]  # its blocks have a conv2_offset
    else:
        words = []
    source = model_of(f"deform={deform}", *words, seed=1)
    for name, parameter in source.named_parameters():
        if "conv_offset" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    path = written(form, tmp_path, source.state_dict())
    loaded = model_of(f"deform={deform}", *words, f"model.weights={path}", seed=2)
    expected = source.state_dict()
    if form.startswith("torchvision"):
        for key, value in expected.items():
            assert torch.equal(loaded.state_dict()[key], value), key
    else:
        same_but_for_background_boxes(loaded.state_dict(), expected)


def test_what_is_told_of_a_file(tmp_path: Path) -> None:
    state = model_of("deform=c3-c5_v2", seed=1).state_dict()
    path = written("mmdetection 3, training", tmp_path, state)
    told = described(weights := read_weights(path), architecture(weights.state, path))
    for words in (
        "of mmdetection",
        "resnet18",
        "c3-c5, v2, 1 offset group",
        "3: disc, ring, star",
        "model=resnet18_fpn deform=c3-c5_v2 model.fpn_channels=8 model.box_head_channels=8",
        "deform.mask_start=0.5",
        f"model.weights='{path}'",  # quoted for Hydra; the shell may need more
    ):
        assert words in told


def test_the_command_runs_and_converts(tmp_path: Path) -> None:
    state = model_of("deform=none", seed=1).state_dict()
    path, out = written("detectron2, zoo", tmp_path, state), tmp_path / "converted.pt"
    command = [sys.executable, "-m", "detector.model.weights", str(path), f"convert={out}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CONFIGS.parent)
    assert done.returncode == 0, done.stderr
    converted = torch.load(out, weights_only=True)
    same_but_for_background_boxes(converted["model"], state)
    model = converted["config"]["model"]
    assert model["conventions"]["channel_order"] == "bgr"
    assert model["backbone"] == "resnet18"
    assert converted["classes"] == ["class 1", "class 2", "class 3"]


def test_annotations_name_the_classes_of_a_converted_file(tmp_path: Path) -> None:
    """Labels of detectron2 count the categories in the order of their ids."""
    path = written("detectron2, zoo", tmp_path, model_of("deform=none", seed=1).state_dict())
    weights = read_weights(path)
    names = {7: "ring", 3: "disc", 90: "star"}
    categories = [{"id": number, "name": name} for number, name in names.items()]
    truth = {"images": [], "annotations": [], "categories": categories}
    (tmp_path / "val.json").write_text(json.dumps(truth))
    words = [f"data.root={tmp_path}", "data.val.annotations=val.json"]
    network = architecture(weights.state, path)
    convert(weights, network, tmp_path / "out.pt", words)
    converted = torch.load(tmp_path / "out.pt", weights_only=True)
    assert converted["classes"] == ["disc", "ring", "star"]
    assert converted["category_ids"] == [3, 7, 90]
    truth["categories"].pop()
    (tmp_path / "val.json").write_text(json.dumps(truth))
    with pytest.raises(ConfigError, match="has 2 categories, but .* has 3 classes"):
        convert(weights, network, tmp_path / "other.pt", words)
    assert not (tmp_path / "other.pt").exists()


def test_cocos_unused_ids_have_names_of_their_own() -> None:
    """torchvision calls all ten N/A, and evaluation refuses a name that is listed twice."""
    state = {"roi_heads.box_predictor.cls_score.weight": torch.zeros(91, 4)}
    names = _classes_of_torchvision(state)
    assert names is not None and len(names) == len(set(names)) == 90
    assert names[0] == "person" and names[11] == "unused 12" and names[89] == "toothbrush"


@pytest.mark.parametrize("name", ["torchvision", "detectron2", "mmdetection"])
def test_conventions_go_with_the_weights(name: str, tmp_path: Path) -> None:
    """They go into the configuration, and from this project's checkpoint into further trainings."""
    form = {"torchvision": "torchvision, distributed", "detectron2": "detectron2, bare"}
    state = model_of("deform=none", seed=1).state_dict()
    path = written(form.get(name, "mmdetection 2, zoo"), tmp_path, state)
    config = config_of("deform=none", f"model.weights={path}")
    assert conventions_of(config.model) == conventions(name)
    config.model.conventions = conventions_of(config.model)
    own = {"model": state, "config": to_plain(config), "classes": list(CLASSES)}
    torch.save(own, tmp_path / "own.pt")
    further = config_of("deform=none", f"model.weights={tmp_path / 'own.pt'}")
    assert conventions_of(further.model) == conventions(name)


def test_the_file_says_otherwise_than_its_framework(tmp_path: Path) -> None:
    state = model_of("deform=none").state_dict()
    tensors = {key: torch.from_numpy(value) for key, value in as_detectron2(state).items()}
    tensors["pixel_mean"] = torch.tensor([123.675, 116.28, 103.53]).reshape(3, 1, 1)
    tensors["pixel_std"] = torch.tensor([58.395, 57.12, 57.375]).reshape(3, 1, 1)
    torch.save({"model": tensors}, tmp_path / "rgb.pth")
    found = conventions_of(config_of(f"model.weights={tmp_path / 'rgb.pth'}").model)
    assert (found.channel_order, found.stride_in_1x1) == ("rgb", False)
    assert found.pixel_std == pytest.approx([58.395, 57.12, 57.375])

    caffe = (
        "img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)\n"
        "model = dict(backbone=dict(type='ResNet', style='caffe'))"
    )
    for key in ("cfg", "config"):  # in 3.x, in 2.x
        content = {"meta": {key: caffe}, "state_dict": as_mmdetection(state)}
        torch.save(content, tmp_path / "caffe.pth")
        found = conventions_of(config_of(f"model.weights={tmp_path / 'caffe.pth'}").model)
        assert (found.channel_order, found.stride_in_1x1) == ("bgr", True)
        assert found.pixel_mean == [103.53, 116.28, 123.675]
    odd = "img_norm_cfg = dict(mean=[0.485 * 255, 116.28, 103.53])"
    torch.save({"meta": {"cfg": odd}, "state_dict": as_mmdetection(state)}, tmp_path / "odd.pth")
    found = conventions_of(config_of(f"model.weights={tmp_path / 'odd.pth'}").model)
    assert found == conventions("mmdetection")

    converted = {"model": as_detectron2(state), "__author__": "torchvision"}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(converted))
    found = conventions_of(config_of(f"model.weights={tmp_path / 'R-50.pkl'}").model)
    assert (found.channel_order, found.stride_in_1x1) == ("rgb", False)


def test_norm_layers_that_caffe2_merged(tmp_path: Path) -> None:
    """They have only a scale and a shift; the mean becomes 0 and the variance 1."""
    state = as_detectron2(model_of("deform=none", seed=1).state_dict())
    merged = {key: value for key, value in state.items() if "running" not in key}
    (tmp_path / "merged.pkl").write_bytes(pickle.dumps({"model": merged}))
    loaded = model_of("deform=none", f"model.weights={tmp_path / 'merged.pkl'}")
    norm = loaded.backbone.body.layer2[0].downsample[1]
    assert torch.equal(
        norm.weight, torch.from_numpy(state["backbone.bottom_up.res3.0.shortcut.norm.weight"])
    )
    assert not norm.running_mean.any() and (norm.running_var == 1).all()


def test_heads_for_masks_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = as_mmdetection(model_of("deform=none", seed=1).state_dict())
    state["roi_head.mask_head.convs.0.conv.weight"] = torch.zeros(1)
    torch.save({"state_dict": state}, tmp_path / "mask.pth")
    caplog.set_level("INFO")
    model_of("deform=none", f"model.weights={tmp_path / 'mask.pth'}")
    assert "1 of the head of masks or keypoints left out" in caplog.text


def test_wrappers_of_wrappers(tmp_path: Path) -> None:
    source = model_of("deform=none", seed=1)
    state = {f"_orig_mod.module.{key}": value for key, value in source.state_dict().items()}
    torch.save(state, tmp_path / "wrapped.pth")
    loaded = model_of("deform=none", f"model.weights={tmp_path / 'wrapped.pth'}", seed=2)
    assert torch.equal(loaded.backbone.body.conv1.weight, source.backbone.body.conv1.weight)


@pytest.mark.parametrize("form", ["mmdetection 2, zoo", "detectron2, zoo"])
def test_networks_with_groups(form: str, tmp_path: Path) -> None:
    words = ["model.backbone=resnext50_32x4d", "deform=c5_v1"]
    source = model_of(*words, seed=1)
    path = written(form, tmp_path, source.state_dict())
    loaded = model_of(*words, f"model.weights={path}", seed=2)
    same_but_for_background_boxes(loaded.state_dict(), source.state_dict())
    found = conventions_of(config_of(*words, f"model.weights={path}").model)
    usual = conventions(form.partition(" ")[0].strip(","))
    if form.startswith("detectron2"):  # as in its faster_rcnn_X_101_32x8d_FPN_3x.yaml
        others = {"pixel_std": [57.375, 57.12, 58.395], "stride_in_1x1": False}
        assert found == replace(usual, **others)
    else:
        assert found == usual


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "resnet34", "resnet50", "resnet101"),
        *("resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2"),
    ],
)
def test_every_backbone_is_recognised(name: str) -> None:
    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    network = architecture({f"backbone.body.{key}": one for key, one in state.items()}, name)
    assert network.backbone == name and network.model == f"{name}_fpn"


@pytest.mark.parametrize("name", ["resnext101_64x4d", "wide_resnet101_2", "resnet152"])
def test_backbones_that_are_not_built(name: str) -> None:
    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    with pytest.raises(WeightsError, match=r"bottleneck blocks with a first conv2 of shape \("):
        architecture({f"backbone.body.{key}": one for key, one in state.items()}, name)


# ---- Classes -------------------------------------------------------------------------------------


def test_rows_are_taken_by_the_name_of_their_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = model_of("deform=none", seed=1)
    path = written("mmdetection 2, zoo", tmp_path, source.state_dict())
    caplog.set_level("INFO")
    here = ("Star ", "comet", "disc")
    loaded = model_of("deform=none", f"model.weights={path}", classes=here, seed=2)
    fresh = model_of("deform=none", classes=here, seed=2)
    theirs, ours = (model.roi_heads.box_predictor for model in (source, loaded))
    new = fresh.roi_heads.box_predictor
    for label, there in ((0, 0), (1, 3), (3, 1)):
        assert torch.equal(ours.cls_score.weight[label], theirs.cls_score.weight[there])
        if there:
            rows, others = slice(4 * label, 4 * label + 4), slice(4 * there, 4 * there + 4)
            assert torch.equal(ours.bbox_pred.weight[rows], theirs.bbox_pred.weight[others])
    assert torch.equal(ours.cls_score.weight[2], new.cls_score.weight[2])
    assert "2 of 3 classes matched by name, newly initialised: 1" in caplog.text
    assert "comet" in caplog.text


def test_classes_in_another_order_are_matched_though_their_number_is_the_same(
    tmp_path: Path,
) -> None:
    source = model_of("deform=none", seed=1)
    path = written("mmdetection 2, zoo", tmp_path, source.state_dict())
    loaded = model_of("deform=none", f"model.weights={path}", classes=CLASSES[::-1])
    theirs, ours = (m.roi_heads.box_predictor.cls_score.bias for m in (source, loaded))
    assert ours.tolist() == theirs[[0, 3, 2, 1]].tolist()


# ---- Refusals ------------------------------------------------------------------------------------


def refusal(path: Path, *words: str) -> str:
    with pytest.raises(WeightsError) as error:
        load_file(model_of(*(words or ("deform=none",))), path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_file_that_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    for content, words in (
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b'{"a": 1}', "JSON"),
        (gzip.compress(b"x"), "gzip"),
        (b"\x08\x09\x12\x07pytorch", "ONNX"),
        (b"hello world", "begins with b'hello world'"),
        (b"\x80\x02garbage", "cut off or damaged"),
        (pickle.dumps([1, 2]), "holds a list"),
        (pickle.dumps({"a": 1}), "holds no state dict but a"),
        (pickle.dumps(np.zeros(3)), r"one array of shape (3,)"),
    ):
        path.write_bytes(content)
        assert words in refusal(path)
    state = model_of("deform=none").state_dict()
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:5000])
    assert "cut off or damaged" in refusal(path)
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))
    assert "TorchScript" in refusal(path)
    torch.save(torch.nn.Linear(1, 1), path)
    assert "whole object of torch.nn.modules.linear.Linear" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")
    assert "zip archive of 1 files, such as readme.txt" in refusal(path)
    assert "is a folder, not a file of weights; it holds file.pth" in refusal(tmp_path)


def test_another_architecture(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt"
    config = config_of("model.backbone=resnet10", "deform=none")
    torch.save(model_of("model.backbone=resnet10", "deform=none").state_dict(), path)
    assert "was made with model=tiny; here model=resnet18_fpn" in refusal(path)
    assert config.model.backbone == "resnet10"
    torch.save(model_of("deform=c5_v1").state_dict(), path)
    assert "was made with deform=c5_v1; here deform=none" in refusal(path)
    assert "was made with deform=c5_v1; here deform=c5_v2" in refusal(path, "deform=c5_v2")
    torch.save(model_of("deform=none", "model.fpn_channels=16").state_dict(), path)
    assert (
        "made with model.fpn_channels=16 model.rpn_channels=16; "
        "here model.fpn_channels=8 model.rpn_channels=8"
    ) in refusal(path)


def test_detectors_without_an_fpn(tmp_path: Path) -> None:
    """They load into a detector without an FPN; a backbone alone fits detectors of both kinds."""
    path, here = tmp_path / "dc5.pt", ["model.neck=dc5", "model.c5_dilation=2", "deform=none"]
    source = model_of(*here, "model.rpn_channels=16", seed=1)
    torch.save(source.state_dict(), path)
    loaded = model_of(*here, "model.rpn_channels=16", f"model.weights={path}", seed=2)
    for key, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    message = refusal(path)
    assert "made with model.neck=dc5 " in message and "here model.neck=fpn " in message
    assert "model.rpn_channels=16; here model.rpn_channels=8" in refusal(path, *here)
    told = described(weights := read_weights(path), architecture(weights.state, path))
    assert "Faster R-CNN, resnet18, DC5 of 8 channels, box head of 8" in told
    assert (
        "model=resnet18_fpn deform=none model.neck=dc5 model.fpn_channels=8 model.rpn_channels=16 "
        "model.box_head_channels=8 model.c5_dilation=2"
    ) in told

    body = {key: value for key, value in source.state_dict().items() if ".body." in key}
    torch.save({key.removeprefix("backbone.body."): value for key, value in body.items()}, path)
    for words in (here, ["deform=none"]):
        loaded = model_of(*words, f"model.weights={path}", seed=2)
        assert torch.equal(loaded.backbone.body.conv1.weight, source.backbone.body.conv1.weight)


def test_masks_of_another_size(tmp_path: Path) -> None:
    state = model_of("deform=c3-c5_v2").state_dict()
    path = written("mmdetection 2, zoo", tmp_path, state)
    message = refusal(path, "deform=c3-c5_v2")
    assert "was made with deform.mask_start=0.5; here deform.mask_start=1.0" in message


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("backbone.res2.0.conv1.weight", (64, 64, 1, 1), "detectron2's Faster R-CNN C4"),
        ("head.cls_subnet.0.weight", (8, 8, 3, 3), "RetinaNet"),
        ("roi_head.bbox_head.0.fc_cls.weight", (8, 8), "Cascade R-CNN"),
        ("transformer.encoder.layers.0.linear1.weight", (8, 8), "DETR"),
        ("model.0.conv.weight", (8, 3, 3, 3), "YOLO"),
        ("embed.weight", (8, 8), "names such as embed.weight"),
        ("neck.lateral_convs.0.conv.weight", (8, 64, 1, 1), "names such as neck"),
    ],
)
def test_other_networks(name: str, shape: tuple, words: str, tmp_path: Path) -> None:
    torch.save({name: torch.zeros(shape)}, tmp_path / "other.pth")
    assert words in refusal(tmp_path / "other.pth")


def test_mmdetection_1_with_the_background_first(tmp_path: Path) -> None:
    state = as_mmdetection(model_of("deform=none").state_dict())
    for kind in ("weight", "bias"):
        rows = state[f"roi_head.bbox_head.fc_reg.{kind}"]
        state[f"roi_head.bbox_head.fc_reg.{kind}"] = torch.cat([rows, rows[:4]])
    torch.save({"state_dict": state}, tmp_path / "first.pth")
    assert "16 box rows for 4 class scores" in refusal(tmp_path / "first.pth")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value.mul(torch.nan), "has values that are not finite"),
        (lambda value: value.to(torch.complex64), "is of torch.complex64, expected floating"),
        (lambda value: value.to(torch.int8), "is of torch.int8, expected floating"),
    ],
)
def test_numbers_that_are_no_weights(change: Any, words: str, tmp_path: Path) -> None:
    state = model_of("deform=none").state_dict()
    torch.save({key: change(value) for key, value in state.items()}, tmp_path / "odd.pth")
    assert words in refusal(tmp_path / "odd.pth")


def test_what_is_not_taken_over_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = (
        "teacher = dict(data_preprocessor=dict(mean=[0, 0, 0]), backbone=dict(style='caffe'))\n"
        "model = dict(rpn_head=dict(anchor_generator=dict(scales=[4], strides=[4, 8])),\n"
        "    data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[4, 5, 6], bgr_to_rgb=False),\n"
        "    roi_head=dict(bbox_head=dict(bbox_coder=dict(target_stds=[0.05, 0.05, 0.1, 0.1]))))\n"
        "evil = __import__('os').system('touch ran')\n"
    )
    state = as_mmdetection(model_of("deform=none").state_dict())
    torch.save({"meta": {"cfg": text}, "state_dict": state}, tmp_path / "own.pth")
    weights = read_weights(tmp_path / "own.pth")
    assert weights.conventions == {
        "framework": "mmdetection",
        "pixel_mean": [1, 2, 3],
        "pixel_std": [4, 5, 6],
        "channel_order": "bgr",
    }
    assert "rpn_head.anchor_generator.scales=[4]" in caplog.text
    assert "target_stds=[0.05, 0.05, 0.1, 0.1]" in caplog.text


# ---- Safetensors ---------------------------------------------------------------------------------


def test_safetensors_whose_length_looks_like_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for length in range(200):
        safetensors.torch.save_file({"x" * length + "y": torch.ones(1)}, path)
        if path.read_bytes()[:1] == b"\x80":
            break
    else:
        raise AssertionError("none begins as a pickle")
    assert files.read(path).kind == "safetensors"


def test_names_that_json_holds(tmp_path: Path) -> None:
    """This project's safetensors store their classes and conventions."""
    state = {key: one.contiguous() for key, one in model_of("deform=none").state_dict().items()}
    own = {"classes": json.dumps(CLASSES), "conventions": json.dumps({"framework": "detectron2"})}
    safetensors.torch.save_file(state, tmp_path / "own.safetensors", own)
    weights = read_weights(tmp_path / "own.safetensors")
    assert weights.classes == CLASSES
    assert weights.conventions == {"framework": "detectron2"}
    others = {"classes": "cat, dog", "conventions": "none"}  # by another tool, not JSON
    safetensors.torch.save_file(state, tmp_path / "own.safetensors", others)
    assert read_weights(tmp_path / "own.safetensors").classes is None
