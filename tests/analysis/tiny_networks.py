"""Small detectors with drawn offsets, and images for them."""

import torch
from torch import nn

from detector.config import conventions
from detector.data.dataset import DetectionDataset
from detector.model.deformable_conv import DeformableConv2d
from detector.model.faster_rcnn import faster_rcnn
from detector.model.resnet import make_deformable, placement, resnet


def tiny(stages: str, *, c5_dilation: int = 1, offset_groups: int = 1, roi_pool: str = "align"):
    """A detector whose offsets are drawn, of up to a few pixels."""
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
    model = faster_rcnn(
        body,
        num_classes=2,
        conventions=conventions("torchvision"),
        neck="fpn",
        fpn_channels=16,
        trainable_layers=5,
        anchor_sizes=[16, 32, 64, 128, 256],
        aspect_ratios=[1.0],
        rpn_channels=16,
        rpn_pre_nms_top_n_train=20,
        rpn_pre_nms_top_n_test=20,
        rpn_top_n_train=20,
        rpn_top_n_test=20,
        rpn_batch_size=16,
        roi_pool=roi_pool,
        mask_start=1.0,
        box_batch_size=8,
        box_head_channels=16,
        score_threshold=0.05,
        nms="hard",
        nms_iou=0.5,
        nms_sigma=0.5,
        detections_per_image=5,
        min_size=96,
        max_size=160,
    )
    for module in model.modules():
        if isinstance(module, DeformableConv2d):
            nn.init.normal_(module.conv_offset.weight, std=0.02)
            nn.init.uniform_(module.conv_offset.bias, -1.5, 1.5)
    return model.eval()


def samples(num_images: int = 2) -> "DetectionDataset":
    """Images 96x128 with one object of each size."""

    class Data:
        def __len__(self) -> int:
            return num_images

        def __getitem__(self, index: int) -> dict:
            generator = torch.Generator().manual_seed(index)
            boxes = torch.tensor([[4.0, 4, 20, 20], [30, 10, 80, 70], [10, 0, 120, 96]])
            return {
                "image": torch.randint(
                    0, 256, (3, 96, 128), generator=generator, dtype=torch.uint8
                ),
                "boxes": boxes,
                "labels": torch.ones(3, dtype=torch.int64),
                "area": (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
                "iscrowd": torch.zeros(3, dtype=torch.int64),
            }

    return Data()  # type: ignore[return-value]
