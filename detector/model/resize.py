"""Scaling and normalising images to the input of the network."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from detector.conventions import Conventions
from detector.model.constants import constant


class Resize(GeneralizedRCNNTransform):
    """torchvision's transform, extended to images of any shape.

    If the shorter side would shrink to less than a pixel, as in an image of 3000x2 pixels, it is
    stretched first, so that one pixel of it remains.
    """

    def __init__(self, min_size: int, max_size: int, conventions: Conventions) -> None:
        mean, std = (
            [value / 255 for value in values]
            for values in (conventions.pixel_mean, conventions.pixel_std)
        )
        # _skip_resize has an effect only in training.
        super().__init__(min_size, max_size, mean, std, _skip_resize=True)
        self.channel_order = conventions.channel_order

    def normalize(self, image: Tensor) -> Tensor:
        """Normalise an RGB image, float (3, H, W) in [0, 1], in the network's channel order."""
        if self.channel_order == "bgr":
            image = image.flip(0)
        mean, std = (
            constant(per_channel, tuple(values), image.dtype, image.device)
            for values in (self.image_mean, self.image_std)
        )
        return (image - mean) / std

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Resize an image, float (3, H, W), to the model's input size; in training do nothing.

        The model itself scales detections back to the size that the image had before.
        """
        if not self.training:
            sides = image.shape[1:]
            least = max(sides) // self.max_size + 1
            if min(sides) < least:
                stretched = [max(side, least) for side in sides]
                image = interpolate(image[None], stretched, mode="bilinear")[0]
        resized: tuple[Tensor, dict[str, Tensor] | None] = super().resize(image, target)
        return resized


@lru_cache(maxsize=16)
def per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the values of the channels (3, 1, 1)."""
    return torch.tensor(values, dtype=dtype, device=device)[:, None, None]
