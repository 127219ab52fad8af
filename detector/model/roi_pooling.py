"""What the box head sees of a proposal: RoIAlign, or deformable RoI pooling on top of it.

    pooled = RoIAlign(features, boxes)                          (N, C, 7, 7)
    offsets, mask logits = fc_offset(pooled)                    (N, 2, 7, 7), (N, 7, 7)
    pooled = deform_roi_pool(features, boxes, offsets, mask)    in place of the first

As in Dai et al. 2017, section 2.2, one linear layer on the pooled features finds the offsets of the
bins; as in Zhu et al. 2018, section 3.2, v2 has a mask as well, by the same layer. It starts at
zero, so that a new layer is RoIAlign: exactly so for v1, and for v2 with a mask that starts at 1.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, roi_align

from ops import deform_roi_pool

ROI_SIZE = 7  # bins along each axis
GAMMA = 0.1  # an offset of 1 moves a bin by a tenth of its box


class BoxPooling(MultiScaleRoIAlign):
    """Features (N, C, 7, 7) of N boxes of all images, each from the level of its size.

    Args:
        channels: C.
        levels: the stride, in pixels, of each map that boxes are read from, by its name.
        aligned, sampling_ratio: of RoIAlign.
        level_rule: as in `conventions.py`.
        kind: `align`; `deform_v1`, with offsets; or `deform_v2`, with a mask too.
        mask_start: the mask of a new layer, as in `deformable_conv.py`.
    """

    def __init__(
        self,
        *,
        channels: int,
        levels: dict[str, int],
        aligned: bool,
        sampling_ratio: int,
        level_rule: str,
        kind: str,
        mask_start: float,
    ) -> None:
        super().__init__(list(levels), ROI_SIZE, sampling_ratio)
        self.strides = list(levels.values())
        self.aligned = aligned
        self.level_rule = level_rule
        self.num_masks = 1 if kind == "deform_v2" else 0  # of a bin
        self.mask_start = mask_start
        self.fc_offset = None
        if kind != "align":
            num_bins = ROI_SIZE**2
            self.fc_offset = _zero_linear(channels * num_bins, (2 + self.num_masks) * num_bins)

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """
        Args:
            x: features (B, C, H, W) by the name of their level.
            boxes: (N, 4) of each image, xyxy in pixels.
            image_shapes: not looked at: the strides are known.
        """
        numbered = [
            torch.cat([one.new_full((len(one), 1), image), one], dim=1)
            for image, one in enumerate(boxes)
        ]
        rois = torch.cat(numbered)
        pooled = self._pooled(x, rois)
        if self.fc_offset is None:
            return pooled
        return self._pooled(x, rois, *self.offsets(pooled))

    def offsets(self, pooled: Tensor) -> tuple[Tensor, Tensor | None]:
        """The offsets (N, 2, 7, 7) and, for v2, the mask (N, 7, 7) of deformable
        pooling, from what RoIAlign made of the boxes; float32 under autocast too.
        """
        assert self.fc_offset is not None
        with torch.autocast(pooled.device.type, enabled=False):
            return self.split(self.fc_offset(pooled.flatten(1).to(self.fc_offset.weight.dtype)))

    def split(self, predicted: Tensor) -> tuple[Tensor, Tensor | None]:
        """What `fc_offset` predicted, as `offsets` returns it."""
        planes = predicted.unflatten(1, (-1, *self.output_size))
        if not self.num_masks:
            return planes, None
        return planes[:, :2], 2 * self.mask_start * planes[:, 2].sigmoid()

    def _pooled(
        self,
        x: dict[str, Tensor],
        rois: Tensor,
        offset: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Features of rois (N, 5), the image's index before the box."""
        features = [x[name] for name in self.featmap_names]
        levels = self.levels(rois[:, 1:])
        pooled = features[0].new_zeros(len(rois), features[0].shape[1], *self.output_size)
        for level, (maps, stride) in enumerate(zip(features, self.strides, strict=True)):
            (rows,) = torch.where(levels == level)
            if maps.is_cuda and offset is None:  # ours has not run on a GPU yet
                of_level = roi_align(
                    *(maps, rois[rows], self.output_size, 1 / stride),
                    sampling_ratio=self.sampling_ratio,
                    aligned=self.aligned,
                )
            else:
                of_level = deform_roi_pool(
                    *(maps, rois[rows], self.output_size),
                    offset=None if offset is None else offset[rows],
                    mask=None if mask is None else mask[rows],
                    spatial_scale=1 / stride,
                    sampling_ratio=self.sampling_ratio,
                    aligned=self.aligned,
                    gamma=GAMMA,
                )
            pooled[rows] = of_level.to(pooled.dtype)
        return pooled

    @property
    def level_range(self) -> tuple[int, int]:
        """The numbers of the finest and the coarsest level: 2 and 5 for p2 to p5. A dilated c5 has
        that of c4.
        """
        return self.strides[0].bit_length() - 1, self.strides[-1].bit_length() - 1

    def levels(self, boxes: Tensor) -> Tensor:
        """The level (N,) of each box (N, 4), 0 for the finest: Lin et al. 2017, equation 1."""
        width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(dim=1)
        size = torch.sqrt(width * height)
        match self.level_rule:
            case "torchvision":
                level = torch.floor(4 + torch.log2(size / 224) + 1e-6)
            case "detectron2":
                level = torch.floor(4 + torch.log2(size / 224 + 1e-8))
            case "mmdetection":
                level = torch.floor(2 + torch.log2(size / 56 + 1e-6))
        first, last = self.level_range
        return (level.clamp(first, last) - first).to(torch.int64)


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """It leaves the random generator as it was: a plain and a deformable network begin alike."""
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
