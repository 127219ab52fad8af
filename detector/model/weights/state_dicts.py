"""Finds the state dict in the content of a file of weights, and checks its numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detector.model.weights.files import FileContent, WeightsError
from detector.model.weights.restricted_pickle import Inert

StateDict = dict[str, Tensor]

# Keys under which files keep their state dict.
HOLDERS = ("state_dict", "model", "model_state_dict", "model_state", "net", "checkpoint", "ema")


def find_state_dict(path: Path, content: FileContent) -> StateDict:
    """Return the tensors of a file by the names that they have there.

    Values that are neither tensors nor numpy arrays of numbers are left out.

    Raises:
        WeightsError: the content has no state dict, or a tensor is not floating point, not finite,
            or of an invalid shape.
    """
    given = ((name, _tensor(value)) for name, value in _find(path, content).items())
    state = {name: value for name, value in given if value is not None and isinstance(name, str)}
    if not state:
        raise WeightsError(f"{path} ({content.kind}) {_without_tensors(content.objects)}")
    _check_numbers(path, state)
    return state


def trained_weights(checkpoint: dict[str, Any]) -> StateDict:
    """Return the model's state dict of a checkpoint of this project: the EMA if it has one."""
    average = checkpoint.get("ema")
    if average is None:
        state: StateDict = checkpoint["model"]
        return state
    prefix = "module."  # of torch.optim.swa_utils.AveragedModel
    return {
        name.removeprefix(prefix): value
        for name, value in average.items()
        if name.startswith(prefix)
    }


def _find(path: Path, content: FileContent) -> dict[Any, Any]:
    """Return the dictionary in the content of a file that is or holds the state dict."""
    holder = content.objects
    if isinstance(holder, Inert):
        raise WeightsError(
            f"{path} is a whole object of {holder.name}, pickled, and not weights: save its "
            "state_dict()"
        )
    if not isinstance(holder, dict):
        raise WeightsError(f"{path} ({content.kind}) holds {_described(holder)} and no state dict")
    if "blobs" in holder or "conv1_w" in holder:
        raise WeightsError(
            f"{path} is a file of Caffe2 or Detectron 1, whose names and background class "
            "differ: load it in detectron2 once and save its state_dict()"
        )
    for key in HOLDERS:
        inner = holder.get(key)
        if isinstance(inner, Inert):
            raise WeightsError(
                f"{path}: {key!r} is a whole object of {inner.name}, pickled, and not weights: "
                "save its state_dict()"
            )
        if isinstance(inner, dict):
            return inner
    return holder


def _described(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"one array of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def _without_tensors(holder: dict[Any, Any]) -> str:
    keys = ", ".join(str(key)[:30] for key in list(holder)[:5])
    return f"holds no state dict but {keys or 'nothing'}"


def _tensor(value: Any) -> Tensor | None:
    """Return a tensor or a numpy array of numbers as a tensor, and None for other values."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        native = value.dtype.newbyteorder("=")
        return torch.from_numpy(np.array(value, dtype=native, order="C"))
    return value.detach() if isinstance(value, Tensor) else None


def _check_numbers(path: Path, state: StateDict) -> None:
    """Check that all tensors but counters are dense, floating point, finite and of a valid shape.

    Raises:
        WeightsError: a tensor is not; the message names it.
    """
    for name, value in state.items():
        if "num_batches" in name or "n_averaged" in name:
            continue
        if not value.is_floating_point() or value.is_sparse:
            raise WeightsError(
                f"{path}: {name} is of {value.dtype}, expected floating point numbers"
            )
        if not value.isfinite().all():
            raise WeightsError(f"{path}: {name} has values that are not finite")
        dimensions = 4 if name.endswith(("conv_offset.weight", "conv2_offset.weight")) else 1
        if name.endswith(".weight") and (value.dim() < dimensions or 0 in value.shape):
            raise WeightsError(
                f"{path}: {name} has the shape {tuple(value.shape)}, expected {dimensions} or more "
                "dimensions, none of them empty"
            )
