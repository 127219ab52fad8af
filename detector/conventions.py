"""The details that frameworks compute differently: a checkpoint gives its own results only with
those it was trained with. It imports nothing, and is known to the configuration and the model.

The values of torchvision, detectron2 and mmdetection are in configs/conventions/. What differs in
the names of weights and in the place of the background alone is undone when they are loaded
(`detector/model/weights/`), and is none of these.
"""

from dataclasses import dataclass


@dataclass
class Conventions:
    """How images are scaled, and what the network does with numbers that papers leave open.

    Attributes:
        framework: whose they are, for the reader of a configuration.
        channel_order: `rgb` or `bgr`, of the network's input. Images are given in RGB always.
        pixel_mean, pixel_std: three numbers in the input's order, for pixels of 0 to 255.
        stride_in_1x1: a bottleneck that halves the resolution does so in its first 1x1 convolution,
            as MSRA's weights have it, and not in its 3x3.
        norm_eps: added to the variance by the norm layers of the backbone.
        round_anchors: to whole pixels, before they are moved over the image.
        fixed_strides: anchors are 4, 8, 16, 32 and 64 pixels apart; otherwise as far as the size of
            the image over that of the feature map, rounded down, which is another number for the
            last level where its map was rounded up.
        clamp_shrinking: a predicted change of a box's size is at most a factor of 62.5 downwards
            too, and not upwards alone.
        min_proposal_side, min_detection_side: pixels; proposals and detections with a side below
            it are dropped.
        max_train_proposals: kept in all after NMS in training, of `rpn_top_n_train` a level.
        roi_aligned: RoIAlign's pixels have their centres at .5, as in Detectron2's `ROIAlignV2`.
        roi_sampling_ratio: samples of RoIAlign along a side of a cell; 0: as many as it has pixels.
        roi_level_rule: which level a proposal is read from, by its size s = sqrt(area):
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
        """Refuse values that no network can have.

        Raises:
            ValueError: it names the key, the value and what is expected.
        """
        choices = {
            "channel_order": ("rgb", "bgr"),
            "roi_level_rule": ("torchvision", "detectron2", "mmdetection"),
        }
        for key, known in choices.items():
            if getattr(self, key) not in known:
                given = f"model.conventions.{key}={getattr(self, key)}"
                raise ValueError(f"{given} is none of {', '.join(known)}")
        if not (len(self.pixel_mean) == len(self.pixel_std) == 3 and min(self.pixel_std) > 0):
            raise ValueError(
                f"model.conventions.pixel_mean={self.pixel_mean} and pixel_std={self.pixel_std} "
                "must be three numbers each, of the channels, and the second above 0"
            )
