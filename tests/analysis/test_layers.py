"""Sampling locations of layers agree with those of the operator; statistics agree with numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from detector.analysis.layers import Layer, convolutions, sampling
from detector.analysis.offsets.learned import learned
from detector.analysis.offsets.report import bin_rows
from detector.analysis.offsets.roi_bins import bin_movements
from detector.analysis.sampling.places import last_layers, look, trace
from detector.config import conventions
from detector.data.dataset import DetectionDataset
from detector.evaluation.offset_sizes import OffsetSizes
from detector.model.deformable_conv import DeformableConv2d
from detector.model.faster_rcnn import faster_rcnn
from detector.model.resnet import make_deformable, placement, resnet

CPU = torch.device("cpu")


def tiny(stages: str, *, c5_dilation: int = 1, offset_groups: int = 1, roi_pool: str = "align"):
    """Build a detector with random offsets of up to a few pixels."""
    torch.manual_seed(0)
    body = resnet(
        name="resnet10",
        norm="batch",
        c5_dilation=c5_dilation,
        norm_eps=1e-5,
        stride_in_1x1=False,
    )
    make_deformable(
        body,
        placement(body, stages=stages, last_layers=None),
        modulated=True,
        offset_groups=offset_groups,
        mask_start=1.0,
    )
    model = faster_rcnn(
        body,
        num_classes=2,
        conventions=conventions("torchvision"),
        neck="fpn",
        fpn_channels=16,
        trainable_layers=5,
        anchor_sizes=[16, 32, 64, 128, 256],
        aspect_ratios=[1.0],
        rpn_channels=16,
        rpn_pre_nms_top_n_train=20,
        rpn_pre_nms_top_n_test=20,
        rpn_top_n_train=20,
        rpn_top_n_test=20,
        rpn_batch_size=16,
        roi_pool=roi_pool,
        mask_start=1.0,
        box_batch_size=8,
        box_head_channels=16,
        score_threshold=0.05,
        nms="hard",
        nms_iou=0.5,
        nms_sigma=0.5,
        detections_per_image=5,
        min_size=96,
        max_size=160,
    )
    for module in model.modules():
        if isinstance(module, DeformableConv2d):
            nn.init.normal_(module.conv_offset.weight, std=0.02)
            nn.init.uniform_(module.conv_offset.bias, -1.5, 1.5)
    return model.eval()


def test_places_are_those_that_the_operator_reads() -> None:
    """If the input holds its own coordinates and only one tap has weight 1, the output is the
    location of that tap.
    """
    layer = DeformableConv2d(
        2, 2, (3, 3), stride=(2, 1), padding=(1, 2), dilation=(2, 1), groups=1, bias=False,
        modulated=False, offset_groups=1, mask_start=1.0,
    )  # fmt: skip
    nn.init.uniform_(layer.conv_offset.bias, -0.9, 0.9)
    nn.init.normal_(layer.conv_offset.weight, std=0.001)
    height, width = 13, 17
    rows = torch.arange(height).float().view(-1, 1).expand(height, width)
    columns = torch.arange(width).float().expand(height, width)
    coordinates = torch.stack([rows, columns])[None]
    with torch.no_grad():
        offset, _ = layer.offsets(coordinates)
    seen = Layer(
        "one", offset[0].numpy().reshape(1, 9, 2, *offset.shape[-2:]), np.ones((1, 9, 1, 1)),
        (height, width), (2, 1), (1, 2), (2, 1), True, False,
    )  # fmt: skip
    places = seen.places()[0]
    for tap in range(9):
        with torch.no_grad():
            layer.weight.zero_()
            layer.weight[0, 0, tap // 3, tap % 3] = layer.weight[1, 1, tap // 3, tap % 3] = 1
            read = layer(coordinates)[0].numpy()
        inside = (places[tap] >= 0).all(axis=0) & (places[tap, 0] <= height - 1)
        inside &= places[tap, 1] <= width - 1
        assert inside.sum() > 20
        # Bilinear interpolation of a linear function is exact, except for rounding.
        assert np.abs(read - places[tap])[:, inside].max() < 1e-4


@pytest.mark.parametrize("dilation", [1, 2])
def test_effective_dilation_is_exact(dilation: int) -> None:
    plain = np.zeros((2, 9, 2, 4, 5), dtype=np.float32)
    shape = ((8, 9), (2, 1), (1, 2), (dilation, dilation), True, True)
    ones = np.ones((2, 9, 4, 5))
    assert (Layer("x", plain, ones, *shape).effective_dilation() == dilation).all()
    tap = np.array([(i - 1, j - 1) for i in range(3) for j in range(3)], dtype=np.float32)
    doubled = plain + dilation * tap[None, :, :, None, None]
    assert (Layer("x", doubled, ones, *shape).effective_dilation() == 2 * dilation).all()
    shifted = doubled + np.float32(3.5)  # a shift does not change the dilation
    assert (Layer("x", shifted, ones, *shape).effective_dilation() == 2 * dilation).all()


def samples(num_images: int = 2) -> "DetectionDataset":
    """Return images of 96x128 pixels with one object of each size."""

    class Data:
        def __len__(self) -> int:
            return num_images

        def __getitem__(self, index: int) -> dict:
            generator = torch.Generator().manual_seed(index)
            boxes = torch.tensor([[4.0, 4, 20, 20], [30, 10, 80, 70], [10, 0, 120, 96]])
            return {
                "image": torch.randint(
                    0, 256, (3, 96, 128), generator=generator, dtype=torch.uint8
                ),
                "boxes": boxes,
                "labels": torch.ones(3, dtype=torch.int64),
                "area": (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
                "iscrowd": torch.zeros(3, dtype=torch.int64),
            }

    return Data()  # type: ignore[return-value]


def test_a_plain_network_has_its_dilation() -> None:
    found = learned(tiny("none", c5_dilation=2), samples(), device=CPU, max_images=9)
    assert len(found) == 8
    for name, layer in found.items():
        expected = 2.0 if name.startswith("layer4") else 1.0
        for place in ("small", "medium", "large", "background"):
            assert layer.dilation[place].mean == expected and layer.dilation[place].deviation == 0
        assert layer.dilation["small"].number == 2
        assert not layer.is_deformable and layer.offsets_by_place is None
        assert layer.outside == layer.grid_outside > 0


def test_share_that_depends_on_the_place() -> None:
    """Constant offsets do not depend on the place at all; the share of random ones is computed from
    their variance.
    """
    model = tiny("c5")
    first = model.backbone.body.layer4[0].conv1
    nn.init.zeros_(first.conv_offset.weight)
    nn.init.constant_(first.conv_offset.bias[: first.num_offsets], 1.5)
    nn.init.zeros_(first.conv_offset.bias[first.num_offsets :])
    found = learned(model, samples(), device=CPU, max_images=1)
    shifted, drawn = found["layer4.0.conv1"], found["layer4.0.conv2"]
    assert shifted.offsets_by_place == pytest.approx(0, abs=1e-9)
    assert shifted.offset_mean == pytest.approx(1.5 * np.sqrt(2))
    assert shifted.offset_p99 == pytest.approx(1.5 * np.sqrt(2), rel=0.02)
    assert shifted.mask_mean == 1 and shifted.masks_by_place is None
    with torch.no_grad(), sampling(model) as layers:
        images, _ = model.transform([samples()[0]["image"].float() / 255])
        model.backbone(images.tensors)
    offsets = layers[second_name := "layer4.0.conv2"].offsets.reshape(18, -1)
    expected = offsets.var(axis=1).sum() / np.square(offsets).mean(axis=1).sum()
    assert second_name in found and drawn.offsets_by_place == pytest.approx(expected, rel=1e-5)
    masks = layers[second_name].masks.reshape(9, -1) - 1
    assert drawn.masks_by_place == pytest.approx(
        masks.var(axis=1).sum() / np.square(masks).mean(axis=1).sum(), rel=1e-4
    )


def test_sizes_while_a_detector_runs() -> None:
    """Sizes agree with numpy's mean and percentile of all lengths, and the sizes of two processes
    can be added.
    """
    model = tiny("c4-c5", offset_groups=2)
    pictures = [samples()[index]["image"].float() / 255 for index in range(2)]
    whole, parts = OffsetSizes(), [OffsetSizes(), OffsetSizes()]
    lengths: dict[str, list[np.ndarray]] = {}
    for picture, part in zip(pictures, parts, strict=True):
        with torch.no_grad(), sampling(model) as layers, whole.watching(model):
            with part.watching(model):
                model([picture])
        for name, layer in layers.items():
            if layer.is_deformable:
                lengths.setdefault(name, []).append(np.linalg.norm(layer.offsets, axis=2).ravel())
    parts[0].add(parts[1])
    assert parts[0].summary() == whole.summary() and set(whole.summary()) == set(lengths)
    for name, sizes in whole.summary().items():
        expected = np.concatenate(lengths[name])
        assert sizes.mean == pytest.approx(expected.mean(), rel=1e-5)
        assert sizes.largest == pytest.approx(expected.max(), rel=1e-6)
        assert sizes.p99 == pytest.approx(np.percentile(expected, 99), rel=0.03)
    assert whole.summary()["layer4.0.conv1"].side == 3  # 96 / 32


def test_bins_that_move_alike_for_all_objects() -> None:
    """The offsets come from the bias alone: plus and minus (0.3, -0.4), whose length is 0.5. gamma
    scales it to a tenth.
    """
    model = tiny("none", roi_pool="deform_v2")
    assert bin_movements(tiny("none"), samples(), device=CPU, max_images=2) == {}
    bias = model.roi_heads.box_roi_pool.fc_offset.bias
    with torch.no_grad():
        for plane, value in zip(bias.unflatten(0, (3, 49)), (0.3, -0.4, 0.0), strict=True):
            plane.fill_(value)
            plane[::2] *= -1
    found = bin_movements(model, samples(), device=CPU, max_images=2)
    assert list(found) == ["small", "medium", "large"]
    for numbers in found.values():
        assert numbers["number"] == 2
        assert numbers["mean"] == pytest.approx(0.05) == numbers["p99"]
        assert numbers["by_object"] == pytest.approx(0, abs=1e-6)
        assert (numbers["mask_mean"], numbers["mask_deviation"]) == (1, 0)
    nn.init.normal_(model.roi_heads.box_roi_pool.fc_offset.weight, std=0.1)
    nn.init.zeros_(bias)
    found = bin_movements(model, samples(), device=CPU, max_images=2)
    assert all(numbers["by_object"] > 0.01 for numbers in found.values())
    header, rows = bin_rows(found)
    assert [row[:2] for row in rows] == [["small", "2"], ["medium", "2"], ["large", "2"]]
    assert len(header) == len(rows[0])


def test_three_plain_layers_sample_a_square() -> None:
    layers = [
        Layer(name, np.zeros((1, 9, 2, 9, 9)), np.ones((1, 9, 9, 9)), size, (s, s), (1, 1), (1, 1),
              False, False)
        for name, size, s in (("a", (18, 18), 2), ("b", (9, 9), 1), ("c", (9, 9), 1))
    ]  # fmt: skip
    places, weights = trace(layers, np.array([4, 5]), plain=False)
    assert places.shape == (729, 2) and (weights == 1).all()
    reached = {tuple(place) for place in places.tolist()}
    # Two layers of stride 1 reach 2 cells around (4, 5). The first layer doubles that and adds 1.
    assert reached == {(y, x) for y in range(3, 14) for x in range(5, 16)}


def test_masks_and_offsets_on_the_way() -> None:
    offsets = np.zeros((1, 9, 2, 5, 5))
    offsets[0, :, 0] = 1.0
    masks = np.full((1, 9, 5, 5), 0.5)
    one = Layer("a", offsets, masks, (5, 5), (1, 1), (1, 1), (1, 1), True, True)
    places, weights = trace([one, one], np.array([2, 2]), plain=False)
    plain, _ = trace([one, one], np.array([2, 2]), plain=True)
    assert (places - plain == [2.0, 0.0]).all() and (weights == 0.25).all()


def test_a_look_at_an_image() -> None:
    """The effective receptive field and the sampling locations move with the point."""
    model = tiny("c5", offset_groups=2)
    image = samples()[0]["image"].float() / 255
    at, beside = look(model, image, [(16.0, 32.0), (112.0, 32.0)])
    assert at.field.sum() == pytest.approx(1, rel=1e-4) and at.field.shape == (96, 128)
    assert at.places.shape == ((9 * 2) ** 2, 2)  # c5 has two layers with two offset groups each
    assert at.grid.shape == (81, 2) and at.grid.mean(axis=0) == pytest.approx([0, 32], abs=33)
    assert (beside.grid - at.grid).mean(axis=0) == pytest.approx([96, 0])
    centre = (at.field.sum(axis=0) * np.arange(128)).sum()
    assert centre < (beside.field.sum(axis=0) * np.arange(128)).sum()
    assert [layer.name for layer in last_layers(_layers(tiny("none")))] == [
        "layer3.0.conv2",
        "layer4.0.conv1",
        "layer4.0.conv2",
    ]


def _layers(model) -> dict[str, Layer]:
    with torch.no_grad(), sampling(model) as layers:
        model.backbone(torch.zeros(1, 3, 64, 64))
    assert list(layers) == list(convolutions(model))
    return layers
