"""The order of a feature map's values in memory: by channel (NCHW) or by pixel (channels-last).

Devices like channels-last better, but for one case: a processor with no more than AVX2 that trains
a wide network on large images. There oneDNN's backward of a 3x3 convolution over many pixels is two
to three times as slow as in NCHW, which costs more than the rest gains. Measured on 2 cores of an
AMD EPYC with AVX2, torch 2.14.1, medians in seconds, interleaved:

    a training step, float32                          channels-last   NCHW
    tiny, 8 images of 128 pixels                               0.55   0.59
    tiny, 2 images of 256 pixels                               0.49   0.51
    ResNet-50-FPN, 2 images of 256 pixels                      4.71   4.59
    ResNet-50-FPN, 2 images of 480 pixels                      13.5   12.0
    one 3x3 convolution, 256 channels of 120x160, backward     2.28   0.85
    the same, forward                                          0.31   0.36

A step is measured by `python -m detector.step_benchmark formats ...`. On 2 cores of an Intel Xeon
with AMX it gave 0.49 and 0.57 for the first row (results/step/formats.json).
"""

import torch

FINEST_STRIDE = 4  # pixels, of p2
MANY_VALUES = 2**21  # of p2, between the third and the fourth row


def training_memory_format(
    device: torch.device, *, fpn_channels: int, min_size: int
) -> torch.memory_format:
    """The faster one for training on a device.

    Args:
        min_size: of the images' shorter sides, in pixels.
    """
    is_avx2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
    num_values = fpn_channels * (min_size // FINEST_STRIDE) ** 2
    if device.type == "cpu" and is_avx2 and num_values > MANY_VALUES:
        return torch.contiguous_format
    return torch.channels_last
