"""Weights from elsewhere: ImageNet's from torchvision, and detectors that were trained before.

A plain network's weights fit its deformable twin: only the offset convolutions are then new, and
they start at zero.
"""

import logging
import re
from pathlib import Path
from typing import Any
from urllib.error import URLError

import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import get_weight
from torchvision.models.resnet import ResNet

log = logging.getLogger(__name__)

# torchvision's names before 0.13 -> today's: of the FPN's and of the RPN's convolutions
OLD_NAMES = {
    r"((?:inner|layer)_blocks\.\d+)\.(weight|bias)": r"\1.0.\2",
    r"rpn\.head\.conv\.(weight|bias)": r"rpn.head.conv.0.0.\1",
}

StateDict = dict[str, Tensor]


class WeightsError(ValueError):
    """Weights that cannot be had or do not fit. The message names the file or the tensors."""


def load_imagenet(body: ResNet, name: str) -> None:
    """Load torchvision's ImageNet weights into a ResNet-18, 34, 50 or 101.

    Raises:
        WeightsError: there is no network and no cached file, or the norm layers are others.
    """
    weights = get_weight(f"{name.replace('resnet', 'ResNet')}_Weights.IMAGENET1K_V1")
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError) as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        raise WeightsError(
            f"ImageNet weights for {name} cannot be downloaded ({error}). Without a network, fetch "
            f"{weights.url} elsewhere and put it into {cache}, or give a file with "
            "model.weights=PATH, or train from scratch with model.weights=null "
            "model.norm=batch model.trainable_layers=5"
        ) from error
    load_into(body, state, f"ImageNet weights for {name}", may_be_left=("fc.",))


def load_file(detector: nn.Module, path: Path) -> None:
    """Load a file into the detector: one of our checkpoints, a state dict of torchvision's
    detector, or one of a ResNet alone; as torch.save wrote it, or as safetensors.

    A box predictor for another number of classes is left out, and the log says so.

    Raises:
        WeightsError: the file is missing, is not such a state dict, or does not fit.
    """
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"model.weights={path}: no such file") from error
    except Exception as error:  # torch.load and safetensors raise many kinds on a broken file
        raise WeightsError(f"model.weights={path} cannot be read: {error}") from error
    state = trained_weights(content) if isinstance(content, dict) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"model.weights={path} holds no state dict")
    for old, new in OLD_NAMES.items():
        state = {re.sub(old, new, key): value for key, value in state.items()}
    if any(key.startswith("backbone.") for key in state):
        load_into(detector, without_other_classes(detector, state, path), str(path))
    else:
        body = detector.get_submodule("backbone.body")
        load_into(body, state, str(path), may_be_left=("fc.",))


def trained_weights(checkpoint: dict[str, Any]) -> StateDict:
    """The model's state dict in a checkpoint: of the average, where there is one. A state dict is
    taken for its own checkpoint.
    """
    average = checkpoint.get("ema")
    if average is None:
        state: StateDict = checkpoint.get("model", checkpoint)
        return state
    prefix = "module."  # of torch.optim.swa_utils.AveragedModel
    return {
        name.removeprefix(prefix): value
        for name, value in average.items()
        if name.startswith(prefix)
    }


def without_other_classes(detector: nn.Module, state: StateDict, path: Path) -> StateDict:
    """The state without a box predictor whose number of classes is not the detector's."""
    head = "roi_heads.box_predictor."
    own = detector.state_dict()
    other = [
        key
        for key, value in state.items()
        if key.startswith(head) and key in own and own[key].shape != value.shape
    ]
    if not other:
        return state
    log.warning("%s is for other classes: its box predictor is left out", path)
    return {key: own[key] if key.startswith(head) else value for key, value in state.items()}


def load_into(
    module: nn.Module, state: StateDict, source: str, may_be_left: tuple[str, ...] = ()
) -> None:
    """Load a state dict strictly, but for new offset convolutions and what may be left over.

    Raises:
        WeightsError: a tensor is missing, left over or of another shape; all are named.
    """
    own = module.state_dict()
    missing = [
        key
        for key in own
        if key not in state and ".conv_offset." not in key and "num_batches_tracked" not in key
    ]
    left = [
        key
        for key in state
        if key not in own and not key.startswith(may_be_left) and "num_batches_tracked" not in key
    ]
    other = [key for key in state if key in own and own[key].shape != state[key].shape]
    for problem, keys in (("lacks", missing), ("has unknown", left), ("has misshapen", other)):
        if keys:
            names = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise WeightsError(f"{source} {problem} {names}")
    module.load_state_dict({key: state[key] for key in state if key in own}, strict=False)
