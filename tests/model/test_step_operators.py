"""How many operators a training step dispatches, and for how many of them a GPU is waited for."""

import torch
import torchvision
from dispatched import Dispatched
from small import SMALL, small_detector
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import BasicBlock, ResNet

from detector.model.resnet import resnet


def torchvisions() -> FasterRCNN:
    """Build the same detector as `small_detector`, from torchvision alone."""
    channels = SMALL["fpn_channels"]
    body = ResNet(BasicBlock, [1, 1, 1, 1], norm_layer=torchvision.ops.FrozenBatchNorm2d)
    layers = {f"layer{number}": str(number - 1) for number in range(1, 5)}
    return FasterRCNN(
        BackboneWithFPN(body, layers, [64, 128, 256, 512], channels),
        SMALL["num_classes"] + 1,
        rpn_anchor_generator=AnchorGenerator(
            tuple((size,) for size in SMALL["anchor_sizes"]), (tuple(SMALL["aspect_ratios"]),) * 5
        ),
        rpn_pre_nms_top_n_train=SMALL["rpn_pre_nms_top_n_train"],
        rpn_post_nms_top_n_train=SMALL["rpn_top_n_train"],
        rpn_batch_size_per_image=SMALL["rpn_batch_size"],
        box_batch_size_per_image=SMALL["box_batch_size"],
        _skip_resize=True,
    )


def step(model: FasterRCNN) -> list[str]:
    """Return the operators of the second training step, which finds what the first one kept."""
    boxes = torch.tensor([[4.0, 8.0, 30.0, 40.0], [20.0, 20.0, 60.0, 60.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])}] * 2
    for _ in range(2):
        with Dispatched() as dispatched:
            losses = model.train()([torch.rand(3, 64, 64)] * 2, targets)
            torch.stack(list(losses.values())).sum().backward()
    return dispatched.names


def test_fewer_than_in_torchvisions_detector() -> None:
    torch.manual_seed(0)
    body = resnet(
        name="resnet10", norm="frozen_batch", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False
    )
    ours, theirs = step(small_detector(body)), step(torchvisions())

    assert len(ours) < 0.75 * len(theirs)
    # For each of these Python waits until a GPU has done everything before.
    assert ours.count("nonzero") < 0.75 * theirs.count("nonzero")
