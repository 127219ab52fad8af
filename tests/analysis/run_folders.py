"""Writes run folders like those of real runs, without training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

CLASSES = ("disc", "star")
CONFIG = {
    "seed": 0,
    "metric": "coco",
    "deform": {"stages": "none", "version": "v2"},
    "schedule": {"lr": 0.1, "epochs": 2},
    "device": "cpu",
}


def truth(num_images: int = 30) -> dict[str, Any]:
    """Return a COCO-format ground truth with one or two objects per image, of all sizes."""
    rng = np.random.default_rng(3)
    annotations = []
    for image in range(num_images):
        for number in range(1 + image % 2):
            side = float(rng.choice([20, 50, 120]))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 1 + (image + number) % 2,
                    "bbox": [10.0 + 200 * number, 10.0, side, side],
                    "area": side * side,
                    "iscrowd": 0,
                }
            )
    return {
        "images": [
            {"id": image, "file_name": f"{image}.png", "height": 400, "width": 400}
            for image in range(num_images)
        ],
        "annotations": annotations,
        "categories": [{"id": 1 + i, "name": name} for i, name in enumerate(CLASSES)],
    }


def detections_of(truth: dict[str, Any], seed: int, missing: float = 0.2) -> list[dict[str, Any]]:
    """Return detections of most objects, shifted a little, and some false positives.

    Args:
        missing: the share of objects that are not detected.
    """
    rng = np.random.default_rng([seed, 7])
    found = []
    for one in truth["annotations"]:
        x, y, width, height = one["bbox"]
        if rng.random() >= missing:
            moved = [x + width * rng.uniform(-0.1, 0.1), y, width, height]
            kept = {"image_id": one["image_id"], "category_id": one["category_id"]}
            found.append(kept | {"bbox": moved, "score": float(rng.uniform(0.3, 1))})
        if rng.random() < 0.3:
            wrong = {"image_id": one["image_id"], "category_id": 1, "bbox": [300.0, 300.0, 40, 40]}
            found.append(wrong | {"score": float(rng.uniform(0, 0.6))})
    return found


def write_run(
    folder: Path,
    *overrides: str,
    detections: list[dict[str, Any]] | None = None,
    ground_truth: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    summary: dict[str, Any] | None = None,
) -> Path:
    """Write the folder of a run.

    Args:
        overrides: the words of its command line.
        detections: its results; None takes `detections_of` with the run's seed.
    """
    given = dict(item.partition("=")[::2] for item in overrides)
    seed = int(given.get("seed", 0))
    ground_truth = truth() if ground_truth is None else ground_truth
    if detections is None:
        detections = detections_of(ground_truth, seed)
    stages = {"stages": given.get("deform", "none").partition("_")[0]}
    content = CONFIG | {"seed": seed, "deform": CONFIG["deform"] | stages} | (config or {})
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(list(overrides)), folder / ".hydra" / "overrides.yaml")
    OmegaConf.save(OmegaConf.create(content), folder / "config.yaml")
    done = {"status": "done", "seed": seed, "num_parameters": 6e6, "seconds_per_image": 0.02}
    (folder / "summary.json").write_text(json.dumps(done if summary is None else summary))
    (folder / "ground_truth.json").write_text(json.dumps(ground_truth))
    (folder / "detections.json").write_text(json.dumps(detections))
    lines = [
        {
            "kind": "val",
            "step": 5 * epoch,
            "epoch": epoch,
            "seconds": 9.0 * epoch,
            "AP": 0.2 * epoch,
        }
        for epoch in (1, 2)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
