"""Operations of a detector, beside a count from the shapes that its layers saw."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from detector.model.deformable_conv import DeformableConv2d
from detector.model.faster_rcnn import faster_rcnn
from detector.model.flops import forward_flops
from detector.model.resnet import make_deformable, placement, resnet


@pytest.fixture(scope="module")
def model() -> FasterRCNN:
    torch.manual_seed(0)
    body = resnet(name="resnet10", norm="batch", c5_dilation=1)
    place = placement(body, stages="c5", last_layers=None)
    make_deformable(body, place, modulated=True, offset_groups=1, mask_start=1.0)
    return faster_rcnn(
        body,
        num_classes=2,
        fpn_channels=8,
        trainable_layers=5,
        anchor_sizes=[8, 16, 32, 64, 128],
        aspect_ratios=[1.0],
        rpn_top_n_train=20,
        rpn_top_n_test=10,
        rpn_batch_size=8,
        box_batch_size=8,
        box_head_channels=8,
        score_threshold=0.05,
        detections_per_image=5,
        min_size=64,
        max_size=96,
    )


def test_they_are_those_of_the_layers(model: FasterRCNN) -> None:
    """Two for each weight that each number of the output is a sum over."""
    counts: dict[str, int] = {}

    def count(layer: nn.Module, args: tuple, output: Tensor) -> None:
        kind = type(layer).__name__
        counts[kind] = counts.get(kind, 0) + 2 * output.numel() * layer.weight[0].numel()

    kinds = (nn.Conv2d, nn.Linear, DeformableConv2d)
    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, kinds)]
    model.eval()
    with torch.no_grad():
        model([torch.zeros(3, 64, 96)])
    for hook in hooks:
        hook.remove()
    assert all(counts[kind.__name__] > 0 for kind in kinds)
    assert forward_flops(model, 64, 96) == sum(counts.values())


def test_an_image_is_resized_first(model: FasterRCNN) -> None:
    assert forward_flops(model, 32, 48) == forward_flops(model, 64, 96)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(model: FasterRCNN, training: bool) -> None:
    model.train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    forward_flops(model, 64, 96)
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
