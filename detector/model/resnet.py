"""torchvision's ResNet with deformable 3x3 convolutions, in whole stages or in the last layers.

The stages are called c2 to c5, as in the papers. torchvision calls them layer1 to layer4, and the
state dict keeps these names. A bottleneck block has one 3x3 convolution; a basic block (ResNet-10,
18 and 34) has two.
"""

from collections.abc import Callable
from functools import partial

import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from detector.model.deformable_conv import deformable_like
from detector.model.frozen_norm import FrozenBatchNorm2d

STAGES = {"c2": "layer1", "c3": "layer2", "c4": "layer3", "c5": "layer4"}


def resnet(
    *,
    name: str,
    norm: str,
    c5_dilation: int,
    norm_eps: float,
    stride_in_1x1: bool,
) -> ResNet:
    """Build an untrained ResNet.

    Args:
        name: resnet10 (one basic block per stage), resnet18, resnet34, resnet50 or resnet101;
            resnext50_32x4d or resnext101_32x8d, whose 3x3 convolutions have 32 groups (Xie et al.
            2017); wide_resnet50_2, whose 3x3 convolutions are twice as wide (Zagoruyko and
            Komodakis 2016).
        norm: `frozen_batch`, `batch`, `sync_batch` (over all processes, on CUDA) or `group` (32
            groups).
        c5_dilation: 1 gives the usual ResNet. With 2 or more, c5 keeps the stride of c4 (16) and
            its 3x3 convolutions are dilated: the atrous baseline of Dai et al. 2017, table 3.
        norm_eps: the number that norm layers add to the variance.
        stride_in_1x1: a bottleneck block with a stride of 2 has it in its first 1x1 convolution, as
            in He et al. 2015 and MSRA's weights; otherwise in its 3x3 convolution.

    Raises:
        ValueError: `name` or `norm` is unknown.
    """
    builders: dict[str, Callable[..., ResNet]] = {
        "resnet10": partial(ResNet, BasicBlock, [1, 1, 1, 1]),
        "resnet18": torchvision.models.resnet18,
        "resnet34": torchvision.models.resnet34,
        "resnet50": torchvision.models.resnet50,
        "resnet101": torchvision.models.resnet101,
        "resnext50_32x4d": torchvision.models.resnext50_32x4d,
        "resnext101_32x8d": torchvision.models.resnext101_32x8d,
        "wide_resnet50_2": torchvision.models.wide_resnet50_2,
    }
    if name not in builders:
        raise ValueError(f"model.backbone={name} must be one of {', '.join(builders)}")
    body = builders[name](norm_layer=norm_layer(norm, norm_eps))
    if stride_in_1x1:
        for block in body.modules():
            if isinstance(block, Bottleneck):
                block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    if c5_dilation > 1:
        dilate(body.layer4, c5_dilation)
    return body


def norm_layer(norm: str, eps: float) -> Callable[[int], nn.Module]:
    """Return a function that builds the norm layer for a given number of channels."""
    layers: dict[str, Callable[[int], nn.Module]] = {
        "frozen_batch": partial(FrozenBatchNorm2d, eps=eps),
        "batch": partial(nn.BatchNorm2d, eps=eps),
        "sync_batch": partial(nn.SyncBatchNorm, eps=eps),
        "group": lambda channels: nn.GroupNorm(32, channels, eps),
    }
    if norm not in layers:
        raise ValueError(f"model.norm={norm} must be one of {', '.join(layers)}")
    return layers[norm]


def dilate(stage: nn.Module, dilation: int) -> None:
    """Give a stage stride 1 and dilated 3x3 convolutions, in place; its weights are unchanged."""
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (dilation, dilation)


def convolutions_3x3(body: nn.Module, stages: list[str]) -> list[str]:
    """Return the names of the 3x3 convolutions in these stages, from the input to the output."""
    return [
        f"{STAGES[stage]}.{name}"
        for stage in stages
        for name, module in body.get_submodule(STAGES[stage]).named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    ]


def placement(body: nn.Module, *, stages: str, last_layers: int | None) -> list[str]:
    """Return the names of the 3x3 convolutions that are to become deformable.

    Args:
        stages: `none`, `c5`, `c4-c5`, `c3-c5` or `c2-c5`.
        last_layers: how many of the last 3x3 convolutions become deformable instead, counted from
            the output as in table 1 of Dai et al. 2017 (3 means res5a, b and c of a bottleneck
            ResNet). `stages` must then be `none`.

    Raises:
        ValueError: `stages` is unknown, `last_layers` is out of range, or both are given.
    """
    if last_layers is not None:
        convolutions = convolutions_3x3(body, list(STAGES))
        if stages != "none" or not 1 <= last_layers <= len(convolutions):
            raise ValueError(
                f"deform.last_layers={last_layers} must be from 1 to {len(convolutions)}, and "
                f"deform.stages={stages} must be none with it"
            )
        return convolutions[-last_layers:]
    if stages == "none":
        return []
    first, _, last = stages.partition("-")
    names = list(STAGES)
    if first not in names or last not in ("", "c5") or (not last and first != "c5"):
        raise ValueError(f"deform.stages={stages} must be one of none, c5, c4-c5, c3-c5, c2-c5")
    return convolutions_3x3(body, names[names.index(first) :])


def make_deformable(
    body: nn.Module,
    convolutions: list[str],
    *,
    modulated: bool,
    offset_groups: int,
    mask_start: float,
    offset_limit: float | None = None,
) -> None:
    """Make the named convolutions deformable, in place; their weights and names stay the same."""
    for name in convolutions:
        conv = body.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        parent, _, child = name.rpartition(".")
        layer = deformable_like(
            conv,
            modulated=modulated,
            offset_groups=offset_groups,
            mask_start=mask_start,
            offset_limit=offset_limit,
        )
        setattr(body.get_submodule(parent), child, layer)
