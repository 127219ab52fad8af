"""The backbone with its neck, and which of its feature maps the heads use."""

from typing import NamedTuple

from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import ResNet

from detector.model.dc5 import DilatedC5Backbone


class Neck(NamedTuple):
    """A backbone with its neck.

    Attributes:
        backbone: computes a dictionary of feature maps from normalised images (B, 3, H, W).
        anchor_sizes: in pixels, those of each map that the RPN looks at, which are its first maps.
        rpn_strides: the strides of these maps in pixels of the image.
        rpn_in_channels: the number of channels that each of them has.
        roi_strides: the name of each map that RoI features are pooled from -> its stride.
    """

    backbone: nn.Module
    anchor_sizes: list[list[int]]
    rpn_strides: list[int]
    rpn_in_channels: int
    roi_strides: dict[str, int]


def with_neck(body: ResNet, neck: str, *, channels: int, anchor_sizes: list[int]) -> Neck:
    """Build the neck of a ResNet.

    Args:
        neck: `fpn` or `dc5`, as in `faster_rcnn`.
        channels: of p2 to p6, or of the reduced c5.
        anchor_sizes: as in `faster_rcnn`.

    Raises:
        ValueError: `neck` is unknown, or `anchor_sizes` or the body's dilation does not fit it.
    """
    strides = feature_strides(body)
    body_channels = [body.fc.in_features // 8 * 2**level for level in range(4)]  # of c2 to c5
    match neck:
        case "fpn":
            if len(anchor_sizes) != 5:
                raise ValueError(
                    f"model.anchor_sizes={anchor_sizes} must be five sizes, one each for p2 to p6"
                )
            backbone = BackboneWithFPN(
                body,
                return_layers={"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"},
                in_channels_list=body_channels,
                out_channels=channels,
            )
            return Neck(
                backbone,
                anchor_sizes=[[size] for size in anchor_sizes],
                rpn_strides=[*strides, 2 * strides[-1]],
                rpn_in_channels=channels,
                roi_strides=dict(zip(["0", "1", "2", "3"], strides, strict=True)),
            )
        case "dc5":
            if strides[3] != strides[2]:
                raise ValueError("model.neck=dc5 needs model.c5_dilation of 2 or more, not 1")
            if not anchor_sizes:
                raise ValueError("model.anchor_sizes=[] must be at least one size, for c4")
            return Neck(
                DilatedC5Backbone(body, channels),
                anchor_sizes=[anchor_sizes],
                rpn_strides=[strides[2]],
                rpn_in_channels=body_channels[2],
                roi_strides={"c5": strides[3]},
            )
        case _:
            raise ValueError(f"model.neck={neck} must be one of fpn, dc5")


def feature_strides(body: ResNet) -> list[int]:
    """Return the strides of c2 to c5 in pixels of the image. A dilated c5 has the stride of c4."""
    of_c5 = {module.stride for module in body.layer4.modules() if isinstance(module, nn.Conv2d)}
    return [4, 8, 16, 32 if (2, 2) in of_c5 else 16]
