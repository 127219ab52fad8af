"""Deformable convolution and deformable RoI pooling, v1 and v2, as compiled operators for CPU and
CUDA.
"""

from ops.deform_conv import DeformConv2d, deform_conv2d
from ops.deform_roi_pool import DeformRoIPool, deform_roi_pool

__all__ = ["DeformConv2d", "DeformRoIPool", "deform_conv2d", "deform_roi_pool"]
