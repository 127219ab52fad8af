"""Placement of deformable layers, norm layers and dilation of the ResNet."""

import pytest
import torch
import torchvision
from torch import nn

from detector.model.deformable_conv import DeformableConv2d, deformable_like
from detector.model.resnet import dilate, make_deformable, placement, resnet

# 3x3 convolutions of c2, c3, c4 and c5: one in each bottleneck block, two in each basic block.
COUNTS = {
    "resnet18": (4, 4, 4, 4),
    "resnet34": (6, 8, 12, 6),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnext50_32x4d": (3, 4, 6, 3),
    "resnext101_32x8d": (3, 4, 23, 3),
    "wide_resnet50_2": (3, 4, 6, 3),
}


@pytest.mark.parametrize("name", COUNTS)
def test_stages(name: str) -> None:
    body = resnet(name=name, norm="frozen_batch", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False)
    for first, stages in enumerate(("c2-c5", "c3-c5", "c4-c5", "c5")):
        names = placement(body, stages=stages, last_layers=None)
        assert len(names) == sum(COUNTS[name][first:]), stages
        layers = [f"layer{index}" for index in range(first + 1, 5)]
        assert sorted({n.split(".")[0] for n in names}) == layers
    assert placement(body, stages="none", last_layers=None) == []


def test_last_layers_are_counted_as_in_the_paper() -> None:
    # Table 1 of Dai et al. 2017: 1 means res5c, 3 means res5a to c, and 6 adds res4b20 to b22.
    body = resnet(
        name="resnet101", norm="frozen_batch", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False
    )
    assert placement(body, stages="none", last_layers=1) == ["layer4.2.conv2"]
    assert placement(body, stages="none", last_layers=6) == [
        *(f"layer3.{block}.conv2" for block in (20, 21, 22)),
        *(f"layer4.{block}.conv2" for block in (0, 1, 2)),
    ]


@pytest.mark.parametrize(
    "stages, last_layers, message",
    [
        ("c6", None, "deform.stages=c6"),
        ("c3", None, "deform.stages=c3"),
        ("c3-c4", None, "deform.stages=c3-c4"),
        ("none", 0, "deform.last_layers=0"),
        ("none", 17, "from 1 to 16"),
        ("c5", 3, "must be none"),
    ],
)
def test_refuses_unknown_places(stages: str, last_layers: int | None, message: str) -> None:
    body = resnet(name="resnet18", norm="batch", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False)
    with pytest.raises(ValueError, match=message):
        placement(body, stages=stages, last_layers=last_layers)


def test_refuses_unknown_names() -> None:
    with pytest.raises(ValueError, match="model.backbone=vgg"):
        resnet(name="vgg", norm="batch", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False)
    with pytest.raises(ValueError, match="model.norm=layer"):
        resnet(name="resnet18", norm="layer", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False)


def randomised(body: nn.Module) -> nn.Module:
    """Give the network random statistics and biases in place of the zeros and ones of a new one."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in body.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
        elif name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return body.eval()


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
@pytest.mark.parametrize("version, mask_start", [("v1", 1.0), ("v2", 1.0)])
def test_a_new_deformable_network_is_the_plain_one(
    name: str, version: str, mask_start: float
) -> None:
    plain = randomised(getattr(torchvision.models, name)(weights=None))
    body = resnet(name=name, norm="frozen_batch", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False)
    make_deformable(
        body,
        placement(body, stages="c2-c5", last_layers=None),
        modulated=version == "v2",
        offset_groups=2,
        mask_start=mask_start,
    )
    missing, unexpected = body.load_state_dict(plain.state_dict(), strict=False)
    assert missing and all(".conv_offset." in key for key in missing) and not unexpected
    image = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, actual = plain(image), body.eval()(image)
    assert (actual - expected).norm() / expected.norm() < 1e-5  # float32 through 50 layers


@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("groups", [1, 4, 8])
def test_a_new_deformable_layer_has_the_gradients_of_the_plain_one(
    stride: int, dilation: int, modulated: bool, groups: int
) -> None:
    """Also with groups as in a ResNeXt, and with fewer and more offset groups than groups."""
    torch.manual_seed(0)
    conv = nn.Conv2d(
        *(16, 24, 3, stride, dilation), dilation=dilation, groups=groups, bias=False
    ).double()
    input = torch.randn(2, 16, 7, 10, dtype=torch.float64, requires_grad=True)
    expected = conv(input)
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [input, conv.weight], grad)
    for offset_groups in (1, 2, 16):
        layer = deformable_like(
            conv, modulated=modulated, offset_groups=offset_groups, mask_start=1.0
        ).double()
        output = layer(input)
        assert layer.weight.shape == conv.weight.shape and layer.groups == groups
        torch.testing.assert_close(output, expected)
        found = torch.autograd.grad(output, [input, layer.weight], grad)
        torch.testing.assert_close(found, wanted)


def test_a_mask_of_one_half_halves_the_convolution() -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1, bias=False)
    layer = deformable_like(conv, modulated=True, offset_groups=1, mask_start=0.5)
    image = torch.randn(1, 4, 5, 7)
    torch.testing.assert_close(layer(image), conv(image) / 2)


def test_offsets_follow_stride_dilation_and_groups() -> None:
    conv = nn.Conv2d(8, 12, 3, stride=2, padding=2, dilation=2, groups=2)
    layer = deformable_like(conv, modulated=True, offset_groups=4, mask_start=1.0)
    image = torch.randn(2, 8, 9, 14)
    offset, mask = layer.offsets(image)
    assert offset.shape == (2, 2 * 4 * 9, 5, 7) and mask is not None
    assert mask.shape == (2, 4 * 9, 5, 7) and (mask == 1).all()
    torch.testing.assert_close(layer(image), conv(image))
    with pytest.raises(ValueError, match="deform.offset_groups=3"):
        deformable_like(conv, modulated=True, offset_groups=3, mask_start=1.0)


def test_offsets_stay_in_float32_under_autocast() -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1)
    layer = deformable_like(conv, modulated=True, offset_groups=1, mask_start=1.0)
    nn.init.normal_(layer.conv_offset.weight)
    image = torch.randn(1, 4, 5, 7)
    expected, _ = layer.offsets(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        offset, mask = layer.offsets(image)
        assert layer(image).dtype == torch.bfloat16
    assert torch.equal(offset, expected) and mask is not None and mask.dtype == torch.float32


def test_learned_offsets_move_the_samples() -> None:
    # With a bias, every tap samples one pixel further down and two further left.
    conv = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    layer = deformable_like(conv, modulated=False, offset_groups=1, mask_start=1.0)
    with torch.no_grad():
        layer.conv_offset.bias.copy_(torch.tensor([1.0, -2.0]).repeat(9))
    image = torch.randn(1, 2, 8, 9)
    torch.testing.assert_close(layer(image)[..., :-2, 3:], conv(image)[..., 1:-1, 1:-2])


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_dilated_c5_keeps_the_stride_of_c4(name: str) -> None:
    body = resnet(name=name, norm="batch", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False)
    image = torch.randn(
        1, body.layer3[-1].conv2.out_channels * (4 if name == "resnet50" else 1), 6, 8
    )
    assert body.layer4(image).shape[-2:] == (3, 4)
    keys = body.state_dict().keys()
    dilate(body.layer4, 2)
    assert body.layer4(image).shape[-2:] == (6, 8)
    assert body.state_dict().keys() == keys


def test_c5_dilation_is_torchvisions() -> None:
    # torchvision does not dilate the first block. Without its dilation, the outputs are equal.
    theirs = torchvision.models.resnet50(
        weights=None, replace_stride_with_dilation=[False, False, True]
    ).eval()
    ours = resnet(
        name="resnet50", norm="batch", c5_dilation=2, norm_eps=1e-5, stride_in_1x1=False
    ).eval()
    ours.load_state_dict(theirs.state_dict())
    ours.layer4[0].conv2.dilation = ours.layer4[0].conv2.padding = (1, 1)
    image = torch.randn(1, 1024, 5, 7)
    torch.testing.assert_close(ours.layer4(image), theirs.layer4(image))


def test_norms() -> None:
    body = resnet(name="resnet18", norm="group", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False)
    assert isinstance(body.bn1, nn.GroupNorm) and body.bn1.num_groups == 32
    assert not list(
        resnet(
            name="resnet18", norm="frozen_batch", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False
        ).bn1.parameters()
    )
    assert isinstance(
        resnet(
            name="resnet18", norm="batch", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False
        ).bn1,
        nn.BatchNorm2d,
    )


def test_deformable_layers_take_the_weights_along() -> None:
    body = resnet(name="resnet18", norm="batch", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False)
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    names = placement(body, stages="c5", last_layers=None)
    make_deformable(body, names, modulated=True, offset_groups=1, mask_start=1.0)
    after = body.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {
        name for name, module in body.named_modules() if isinstance(module, DeformableConv2d)
    } == set(names)
    assert after["layer4.1.conv2.conv_offset.weight"].shape == (27, 512, 3, 3)


def test_offsets_that_are_bounded() -> None:
    """Small offsets hardly change, large ones stay below the limit, and the gradient is right."""
    conv = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    free, bounded = (
        deformable_like(
            conv, modulated=True, offset_groups=1, mask_start=1.0, offset_limit=limit
        ).double()
        for limit in (None, 4.0)
    )
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(1, 2, 5, 6, generator=generator, dtype=torch.float64)
    for layer in (free, bounded):
        layer.conv_offset.bias.data[:9] = 1e-3
        layer.conv_offset.bias.data[9:18] = 50.0
    (before, mask), (after, same_mask) = free.offsets(input), bounded.offsets(input)
    assert torch.equal(mask, same_mask)
    assert (after[:, :9] - before[:, :9]).abs().max() < 1e-10  # x^3 / (3 limit^2)
    assert (after[:, 9:] <= 4.0).all() and (after[:, 9:] > 3.9).all()
    predicted = torch.randn(1, 27, 2, 2, generator=generator, dtype=torch.float64) * 5
    assert torch.autograd.gradcheck(
        lambda values: bounded.split(values)[0], predicted.requires_grad_()
    )
