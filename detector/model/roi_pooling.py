"""Pooling of the features of proposals for the box head: RoIAlign or deformable RoI pooling.

    pooled = RoIAlign(features, boxes)                          (N, C, 7, 7)
    offsets, mask logits = fc_offset(pooled)                    (N, 2, 7, 7), (N, 7, 7)
    pooled = deform_roi_pool(features, boxes, offsets, mask)    replaces the first result

As in Dai et al. 2017, section 2.2, one linear layer predicts the offsets of the bins from the
pooled features. As in Zhu et al. 2018, section 3.2, in v2 the same layer also predicts a mask. The
layer starts at zero, so that a new deformable RoI pooling is the same as RoIAlign; for v2 this
needs a mask that starts at 1.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, roi_align

from ops import deform_roi_pool

ROI_SIZE = 7  # bins along each axis
GAMMA = 0.1  # an offset of 1 moves a bin by a tenth of its RoI's size


class BoxPooling(MultiScaleRoIAlign):
    """Pools features (N, C, 7, 7) of the N boxes of all images, each from the level for its size.

    Args:
        channels: C, the number of channels of the features.
        levels: the name of each feature map that boxes are pooled from, finest first, and its
            stride in pixels.
        aligned, sampling_ratio: as for RoIAlign.
        level_rule: `roi_level_rule` of `conventions.py`.
        kind: `align`; `deform_v1`, which has offsets; or `deform_v2`, which has a mask too.
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
        self.num_masks = 1 if kind == "deform_v2" else 0  # mask values per bin
        self.mask_start = mask_start
        self.fc_offset = None
        if kind != "align":
            num_bins = ROI_SIZE**2
            self.fc_offset = _zero_linear(channels * num_bins, (2 + self.num_masks) * num_bins)

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Pool the features of all boxes, image after image.

        Args:
            x: the features (B, C, H, W) of each level by its name.
            boxes: the boxes (n, 4) of each image, xyxy in pixels.
            image_shapes: unused, because the strides are known.
        """
        numbered = [
            torch.cat([one.new_full((len(one), 1), image), one], dim=1)
            for image, one in enumerate(boxes)
        ]
        rois = torch.cat(numbered)
        order, ends = self.by_level(rois[:, 1:])
        pooled = self._pool(x, rois, order, ends)
        if self.fc_offset is None:
            return pooled
        return self._pool(x, rois, order, ends, *self.offsets(pooled))

    def offsets(self, pooled: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predict the offsets (N, 2, 7, 7) and, for v2, the mask (N, 7, 7) from the features
        (N, C, 7, 7) that RoIAlign pooled. Both are computed in float32 even under autocast.
        """
        assert self.fc_offset is not None
        with torch.autocast(pooled.device.type, enabled=False):
            return self.split(self.fc_offset(pooled.flatten(1).to(self.fc_offset.weight.dtype)))

    def split(self, predicted: Tensor) -> tuple[Tensor, Tensor | None]:
        """Turn the output of `fc_offset` into the offsets and the mask that `offsets` returns."""
        planes = predicted.unflatten(1, (-1, *self.output_size))
        if not self.num_masks:
            return planes, None
        return planes[:, :2], 2 * self.mask_start * planes[:, 2].sigmoid()

    def _pool(
        self,
        x: dict[str, Tensor],
        rois: Tensor,
        order: Tensor,
        ends: list[int],
        offset: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Pool the features of rois (N, 5), each an image index and a box.

        Args:
            order, ends: what `by_level` returns for the boxes.
        """
        features = [x[name] for name in self.featmap_names]
        by_level = [
            [None] * len(features) if one is None else one[order].tensor_split(ends)
            for one in (rois, offset, mask)
        ]
        in_order = torch.cat(
            [
                self._pool_level(maps, 1 / stride, *given).to(features[0].dtype)
                for maps, stride, *given in zip(features, self.strides, *by_level, strict=True)
            ]
        )
        pooled = torch.empty_like(in_order, memory_format=torch.contiguous_format)
        pooled[order] = in_order
        return pooled

    def _pool_level(
        self, maps: Tensor, scale: float, rois: Tensor, offset: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        if maps.is_cuda and offset is None:  # deform_roi_pool has not run on a GPU yet
            pooled: Tensor = roi_align(
                *(maps, rois, self.output_size, scale),
                sampling_ratio=self.sampling_ratio,
                aligned=self.aligned,
            )
            return pooled
        return deform_roi_pool(
            *(maps, rois, self.output_size),
            offset=offset,
            mask=mask,
            spatial_scale=scale,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            gamma=GAMMA,
        )

    def by_level(self, boxes: Tensor) -> tuple[Tensor, list[int]]:
        """Sort boxes (N, 4) by their levels.

        Returns:
            The indices (N,) of the boxes of the finest level, then of the next one, and so on, in
            ascending order on each level; and where the boxes of each level but the last one end.
            A GPU is waited for once, for these ends.
        """
        levels = self.levels(boxes)
        lower = torch.arange(len(self.strides) - 1, device=levels.device)[:, None]
        return levels.argsort(stable=True), (levels <= lower).sum(dim=1).tolist()

    @property
    def level_range(self) -> tuple[int, int]:
        """The numbers of the finest and the coarsest level: 2 and 5 for p2 to p5. They follow from
        the strides, so a dilated c5 has number 4 like c4.
        """
        return self.strides[0].bit_length() - 1, self.strides[-1].bit_length() - 1

    def levels(self, boxes: Tensor) -> Tensor:
        """Return the level (N,) of each box (N, 4), 0 for the finest (Lin et al. 2017, eq. 1)."""
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
    """Build a linear layer of zeros without changing the state of the random generator, so that the
    other layers start the same in a plain and in a deformable network.
    """
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
