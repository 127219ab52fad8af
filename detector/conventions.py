"""Conventions: details of Faster R-CNN that torchvision, detectron2 and mmdetection compute
differently. A checkpoint reproduces its results only with the conventions it was trained with.

configs/conventions/ holds the values of each framework. Differences in the names of weights and in
the index of the background class are not conventions: they are removed when weights are loaded
(`detector/model/weights/`). This module imports nothing of ours, since both the configuration and
the model use it.
"""

from dataclasses import dataclass


@dataclass
class Conventions:
    """How images are normalised, and the details of the network that papers leave open.

    Attributes:
        framework: the name of the framework, for the reader of a configuration.
        channel_order: `rgb` or `bgr`, the channel order of the network's input. Images are always
            passed to the model in RGB.
        pixel_mean, pixel_std: three numbers in `channel_order`, for pixel values of 0 to 255.
        stride_in_1x1: whether a bottleneck that halves the resolution does so in its first 1x1
            convolution, as MSRA's weights expect, or in its 3x3 convolution.
        norm_eps: the number that the normalisation layers of the backbone add to the variance.
        round_anchors: round the base anchors to whole pixels before they are shifted over the
            image.
        fixed_strides: place anchors as far apart as the stride of their level, which is 4, 8, 16,
            32 and 64 pixels in an FPN without dilation. Otherwise the distance is the size of the
            image divided by that of the feature map, rounded down, which gives another number for
            the last level if the size of its map was rounded up.
        clamp_shrinking: limit the predicted shrinking of a box to a factor of 62.5. Its growth is
            always limited to that factor.
        min_proposal_side, min_detection_side: pixels. Proposals and detections with a shorter side
            are dropped.
        max_train_proposals: the largest number of proposals of an image that are kept after NMS in
            training, even if `rpn_top_n_train` is larger.
        roi_aligned: RoIAlign takes pixel centres to be at .5, as Detectron2's `ROIAlignV2` does.
        roi_sampling_ratio: the number of samples of RoIAlign along each side of a bin. With 0 there
            are as many as the bin has pixels along that side, rounded up.
        roi_level_rule: the rule that chooses the FPN level from which a proposal is pooled, by the
            proposal's size s = sqrt(area):
            torchvision  floor(4 + log2(s / 224) + 1e-6)
            detectron2   floor(4 + log2(s / 224 + 1e-8))
            mmdetection  floor(2 + log2(s / 56 + 1e-6))
    """

    framework: str
    channel_order: str
    pixel_mean: list[float]
    pixel_std: list[float]
    stride_in_1x1: bool
    norm_eps: float
    round_anchors: bool
    fixed_strides: bool
    clamp_shrinking: bool
    min_proposal_side: float
    min_detection_side: float
    max_train_proposals: int
    roi_aligned: bool
    roi_sampling_ratio: int
    roi_level_rule: str

    def __post_init__(self) -> None:
        """Refuse values that are not allowed.

        Raises:
            ValueError: a value is not allowed. The message names the key, the value and what is
                expected.
        """
        choices = {
            "channel_order": ("rgb", "bgr"),
            "roi_level_rule": ("torchvision", "detectron2", "mmdetection"),
        }
        for key, known in choices.items():
            if getattr(self, key) not in known:
                given = f"model.conventions.{key}={getattr(self, key)}"
                raise ValueError(f"{given} must be one of {', '.join(known)}")
        if not (len(self.pixel_mean) == len(self.pixel_std) == 3 and min(self.pixel_std) > 0):
            raise ValueError(
                f"model.conventions.pixel_mean={self.pixel_mean} and pixel_std={self.pixel_std} "
                "must be three numbers each, one for each channel, and those of pixel_std above 0"
            )
