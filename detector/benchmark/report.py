"""Rows and tables of what was measured."""

import statistics

from detector.benchmark.measurement import Samples
from detector.benchmark.work import Row
from ops.benchmark import table

# name of the ratio -> candidate of the numerator, candidate of the denominator, goal
RATIOS = {
    "ours / torchvision": ("ours", "torchvision", "at most 0.8"),
    "deformable / plain, ours": ("ours deformable", "ours", "at most 1.15"),
    "torchvision / ours, deformable": (
        "torchvision deformable",
        "ours deformable",
        "at least 5",
    ),
}


def rows_of(samples: Samples, peaks: dict[str, float]) -> list[Row]:
    """Return a row for each candidate and dtype with its median time, its spread and its peak
    memory, if that was measured. The spread is the range of the rounds divided by the median.
    """
    rows = []
    for name, times in samples.items():
        median = statistics.median(times)
        spread = (max(times) - min(times)) / median
        row = {"candidate": name, "seconds": median, "spread": spread, "MiB": peaks.get(name)}
        rows.append(row)
    return rows


def ratios_of(rows: list[Row], dtypes: list[str]) -> list[Row]:
    """Return the ratios of `RATIOS` between median times, in each dtype."""
    medians = {row["candidate"]: row["seconds"] for row in rows}
    return [
        {
            "ratio": ratio,
            **{dtype: medians[f"{over} {dtype}"] / medians[f"{under} {dtype}"] for dtype in dtypes},
            "goal": goal,
        }
        for ratio, (over, under, goal) in RATIOS.items()
    ]


def table_of(rows: list[Row]) -> str:
    """Format rows that have the same keys as a markdown table."""
    return table(rows[0], (row.values() for row in rows))


def time_table(rows: list[Row]) -> str:
    """Format median times, half the range of the rounds, and peak memory as a markdown table."""
    lines = [
        [row["candidate"], row["seconds"], f"{row['spread'] / 2:.0%}", row["MiB"]] for row in rows
    ]
    return table(["", "s", "±", "MiB"], lines)
