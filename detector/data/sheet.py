"""Draws a picture sheet: images with their boxes, each before and after augmentation.

Above each picture stand the file's name, or "augmented", and the number of boxes.
"""

import colorsys

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import resize
from torchvision.utils import draw_bounding_boxes

from detector.data.dataset import Sample
from detector.data.errors import printable
from detector.data.loading import Augmented

CELL = 320  # length of a picture's longer side in pixels
GAP = 8  # pixels between pictures
HEADING = 18  # height in pixels of the line above a picture
FONT_SIZE = 12  # pixels
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
    pairs = []
    for i in indices.tolist():
        name = samples.dataset.records[i].path.name
        loaded = _picture(samples.dataset[i], classes, name=name)
        pairs.append(torch.cat([loaded, _picture(samples[epoch, i], classes, name="augmented")], 2))
    pairs += [_blank(2 * (CELL + GAP))] * (-len(pairs) % columns)
    rows = [torch.cat(pairs[i : i + columns], 2) for i in range(0, len(pairs), columns)]
    return torch.cat(rows, 1)


def _picture(sample: Sample, classes: tuple[str, ...], *, name: str) -> Tensor:
    """Return a cell, uint8 (3, HEADING + CELL + GAP, CELL + GAP).

    The image with its boxes is at the left below the heading.
    """
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
    cell[:, HEADING : HEADING + size[0], : size[1]] = image
    cell[:, :HEADING] = _heading(name, len(sample["boxes"]))
    return cell


def _heading(name: str, num_boxes: int) -> Tensor:
    """Return uint8 (3, HEADING, CELL + GAP) with a name and a number of boxes.

    A name that is too long loses its beginning. The font has no letters beyond Latin's; others are
    written as escapes.
    """
    line = Image.new("RGB", (CELL + GAP, HEADING), (BACKGROUND,) * 3)
    draw, font = ImageDraw.Draw(line), ImageFont.load_default(FONT_SIZE)
    name = printable(name).encode("ascii", "backslashreplace").decode()
    end = f": {num_boxes} {'box' if num_boxes == 1 else 'boxes'}"
    text = name + end
    while draw.textlength(text, font=font) > CELL:
        name = name[1:]
        text = f"...{name}{end}"
    draw.text((0, 1), text, fill="white", font=font)
    return torch.from_numpy(np.array(line)).permute(2, 0, 1)


def _blank(width: int) -> Tensor:
    return torch.full((3, HEADING + CELL + GAP, width), BACKGROUND, dtype=torch.uint8)


def _color(label: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN % 1, 0.9, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
