"""Draws a picture sheet: images with their boxes, each before and after augmentation."""

import colorsys

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize
from torchvision.utils import draw_bounding_boxes

from detector.data.dataset import Sample
from detector.data.loading import Augmented

CELL = 320  # length of a picture's longer side in pixels
GAP = 8  # pixels between pictures
BACKGROUND = 40  # grey value
GOLDEN = 0.618  # step between the hues of consecutive labels, as a fraction of the colour circle


def picture_sheet(samples: Augmented, *, num_images: int, epoch: int, columns: int = 2) -> Tensor:
    """Draw pairs of pictures: an image as loaded on the left, and as augmented on the right.

    The boxes of a class have one colour. The boxes of crowd and difficult objects, which are not
    training targets, are white.

    Args:
        num_images: the number of images, which are spread evenly over the data set.
        epoch: the epoch whose augmentation is shown.
        columns: the number of pairs in a row.

    Returns:
        The sheet, RGB uint8 (3, H, W).

    Raises:
        DatasetError: an image cannot be loaded.
    """
    total = len(samples)
    indices = np.unique(np.linspace(0, total - 1, min(num_images, total)).round().astype(int))
    classes = samples.dataset.classes
    pairs = [
        torch.cat([_picture(samples.dataset[i], classes), _picture(samples[epoch, i], classes)], 2)
        for i in indices.tolist()
    ]
    pairs += [_blank(2 * (CELL + GAP))] * (-len(pairs) % columns)
    rows = [torch.cat(pairs[i : i + columns], 2) for i in range(0, len(pairs), columns)]
    return torch.cat(rows, 1)


def _picture(sample: Sample, classes: tuple[str, ...]) -> Tensor:
    """Return uint8 (3, CELL + GAP, CELL + GAP) with the image and its boxes at the upper left."""
    height, width = sample["image"].shape[-2:]
    scale = CELL / max(height, width)
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    image = resize(sample["image"], size, antialias=True)
    if len(sample["boxes"]):
        labels = sample["labels"].tolist()
        image = draw_bounding_boxes(
            image,
            sample["boxes"] * scale,
            labels=[classes[label - 1] for label in labels],
            colors=[
                (255, 255, 255) if crowd else _color(label)
                for label, crowd in zip(labels, sample["iscrowd"].tolist(), strict=True)
            ],
        )
    cell = _blank(CELL + GAP)
    cell[:, : size[0], : size[1]] = image
    return cell


def _blank(width: int) -> Tensor:
    return torch.full((3, CELL + GAP, width), BACKGROUND, dtype=torch.uint8)


def _color(label: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN % 1, 0.9, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
