"""Loads weights into a detector: torchvision's ImageNet weights, and those of trained detectors.

The weights of a plain network fit the deformable network of the same architecture. Only the layers
that predict offsets are then new, and they start at zero. If the classes differ, the rows of the
box predictor are copied for the classes that both have, matched by name.
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
from detector.model.weights.names import BODY, HEAD
from detector.model.weights.reading import Weights, read_weights
from detector.model.weights.state_dicts import StateDict

log = logging.getLogger(__name__)


def load_imagenet(body: ResNet, name: str) -> None:
    """Load torchvision's ImageNet weights into a ResNet.

    Args:
        body: the ResNet.
        name: its name in torchvision.

    Raises:
        WeightsError: torchvision has no such weights, they are not in torch's cache and cannot be
            downloaded, or the body has other norm layers than batch norm.
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
    load_state_dict_into(
        body, state, f"the file of ImageNet weights for {name}", ignored_prefixes=("fc.",)
    )


def load_file(detector: nn.Module, path: Path, classes: tuple[str, ...] | None = None) -> None:
    """Load a file of weights into the detector, or into its backbone if it holds only a backbone.

    The log says what was loaded, what was left out and what is newly initialised.

    Args:
        detector: the detector.
        path: the file.
        classes: the names of the detector's classes, in the order of their labels from 1; None if
            the classes have no names.

    Raises:
        WeightsError: the file is missing, is not a file of weights, or does not fit.
    """
    weights = read_weights(path)
    theirs = architecture(weights.state, path)
    own = detector.state_dict()
    were, are = differences(theirs, architecture(own, "the network"))
    if were:
        raise WeightsError(f"{path} was made with {' '.join(were)}; here {' '.join(are)}")
    _check_mask_start(detector, weights)
    state, said = weights.state, [f"{len(weights.state)} tensors"]
    if weights.is_detector:
        state, of_classes = _match_classes(weights, state, own, classes)
        said += of_classes
    said += [f"{number} of {part} left out" for part, number in weights.left_out.items()]
    for layers, name in (("offset convolutions", ".conv_offset."), ("RoI offsets", ".fc_offset.")):
        new = [key for key in own if key not in state and name in key]
        if new:
            said.append(f"newly initialised to zero: {len(new) // 2} {layers}")
    if not weights.is_detector:
        said.append("newly initialised: all but the backbone")
        state |= {key: value for key, value in own.items() if not key.startswith(BODY)}
    load_state_dict_into(detector, state, str(path))
    log.info("weights of %s (%s): %s", path, weights.framework, "; ".join(said))


def _check_mask_start(detector: nn.Module, weights: Weights) -> None:
    """Refuse weights that were trained with another `mask_start`, because it scales their mask.

    Raises:
        WeightsError: the file's `mask_start` differs from the detector's.
    """
    here = {module.mask_start for module in detector.modules() if _is_modulated(module)}
    if not any(_predicts_offsets(key) for key in weights.state) or not here:
        return
    there = weights.mask_start
    if there is None:  # not stored in a bare state dict of this project
        return
    if here != {there}:
        raise WeightsError(
            f"{weights.path} was made with deform.mask_start={there}; here "
            f"deform.mask_start={here.pop()}"
        )


def _is_modulated(module: nn.Module) -> bool:
    return isinstance(module, DeformableConv2d | BoxPooling) and module.num_masks > 0


def _predicts_offsets(key: str) -> bool:
    """Whether a parameter belongs to a layer that predicts offsets, which starts at zero."""
    return ".conv_offset." in key or ".fc_offset." in key


def _match_classes(
    weights: Weights, state: StateDict, own: StateDict, classes: tuple[str, ...] | None
) -> tuple[StateDict, list[str]]:
    """Return the state with a box predictor for the detector's classes, and notes for the log."""
    theirs, num_here = weights.classes, len(own[f"{HEAD}cls_score.weight"]) - 1
    num_there = len(state[f"{HEAD}cls_score.weight"]) - 1
    if theirs is None or classes is None or len(theirs) != num_there:
        if num_there == num_here:
            unnamed = theirs is None and weights.framework != "torchvision"
            return state, ["unnamed classes, matched by order"] if unnamed else []
        log.warning("%s is for other classes: its box predictor is left out", weights.path)
        fresh = {key: value for key, value in own.items() if key.startswith(HEAD)}
        return state | fresh, [
            f"newly initialised: the box predictor ({num_here} classes, not {num_there})"
        ]
    labels = {name: label for label, name in enumerate(theirs, start=1)}
    named = {label: class_named(name, theirs) for label, name in enumerate(classes, start=1)}
    taken = {label: labels[name] for label, name in named.items() if name is not None}
    if len(theirs) == len(classes) and all(taken.get(label) == label for label in named):
        return state, []
    new = [name for label, name in enumerate(classes, start=1) if label not in taken]
    state = state | _copy_rows(state, own, taken)
    said = f"{len(taken)} of {len(classes)} classes matched by name"
    if new:
        log.warning("%s is for other classes: new rows for %s", weights.path, ", ".join(new[:5]))
    return state, [said + (f", newly initialised: {len(new)}" if new else "")]


def _copy_rows(state: StateDict, own: StateDict, taken: dict[int, int]) -> StateDict:
    """Return the detector's box predictor with rows copied from the file's: those of the background
    and of the classes in `taken`, which maps the detector's labels to the file's.
    """
    pairs = {0: 0} | taken
    rows = {}
    for name in ("cls_score", "bbox_pred"):
        width = 1 if name == "cls_score" else 4  # rows per class
        for kind in ("weight", "bias"):
            key = f"{HEAD}{name}.{kind}"
            values: Tensor = own[key].clone().unflatten(0, (-1, width))
            given = state[key].to(values).unflatten(0, (-1, width))
            values[list(pairs)] = given[list(pairs.values())]
            rows[key] = values.flatten(0, 1)
    return rows


def load_state_dict_into(
    module: nn.Module, state: StateDict, source: str, ignored_prefixes: tuple[str, ...] = ()
) -> None:
    """Load a state dict strictly, except that layers that predict offsets may be missing.

    Args:
        module: the module to load into.
        state: the state dict.
        source: what error messages call the state dict, such as the path of its file.
        ignored_prefixes: prefixes of names that the module need not have.

    Raises:
        WeightsError: tensors are missing, unexpected or of another shape; it names the first three.
    """
    own = module.state_dict()
    missing = [
        key
        for key in own
        if key not in state and not _predicts_offsets(key) and "num_batches_tracked" not in key
    ]
    left = [
        key
        for key in state
        if key not in own
        and not key.startswith(ignored_prefixes)
        and "num_batches_tracked" not in key
    ]
    other = [key for key in state if key in own and own[key].shape != state[key].shape]
    for problem, keys in (
        ("lacks the tensors", missing),
        ("has unexpected tensors", left),
        ("has tensors of another shape than the network", other),
    ):
        if keys:
            names = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise WeightsError(f"{source} {problem}: {names}")
    module.load_state_dict({key: state[key] for key in state if key in own}, strict=False)
