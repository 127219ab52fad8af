"""Reads a file of weights of any framework, and finds out what it says about its network."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detector.model.weights.files import read
from detector.model.weights.frameworks import recognise
from detector.model.weights.metadata import read_metadata
from detector.model.weights.names import BODY, by_our_names
from detector.model.weights.state_dicts import StateDict, find_state_dict, trained_weights


@dataclass
class Weights:
    """Weights by this project's names, and what the file says about their network.

    Attributes:
        path: the file.
        kind: its format in words.
        framework: `torchvision`, `mmdetection`, `detectron2`, or `ours` for this project.
        state: the tensors by the names of this project's detector. If the file holds only a
            backbone, all names begin with `backbone.body.`.
        left_out: parts of the file that no Faster R-CNN has, and how many tensors each has.
        classes: names in the order of their labels, without the background; None if the file does
            not name the classes.
        conventions: values of `Conventions`: the framework, and each value that the file states
            itself.
        mask_start: as `deform.mask_start`; None if the file does not state it.
    """

    path: Path
    kind: str
    framework: str
    state: StateDict
    left_out: dict[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    conventions: dict[str, Any] = field(default_factory=dict)
    mask_start: float | None = None

    @property
    def is_detector(self) -> bool:
        """Whether these are the weights of a detector and not only of a backbone."""
        return any(not key.startswith(BODY) for key in self.state)


def read_weights(path: Path) -> Weights:
    """Read a file of weights and recognise its framework, classes and conventions.

    Raises:
        WeightsError: the file is not a file of weights, or its network is not supported.
    """
    content = read(path)
    if _is_own(content.objects):
        return _own_weights(path, content.kind, content.objects)
    framework, given = recognise(path, find_state_dict(path, content))
    state, left_out = by_our_names(path, framework, given)
    metadata = read_metadata(path, content, framework, given, state)
    return Weights(path, content.kind, framework, state, left_out, *metadata)


def _is_own(content: Any) -> bool:
    """Whether the content of a file looks like a checkpoint of this project."""
    if not isinstance(content, dict) or not {"model", "config", "classes"} <= content.keys():
        return False
    config = content["config"]
    return isinstance(config, dict) and {"model", "deform", "data"} <= config.keys()


def _own_weights(path: Path, kind: str, checkpoint: dict[str, Any]) -> Weights:
    trained = checkpoint["config"]
    return Weights(
        path,
        kind,
        "ours",
        trained_weights(checkpoint),
        classes=tuple(checkpoint["classes"]),
        conventions=trained["model"].get("conventions") or {"framework": "torchvision"},
        mask_start=trained["deform"]["mask_start"],
    )
