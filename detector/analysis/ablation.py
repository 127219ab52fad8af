"""The table of a comparison: one row for each finished run of a multirun folder."""

import json
import os
from pathlib import Path

from omegaconf import OmegaConf

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "mAP")


def write_table(folder: Path) -> str:
    """Write ablation.md into the folder, from the summary.json of every run below it.

    Metrics are in percent. `s/image` is the model's time alone, at the evaluation's batch size.
    A run that has not finished is listed with its status.

    Returns:
        The markdown table.
    """
    runs = sorted(folder.glob("*/summary.json"), key=lambda path: (len(path.parent.name), path))
    arms = arms_of([path.parent for path in runs])
    summaries = [(arms[path.parent], json.loads(path.read_text())) for path in runs]
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
