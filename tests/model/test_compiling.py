"""Compiled training compared with eager training, and how often it compiles."""

import copy
import logging
from functools import partialmethod

import pytest
import torch
from small import small_detector
from torch import nn
from torch._dynamo.utils import counters
from torchvision.models.detection import FasterRCNN

from detector.model.compiling import compile_parts
from detector.model.resnet import make_deformable, resnet

SIZES = [(64, 96), (64, 96), (96, 64), (64, 96), (96, 64)]


def losses(model: FasterRCNN, numbers_of_rois: list[int]) -> tuple[list[float], list[int]]:
    """Train for a step on images of each size.

    Returns:
        The losses of the steps, and the number of graphs that were compiled until each step's end.
    """
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    target = {"boxes": torch.tensor([[4.0, 8.0, 30.0, 40.0]]), "labels": torch.tensor([1])}
    result, graphs = [], []
    for (height, width), number in zip(SIZES, numbers_of_rois, strict=True):
        model.roi_heads.fg_bg_sampler.batch_size_per_image = number
        images = [torch.rand(3, height, width, generator=rng) for _ in range(2)]
        loss = torch.stack(list(model(images, [target | {"seed": 1}] * 2).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        result.append(loss.item())
        graphs.append(counters["stats"]["unique_graphs"])
    return result, graphs


@pytest.mark.slow
def test_numbers_of_rois_and_sizes_of_images(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Inductor would compile for minutes; `test_train.py` trains with it.
    fast = partialmethod(nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(nn.Module, "compile", fast)
    caplog.set_level(logging.INFO)
    torch.manual_seed(0)
    body = resnet(
        name="resnet10", norm="frozen_batch", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False
    )
    make_deformable(body, ["layer4.0.conv1"], modulated=True, offset_groups=1, mask_start=1.0)
    eager = small_detector(body).train()
    compiled = copy.deepcopy(eager)
    torch._dynamo.reset()
    counters.clear()
    compile_parts(compiled)
    (line,) = caplog.messages
    assert "roi_heads.box_predictor; anchors" in line and line.endswith("stay eager")
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    numbers = [8, 5, 7, 6, 4]
    actual, graphs = losses(compiled, numbers)
    expected, _ = losses(eager, numbers)
    assert actual == pytest.approx(expected, rel=1e-4)
    # A graph for each of the four parts, and more for a new size of images. Another number of RoIs
    # compiles nothing, nor does a size that was met before.
    assert graphs[:2] == [4, 4] and graphs[2] == graphs[3] == graphs[4]
