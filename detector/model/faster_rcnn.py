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

from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.resnet import ResNet

from detector.conventions import Conventions
from detector.model.anchors import Anchors
from detector.model.boxes import (
    BoxDecoder,
    BoxHeads,
    BoxPredictor,
    ProposalHead,
)
from detector.model.necks import with_neck
from detector.model.proposals import ProposalNetwork
from detector.model.resize import Resize
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
            from the output. With 5, bn1 is trained as well, as in torchvision.
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
    parts = with_neck(body, neck, channels=fpn_channels, anchor_sizes=anchor_sizes)
    anchors = Anchors(
        parts.anchor_sizes,
        aspect_ratios,
        rounded=conventions.round_anchors,
        strides=parts.rpn_strides if conventions.fixed_strides else None,
    )
    model = FasterRCNN(
        parts.backbone,
        rpn_anchor_generator=anchors,
        box_head=TwoMLPHead(fpn_channels * ROI_SIZE**2, box_head_channels),
        box_predictor=BoxPredictor(box_head_channels, num_classes + 1),
        rpn_head=ProposalHead(  # after the box head: a seed has always given these initial weights
            parts.rpn_in_channels,
            rpn_channels,
            num_anchors=len(parts.anchor_sizes[0]) * len(aspect_ratios),
            num_levels=len(parts.anchor_sizes),
        ),
    )
    model.transform = Resize(min_size, max_size, conventions)
    model.rpn = ProposalNetwork(
        anchors=anchors,
        head=model.rpn.head,
        decoder=BoxDecoder((1.0, 1.0, 1.0, 1.0), clamp_shrinking=conventions.clamp_shrinking),
        batch_size=rpn_batch_size,
        pre_nms_top_n={"training": rpn_pre_nms_top_n_train, "testing": rpn_pre_nms_top_n_test},
        post_nms_top_n={
            "training": min(rpn_top_n_train, conventions.max_train_proposals),
            "testing": rpn_top_n_test,
        },
        min_side=conventions.min_proposal_side,
    )
    model.roi_heads = BoxHeads(
        pooling=BoxPooling(
            channels=fpn_channels,
            levels=parts.roi_strides,
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
