"""Small detectors with random offsets, and images for them."""

import torch
from small import small_detector
from torch import nn
from torchvision.models.detection import FasterRCNN

from detector.data.dataset import DetectionDataset
from detector.model.deformable_conv import DeformableConv2d
from detector.model.resnet import make_deformable, placement, resnet


def tiny(
    stages: str, *, c5_dilation: int = 1, offset_groups: int = 1, roi_pool: str = "align"
) -> FasterRCNN:
    """Build a detector with random offsets of up to a few pixels."""
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
    model = small_detector(
        body,
        **channels,
        anchor_sizes=[16, 32, 64, 128, 256],
        roi_pool=roi_pool,
        score_threshold=0.05,
        min_size=96,
        max_size=160,
    )
    for module in model.modules():
        if isinstance(module, DeformableConv2d):
            nn.init.normal_(module.conv_offset.weight, std=0.02)
            nn.init.uniform_(module.conv_offset.bias, -1.5, 1.5)
    return model.eval()


def samples(num_images: int = 2) -> DetectionDataset:
    """Return images of 96x128 pixels with one object of each size."""

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
