"""Small detectors for the tests. A test gives only the values that differ from them."""

from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN

from detector.config import conventions
from detector.model.deformable_conv import DeformableConv2d
from detector.model.faster_rcnn import faster_rcnn
from detector.model.resnet import make_deformable, placement, resnet

SMALL: dict[str, Any] = {
    "num_classes": 2,
    "neck": "fpn",
    "fpn_channels": 8,
    "trainable_layers": 5,
    "anchor_sizes": [8, 16, 32, 64, 128],
    "aspect_ratios": [1.0],
    "rpn_channels": 8,
    "rpn_pre_nms_top_n_train": 20,
    "rpn_pre_nms_top_n_test": 10,
    "rpn_top_n_train": 20,
    "rpn_top_n_test": 10,
    "rpn_batch_size": 8,
    "roi_pool": "align",
    "mask_start": 1.0,
    "box_batch_size": 8,
    "box_head_channels": 8,
    "score_threshold": 0.0,
    "nms": "hard",
    "nms_iou": 0.5,
    "nms_sigma": 0.5,
    "detections_per_image": 5,
    "min_size": 64,
    "max_size": 96,
}


def small_detector(body: nn.Module, **differences: Any) -> FasterRCNN:
    """Build a small Faster R-CNN on a ResNet, with torchvision's conventions.

    Args:
        differences: arguments of `faster_rcnn` that differ from `SMALL`.
    """
    return faster_rcnn(body, conventions=conventions("torchvision"), **(SMALL | differences))


def deformable_detector(
    stages: str, *, c5_dilation: int = 1, offset_groups: int = 1, **differences: Any
) -> FasterRCNN:
    """Build a small detector with random offsets of up to a few pixels, in evaluation mode.

    Args:
        stages: those with deformable convolutions, as in the configuration; `none` for none.
        differences: as for `small_detector`; features and heads have 16 channels.
    """
    torch.manual_seed(0)
    body = resnet(
        name="resnet10",
        norm="batch",
        c5_dilation=c5_dilation,
        norm_eps=1e-5,
        stride_in_1x1=False,
    )
    make_deformable(
        body,
        placement(body, stages=stages, last_layers=None),
        modulated=True,
        offset_groups=offset_groups,
        mask_start=1.0,
    )
    channels = dict.fromkeys(("fpn_channels", "rpn_channels", "box_head_channels"), 16)
    model = small_detector(body, **(channels | differences))
    for module in model.modules():
        if isinstance(module, DeformableConv2d):
            nn.init.normal_(module.conv_offset.weight, std=0.02)
            nn.init.uniform_(module.conv_offset.bias, -1.5, 1.5)
    return model.eval()
