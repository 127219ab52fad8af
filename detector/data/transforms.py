"""The training transform: horizontal flip, multi-scale resize, colour jitter, by Albumentations.

All randomness of a sample comes from one seed, which `sample_seed` makes of (seed, epoch, index):
neither the workers nor what was loaded before has a part in it.
"""

import os
import random

import numpy as np
import torch

from detector.data.dataset import Sample

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks the network

import albumentations as A  # noqa: E402, N812


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """The seed in [0, 2**64) of one sample in one epoch. All three are at least 0."""
    return int(np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)[0])


class TrainTransform:
    """Flips, resizes and recolours a sample; its image keeps its aspect ratio.

    Args:
        min_sizes: in pixels; the shorter side becomes one of these, drawn for every sample...
        max_size: ... unless the longer side would exceed this, which it then becomes.
        flip_probability: of a horizontal flip.
        brightness, contrast, saturation: factors are drawn from [1 - s, 1 + s]; 0 for none.
        hue: turn drawn from [-s, s] of the full circle; 0 for none.

    Raises:
        ValueError: a size is below 1, the probability outside [0, 1], or a strength outside
            [0, 1] (hue: [0, 0.5]).
    """

    def __init__(
        self,
        *,
        min_sizes: list[int],
        max_size: int,
        flip_probability: float,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
    ) -> None:
        if not min_sizes or min([*min_sizes, max_size]) < 1:
            raise ValueError(f"expected sizes of 1 or more, got {min_sizes=} and {max_size=}")
        if not 0 <= flip_probability <= 1:
            raise ValueError(f"expected a probability in [0, 1], got {flip_probability=}")
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
        self._to_shorter = {
            size: _compose([flip, A.SmallestMaxSize(size), jitter]) for size in min_sizes
        }
        self._to_longer = _compose([flip, A.LongestMaxSize(max_size), jitter])

    def __call__(self, sample: Sample, *, seed: int) -> Sample:
        """The transformed sample, a function of the sample and the seed alone.

        Boxes stay in their order; only one that has no area left in float32 is missing. `area`
        grows as the image does.
        """
        rng = random.Random(seed)
        pipeline = self._pipeline(sample["image"].shape[-2:], rng.choice(self.min_sizes))
        # One stream for all: by set_random_seed each transform would draw the same numbers, and
        # whether an image is flipped would tell how bright it becomes.
        pipeline.set_random_state(np.random.default_rng(seed), rng)
        output = pipeline(
            image=np.array(sample["image"].permute(1, 2, 0).numpy(), order="C"),
            bboxes=sample["boxes"].numpy(),
            rows=np.arange(len(sample["boxes"])),  # label fields pass through float32: no ids here
        )
        image = torch.from_numpy(np.ascontiguousarray(output["image"])).permute(2, 0, 1)
        rows = torch.as_tensor(np.asarray(output["rows"]), dtype=torch.int64)
        boxes = torch.as_tensor(np.asarray(output["bboxes"]), dtype=torch.float32)
        keep = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        boxes, rows = boxes[keep], rows[keep]
        growth = image[0].numel() / sample["image"][0].numel()
        return Sample(
            image=image,
            boxes=boxes,
            labels=sample["labels"][rows],
            area=sample["area"][rows] * growth,
            iscrowd=sample["iscrowd"][rows],
            image_id=sample["image_id"],
            seed=seed,
        )

    def _pipeline(self, size: torch.Size, min_size: int) -> A.Compose:
        shorter, longer = sorted(size)
        if longer * min_size > self.max_size * shorter:
            return self._to_longer
        return self._to_shorter[min_size]


def _compose(transforms: list[A.BasicTransform]) -> A.Compose:
    params = A.BboxParams(
        format="pascal_voc", label_fields=["rows"], clip=True, filter_invalid_bboxes=True
    )
    return A.Compose(transforms, bbox_params=params)
