"""Movements of the bins of RoI pooling beside those that its bias sets."""

import pytest
import torch
from tiny_networks import samples, tiny
from torch import nn

from detector.analysis.offsets.report import bin_rows
from detector.analysis.offsets.roi_bins import bin_movements

CPU = torch.device("cpu")


def test_bins_that_move_alike_for_all_objects() -> None:
    """By the bias alone, to and fro: (0.3, -0.4) is 0.5 long, of which gamma leaves a tenth."""
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
