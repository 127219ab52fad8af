"""Finds out what a file of weights says about its network: classes, conventions, `mask_start`."""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

from detector.model.weights import mmdetection
from detector.model.weights.files import FileContent
from detector.model.weights.names import BODY, HEAD
from detector.model.weights.state_dicts import StateDict

log = logging.getLogger(__name__)

# Conventions of detectron2's networks that start from torchvision's weights. Its converter marks
# such files with the author `torchvision`.
RGB: dict[str, Any] = {
    "channel_order": "rgb",
    "pixel_mean": [123.675, 116.28, 103.53],
    "pixel_std": [58.395, 57.12, 57.375],
    "stride_in_1x1": False,
}

# Conventions of detectron2's ResNeXts, whose weights came from Caffe2 and differ from MSRA's.
RESNEXT: dict[str, Any] = {"pixel_std": [57.375, 57.12, 58.395], "stride_in_1x1": False}


class Metadata(NamedTuple):
    """What a file says about its network.

    Attributes:
        classes: names in the order of their labels, without the background; None if the file does
            not name the classes.
        conventions: values of `Conventions`: the framework, and each value that the file states
            itself.
        mask_start: as `deform.mask_start`; None if the file does not state it.
    """

    classes: tuple[str, ...] | None
    conventions: dict[str, Any]
    mask_start: float | None


def read_metadata(
    path: Path, content: FileContent, framework: str, given: StateDict, state: StateDict
) -> Metadata:
    """Find out what a file says about its network.

    A warning names the values of an mmdetection configuration that networks here do not follow.

    Args:
        path: the file; the name of torchvision's own file has a hash that identifies it.
        content: its content.
        framework: as `recognise` returns it.
        given: the tensors by the framework's names.
        state: the tensors by this project's names.
    """
    holder = content.objects if isinstance(content.objects, dict) else {}
    classes: tuple[str, ...] | None = None
    conventions: dict[str, Any] = {"framework": framework}
    if framework == "detectron2" and _is_grouped(state):
        conventions |= RESNEXT
    conventions |= _pixel_conventions(given)
    mask_start = None if framework == "torchvision" else 0.5
    meta = holder.get("meta")
    if isinstance(meta, dict):
        classes = _classes_of_mmdetection(meta)
        text = meta.get("cfg", meta.get("config"))  # in 3.x, in 2.x
        said, others = mmdetection.conventions_of(text)
        conventions |= said
        if others:
            log.warning("%s: ignored values of its configuration: %s", path, ", ".join(others))
    if framework == "detectron2" and holder.get("__author__") == "torchvision":
        conventions |= RGB
    if framework == "torchvision":
        conventions |= _torchvision_conventions(path, content.metadata)
        names = _metadata_value(content.metadata, "classes")
        classes = (
            tuple(map(str, names)) if isinstance(names, list) else _classes_of_torchvision(state)
        )
        deform = _metadata_value(content.metadata, "deform")
        mask_start = deform.get("mask_start") if isinstance(deform, dict) else None
    return Metadata(classes, conventions, mask_start)


def _pixel_conventions(state: StateDict) -> dict[str, Any]:
    """Return the conventions that follow from the pixel statistics in old files of detectron2."""
    if not {"pixel_mean", "pixel_std"} <= state.keys():
        return {}
    mean, std = (state[key].flatten().tolist() for key in ("pixel_mean", "pixel_std"))
    if len(mean) != 3 or len(std) != 3:
        return {}
    is_rgb = all(abs(a - b) < 1 for a, b in zip(mean, RGB["pixel_mean"], strict=True))
    # Networks for pixels that are divided by a real deviation, such as those on torchvision's
    # weights, stride in the 3x3 convolution. MSRA's have a deviation of 1 and stride in the 1x1.
    return {
        "channel_order": "rgb" if is_rgb else "bgr",
        "pixel_mean": [round(value, 4) for value in mean],
        "pixel_std": [round(value, 4) for value in std],
        "stride_in_1x1": max(std) < 2,
    }


def _is_grouped(state: StateDict) -> bool:
    """Whether the 3x3 convolutions of a bottleneck have groups, as in a ResNeXt."""
    weight = state.get(f"{BODY}layer1.0.conv2.weight")
    return weight is not None and weight.shape[0] != weight.shape[1]


def _classes_of_mmdetection(meta: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the class names: `CLASSES` in 2.x, `dataset_meta` in 3.x; None without names."""
    of_3 = meta.get("dataset_meta")
    of_3 = of_3 if isinstance(of_3, dict) else {}
    names = next(
        (
            found
            for found in (meta.get("CLASSES"), of_3.get("classes"), of_3.get("CLASSES"))
            if found
        ),
        None,
    )
    if isinstance(names, str):
        names = (names,)
    return tuple(map(str, names)) if isinstance(names, list | tuple) else None


def _torchvision_conventions(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """Return the conventions in the metadata of this project's safetensors, or those of
    torchvision's own file, which the hash in its name identifies.
    """
    conventions = _metadata_value(metadata, "conventions")
    if isinstance(conventions, dict):
        return conventions
    return {"norm_eps": 0.0} if "258fb6c6" in path.name else {}  # fasterrcnn_resnet50_fpn, COCO_V1


def _metadata_value(metadata: dict[str, str], key: str) -> Any:
    """Return the JSON value of a key in safetensors metadata; None if missing or not JSON."""
    try:
        return json.loads(metadata.get(key, "null"))
    except ValueError:
        return None


def _classes_of_torchvision(state: StateDict) -> tuple[str, ...] | None:
    """Return the names of COCO's ids 1 to 90 if the classes are as many as torchvision's.

    Ten of these ids have no class. torchvision calls them all N/A, but names must differ.
    """
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    scores = state.get(f"{HEAD}cls_score.weight")
    if scores is None or len(scores) != len(names):
        return None
    return tuple(
        f"unused {number}" if name == "N/A" else name
        for number, name in enumerate(names[1:], start=1)
    )
