"""Recognises the framework of weights by the names of their tensors.

The names tell detectors of torchvision (and this project), mmdetection and detectron2 apart, and
the ResNets of their classifiers.
"""

import re
from pathlib import Path

from detector.model.weights.files import WeightsError
from detector.model.weights.names import BODY
from detector.model.weights.state_dicts import StateDict

# Prefixes that DistributedDataParallel, torch.compile and Lightning add to every name.
WRAPPERS = ("module.", "_orig_mod.", "model.")
# Patterns of names that identify detectors that cannot be loaded.
OTHER_DETECTORS = {
    r"backbone\.(stem|res\d)\.|roi_heads\.res5\.": "detectron2's Faster R-CNN C4, without an FPN",
    r"head\.(cls_subnet|bbox_subnet)\.|bbox_head\.(cls|reg)_convs\.|head\.classification_head\.": (
        "a one-stage detector such as RetinaNet"
    ),
    r"roi_head\.bbox_head\.0\.|roi_heads\.box_head\.0\.fc|roi_heads\.box_predictor\.0\.": (
        "a Cascade R-CNN"
    ),
    r"roi_heads\.box_head\.\d\.0\.|backbone\.fpn\.inner_blocks\.0\.1\.": (
        "torchvision's fasterrcnn_resnet50_fpn_v2, whose FPN and head have norm layers"
    ),
    r"(module\.)?transformer\.|class_embed|bbox_embed": "a transformer such as DETR",
    r"backbone\.body\.0\.0\.|features\.": "a network of another kind than ResNet",
    r"(model\.)?\d+\.(conv|cv1|m)\.": "a YOLO model",
}


def recognise(path: Path, state: StateDict) -> tuple[str, StateDict]:
    """Recognise the framework of a state dict.

    Returns:
        `torchvision`, `mmdetection` or `detectron2`, and the state dict without the prefixes that
        wrappers add to its names. A backbone alone has the names that it has in a detector.

    Raises:
        WeightsError: it is another kind of network.
    """
    state.pop("n_averaged", None)  # of torch.optim.swa_utils.AveragedModel
    while True:
        prefix = next((p for p in WRAPPERS if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}

    def any_is(pattern: str) -> bool:
        return any(re.match(pattern, key) for key in state)

    other = next((words for pattern, words in OTHER_DETECTORS.items() if any_is(pattern)), None)
    if other is not None:
        raise WeightsError(
            f"{path} is {other}: only Faster R-CNN with a ResNet and an FPN is loaded"
        )
    if any_is(r"backbone\.(body|fpn)\."):
        return "torchvision", state
    if any_is(r"backbone\.bottom_up\."):
        return "detectron2", state
    if any_is(r"backbone\.layer\d\."):
        return "mmdetection", state
    if any_is(r"layer\d\.\d+\."):
        return "torchvision", {f"{BODY}{key}": value for key, value in state.items()}
    if any_is(r"res\d\.\d+\."):
        return "detectron2", {f"backbone.bottom_up.{key}": value for key, value in state.items()}
    names = ", ".join(list(state)[:3])
    raise WeightsError(
        f"{path} is no ResNet or Faster R-CNN of torchvision, mmdetection or detectron2: its "
        f"tensors have names such as {names}"
    )
