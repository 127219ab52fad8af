"""FLOPs of a detector, compared with a count from the shapes of its layers' outputs."""

import pytest
import torch
from small import small_detector
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from detector.model.deformable_conv import DeformableConv2d
from detector.model.flops import forward_flops
from detector.model.resnet import make_deformable, placement, resnet


@pytest.fixture(scope="module", params=["fpn", "dc5", "groups"])
def model(request: pytest.FixtureRequest) -> FasterRCNN:
    torch.manual_seed(0)
    neck = "dc5" if request.param == "dc5" else "fpn"
    body = resnet(
        name="resnext50_32x4d" if request.param == "groups" else "resnet10",
        norm="batch",
        c5_dilation=2 if neck == "dc5" else 1,
        norm_eps=1e-5,
        stride_in_1x1=False,
    )
    place = placement(body, stages="c5", last_layers=None)
    make_deformable(body, place, modulated=True, offset_groups=1, mask_start=1.0)
    return small_detector(body, neck=neck, score_threshold=0.05)


def test_they_are_those_of_the_layers(model: FasterRCNN) -> None:
    """Each output value costs two operations for each weight that it is a weighted sum with."""
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
