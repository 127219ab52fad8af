"""The table and the learning curves of a comparison: a row and a line for each run of a multirun
folder.
"""

import json
import math
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from detector.analysis.curves import Line, chart, colors
from detector.training.record import read_metrics

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "mAP")


def write_table(folder: Path) -> str:
    """Write ablation.md into the folder, from the summary.json of every run below it.

    Metrics are in percent. `s/image` is the model's time alone, at the evaluation's batch size.
    A run that has not finished is listed with its status.

    Returns:
        The markdown table.
    """
    runs = runs_of(folder, "summary.json")
    arms = arms_of(runs)
    summaries = [(arms[run], json.loads((run / "summary.json").read_text())) for run in runs]
    names = [n for n in COLUMNS if any(n in s.get("metrics", {}) for _, s in summaries)]
    rows = [["arm", *names, "M parameters", "s/image", "s/training"]]
    rows.append(["---"] * len(rows[0]))
    for arm, summary in summaries:
        if summary["status"] != "done":
            rows.append([arm, summary["status"]] + [""] * (len(rows[0]) - 2))
            continue
        metrics = summary["metrics"]
        rows.append(
            [
                arm,
                *("-" if metrics[name] is None else f"{100 * metrics[name]:.1f}" for name in names),
                f"{summary['num_parameters'] / 1e6:.2f}",
                f"{summary['seconds_per_image']:.4f}",
                f"{summary['train_seconds']:.0f}",
            ]
        )
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    temporary = folder / f"ablation.md.{os.getpid()}.tmp"  # runs may end at the same time
    temporary.write_text(table + "\n")
    os.replace(temporary, folder / "ablation.md")
    return table


def draw_curves(folder: Path) -> None:
    """Draw ablation.png into the folder: of every run below it the first metric, in percent, and
    the loss, over epochs.
    """
    runs = runs_of(folder, "metrics.jsonl")
    arms = arms_of(runs)
    histories = [history(run) for run in runs]
    panels = []
    for name in ("AP", "loss"):
        lines = [
            Line(arms[run], *of_run[name], color, dots=True)
            for run, of_run, color in zip(runs, histories, colors(len(runs)), strict=True)
        ]
        last, highest = (
            round_up(max([0.0, *(getattr(line, axis).max(initial=0) for line in lines)]))
            for axis in ("xs", "ys")
        )
        panels.append(chart(lines, x=("epoch", last), y=(name, highest)))
    picture = Image.new("RGB", (sum(p.width for p in panels), panels[0].height))
    for number, panel in enumerate(panels):
        picture.paste(panel, (number * panel.width, 0))
    temporary = folder / f"ablation.{os.getpid()}.png"
    picture.save(temporary)
    os.replace(temporary, folder / "ablation.png")


def history(run: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Epochs and values of a run's `AP` (VOC: mAP) in percent and of its `loss`, its mean over each
    epoch's lines.
    """
    metric: dict[int, float] = {}
    losses: defaultdict[int, list[float]] = defaultdict(list)
    for line in read_metrics(run / "metrics.jsonl"):
        if line["kind"] == "train" and line["loss"] is not None:
            losses[line["epoch"]].append(line["loss"])
        value = line.get("AP", line.get("mAP"))
        if value is not None:
            metric[line["epoch"]] = 100 * value
    loss = {epoch: float(np.mean(values)) for epoch, values in losses.items()}
    return {
        name: (np.array([*values], dtype=float), np.array([*values.values()], dtype=float))
        for name, values in (("AP", metric), ("loss", loss))
    }


def round_up(value: float) -> float:
    """To one digit, for the end of an axis; at least 0.01."""
    unit = 10.0 ** math.floor(math.log10(max(value, 0.01)))
    return math.ceil(max(value, 0.01) / unit) * unit


def runs_of(folder: Path, file: str) -> list[Path]:
    """The runs that have this file, in their order."""
    runs = [path.parent for path in folder.glob(f"*/{file}")]
    return sorted(runs, key=lambda run: (len(run.name), run))


def arms_of(runs: list[Path]) -> dict[Path, str]:
    """Each run's overrides, such as `deform=c5_v2 seed=1`, without those that all runs share."""
    overrides = {
        run: [str(item) for item in OmegaConf.load(run / ".hydra" / "overrides.yaml")]
        for run in runs
    }
    shared = set.intersection(*map(set, overrides.values())) if len(runs) > 1 else set()
    return {
        run: " ".join(item for item in items if item not in shared) or "all alike"
        for run, items in overrides.items()
    }
