"""Exports the weights of a checkpoint in the form that model hubs expect.

    python -m detector.training.checkpoint export RUN/checkpoints/best.pt exported
    python -m detector.training.checkpoint export RUN/checkpoints/last.pt exported/last
    python -m detector.training.checkpoint export SWEEP/3/checkpoints/best.pt exported/3

writes these files into the folder, which is the last argument:

    model.safetensors   the model's state dict, with unchanged names
    config.yaml         the configuration of its training
    README.md           the model card: classes, metrics, licence, how to load the model
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import safetensors.torch
from omegaconf import OmegaConf

from detector import entry
from detector.model.weights.state_dicts import trained_weights
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

`{metric}` on the validation images of `config.yaml`, from the last evaluation before this
checkpoint was saved.

| metric | value |
|---|---|
{metrics}

## Use

In the following, `DIRECTORY` is the folder of this file. To start training from these weights, run
in the application's folder:

    python train.py model.weights=DIRECTORY/model.safetensors

To detect objects in images, in Python:

```python
from omegaconf import OmegaConf

from detector.builders.model import build_model
from detector.config import parse_train

config = parse_train(OmegaConf.load("DIRECTORY/config.yaml"))
config.model.weights = "DIRECTORY/model.safetensors"
transform = config.data.transform
model = build_model(config.model, config.deform, transform, num_classes={num_classes}).eval()
# images: a list of float tensors (3, H, W), RGB in [0, 1]
# model(images): a dict for each image, with boxes (xyxy in pixels), labels and scores
```

## Licence

The code's licence is Apache-2.0. The training images and, if training started from them, the
ImageNet weights have licences of their own.
"""


def export(path: Path, folder: Path) -> None:
    """Write model.safetensors, config.yaml and README.md into a folder.

    Args:
        path: the checkpoint.

    Raises:
        CheckpointError: the checkpoint cannot be read, or the folder cannot be written.
    """
    checkpoint = load_checkpoint(path)
    # The model is trained in channels-last memory, which safetensors does not store.
    state = {name: tensor.contiguous() for name, tensor in trained_weights(checkpoint).items()}
    metadata = {
        "classes": json.dumps(checkpoint["classes"]),
        "conventions": json.dumps(checkpoint["config"]["model"].get("conventions")),
        "deform": json.dumps(checkpoint["config"]["deform"]),
    }
    contents = {
        "model.safetensors": safetensors.torch.save(state, metadata),
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
    """Return the model card in Markdown, with the front matter that model hubs read.

    Args:
        source: the file name of the checkpoint.
    """
    config, classes = checkpoint["config"], checkpoint["classes"]
    metrics = checkpoint["validation"].get("metrics", {})  # empty before the first evaluation
    rows = list(zip(range(1, len(classes) + 1), classes, checkpoint["category_ids"], strict=True))
    return CARD.format(
        front_matter=OmegaConf.to_yaml(OmegaConf.create(front_matter(config, metrics))),
        title=title(config),
        source=source,
        step=checkpoint["step"],
        epoch=checkpoint["epoch"],
        classes=table_rows(rows),
        metric=config["metric"],
        metrics=table_rows([(name, metric_text(value)) for name, value in metrics.items()]),
        num_classes=len(classes),
    )


def front_matter(config: dict[str, Any], metrics: dict[str, float | None]) -> dict[str, Any]:
    """Return licence, tags and metrics under the keys of Hugging Face's model cards."""
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
    """Name the architecture, such as `Faster R-CNN resnet50 FPN, deformable c3-c5 (v2)`."""
    stages, version = config["deform"]["stages"], config["deform"]["version"]
    deform = "" if stages == "none" else f", deformable {stages} ({version})"
    model = config["model"]  # older versions had no key `neck`: it was fpn
    return f"Faster R-CNN {model['backbone']} {model.get('neck', 'fpn').upper()}{deform}"


def table_rows(rows: list[tuple[Any, ...]]) -> str:
    """Format the rows of a Markdown table, without its header."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def metric_text(value: float | None) -> str:
    """Format a metric; None, a dash, means that there are no objects to compute it from."""
    return "-" if value is None else f"{value:.4f}"


def main() -> None:
    """Run the command line of `python -m detector.training.checkpoint`."""
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
