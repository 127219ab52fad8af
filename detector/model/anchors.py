"""Anchors: boxes of a few sizes and shapes, centred on every cell of a feature map.

They depend only on the sizes of the image and of its feature maps, and are therefore kept for the
next images of these sizes.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from detector.model.constants import constant

Box = tuple[float, ...]  # xyxy in pixels


class Anchors(AnchorGenerator):
    """Generates the anchors (A, 4) of each image, xyxy in pixels; shapes are as in torchvision.

    All images get the same tensor, which must not be changed in place.

    Args:
        sizes: the anchor sizes of each level, in pixels. Feature maps beyond these levels get no
            anchors.
        aspect_ratios: height divided by width, the same on every level.
        rounded: round the anchors of a cell to whole pixels before they are moved over the image.
        strides: the distance between neighbouring anchors on each level, in pixels. With None it
            is the image's size divided by the feature map's, rounded down.
    """

    def __init__(
        self,
        sizes: list[list[int]],
        aspect_ratios: list[float],
        *,
        rounded: bool,
        strides: list[int] | None,
    ) -> None:
        super().__init__(tuple(map(tuple, sizes)), (tuple(aspect_ratios),) * len(sizes))
        self.strides = strides
        if not rounded:
            ratios = torch.tensor(aspect_ratios).sqrt()
            halves = torch.stack([1 / ratios, ratios], dim=1) / 2  # half of (w, h) for a size of 1
            unit = torch.cat([-halves, halves], dim=1)[:, None]
            self.cell_anchors = [
                (unit * torch.tensor(of_level)[:, None]).flatten(0, 1) for of_level in sizes
            ]
        self.cells = tuple(tuple(map(tuple, cell.tolist())) for cell in self.cell_anchors)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        maps = feature_maps[: len(self.cells)]
        height, width = image_list.tensors.shape[-2:]
        grids = tuple((one.shape[-2], one.shape[-1]) for one in maps)
        if self.strides is None:
            strides = tuple((height // rows, width // columns) for rows, columns in grids)
        else:
            strides = tuple((stride, stride) for stride in self.strides)
        dtype = torch.promote_types(maps[0].dtype, torch.float32)
        anchors = constant(grid, self.cells, grids, strides, dtype, maps[0].device)
        return [anchors] * len(image_list.image_sizes)


@lru_cache(maxsize=16)  # at most 70 MB on the device, for images of 800x1333 pixels
def grid(
    cells: tuple[tuple[Box, ...], ...],
    grids: tuple[tuple[int, int], ...],
    strides: tuple[tuple[int, int], ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return the anchors (A, 4) of all levels, row by row.

    Args:
        cells: the anchors of each level, centred on (0, 0).
        grids: the number of rows and columns of each level.
        strides: (dy, dx) between neighbouring rows and columns, in pixels.
    """
    levels = []
    for cell, (rows, columns), (dy, dx) in zip(cells, grids, strides, strict=True):
        y, x = torch.meshgrid(
            torch.arange(rows, dtype=dtype, device=device) * dy,
            torch.arange(columns, dtype=dtype, device=device) * dx,
            indexing="ij",
        )
        centres = torch.stack([x, y, x, y], dim=2)[:, :, None]
        boxes = centres + torch.tensor(cell, dtype=dtype, device=device)
        levels.append(boxes.flatten(0, 2))
    return torch.cat(levels)
