"""Faster R-CNN with FPN, assembled from torchvision's parts on our backbone.

In training it takes images and targets and returns the four losses; in evaluation it takes images
and returns boxes in their pixels:

    images   list of float (3, H, W) in [0, 1], RGB, of any sizes
    targets  list of {boxes float (M, 4) xyxy pixels, labels int64 (M,) 1..K} and, optionally,
             seed int: of the sample of anchors and proposals that the losses look at
    losses   {loss_objectness, loss_rpn_box_reg, loss_classifier, loss_box_reg}
    results  list of {boxes (D, 4), scores (D,), labels (D,)}, by descending score

The state dict of a plain ResNet-50 has the names of torchvision's `fasterrcnn_resnet50_fpn`.
"""

from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import ResNet
from torchvision.ops import MultiScaleRoIAlign

from detector.model.boxes import Anchors, BoxPredictor, ProposalHead
from detector.model.sampling import sample_by_image

ROI_SIZE = 7


def faster_rcnn(
    body: ResNet,
    *,
    num_classes: int,
    fpn_channels: int,
    trainable_layers: int,
    anchor_sizes: list[int],
    aspect_ratios: list[float],
    rpn_top_n_train: int,
    rpn_top_n_test: int,
    rpn_batch_size: int,
    box_batch_size: int,
    box_head_channels: int,
    score_threshold: float,
    detections_per_image: int,
    min_size: int,
    max_size: int,
) -> FasterRCNN:
    """Build the detector.

    Args:
        num_classes: K, without the background.
        trainable_layers: how many of layer4, layer3, layer2, layer1, conv1 learn, from the output
            (5: all of them, and bn1).
        anchor_sizes: one a level, p2 to p6, in pixels.
        aspect_ratios: height over width.
        rpn_top_n_train, rpn_top_n_test: proposals kept per level before and in all after NMS.
        rpn_batch_size, box_batch_size: anchors and proposals sampled per image for the losses.
        min_size, max_size: in evaluation, images are resized so that the shorter side is
            `min_size` unless the longer one would exceed `max_size`. In training they are taken as
            they come: the training transform resizes them.
    """
    if len(anchor_sizes) != 5:
        raise ValueError(
            f"model.anchor_sizes={anchor_sizes} must be five, one for each of p2 to p6"
        )
    freeze(body, trainable_layers)
    backbone = BackboneWithFPN(
        body,
        return_layers={"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"},
        in_channels_list=[body.fc.in_features // 8 * 2**level for level in range(4)],
        out_channels=fpn_channels,
    )
    anchors = Anchors(
        tuple((size,) for size in anchor_sizes), (tuple(aspect_ratios),) * len(anchor_sizes)
    )
    model = FasterRCNN(
        backbone,
        min_size=min_size,
        max_size=max_size,
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_train=rpn_top_n_train,
        rpn_post_nms_top_n_train=rpn_top_n_train,
        rpn_pre_nms_top_n_test=rpn_top_n_test,
        rpn_post_nms_top_n_test=rpn_top_n_test,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], ROI_SIZE, sampling_ratio=2),
        box_head=TwoMLPHead(fpn_channels * ROI_SIZE**2, box_head_channels),
        box_predictor=BoxPredictor(box_head_channels, num_classes + 1),
        rpn_head=ProposalHead(fpn_channels, len(aspect_ratios)),
        box_score_thresh=score_threshold,
        box_detections_per_img=detections_per_image,
    )
    own = model.transform
    model.transform = Resize(
        own.min_size,
        own.max_size,
        own.image_mean,
        own.image_std,
        _skip_resize=True,  # in training only
    )
    sample_by_image(model, rpn_batch_size=rpn_batch_size, box_batch_size=box_batch_size)
    return model


class Resize(GeneralizedRCNNTransform):
    """torchvision's, for images of any shape: a side that would shrink to nothing, as of one of
    3000x2 pixels, is stretched before until it is a pixel then.
    """

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Float (3, H, W) to the model's size, in evaluation; boxes are resized by the caller."""
        if not self.training:
            sides = image.shape[1:]
            least = max(sides) // self.max_size + 1
            if min(sides) < least:
                stretched = [max(side, least) for side in sides]
                image = interpolate(image[None], stretched, mode="bilinear")[0]
        resized: tuple[Tensor, dict[str, Tensor] | None] = super().resize(image, target)
        return resized


def freeze(body: nn.Module, trainable_layers: int) -> None:
    """Leave the last `trainable_layers` of the body's five layers trainable, and no more."""
    layers = ["layer4", "layer3", "layer2", "layer1", "conv1"]
    if not 0 <= trainable_layers <= len(layers):
        raise ValueError(f"model.trainable_layers={trainable_layers} must be from 0 to 5")
    trainable = [*layers[:trainable_layers], *(["bn1"] if trainable_layers == 5 else [])]
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in trainable)
