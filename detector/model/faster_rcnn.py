"""Faster R-CNN, assembled from torchvision's parts on this project's backbone: with an FPN, or
without one as in the paper on deformable convolutions (`dc5.py`).

In training mode it takes images and targets and returns the four losses. In evaluation mode it
takes images and returns boxes in the pixels of these images:

    images   list of float (3, H, W) in [0, 1], RGB, of any sizes
    targets  list of {boxes float (M, 4) xyxy pixels, labels int64 (M,) 1..K} and, optionally,
             seed int: decides which anchors and proposals are sampled for the losses
    losses   {loss_objectness, loss_rpn_box_reg, loss_classifier, loss_box_reg}
    results  list of {boxes (D, 4), scores (D,), labels (D,)}, by descending score

The state dict of a plain ResNet-50 detector with an FPN has the same names as that of torchvision's
`fasterrcnn_resnet50_fpn`.
"""

from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import ResNet

from detector.conventions import Conventions
from detector.model.boxes import (
    Anchors,
    BoxDecoder,
    BoxHeads,
    BoxPredictor,
    ProposalHead,
)
from detector.model.dc5 import DilatedC5Backbone
from detector.model.roi_pooling import ROI_SIZE, BoxPooling
from detector.model.sampling import use_seeded_samplers


def faster_rcnn(
    body: ResNet,
    *,
    num_classes: int,
    conventions: Conventions,
    neck: str,
    fpn_channels: int,
    trainable_layers: int,
    anchor_sizes: list[int],
    aspect_ratios: list[float],
    rpn_channels: int,
    rpn_pre_nms_top_n_train: int,
    rpn_pre_nms_top_n_test: int,
    rpn_top_n_train: int,
    rpn_top_n_test: int,
    rpn_batch_size: int,
    roi_pool: str,
    mask_start: float,
    box_batch_size: int,
    box_head_channels: int,
    score_threshold: float,
    nms: str,
    nms_iou: float,
    nms_sigma: float,
    detections_per_image: int,
    min_size: int,
    max_size: int,
) -> FasterRCNN:
    """Build the detector.

    Args:
        body: the ResNet, with its deformable layers already in place. It must be built with the
            `stride_in_1x1` and `norm_eps` of the conventions.
        num_classes: K, without the background.
        conventions: how images are scaled and boxes are computed, see `conventions.py`.
        neck: `fpn`: proposals from p2 to p6 and RoI features from p2 to p5 (Lin et al. 2017); or
            `dc5`: proposals from c4 and RoI features from a dilated c5 with fewer channels (Dai et
            al. 2017).
        fpn_channels: channels of p2 to p6, or of the reduced c5.
        trainable_layers: how many of layer4, layer3, layer2, layer1 and conv1 are trained, counted
            from the output. With 5, bn1 is trained as well.
        anchor_sizes: in pixels; with an FPN one size for each level, p2 to p6, otherwise all sizes
            are used on c4.
        aspect_ratios: height divided by width.
        rpn_channels: output channels of the 3x3 convolution that the RPN begins with.
        rpn_pre_nms_top_n_train, rpn_pre_nms_top_n_test: proposals kept per level before NMS.
        rpn_top_n_train, rpn_top_n_test: proposals kept per image after NMS; in training at most
            `conventions.max_train_proposals`.
        rpn_batch_size, box_batch_size: anchors and proposals sampled per image for the losses.
        roi_pool, mask_start: how RoI features are pooled, see `roi_pooling.py`.
        box_head_channels: output channels of the box head's two linear layers.
        score_threshold: only detections with a higher score are kept.
        nms, nms_iou, nms_sigma: how duplicate detections are suppressed, see `nms.py`.
        detections_per_image: the largest number of detections that is kept per image.
        min_size, max_size: in evaluation, images are resized so that the shorter side is
            `min_size` pixels, unless the longer side would exceed `max_size`. In training images
            are not resized here, because the training transform does it.

    Raises:
        ValueError: `neck` or `trainable_layers` has an unknown value, or `anchor_sizes` or the
            body's dilation does not fit the neck.
    """
    freeze(body, trainable_layers)
    strides = feature_strides(body)
    channels = [body.fc.in_features // 8 * 2**level for level in range(4)]  # of c2 to c5
    match neck:
        case "fpn":
            if len(anchor_sizes) != 5:
                raise ValueError(
                    f"model.anchor_sizes={anchor_sizes} must be five sizes, one each for p2 to p6"
                )
            backbone = BackboneWithFPN(
                body,
                return_layers={"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"},
                in_channels_list=channels,
                out_channels=fpn_channels,
            )
            sizes, rpn_strides = [[size] for size in anchor_sizes], [*strides, 2 * strides[-1]]
            pooled, rpn_input = ["0", "1", "2", "3"], fpn_channels
        case "dc5":
            if strides[3] != strides[2]:
                raise ValueError("model.neck=dc5 needs model.c5_dilation of 2 or more, not 1")
            if not anchor_sizes:
                raise ValueError("model.anchor_sizes=[] must be at least one size, for c4")
            backbone = DilatedC5Backbone(body, fpn_channels)
            sizes, rpn_strides = [anchor_sizes], strides[2:3]
            pooled, strides, rpn_input = ["c5"], strides[3:], channels[2]
        case _:
            raise ValueError(f"model.neck={neck} is none of fpn, dc5")
    anchors = Anchors(
        sizes,
        aspect_ratios,
        rounded=conventions.round_anchors,
        strides=rpn_strides if conventions.fixed_strides else None,
    )
    model = FasterRCNN(
        backbone,
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_train=rpn_pre_nms_top_n_train,
        rpn_post_nms_top_n_train=min(rpn_top_n_train, conventions.max_train_proposals),
        rpn_pre_nms_top_n_test=rpn_pre_nms_top_n_test,
        rpn_post_nms_top_n_test=rpn_top_n_test,
        box_head=TwoMLPHead(fpn_channels * ROI_SIZE**2, box_head_channels),
        box_predictor=BoxPredictor(box_head_channels, num_classes + 1),
        rpn_head=ProposalHead(  # built last, which keeps the initial weights of a seed
            rpn_input,
            rpn_channels,
            num_anchors=len(sizes[0]) * len(aspect_ratios),
            num_levels=len(sizes),
        ),
    )
    model.transform = Resize(min_size, max_size, conventions)
    model.rpn.min_size = conventions.min_proposal_side
    model.rpn.box_coder = BoxDecoder(
        (1.0, 1.0, 1.0, 1.0), clamp_shrinking=conventions.clamp_shrinking
    )
    model.roi_heads = BoxHeads(
        pooling=BoxPooling(
            channels=fpn_channels,
            levels=dict(zip(pooled, strides, strict=True)),
            aligned=conventions.roi_aligned,
            sampling_ratio=conventions.roi_sampling_ratio,
            level_rule=conventions.roi_level_rule,
            kind=roi_pool,
            mask_start=mask_start,
        ),
        head=model.roi_heads.box_head,
        predictor=model.roi_heads.box_predictor,
        decoder=BoxDecoder((10.0, 10.0, 5.0, 5.0), clamp_shrinking=conventions.clamp_shrinking),
        batch_size=box_batch_size,
        score_threshold=score_threshold,
        nms=nms,
        nms_iou=nms_iou,
        nms_sigma=nms_sigma,
        min_side=conventions.min_detection_side,
        detections_per_image=detections_per_image,
    )
    use_seeded_samplers(model, rpn_batch_size=rpn_batch_size, box_batch_size=box_batch_size)
    return model


class Resize(GeneralizedRCNNTransform):
    """torchvision's transform, extended to images of any shape.

    If the shorter side would shrink to less than a pixel, as in an image of 3000x2 pixels, it is
    stretched first, so that one pixel of it remains.
    """

    def __init__(self, min_size: int, max_size: int, conventions: Conventions) -> None:
        mean, std = (
            [value / 255 for value in values]
            for values in (conventions.pixel_mean, conventions.pixel_std)
        )
        # _skip_resize has an effect only in training.
        super().__init__(min_size, max_size, mean, std, _skip_resize=True)
        self.channel_order = conventions.channel_order

    def normalize(self, image: Tensor) -> Tensor:
        """Normalise an RGB image, float (3, H, W) in [0, 1], in the network's channel order."""
        if self.channel_order == "bgr":
            image = image.flip(0)
        normalised: Tensor = super().normalize(image)
        return normalised

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Resize an image, float (3, H, W), to the model's input size; in training do nothing.

        The model itself scales detections back to the size that the image had before.
        """
        if not self.training:
            sides = image.shape[1:]
            least = max(sides) // self.max_size + 1
            if min(sides) < least:
                stretched = [max(side, least) for side in sides]
                image = interpolate(image[None], stretched, mode="bilinear")[0]
        resized: tuple[Tensor, dict[str, Tensor] | None] = super().resize(image, target)
        return resized


def feature_strides(body: ResNet) -> list[int]:
    """Return the strides of c2 to c5 in pixels of the image. A dilated c5 has the stride of c4."""
    of_c5 = {module.stride for module in body.layer4.modules() if isinstance(module, nn.Conv2d)}
    return [4, 8, 16, 32 if (2, 2) in of_c5 else 16]


def freeze(body: nn.Module, trainable_layers: int) -> None:
    """Freeze the body except for the last `trainable_layers` of its five layers.

    Raises:
        ValueError: `trainable_layers` is not from 0 to 5.
    """
    layers = ["layer4", "layer3", "layer2", "layer1", "conv1"]
    if not 0 <= trainable_layers <= len(layers):
        raise ValueError(f"model.trainable_layers={trainable_layers} must be from 0 to 5")
    trainable = [*layers[:trainable_layers], *(["bn1"] if trainable_layers == 5 else [])]
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in trainable)
