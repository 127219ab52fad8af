"""Converts between cells of a feature map and coordinates in an image file.

Coordinates in a file are those of boxes: pixel i covers i to i + 1, so its centre is at i + 0.5. In
the image that the network sees, cell i of a feature map of stride s is centred on pixel s i, since
the convolutions and the pooling pad their input on both sides alike: its centre is at s i + 0.5.
The network sees the file resized, which multiplies coordinates by a scale.

Arrays have (y, x) in their last axis: coordinates, cells, which need not be whole numbers, strides
and scales.
"""

import numpy as np

HALF_PIXEL = 0.5  # from the beginning of a pixel to its centre


def cells_at(points: np.ndarray, stride: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the cells (..., 2) at points (..., 2) of an image file.

    Args:
        stride: (2,), pixels of the image that the network sees per cell.
        scale: (2,), pixels of that image per pixel of the file.
    """
    cells: np.ndarray = (points * scale - HALF_PIXEL) / stride
    return cells


def centres_of(cells: np.ndarray, stride: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the centres (..., 2) of cells (..., 2) in the image file: the inverse of `cells_at`.

    Args:
        stride: (2,), pixels of the image that the network sees per cell.
        scale: (2,), pixels of that image per pixel of the file.
    """
    centres: np.ndarray = (cells * stride + HALF_PIXEL) / scale
    return centres
