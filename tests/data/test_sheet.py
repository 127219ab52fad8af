"""Tests of the picture sheet: the place of each image, its boxes in both pictures, its heading."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageDraw

from detector.data import sheet as sheet_module
from detector.data.dataset import DetectionDataset, Record, Sample
from detector.data.loading import Augmented
from detector.data.sheet import BACKGROUND, CELL, GAP, HEADING, picture_sheet
from detector.data.transforms import TrainTransform

HEIGHT, WIDTH = HEADING + CELL + GAP, CELL + GAP  # of a picture with its heading
GREYS = [60, 120, 180]  # the grey value of each image


class Plain(DetectionDataset):
    """Three grey images of 40x80. The first and third have one box in the left half."""

    def __init__(self) -> None:
        self.classes = ("cat", "dog")
        self.records = [
            Record(
                image_id=index,
                path=Path(f"folder/{name}.png"),
                height=40,
                width=80,
                boxes=np.zeros((0, 4)),
                labels=np.zeros(0, dtype=np.int64),
                area=np.zeros(0),
                iscrowd=np.zeros(0, dtype=bool),
            )
            for index, name in enumerate(("first", "second", "x" * 200))
        ]

    def __len__(self) -> int:
        return len(GREYS)

    def __getitem__(self, index: int) -> Sample:
        boxes = torch.tensor([[8.0, 10.0, 24.0, 30.0]])[: 0 if index == 1 else 1]
        return Sample(
            image=torch.full((3, 40, 80), GREYS[index], dtype=torch.uint8),
            boxes=boxes,
            labels=torch.full((len(boxes),), 2),
            area=torch.full((len(boxes),), 320.0),
            iscrowd=torch.full((len(boxes),), index == 2),
            image_id=index,
        )


def sheet_of(num_images: int, columns: int) -> torch.Tensor:
    transform = TrainTransform(
        min_sizes=[20],
        max_size=999,
        flip_probability=1.0,
        crop_probability=0.0,
        brightness=0,
        contrast=0,
        saturation=0,
        hue=0,
    )
    samples = Augmented(Plain(), transform=transform, seed=0)
    return picture_sheet(samples, num_images=num_images, epoch=0, columns=columns)


def cell(sheet: torch.Tensor, row: int, column: int) -> torch.Tensor:
    """Return a picture of the sheet without its heading."""
    top, left = row * HEIGHT, column * WIDTH
    return sheet[:, top + HEADING : top + HEIGHT, left : left + WIDTH]


def drawn_box(picture: torch.Tensor, grey: int) -> tuple[list[int], list[int]]:
    """Return the drawn box (x1, y1, x2, y2), which is not of the image's grey, and its colour."""
    ys, xs = (picture[:, : CELL // 2, :CELL] != grey).any(dim=0).nonzero(as_tuple=True)
    corner = picture[:, ys.max(), xs.max()].tolist()
    return [xs.min().item(), ys.min().item(), xs.max().item(), ys.max().item()], corner


def test_each_image_before_and_after() -> None:
    sheet = sheet_of(num_images=9, columns=2)
    assert sheet.dtype == torch.uint8
    assert sheet.shape == (3, 2 * HEIGHT, 4 * WIDTH)  # three pairs in two rows
    # An image of 40x80 is drawn as 160x320, enlarged by 4. Its box is at (32, 40, 96, 120), and
    # after a flip at (320 - 96, 40, 320 - 32, 120) = (224, 40, 288, 120).
    first, flipped = cell(sheet, 0, 0), cell(sheet, 0, 1)
    box, color = drawn_box(first, GREYS[0])
    assert box == [32, 40, 96, 120] and color != [255, 255, 255]
    flipped_box, flipped_color = drawn_box(flipped, GREYS[0])
    assert flipped_box == [224, 40, 288, 120] and flipped_color == color

    assert (cell(sheet, 0, 2)[:, :160, :320] == GREYS[1]).all()  # no box
    crowd, white = drawn_box(cell(sheet, 1, 0), GREYS[2])
    assert crowd == [32, 40, 96, 120] and white == [255, 255, 255]
    assert (cell(sheet, 1, 2) == BACKGROUND).all()  # there is no fourth image
    assert (first[:, 160:] == BACKGROUND).all()


def test_images_are_spread_over_the_data_set() -> None:
    sheet = sheet_of(num_images=2, columns=1)
    assert sheet.shape == (3, 2 * HEIGHT, 2 * WIDTH)
    assert cell(sheet, 0, 0)[0, 159, 319] == GREYS[0]
    assert cell(sheet, 1, 0)[0, 159, 319] == GREYS[2]


def test_headings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of the file and the number of boxes stand above a picture, and fit its width."""
    drawn = []
    original = ImageDraw.ImageDraw.text

    def recording(self: ImageDraw.ImageDraw, place: object, text: str, **options: object) -> None:
        drawn.append(text)
        assert self.textlength(text, font=options["font"]) <= CELL
        original(self, place, text, **options)

    monkeypatch.setattr(sheet_module.ImageDraw.ImageDraw, "text", recording)
    sheet = sheet_of(num_images=9, columns=2)
    headings = [text for text in drawn if text != "dog"]  # the boxes have labels as well
    assert headings[:4] == ["first.png: 1 box", "augmented: 1 box"] + [
        "second.png: 0 boxes",
        "augmented: 0 boxes",
    ]
    assert headings[4].startswith("...xxx") and headings[4].endswith("xxx.png: 1 box")
    assert (sheet[:, :HEADING, :WIDTH] == 255).any()
    assert (sheet[:, HEIGHT : HEIGHT + HEADING, 2 * WIDTH :] == BACKGROUND).all()
