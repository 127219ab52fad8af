"""The work of `python -m detector.model.weights`: describes and converts files of weights."""

import re
import shlex
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from detector.builders.model import build_model, conventions_of
from detector.config import CONFIGS, ConfigError, conventions, parse_train, to_plain
from detector.evaluation.results import read_ground_truth
from detector.model.weights.architecture import Architecture, architecture
from detector.model.weights.files import WeightsError
from detector.model.weights.reading import Weights, read_weights
from detector.schema import CocoConfig, TrainConfig
from detector.training.checkpoint import FORMAT, save_checkpoint

NOT_GIVEN = "not-given"  # stands for the paths of the training data, which are unknown
MAX_NAMES = 5


def run(file: str, out: str | None, words: list[str]) -> None:
    """Print a description of a file of weights and, if `out` is given, convert it to a checkpoint.

    Args:
        words: additional arguments of train.py, which change the checkpoint's configuration.

    Raises:
        ConfigError, WeightsError, EvaluationError, CheckpointError: the file cannot be read, its
            network cannot be built, the annotations do not fit, or the checkpoint cannot be
            written.
    """
    weights = read_weights(Path(file))
    network = architecture(weights.state, file)
    print(described(weights, network))
    if out is not None:
        convert(weights, network, Path(out), words)
        print(f"written to {out}")


def described(weights: Weights, network: Architecture) -> str:
    """Describe a file of weights: a title line, then a line for each known property and for each
    command that can use the file.
    """
    by = weights.framework if weights.framework == "ours" else f"of {weights.framework}"
    what = "Faster R-CNN" if weights.is_detector else "a backbone alone"
    rows = [
        ("network", f"{what}, {network.backbone}" + _neck(network)),
        ("deforms", _deforms(network)),
        ("classes", _classes(weights, network)),
        ("conventions", _conventions(weights)),
        ("loads", f"{len(weights.state)} tensors"),
        *(("left out", f"{part}: {number}") for part, number in weights.left_out.items()),
        ("train", f"python train.py {command(weights, network)} data=... schedule=..."),
    ]
    if weights.is_detector and weights.framework != "ours":
        name = shlex.quote(str(weights.path))
        rows.append(("detect", f"python -m detector.model.weights {name} convert=model.pt"))
        rows.append(("", "python predict.py checkpoint=model.pt images=DIR"))
    lines = [f"{weights.path}: {weights.kind}, {by}", *(f"  {key:<13}{text}" for key, text in rows)]
    return "\n".join(lines)


def _neck(network: Architecture) -> str:
    if network.neck is None:
        return ""
    neck = f"{network.neck.upper()} of {network.fpn_channels} channels"
    return f", {neck}, box head of {network.box_head_channels}"


def _deforms(network: Architecture) -> str:
    if network.deforms == "none":
        return "nothing"
    place, _, version = network.deforms.partition("_")
    return f"{place}, {version}, {network.offset_groups} offset group(s)"


def _classes(weights: Weights, network: Architecture) -> str:
    if network.num_classes is None:
        return "none"
    if weights.classes is None:
        return f"{network.num_classes}, without names"
    more = ", ..." if len(weights.classes) > MAX_NAMES else ""
    return f"{network.num_classes}: {', '.join(weights.classes[:MAX_NAMES])}{more}"


def _conventions(weights: Weights) -> str:
    """Return the name of the framework and the conventions that differ from its usual ones."""
    framework = weights.conventions["framework"]
    usual = vars(conventions(framework))
    others = [f"{key}={value}" for key, value in weights.conventions.items() if usual[key] != value]
    return " ".join([framework, *others])


def command(weights: Weights, network: Architecture) -> str:
    """Return the arguments of train.py that build this network with these weights, quoted for the
    shell.
    """
    words = overrides(network)
    if network.modulated:
        words.append(f"deform.mask_start={mask_start(weights)}")
    path = str(weights.path)
    if not re.fullmatch(r"[\w./-]+", path):
        path = "'" + path.replace("'", "\\'") + "'"  # quotes for Hydra, then those for the shell
        words.append('"model.weights=' + re.sub(r'(["$`\\])', r"\\\1", path) + '"')
        return " ".join(words)
    return " ".join([*words, f"model.weights={path}"])


def overrides(network: Architecture) -> list[str]:
    """Return the arguments of train.py that build this network."""
    place, _, version = network.deforms.partition("_")
    words = [f"model={network.model}", f"deform={network.deforms}"]
    if place.startswith("last"):
        last = f"deform.last_layers={place[4:]}"
        words[1:] = ["deform=last1_v1", last, f"deform.version={version}"]
    if network.offset_groups != 1:
        words.append(f"deform.offset_groups={network.offset_groups}")
    usual = _usual(network.model)
    for key in ("neck", "fpn_channels", "rpn_channels", "roi_pool", "box_head_channels"):
        value = getattr(network, key)
        if value not in (None, usual[key]):
            words.append(f"model.{key}={value}")
            usual[key] = value  # other keys may take their value from this one
    if network.neck == "dc5" and usual.c5_dilation == 1:
        words.append("model.c5_dilation=2")
    if not network.has_statistics:
        words.append("model.norm=group")
    return words


def _usual(model: str) -> DictConfig:
    """Compose a file of configs/model/."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        usual: DictConfig = compose("train", [f"model={model}"]).model
    return usual


def mask_start(weights: Weights) -> float:
    """Return `deform.mask_start` for these weights, which is half the factor on the sigmoid."""
    return 1.0 if weights.mask_start is None else weights.mask_start


def convert(weights: Weights, network: Architecture, out: Path, words: list[str]) -> None:
    """Write a checkpoint with these weights, their network and their classes.

    Raises:
        ConfigError, WeightsError, EvaluationError, CheckpointError: the network cannot be built,
            the annotations do not fit, or the checkpoint cannot be written.
    """
    if weights.framework == "ours":
        raise ConfigError(f"{weights.path} is a checkpoint of ours already: give checkpoint=")
    if not weights.is_detector or network.num_classes is None:
        raise WeightsError(f"{weights.path} is a backbone alone, which detects nothing: train it")
    if out.exists():
        raise ConfigError(f"convert={out} exists already")
    config = _config(weights, network, words)
    names, category_ids = _names_and_ids(weights, network.num_classes, config)
    config.model.conventions = conventions_of(config.model)
    model = build_model(config.model, config.deform, config.data.transform, len(names))
    checkpoint = dict.fromkeys(
        "ema optimizer schedule scaler generators data best since_best".split()
    )
    numbers = dict.fromkeys("epoch step seconds num_images skipped position".split(), 0)
    save_checkpoint(
        out,
        {
            **checkpoint,
            **numbers,
            "format": FORMAT,
            "model": {key: value.clone() for key, value in model.state_dict().items()},
            "validation": {},
            "config": to_plain(config),
            "classes": names,
            "category_ids": category_ids,
        },
    )


def _names_and_ids(
    weights: Weights, num_classes: int, config: TrainConfig
) -> tuple[list[str], list[int]]:
    """Return the names and category ids of the classes, in the order of the labels.

    The file's own names take precedence. Otherwise they are those of the validation annotations, in
    the order of the category ids, which is how detectron2 and mmdetection count labels; if no
    annotations are given, the names are `class 1`, `class 2` and so on.

    Raises:
        ConfigError: the annotations have another number of categories.
        EvaluationError: the annotations cannot be read.
    """
    counted = list(range(1, num_classes + 1))
    if weights.classes is not None and len(weights.classes) == num_classes:
        return list(weights.classes), counted
    data = config.data
    if not isinstance(data, CocoConfig) or data.val.annotations == NOT_GIVEN:
        return [f"class {number}" for number in counted], counted
    path = Path(data.root) / data.val.annotations
    truth = read_ground_truth(path)
    if len(truth.names) != num_classes:
        raise ConfigError(
            f"data.val.annotations={path} has {len(truth.names)} categories, but {weights.path} "
            f"has {num_classes} classes: give annotations with the categories of its training"
        )
    return list(truth.names), truth.category_ids.tolist()


def _config(weights: Weights, network: Architecture, words: list[str]) -> TrainConfig:
    data = [
        "data=coco",
        *(f"data.{split}.{key}={NOT_GIVEN}" for split in ("train", "val") for key in _PATHS),
    ]
    own = overrides(network)
    if network.modulated:
        own.append(f"deform.mask_start={mask_start(weights)}")
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        config = parse_train(compose("train", [*data, *own, *words]))
    config.model.weights = str(weights.path)
    return config


_PATHS = ("images", "annotations")
