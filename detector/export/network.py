"""Add the layers of a detector to an ONNX graph: backbone, neck and the head of the RPN."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.resnet import Bottleneck, ResNet

from detector.export.graph import Graph
from detector.model.dc5 import DilatedC5Backbone
from detector.model.deformable_conv import DeformableConv2d


def features(graph: Graph, images: str, model: FasterRCNN) -> dict[str, str]:
    """Add backbone and neck for the network's input (B, 3, H, W).

    Returns:
        The feature maps by the names of the model, in its order.
    """
    stages = backbone(graph, images, model.backbone.body)
    if isinstance(model.backbone, DilatedC5Backbone):
        reduced = relu(graph, convolution(graph, stages[3], model.backbone.reduction))
        return {"c4": stages[2], "c5": reduced}
    names = ["0", "1", "2", "3", "pool"]
    return dict(zip(names, fpn(graph, stages, model.backbone.fpn), strict=True))


def backbone(graph: Graph, images: str, body: ResNet) -> list[str]:
    """Add a ResNet; return the maps c2 to c5."""
    maps = relu(graph, convolution(graph, images, body.conv1, body.bn1))
    maps = graph.node("MaxPool", maps, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    stages = []
    for layer in (body.layer1, body.layer2, body.layer3, body.layer4):
        for block in layer:
            maps = residual(graph, maps, block)
        stages.append(maps)
    return stages


def residual(graph: Graph, maps: str, block: Any) -> str:
    """Add a basic or a bottleneck block of a ResNet."""
    shortcut, branch = maps, maps
    if block.downsample is not None:
        shortcut = convolution(graph, maps, block.downsample[0], block.downsample[1])
    pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
    if isinstance(block, Bottleneck):
        pairs.append((block.conv3, block.bn3))
    for number, (conv, norm) in enumerate(pairs, start=1):
        branch = convolution(graph, branch, conv, norm)
        if number < len(pairs):
            branch = relu(graph, branch)
    return relu(graph, graph.node("Add", branch, shortcut))


def fpn(graph: Graph, stages: list[str], module: Any) -> list[str]:
    """Add a feature pyramid network (Lin et al. 2017) for c2 to c5; return the maps p2 to p6."""
    laterals = [
        convolution(graph, maps, block[0])
        for maps, block in zip(stages, module.inner_blocks, strict=True)
    ]
    for finer in (2, 1, 0):
        shape = graph.node("Shape", laterals[finer])
        upper = graph.node(
            *("Resize", laterals[finer + 1], "", "", shape),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        laterals[finer] = graph.node("Add", laterals[finer], upper)
    levels = [
        convolution(graph, maps, block[0])
        for maps, block in zip(laterals, module.layer_blocks, strict=True)
    ]
    return [*levels, graph.node("MaxPool", levels[-1], kernel_shape=[1, 1], strides=[2, 2])]


def proposals_head(graph: Graph, maps: str, head: Any) -> tuple[str, str]:
    """Add the RPN's head for the maps of a level.

    Returns:
        Logits (B, A, H, W) and box deltas (B, 4 A, H, W) of the anchors, A per cell.
    """
    hidden = relu(graph, convolution(graph, maps, head.conv[0][0]))
    logits = convolution(graph, hidden, head.cls_logits)
    return logits, convolution(graph, hidden, head.bbox_pred)


def relu(graph: Graph, value: str) -> str:
    """Add a ReLU."""
    return graph.node("Relu", value)


def linear(graph: Graph, value: str, layer: nn.Linear) -> str:
    """Add a linear layer: (N, I) -> (N, O)."""
    weights = (graph.weight(layer.weight, "weight"), graph.weight(layer.bias, "bias"))
    return graph.node("Gemm", value, *weights, transB=1)


def convolution(graph: Graph, maps: str, conv: nn.Conv2d, norm: Any = None) -> str:
    """Add a plain or deformable convolution and the norm layer after it.

    A batch norm is folded into the weights; a group norm gets nodes of its own.
    """
    weight, bias = conv.weight, conv.bias
    if norm is not None and not isinstance(norm, nn.GroupNorm):
        weight, bias = folded(weight, norm)
    inputs = [graph.weight(weight, "weight")]
    if bias is not None:
        inputs.append(graph.weight(bias, "bias"))
    top, left = map(int, conv.padding)
    how: dict[str, Any] = {
        "kernel_shape": list(conv.kernel_size),
        "strides": list(conv.stride),
        "pads": [top, left, top, left],
        "dilations": list(conv.dilation),
        "group": conv.groups,
    }
    if isinstance(conv, DeformableConv2d):
        offset, mask = offsets(graph, maps, conv)
        inputs = [inputs[0], offset, inputs[1] if len(inputs) > 1 else "", mask]
        groups = conv.num_offsets // (2 * conv.kernel_size[0] * conv.kernel_size[1])
        output = graph.node("DeformConv", maps, *inputs, offset_group=groups, **how)
    else:
        output = graph.node("Conv", maps, *inputs, **how)
    return group_norm(graph, output, norm) if isinstance(norm, nn.GroupNorm) else output


def offsets(graph: Graph, maps: str, conv: DeformableConv2d) -> tuple[str, str]:
    """Add the prediction of offsets and mask, as in `DeformableConv2d.split`.

    Returns:
        The offsets and the mask, which is "" if the layer has none.
    """
    offset, mask = convolution(graph, maps, conv.conv_offset), ""
    if conv.num_masks:
        sizes = graph.constant([conv.num_offsets, conv.num_masks])
        offset, logits = graph.nodes_of("Split", offset, sizes, outputs=2, axis=1)
        sigmoid = graph.node("Sigmoid", logits)
        mask = graph.node("Mul", sigmoid, graph.number(2 * conv.mask_start))
    if conv.offset_limit is not None:
        limit = graph.number(conv.offset_limit)
        offset = graph.node("Mul", graph.node("Tanh", graph.node("Div", offset, limit)), limit)
    return offset, mask


def folded(weight: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    """Fold a batch norm into the convolution without bias before it.

    Returns:
        The weight and the bias of the convolution that does both.
    """
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = norm.weight.double() * torch.rsqrt(variance + norm.eps)
    bias = norm.bias.double() - mean * scale
    return (weight.double() * scale[:, None, None, None]).float(), bias.float()


def group_norm(graph: Graph, maps: str, norm: nn.GroupNorm) -> str:
    """Add a group norm as InstanceNormalization of the groups: opset 19 has no better operator."""
    ones = graph.weight(torch.ones(norm.num_groups), "ones")
    zeros = graph.weight(torch.zeros(norm.num_groups), "zeros")
    grouped = graph.reshape(maps, 0, norm.num_groups, -1)
    normed = graph.node("InstanceNormalization", grouped, ones, zeros, epsilon=norm.eps)
    normed = graph.node("Reshape", normed, graph.node("Shape", maps))
    scaled = graph.node("Mul", normed, graph.weight(norm.weight[:, None, None], "scale"))
    return graph.node("Add", scaled, graph.weight(norm.bias[:, None, None], "shift"))
