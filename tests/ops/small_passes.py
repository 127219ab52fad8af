"""Runs small passes of every kernel of a device, for compute-sanitizer; see `tests/gpu_check.sh`.

    compute-sanitizer --tool memcheck python tests/ops/small_passes.py cuda

Results are not checked: the tests do that. Sizes are odd and small, because a sanitizer slows the
kernels down a hundredfold.
"""

import sys

import torch

from ops import deform_conv2d, deform_roi_pool

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def convolution(
    device: str,
    dtype: torch.dtype,
    groups: int,
    stride: int,
    channels: int = 32,
    size: tuple[int, int] = (9, 11),
) -> None:
    """Run the forward and backward of a modulated convolution, with as many offset groups."""
    height, width = size
    out_size = ((height - 1) // stride + 1, (width - 1) // stride + 1)
    shapes = (2, channels, height, width), (24, channels // groups, 3, 3)
    features, weight = (
        torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes
    )
    offset = 3 * torch.randn(2, 18 * groups, *out_size, device=device)
    mask = torch.rand(2, 9 * groups, *out_size, device=device, requires_grad=True)
    output = deform_conv2d(
        features, offset.requires_grad_(), weight, None, stride, padding=1, mask=mask
    )
    output.float().square().sum().backward()


def pooling(device: str, dtype: torch.dtype, sampling_ratio: int) -> None:
    """Run the forward and backward of a modulated RoI pooling; one box leaves the image."""
    features = torch.randn(2, 24, 13, 17, device=device, dtype=dtype, requires_grad=True)
    boxes = torch.tensor([[0, 1, 2, 9, 8], [1, -3, 4, 30, 12]], device=device, dtype=torch.float32)
    offset = torch.randn(2, 2, 7, 7, device=device, requires_grad=True)
    mask = torch.rand(2, 7, 7, device=device, requires_grad=True)
    output = deform_roi_pool(
        features, boxes, 7, sampling_ratio=sampling_ratio, offset=offset, mask=mask
    )
    output.float().square().sum().backward()


def main(device: str) -> None:
    """Run every kernel once for each dtype."""
    torch.manual_seed(0)
    for dtype in DTYPES:
        for groups, stride in ((1, 1), (2, 2)):
            convolution(device, dtype, groups, stride)
        if device == "cuda" and dtype.itemsize == 2:
            # Large enough for the fused forward, whose 142 blocks must fill half the GPU.
            convolution(device, dtype, 2, 1, channels=128, size=(48, 47))
        for sampling_ratio in (2, -1):
            pooling(device, dtype, sampling_ratio)
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1])
