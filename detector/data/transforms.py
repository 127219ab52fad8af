"""The training transform: a random crop, and Albumentations' flip, resize and colour jitter.

The crop is implemented here, because A.BBoxSafeRandomCrop rounds the edges of its window down,
which cuts up to a pixel off the objects and fails on objects thinner than that.

All random numbers of a sample come from one seed, which `sample_seed` computes from (seed, epoch,
index). They depend neither on the worker nor on what was loaded before.
"""

import math
import os
import random

import numpy as np
import torch

from detector.data.dataset import Sample

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import accesses the network

import albumentations as A  # noqa: E402, N812

MIN_SIDE = 0.5  # a crop keeps at least this fraction of each side, or it would be enlarged too much


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Return the seed, in [0, 2**64), of one sample in one epoch. All arguments are at least 0."""
    return int(np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)[0])


class TrainTransform:
    """Crops, flips, resizes and recolours a sample. The resize keeps the aspect ratio.

    Args:
        min_sizes: lengths in pixels, one of which is drawn for each sample; the shorter side is
            resized to it.
        max_size: upper limit of the longer side in pixels. If it would be exceeded, the longer
            side is resized to `max_size` instead.
        flip_probability: probability of a horizontal flip.
        crop_probability: probability of a random crop that contains every object completely, and
            at least `MIN_SIDE` of each side of the image.
        brightness, contrast, saturation: strengths s; the factor is drawn from [1 - s, 1 + s], so
            that 0 changes nothing.
        hue: strength s; the hue is shifted by a fraction of the colour circle from [-s, s].

    Raises:
        ValueError: there is no size or one below 1, a probability is outside [0, 1], or a strength
            is outside [0, 1] (of the hue: outside [0, 0.5]).
    """

    def __init__(
        self,
        *,
        min_sizes: list[int],
        max_size: int,
        flip_probability: float,
        crop_probability: float,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
    ) -> None:
        if not min_sizes or min([*min_sizes, max_size]) < 1:
            raise ValueError(f"expected sizes of 1 or more, got {min_sizes=} and {max_size=}")
        if not (0 <= flip_probability <= 1 and 0 <= crop_probability <= 1):
            raise ValueError(
                f"expected probabilities in [0, 1], got {flip_probability=}, {crop_probability=}"
            )
        strengths = (brightness, contrast, saturation, hue)
        if not all(0 <= s <= 1 for s in strengths) or hue > 0.5:
            raise ValueError(
                "expected strengths in [0, 1] and a hue in [0, 0.5], "
                f"got {brightness=}, {contrast=}, {saturation=}, {hue=}"
            )
        flip = A.HorizontalFlip(p=flip_probability)
        factors = [(1 - s, 1 + s) for s in (brightness, contrast, saturation)]
        jitter = A.ColorJitter(*factors, (-hue, hue), p=float(any(strengths)))
        self.min_sizes = min_sizes
        self.max_size = max_size
        self.crop_probability = crop_probability
        self._to_shorter = {
            size: _compose([flip, A.SmallestMaxSize(size), jitter]) for size in min_sizes
        }
        self._to_longer = _compose([flip, A.LongestMaxSize(max_size), jitter])

    def __call__(self, sample: Sample, *, seed: int) -> Sample:
        """Transform a sample. The result depends only on the sample and the seed.

        Boxes keep their order; a box is only dropped if its area becomes zero in float32. `area` is
        scaled by the factor by which the resize changes the area of the image.
        """
        rng = random.Random(seed)
        min_size = rng.choice(self.min_sizes)
        pixels, boxes = sample["image"].permute(1, 2, 0).numpy(), sample["boxes"].numpy()
        if self.crop_probability and rng.random() < self.crop_probability:
            pixels, boxes = _crop(pixels, boxes, rng)
        height, width = pixels.shape[:2]
        pipeline = self._pipeline((height, width), min_size)
        # All transforms share one random stream. With `set_random_seed`, each of them would draw
        # the same numbers, so that the flip would be correlated with the brightness.
        pipeline.set_random_state(np.random.default_rng(seed), rng)
        output = pipeline(
            image=pixels,
            bboxes=boxes,
            rows=np.arange(len(boxes)),  # not ids: label fields are converted to float32
        )
        new_pixels = output["image"]
        if np.may_share_memory(new_pixels, pixels):  # no step changed them
            new_pixels = new_pixels.copy()
        image = torch.from_numpy(new_pixels).permute(2, 0, 1)
        rows = torch.as_tensor(np.asarray(output["rows"]), dtype=torch.int64)
        new_boxes = torch.as_tensor(np.asarray(output["bboxes"]), dtype=torch.float32)
        keep = (new_boxes[:, 2:] > new_boxes[:, :2]).all(dim=1)
        new_boxes, rows = new_boxes[keep], rows[keep]
        growth = image[0].numel() / (height * width)
        return Sample(
            image=image,
            boxes=new_boxes,
            labels=sample["labels"][rows],
            area=sample["area"][rows] * growth,
            iscrowd=sample["iscrowd"][rows],
            image_id=sample["image_id"],
            seed=seed,
        )

    def _pipeline(self, size: tuple[int, int], min_size: int) -> A.Compose:
        shorter, longer = sorted(size)
        if longer * min_size > self.max_size * shorter:
            return self._to_longer
        return self._to_shorter[min_size]


def _crop(
    pixels: np.ndarray, boxes: np.ndarray, rng: random.Random
) -> tuple[np.ndarray, np.ndarray]:
    """Crop an image (H, W, 3) at random; return the crop as a view, and the boxes (M, 4) in it."""
    left, right = _interval(pixels.shape[1], boxes[:, 0], boxes[:, 2], rng)
    top, bottom = _interval(pixels.shape[0], boxes[:, 1], boxes[:, 3], rng)
    corner = np.array([left, top, left, top], dtype=boxes.dtype)
    return pixels[top:bottom, left:right], boxes - corner


def _interval(
    length: int, lows: np.ndarray, highs: np.ndarray, rng: random.Random
) -> tuple[int, int]:
    """Draw integers start < stop within [0, length] that enclose each interval [low, high]."""
    low = math.floor(lows.min(initial=length))
    high = math.ceil(highs.max(initial=0))
    size = rng.randint(max(high - low, math.ceil(MIN_SIDE * length)), length)
    start = rng.randint(max(0, high - size), min(low, length - size))
    return start, start + size


def _compose(transforms: list[A.BasicTransform]) -> A.Compose:
    params = A.BboxParams(
        format="pascal_voc", label_fields=["rows"], clip=True, filter_invalid_bboxes=True
    )
    return A.Compose(transforms, bbox_params=params)
