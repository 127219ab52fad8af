"""The memory format of feature maps: by channel (contiguous, NCHW) or by pixel (channels-last).

Channels-last is faster, with one exception: a CPU that has AVX2 but not AVX-512 and trains a wide
network on large images. There oneDNN's backward pass of a 3x3 convolution over many pixels takes
two to three times as long as in NCHW, which costs more than channels-last gains elsewhere. Measured
on 2 cores of an AMD EPYC with AVX2, torch 2.14.1, medians in seconds, with the two formats
alternating:

    a training step, float32                          channels-last   NCHW
    tiny, 8 images of 128 pixels                               0.55   0.59
    tiny, 2 images of 256 pixels                               0.49   0.51
    ResNet-50-FPN, 2 images of 256 pixels                      4.71   4.59
    ResNet-50-FPN, 2 images of 480 pixels                      13.5   12.0
    one 3x3 convolution, 256 channels of 120x160, backward     2.28   0.85
    the same convolution, forward                              0.31   0.36

`python -m detector.settings_benchmark formats ...` measures a step. On 2 cores of an Intel Xeon
with AMX, the first row was 0.49 and 0.57 (results/step/formats.json).
"""

import torch

FINEST_STRIDE = 4  # of p2, in pixels
MANY_VALUES = 2**21  # values of p2 in one image; between rows three and four


def training_memory_format(
    device: torch.device, *, fpn_channels: int, min_size: int
) -> torch.memory_format:
    """Return the faster memory format for training on a device.

    Args:
        fpn_channels: channels of p2.
        min_size: the length of the images' shorter sides, in pixels.
    """
    is_avx2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
    num_values = fpn_channels * (min_size // FINEST_STRIDE) ** 2
    if device.type == "cpu" and is_avx2 and num_values > MANY_VALUES:
        return torch.contiguous_format
    return torch.channels_last
