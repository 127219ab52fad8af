"""Weights from files and from torchvision, without a network connection."""

import logging
from pathlib import Path
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
import torchvision
from small import small_detector
from torchvision.models import ResNet18_Weights, WeightsEnum
from torchvision.models.detection import FasterRCNN

from detector.model.resnet import make_deformable, placement, resnet
from detector.model.weights.files import WeightsError
from detector.model.weights.loading import load_file, load_imagenet


def build(stages: str, *, num_classes: int = 3, norm: str = "batch") -> FasterRCNN:
    body = resnet(name="resnet18", norm=norm, c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False)
    names = placement(body, stages=stages, last_layers=None)
    make_deformable(body, names, modulated=False, offset_groups=1, mask_start=1.0)
    return small_detector(
        body,
        num_classes=num_classes,
        fpn_channels=16,
        rpn_channels=16,
        rpn_pre_nms_top_n_train=50,
        rpn_pre_nms_top_n_test=50,
        rpn_top_n_train=50,
        rpn_top_n_test=50,
        rpn_batch_size=16,
        box_batch_size=16,
        box_head_channels=16,
        detections_per_image=10,
    )


def imagenet_from(state: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        type(ResNet18_Weights.IMAGENET1K_V1), "get_state_dict", lambda self, **how: state
    )


def test_imagenet_weights_fit_plain_and_deformable(monkeypatch: pytest.MonkeyPatch) -> None:
    source = torchvision.models.resnet18(weights=None)
    imagenet_from(source.state_dict(), monkeypatch)
    for norm in ("batch", "frozen_batch"):
        body = resnet(name="resnet18", norm=norm, c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False)
        names = placement(body, stages="c5", last_layers=None)
        make_deformable(body, names, modulated=True, offset_groups=1, mask_start=1.0)
        load_imagenet(body, "resnet18")
        assert torch.equal(body.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
        assert torch.equal(body.bn1.running_var, source.bn1.running_var)
        assert not body.layer4[1].conv2.conv_offset.weight.any()


@pytest.mark.parametrize("name", ["resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2"])
def test_imagenet_weights_of_wider_networks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = getattr(torchvision.models, name)(weights=None)
    asked = []

    def get_state_dict(self: WeightsEnum, **how) -> dict:
        asked.append(self.url)
        return source.state_dict()

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    body = resnet(name=name, norm="batch", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False)
    load_imagenet(body, name)
    assert torch.equal(body.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    (url,) = asked
    assert Path(url).name.startswith(f"{name}-")


def test_no_imagenet_weights() -> None:
    body = resnet(name="resnet10", norm="batch", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False)
    with pytest.raises(WeightsError, match="there are no ImageNet weights for resnet10: train"):
        load_imagenet(body, "resnet10")


def test_imagenet_weights_are_for_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    imagenet_from(torchvision.models.resnet18(weights=None).state_dict(), monkeypatch)
    with pytest.raises(
        WeightsError, match="ImageNet weights for resnet18 has unexpected tensors: bn1.run"
    ):
        load_imagenet(
            resnet(
                name="resnet18", norm="group", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False
            ),
            "resnet18",
        )


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self, **how):
        raise URLError("no route")

    monkeypatch.setattr(type(ResNet18_Weights.IMAGENET1K_V1), "get_state_dict", fail)
    with pytest.raises(
        WeightsError, match=r"no route.*fetch https://.*resnet18.*model.weights=PATH"
    ):
        load_imagenet(
            resnet(
                name="resnet18", norm="batch", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False
            ),
            "resnet18",
        )


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_plain_detector_becomes_a_deformable_one(tmp_path: Path, wrapped: bool) -> None:
    torch.manual_seed(0)
    plain, deformable = build("none").eval(), build("c3-c5").eval()
    state = plain.state_dict()
    torch.save({"model": state} if wrapped else state, tmp_path / "plain.pt")
    load_file(deformable, tmp_path / "plain.pt")
    images = [torch.rand(3, 70, 90)]
    with torch.no_grad():
        expected, actual = plain(images)[0], deformable(images)[0]
    assert len(expected["scores"]) == 10
    torch.testing.assert_close(actual["scores"], expected["scores"], rtol=0, atol=1e-5)


def test_safetensors(tmp_path: Path) -> None:
    source, model = build("c5"), build("c5")
    safetensors.torch.save_file(source.state_dict(), tmp_path / "model.safetensors")
    load_file(model, tmp_path / "model.safetensors")
    for key, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key


def test_old_names_of_torchvision(tmp_path: Path) -> None:
    source, model = build("none"), build("c5")
    state = source.state_dict()
    old = {
        key.replace("_blocks.1.0.", "_blocks.1.").replace("head.conv.0.0.", "head.conv."): value
        for key, value in state.items()
    }
    assert {"backbone.fpn.inner_blocks.1.weight", "rpn.head.conv.bias"} <= old.keys()
    torch.save(old, tmp_path / "old.pth")
    load_file(model, tmp_path / "old.pth")
    for key in ("backbone.fpn.inner_blocks.1.0.weight", "rpn.head.conv.0.0.bias"):
        assert torch.equal(model.state_dict()[key], state[key])


def test_a_backbone_alone(tmp_path: Path) -> None:
    source = torchvision.models.resnet18(weights=None)
    torch.save(source.state_dict(), tmp_path / "resnet18.pth")
    model = build("none")
    load_file(model, tmp_path / "resnet18.pth")
    assert torch.equal(model.backbone.body.conv1.weight, source.conv1.weight)


def test_other_classes_leave_the_predictor_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, model = build("none", num_classes=5), build("none", num_classes=3)
    fresh = model.roi_heads.box_predictor.cls_score.weight.clone()
    torch.save(source.state_dict(), tmp_path / "five.pt")
    with caplog.at_level(logging.WARNING):
        load_file(model, tmp_path / "five.pt")
    assert "five.pt is for other classes" in caplog.text
    assert torch.equal(model.roi_heads.box_predictor.cls_score.weight, fresh)
    assert torch.equal(model.roi_heads.box_head.fc6.weight, source.roi_heads.box_head.fc6.weight)


def test_refusals_name_the_file_or_the_tensor(tmp_path: Path) -> None:
    model = build("none")
    with pytest.raises(WeightsError, match=r"nothing.pt: no such file"):
        load_file(model, tmp_path / "nothing.pt")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(WeightsError, match=r"junk.pt is no file of weights but something"):
        load_file(model, tmp_path / "junk.pt")
    torch.save({"model": {"epoch": 3}}, tmp_path / "odd.pt")
    with pytest.raises(WeightsError, match=r"odd.pt .a torch file. holds no state dict but model"):
        load_file(model, tmp_path / "odd.pt")
    state = model.state_dict()
    del state["rpn.head.cls_logits.bias"]
    torch.save(state, tmp_path / "short.pt")
    with pytest.raises(
        WeightsError, match=r"short.pt lacks the tensors: rpn.head.cls_logits.bias$"
    ):
        load_file(model, tmp_path / "short.pt")
    state = model.state_dict() | {"rpn.head.cls_logits.bias": torch.zeros(7)}
    torch.save(state, tmp_path / "shape.pt")
    with pytest.raises(
        WeightsError, match=r"shape.pt has tensors of another .*: rpn.head.cls_logits.bias"
    ):
        load_file(model, tmp_path / "shape.pt")
