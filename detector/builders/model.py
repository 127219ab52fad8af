"""Build the model that a configuration describes, with its initial or trained weights."""

from dataclasses import asdict, replace
from pathlib import Path

import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.resnet import ResNet

from detector.config import ConfigError, conventions, parse
from detector.conventions import Conventions
from detector.model.faster_rcnn import faster_rcnn
from detector.model.resnet import make_deformable, placement, resnet
from detector.model.weights.loading import load_file, load_imagenet, load_state_dict_into
from detector.model.weights.reading import read_weights
from detector.model.weights.state_dicts import trained_weights
from detector.schema import DeformConfig, ModelConfig, TrainConfig, TransformConfig
from detector.training.checkpoint import Checkpoint


def build_model(
    model: ModelConfig,
    deform: DeformConfig,
    transform: TransformConfig,
    num_classes: int,
    classes: tuple[str, ...] | None = None,
) -> FasterRCNN:
    """Build the detector with its initial weights, in channels-last memory.

    Args:
        num_classes: the number of classes, without the background.
        classes: the class names. The box head's rows in `model.weights` are matched to them by
            name; with None they are matched by their order.

    Raises:
        ConfigError: a value is out of its range.
        WeightsError: the weights cannot be downloaded or read, or do not fit.
    """
    try:
        own = conventions_of(model)
        detector = faster_rcnn(
            build_body(model, deform, own),
            num_classes=num_classes,
            conventions=own,
            neck=model.neck,
            fpn_channels=model.fpn_channels,
            trainable_layers=model.trainable_layers,
            anchor_sizes=model.anchor_sizes,
            aspect_ratios=model.aspect_ratios,
            rpn_channels=model.rpn_channels,
            rpn_pre_nms_top_n_train=model.rpn_pre_nms_top_n_train,
            rpn_pre_nms_top_n_test=model.rpn_pre_nms_top_n_test,
            rpn_top_n_train=model.rpn_top_n_train,
            rpn_top_n_test=model.rpn_top_n_test,
            rpn_batch_size=model.rpn_batch_size,
            roi_pool=model.roi_pool,
            mask_start=deform.mask_start,
            box_batch_size=model.box_batch_size,
            box_head_channels=model.box_head_channels,
            score_threshold=model.score_threshold,
            nms=model.nms,
            nms_iou=model.nms_iou,
            nms_sigma=model.nms_sigma,
            detections_per_image=model.detections_per_image,
            min_size=transform.min_size,
            max_size=transform.max_size,
        )
    except ValueError as error:
        raise error if type(error) is not ValueError else ConfigError(str(error)) from error
    if model.weights not in (None, "imagenet"):
        load_file(detector, Path(model.weights), classes)
    return detector.to(memory_format=torch.channels_last)


def build_body(model: ModelConfig, deform: DeformConfig, own: Conventions) -> ResNet:
    """Build the ResNet with its deformable convolutions, and load ImageNet weights into it if these
    are the initial weights.

    Raises:
        ValueError: a value is out of its range.
        WeightsError: the weights cannot be downloaded.
    """
    body = resnet(
        name=model.backbone,
        norm=model.norm,
        c5_dilation=model.c5_dilation,
        norm_eps=own.norm_eps,
        stride_in_1x1=own.stride_in_1x1,
    )
    if model.weights == "imagenet":
        load_imagenet(body, model.backbone)
    make_deformable(
        body,
        placement(body, stages=deform.stages, last_layers=deform.last_layers),
        modulated=deform.version == "v2",
        offset_groups=deform.offset_groups,
        mask_start=deform.mask_start,
        offset_limit=deform.offset_limit,
    )
    return body


def conventions_of(model: ModelConfig) -> Conventions:
    """Return the configuration's conventions or, if it gives none, those of its weights.

    Raises:
        ConfigError: the weights were made with a convention that cannot be built here.
        WeightsError: the weights cannot be read.
    """
    if model.conventions is not None:
        given: Conventions = model.conventions
        return given
    if model.weights in (None, "imagenet"):
        return conventions("torchvision")
    theirs = read_weights(Path(model.weights)).conventions
    try:
        known = asdict(conventions(theirs["framework"])) | theirs
        return parse(Conventions, known, "model.conventions")
    except (ValueError, OSError) as error:
        raise ConfigError(f"model.weights={model.weights}: {error}") from error


def trained_model(trained: TrainConfig, checkpoint: Checkpoint) -> FasterRCNN:
    """Build the model of a checkpoint, with its weights, on the CPU.

    Args:
        trained: the checkpoint's own configuration.

    Raises:
        ConfigError: a value is out of its range.
        WeightsError: the weights do not fit.
    """
    blank = replace(trained.model, weights=None)  # loaded from the checkpoint below
    num_classes = len(checkpoint["classes"])
    model = build_model(blank, trained.deform, trained.data.transform, num_classes)
    load_state_dict_into(model, trained_weights(checkpoint), "the checkpoint")
    return model
