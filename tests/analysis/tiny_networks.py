"""Small detectors with random offsets, and images for them."""

import torch
from small import deformable_detector
from torchvision.models.detection import FasterRCNN

from detector.data.dataset import DetectionDataset


def tiny(
    stages: str, *, c5_dilation: int = 1, offset_groups: int = 1, roi_pool: str = "align"
) -> FasterRCNN:
    """Build a detector for images of 96 to 160 pixels; see `deformable_detector`."""
    return deformable_detector(
        stages,
        c5_dilation=c5_dilation,
        offset_groups=offset_groups,
        anchor_sizes=[16, 32, 64, 128, 256],
        roi_pool=roi_pool,
        score_threshold=0.05,
        min_size=96,
        max_size=160,
    )


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
