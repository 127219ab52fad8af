"""Weights into a detector: ImageNet's from torchvision, and those of detectors trained before.

A plain network's weights fit its deformable twin: only the offset convolutions are then new, and
they start at zero. Where the classes are others, box-predictor rows are copied for the classes that
both have, matched by name.
"""

import logging
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.resnet import ResNet

from detector.class_names import class_named
from detector.model.deformable_conv import DeformableConv2d
from detector.model.roi_pooling import BoxPooling
from detector.model.weights.architecture import architecture, differences
from detector.model.weights.files import WeightsError
from detector.model.weights.names import BODY, HEAD, StateDict, Weights, read_weights

log = logging.getLogger(__name__)


def load_imagenet(body: ResNet, name: str) -> None:
    """Load torchvision's ImageNet weights into a ResNet that torchvision has, by its name.

    Raises:
        WeightsError: there are none, they cannot be fetched and are not in torch's cache, or the
            norm layers are others.
    """
    try:
        weights = get_model_weights(name).IMAGENET1K_V1
    except ValueError as error:
        raise WeightsError(
            f"there are no ImageNet weights for {name}: train from scratch with model.weights=null"
        ) from error
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


def load_file(detector: nn.Module, path: Path, classes: tuple[str, ...] | None = None) -> None:
    """Load a file into the detector, or into its backbone; the log says what was taken.

    Args:
        classes: the detector's, by label; None where they have no names.

    Raises:
        WeightsError: the file is missing, is no file of weights, or does not fit.
    """
    weights = read_weights(path)
    theirs = architecture(weights.state, path)
    own = detector.state_dict()
    were, are = differences(theirs, architecture(own, "the network"))
    if were:
        raise WeightsError(f"{path} was made with {' '.join(were)}; here {' '.join(are)}")
    _check_mask(detector, weights)
    state, said = weights.state, [f"{len(weights.state)} tensors"]
    if weights.is_detector:
        state, of_classes = _for_classes(weights, state, own, classes)
        said += of_classes
    said += [f"{number} of {part} left out" for part, number in weights.left_out.items()]
    for layers, name in (("offset convolutions", ".conv_offset."), ("RoI offsets", ".fc_offset.")):
        new = [key for key in own if key not in state and name in key]
        if new:
            said.append(f"new, from zero: {len(new) // 2} {layers}")
    if not weights.is_detector:
        said.append("new: all but the backbone")
        state |= {key: value for key, value in own.items() if not key.startswith(BODY)}
    load_into(detector, state, str(path))
    log.info("weights of %s (%s): %s", path, weights.framework, "; ".join(said))


def _check_mask(detector: nn.Module, weights: Weights) -> None:
    """Weights that learnt with one size of mask mean something else with another."""
    here = {module.mask_start for module in detector.modules() if _is_modulated(module)}
    if not any(_finds_offsets(key) for key in weights.state) or not here:
        return
    there = weights.mask_start
    if there is None:  # a bare state dict of ours, which does not say
        return
    if here != {there}:
        raise WeightsError(
            f"{weights.path} was made with deform.mask_start={there}; here "
            f"deform.mask_start={here.pop()}"
        )


def _is_modulated(module: nn.Module) -> bool:
    return isinstance(module, DeformableConv2d | BoxPooling) and module.num_masks > 0


def _finds_offsets(key: str) -> bool:
    """Whether a parameter is of a layer that finds offsets, which starts at zero."""
    return ".conv_offset." in key or ".fc_offset." in key


def _for_classes(
    weights: Weights, state: StateDict, own: StateDict, classes: tuple[str, ...] | None
) -> tuple[StateDict, list[str]]:
    """The state with a box predictor for the detector's classes, and what to say of it."""
    theirs, num_here = weights.classes, len(own[f"{HEAD}cls_score.weight"]) - 1
    num_there = len(state[f"{HEAD}cls_score.weight"]) - 1
    if theirs is None or classes is None or len(theirs) != num_there:
        if num_there == num_here:
            unnamed = theirs is None and weights.framework != "torchvision"
            return state, ["classes in their order: the file does not name them"] if unnamed else []
        log.warning("%s is for other classes: its box predictor is left out", weights.path)
        fresh = {key: value for key, value in own.items() if key.startswith(HEAD)}
        return state | fresh, [f"new: the box predictor ({num_here} classes, not {num_there})"]
    labels = {name: label for label, name in enumerate(theirs, start=1)}
    named = {label: class_named(name, theirs) for label, name in enumerate(classes, start=1)}
    taken = {label: labels[name] for label, name in named.items() if name is not None}
    if len(theirs) == len(classes) and all(taken.get(label) == label for label in named):
        return state, []
    new = [name for label, name in enumerate(classes, start=1) if label not in taken]
    state = state | _rows(state, own, taken)
    said = f"{len(taken)} of {len(classes)} classes by name"
    if new:
        log.warning("%s is for other classes: new are %s", weights.path, ", ".join(new[:5]))
    return state, [said + (f", new: {len(new)}" if new else "")]


def _rows(state: StateDict, own: StateDict, taken: dict[int, int]) -> StateDict:
    """The detector's own box predictor with rows of the file's: of the background, and of each
    label here of `taken` its label there.
    """
    pairs = {0: 0} | taken
    rows = {}
    for name in ("cls_score", "bbox_pred"):
        width = 1 if name == "cls_score" else 4  # rows a class
        for kind in ("weight", "bias"):
            key = f"{HEAD}{name}.{kind}"
            values: Tensor = own[key].clone().unflatten(0, (-1, width))
            given = state[key].to(values).unflatten(0, (-1, width))
            values[list(pairs)] = given[list(pairs.values())]
            rows[key] = values.flatten(0, 1)
    return rows


def load_into(
    module: nn.Module, state: StateDict, source: str, may_be_left: tuple[str, ...] = ()
) -> None:
    """Load a state dict strictly, but for new layers that find offsets and what may be left over.

    Raises:
        WeightsError: a tensor is missing, left over or of another shape; all are named.
    """
    own = module.state_dict()
    missing = [
        key
        for key in own
        if key not in state and not _finds_offsets(key) and "num_batches_tracked" not in key
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
