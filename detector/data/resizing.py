"""Computes how far the resize enlarges or reduces images, and says it in words."""

from collections.abc import Mapping, Sequence

import numpy as np

from detector.data.dataset import DetectionDataset, Record


def resize_words(
    splits: Mapping[str, DetectionDataset],
    *,
    train_min_sizes: Sequence[int],
    min_size: int,
    max_size: int,
) -> list[str]:
    """Return one line for each split: the size that its images get, and how far that changes them.

    A random crop in training, after which an image is enlarged further, is not counted.

    Args:
        splits: the data sets by the name of their split; "train" is the training set.
        train_min_sizes: lengths in pixels of the shorter side in training.
        min_size: that length in evaluation.
        max_size: upper limit of the longer side in pixels, which takes precedence.
    """
    lines = []
    for split, dataset in splits.items():
        min_sizes = sorted(set(train_min_sizes)) if split == "train" else [min_size]
        sizes = image_sizes(dataset.records)
        low = resize_factors(sizes, min_size=min_sizes[0], max_size=max_size).min()
        high = resize_factors(sizes, min_size=min_sizes[-1], max_size=max_size).max()
        shorter = _range(f"{min_sizes[0]}", f"{min_sizes[-1]}")
        lines.append(
            f"{split}: images are resized so that their shorter side is {shorter} pixels and "
            f"their longer side at most {max_size}: {_change(low, high)}"
        )
    return lines


def image_sizes(records: Sequence[Record]) -> np.ndarray:
    """Return the sizes (h, w) of the images in pixels, (N, 2)."""
    return np.array([(record.height, record.width) for record in records])


def resize_factors(sizes: np.ndarray, *, min_size: int, max_size: int) -> np.ndarray:
    """Return the factors (N,) by which images of these sizes (N, 2) are enlarged."""
    factors: np.ndarray = np.minimum(min_size / sizes.min(axis=1), max_size / sizes.max(axis=1))
    return factors


def _change(low: float, high: float) -> str:
    """Return words for the smallest and the largest factor."""
    factors = _range(f"{low:.3g}", f"{high:.3g}")
    if factors == "1":
        return "they have that size"
    return f"enlarged {factors} times" if low >= 1 else f"scaled by {factors}"


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"
