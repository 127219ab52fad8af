"""Writes a checkpoint's bare weights as others expect a model: safetensors and a model card.

    python -m detector.training.checkpoint export RUN/checkpoints/best.pt exported
    python -m detector.training.checkpoint export RUN/checkpoints/last.pt exported/last
    python -m detector.training.checkpoint export SWEEP/3/checkpoints/best.pt exported/3

writes into the folder that is named last:

    model.safetensors   the model's state dict, names unchanged
    config.yaml         the configuration that it was trained with
    README.md           the model card: classes, metrics, licence, how to load it
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import safetensors.torch
from omegaconf import OmegaConf

from detector import entry
from detector.model.weights.names import trained_weights
from detector.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from detector.training.durable import write_synced

CARD = """\
---
{front_matter}---

# {title}

Faster R-CNN trained with Deformable Faster R-CNN, from `{source}`: step {step}, epoch {epoch}.

## Classes

| label | class | category id |
|---|---|---|
{classes}

## Metrics

`{metric}` on the validation images of `config.yaml`, as last evaluated before this checkpoint.

| metric | value |
|---|---|
{metrics}

## Use

To train from these weights, in the application's folder (`DIRECTORY` is this one):

    python train.py model.weights=DIRECTORY/model.safetensors

To detect, likewise, in Python:

```python
from omegaconf import OmegaConf

from detector.builders.model import build_model
from detector.config import typed_train

config = typed_train(OmegaConf.load("DIRECTORY/config.yaml"))
config.model.weights = "DIRECTORY/model.safetensors"
transform = config.data.transform
model = build_model(config.model, config.deform, transform, num_classes={num_classes}).eval()
# images: a list of float tensors (3, H, W) in RGB, 0..1
# model(images): for each its boxes (xyxy in pixels), labels and scores
```

## Licence

The code's is Apache-2.0. The training images and, where training began with them, the ImageNet
weights have terms of their own.
"""


def export(path: Path, folder: Path) -> None:
    """Write model.safetensors, config.yaml and README.md into a folder.

    Raises:
        CheckpointError: the checkpoint cannot be read, or the folder not written.
    """
    checkpoint = load_checkpoint(path)
    # the model is trained in channels-last memory, which safetensors does not store
    state = {name: tensor.contiguous() for name, tensor in trained_weights(checkpoint).items()}
    said = {
        "classes": json.dumps(checkpoint["classes"]),
        "conventions": json.dumps(checkpoint["config"]["model"].get("conventions")),
        "deform": json.dumps(checkpoint["config"]["deform"]),
    }
    contents = {
        "model.safetensors": safetensors.torch.save(state, said),
        "config.yaml": OmegaConf.to_yaml(OmegaConf.create(checkpoint["config"])).encode(),
        "README.md": model_card(checkpoint, path.name).encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_synced(folder / name, content)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error.strerror})") from error


def model_card(checkpoint: Checkpoint, source: str) -> str:
    """Markdown, with the front matter that model hubs read."""
    config, classes = checkpoint["config"], checkpoint["classes"]
    metrics = checkpoint["validation"].get("metrics", {})  # empty where it was never evaluated
    rows = list(zip(range(1, len(classes) + 1), classes, checkpoint["category_ids"], strict=True))
    return CARD.format(
        front_matter=OmegaConf.to_yaml(OmegaConf.create(front_matter(config, metrics))),
        title=title(config),
        source=source,
        step=checkpoint["step"],
        epoch=checkpoint["epoch"],
        classes=table(rows),
        metric=config["metric"],
        metrics=table([(name, shown(value)) for name, value in metrics.items()]),
        num_classes=len(classes),
    )


def front_matter(config: dict[str, Any], metrics: dict[str, float | None]) -> dict[str, Any]:
    """Licence, tags and metrics, by the keys of Hugging Face's model cards."""
    deforms = config["deform"]["stages"] != "none"
    tags = ["object-detection", "faster-rcnn", *(["deformable-convolution"] if deforms else [])]
    content = {"license": "apache-2.0", "pipeline_tag": "object-detection", "tags": tags}
    if not metrics:
        return content
    result = {
        "task": {"type": "object-detection"},
        "dataset": {"name": config["data"]["format"], "type": config["data"]["format"]},
        "metrics": [
            {"type": name, "value": value} for name, value in metrics.items() if value is not None
        ],
    }
    return {**content, "model-index": [{"name": title(config), "results": [result]}]}


def title(config: dict[str, Any]) -> str:
    """The architecture in a few words."""
    stages, version = config["deform"]["stages"], config["deform"]["version"]
    deform = "" if stages == "none" else f", deformable {stages} ({version})"
    model = config["model"]  # perhaps of a version that knew no other neck
    return f"Faster R-CNN {model['backbone']} {model.get('neck', 'fpn').upper()}{deform}"


def table(rows: list[tuple[Any, ...]]) -> str:
    """The rows of a Markdown table."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def shown(value: float | None) -> str:
    """A metric's value; None stands for 'no such objects'."""
    return "-" if value is None else f"{value:.4f}"


def main() -> None:
    """The command line of `python -m detector.training.checkpoint`."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m detector.training.checkpoint",
        description=__doc__,
        formatter_class=as_written,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "export",
        help="write bare weights and a model card",
        description=__doc__,
        formatter_class=as_written,
    )
    command.add_argument("checkpoint", type=Path)
    command.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    with entry.one_line_errors():
        export(arguments.checkpoint, arguments.directory)
