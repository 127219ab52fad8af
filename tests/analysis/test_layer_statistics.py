"""Statistics of layers beside networks whose offsets are known."""

import numpy as np
import pytest
import torch
from tiny_networks import samples, tiny
from torch import nn

from detector.analysis.layers import record_layers
from detector.analysis.offsets.layer_statistics import measure_layers

CPU = torch.device("cpu")


def test_a_plain_network_has_its_dilation() -> None:
    found = measure_layers(tiny("none", c5_dilation=2), samples(), device=CPU, max_images=9)
    assert len(found) == 8
    for name, layer in found.items():
        expected = 2.0 if name.startswith("layer4") else 1.0
        for place in ("small", "medium", "large", "background"):
            assert layer.dilation[place].mean == expected and layer.dilation[place].deviation == 0
        assert layer.dilation["small"].number == 2
        assert not layer.is_deformable and layer.offsets_by_place is None
        assert layer.outside == layer.grid_outside > 0


def test_an_object_belongs_to_the_nearest_cell() -> None:
    """Cell (1, 1) of stride 32 has its centre at (32.5, 32.5), cell (0, 0) at (0.5, 0.5)."""
    model = tiny("c5")
    sample = samples()[0]
    box = torch.tensor([[20.0, 20, 36, 36]])  # its centre is at (28, 28)
    area, crowd = torch.tensor([256.0]), torch.zeros(1, dtype=torch.int64)
    sample |= {"boxes": box, "area": area, "iscrowd": crowd}
    found = measure_layers(model, [sample], device=CPU, max_images=1)["layer4.0.conv2"]
    with torch.no_grad(), record_layers(model) as layers:
        images, _ = model.transform([sample["image"].float() / 255])
        model.backbone(images.tensors)
    dilation = layers["layer4.0.conv2"].effective_dilation()
    assert dilation.shape == (3, 4)
    assert found.dilation["small"].mean == pytest.approx(dilation[1, 1])
    outside = np.delete(dilation.ravel(), 5)  # the box has the centre of cell (1, 1) alone
    assert found.dilation["background"].number == 11
    assert found.dilation["background"].mean == pytest.approx(outside.mean())


def test_what_depends_on_the_place() -> None:
    """A constant shift does not; without one, all does."""
    model = tiny("c5")
    first = model.backbone.body.layer4[0].conv1
    nn.init.zeros_(first.conv_offset.weight)
    nn.init.constant_(first.conv_offset.bias[: first.num_offsets], 1.5)
    nn.init.zeros_(first.conv_offset.bias[first.num_offsets :])
    found = measure_layers(model, samples(), device=CPU, max_images=1)
    shifted, drawn = found["layer4.0.conv1"], found["layer4.0.conv2"]
    assert shifted.offsets_by_place == pytest.approx(0, abs=1e-9)
    assert shifted.offset_mean == pytest.approx(1.5 * np.sqrt(2))
    assert shifted.offset_p99 == pytest.approx(1.5 * np.sqrt(2), rel=0.02)
    assert shifted.mask_mean == 1 and shifted.masks_by_place is None
    with torch.no_grad(), record_layers(model) as layers:
        images, _ = model.transform([samples()[0]["image"].float() / 255])
        model.backbone(images.tensors)
    offsets = layers[second_name := "layer4.0.conv2"].offsets.reshape(18, -1)
    expected = offsets.var(axis=1).sum() / np.square(offsets).mean(axis=1).sum()
    assert second_name in found and drawn.offsets_by_place == pytest.approx(expected, rel=1e-5)
    masks = layers[second_name].masks.reshape(9, -1) - 1
    assert drawn.masks_by_place == pytest.approx(
        masks.var(axis=1).sum() / np.square(masks).mean(axis=1).sum(), rel=1e-4
    )
