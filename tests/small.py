"""A small detector for the tests. A test gives only the values that differ from it."""

from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN

from detector.config import conventions
from detector.model.faster_rcnn import faster_rcnn

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
