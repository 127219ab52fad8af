"""Deformable RoI pooling in the detector: its start, its offsets, and loading plain weights."""

from collections.abc import Mapping

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from torchvision.ops import roi_align

from detector.builders.model import build_model
from detector.builders.training import build_optimizer
from detector.config import CONFIGS, ConfigError, parse_train
from detector.model.roi_pooling import BoxPooling
from detector.model.weights.files import WeightsError
from detector.model.weights.loading import load_file
from detector.schema import TrainConfig


def config_of(*overrides: str) -> TrainConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return parse_train(compose("train", [*overrides]))


def detector(*overrides: str) -> torch.nn.Module:
    config = config_of(*overrides)
    torch.manual_seed(3)
    return build_model(config.model, config.deform, config.data.transform, 4)


def pooling(kind: str, *, channels: int = 6, mask_start: float = 1.0, ratio: int = 2) -> BoxPooling:
    return BoxPooling(
        channels=channels,
        levels={"0": 4, "1": 8},
        aligned=True,
        sampling_ratio=ratio,
        level_rule="torchvision",
        kind=kind,
        mask_start=mask_start,
    )


def features(channels: int = 6) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {
        "0": torch.randn(2, channels, 40, 48, generator=rng, requires_grad=True),
        "1": torch.randn(2, channels, 20, 24, generator=rng, requires_grad=True),
    }


BOXES = [
    torch.tensor([[10.0, 20, 50, 90], [0, 0, 180, 150]]),  # the second is pooled from level 1
    torch.tensor([[33.0, 44, 66, 77]]),
]


@pytest.mark.parametrize("kind, mask_start", [("deform_v1", 0.5), ("deform_v2", 1.0)])
def test_a_new_layer_is_roi_align(kind: str, mask_start: float) -> None:
    maps = features()
    plain = pooling("align")(maps, BOXES, [])
    assert torch.equal(pooling(kind, mask_start=mask_start)(maps, BOXES, []), plain)
    half = pooling("deform_v2", mask_start=0.5)(maps, BOXES, [])
    torch.testing.assert_close(half, plain / 2)


def test_bins_that_move_together_are_a_box_that_moves() -> None:
    layer, maps = pooling("deform_v2"), features()
    assert layer.fc_offset is not None
    with torch.no_grad():
        along_x, along_y, logits = layer.fc_offset.bias.unflatten(0, (3, 49))
        along_x.fill_(2.0), along_y.fill_(-1.5), logits.fill_(1.0)
    pooled = layer(maps, BOXES, [])
    moved = []
    for image, level, box in ((0, "0", BOXES[0][0]), (0, "1", BOXES[0][1]), (1, "0", BOXES[1][0])):
        width, height = (box[2:] - box[:2]).tolist()
        by = torch.tensor([0.1 * 2 * width, 0.1 * -1.5 * height]).repeat(2)
        roi = torch.cat([torch.tensor([float(image)]), box + by])[None]
        scale = {"0": 1 / 4, "1": 1 / 8}[level]
        moved.append(roi_align(maps[level], roi, 7, scale, 2, True))
    expected = torch.cat(moved) * 2 * torch.tensor(1.0).sigmoid()
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4)


def test_offsets_are_of_what_the_boxes_show() -> None:
    layer, maps = pooling("deform_v1"), features()
    assert layer.fc_offset is not None
    torch.nn.init.normal_(layer.fc_offset.weight, std=0.01)
    plain = torch.cat(
        [
            roi_align(maps["0"], torch.tensor([[0.0, 10, 20, 50, 90]]), 7, 1 / 4, 2, True),
            roi_align(maps["1"], torch.tensor([[0.0, 0, 0, 180, 150]]), 7, 1 / 8, 2, True),
            roi_align(maps["0"], torch.tensor([[1.0, 33, 44, 66, 77]]), 7, 1 / 4, 2, True),
        ]
    )
    offset, mask = layer.offsets(plain)
    expected = plain.flatten(1) @ layer.fc_offset.weight.T
    torch.testing.assert_close(offset.flatten(1), expected)
    assert mask is None and offset.shape == (3, 2, 7, 7)
    together = layer(maps, BOXES, [])
    alone = [layer(maps, [BOXES[0][i : i + 1], BOXES[1][:0]], []) for i in range(2)]
    alone.append(layer(maps, [BOXES[0][:0], BOXES[1]], []))
    torch.testing.assert_close(together, torch.cat(alone))
    together.square().sum().backward()
    assert layer.fc_offset.weight.grad.abs().min(1).values.max() > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.offsets(plain.bfloat16())[0].dtype == torch.float32


@pytest.mark.parametrize("kind", ["deform_v1", "deform_v2"])
def test_plain_weights_and_the_same_seed(kind: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    pooling(kind)
    assert torch.equal(torch.get_rng_state(), before)
    plain, deforming = detector(), detector(f"model.roi_pool={kind}")
    theirs: Mapping[str, Tensor] = deforming.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    names = {f"roi_heads.box_roi_pool.fc_offset.{part}" for part in ("weight", "bias")}
    assert theirs.keys() - plain.state_dict().keys() == names


def test_plain_weights_can_begin_a_deformable_network(tmp_path) -> None:
    path = tmp_path / "plain.pt"
    plain = detector()
    torch.save(plain.state_dict(), path)
    deforming = detector("model.roi_pool=deform_v1")
    for parameter in deforming.parameters():
        torch.nn.init.zeros_(parameter)
    load_file(deforming, path)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, deforming.state_dict()[name]), name
    torch.save(deforming.state_dict(), path)
    with pytest.raises(WeightsError, match="model.roi_pool=deform_v1; here model.roi_pool=align"):
        load_file(plain, path)
    with pytest.raises(WeightsError, match="=deform_v1; here model.roi_pool=deform_v2"):
        load_file(detector("model.roi_pool=deform_v2"), path)


def test_it_learns() -> None:
    config = config_of("model.roi_pool=deform_v2", "schedule.lr=0.01")
    model = detector("model.roi_pool=deform_v2").train()
    optimizer = build_optimizer(model, config.schedule, 0.1, 1.0)
    target = {"boxes": torch.tensor([[20.0, 30, 80, 90]]), "labels": torch.tensor([1])}
    for _ in range(2):
        losses = model([torch.rand(3, 128, 128)], [target])
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    layer = model.roi_heads.box_roi_pool.fc_offset
    assert layer.weight.any() and all(part.any() for part in layer.bias.unflatten(0, (3, 49)))


def test_another_kind() -> None:
    with pytest.raises(ConfigError, match="model.roi_pool=deform must be one of align, deform_v1"):
        config_of("model.roi_pool=deform")
