"""Deformable convolution v1 and v2 as a compiled operator for CPU and CUDA."""

from ops.deform_conv import DeformConv2d, deform_conv2d

__all__ = ["DeformConv2d", "deform_conv2d"]
