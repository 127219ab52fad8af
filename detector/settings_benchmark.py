"""Measures how the time of a training step depends on the memory format, the loading of images and
other busy processes.

    python -m detector.settings_benchmark formats model=resnet50_fpn model.weights=null ...
    python -m detector.settings_benchmark workers +experiment=aquarium data.root=aquarium
    python -m detector.settings_benchmark neighbours rounds=5 steps=8 json=neighbours.json

formats      compares features in channels-last order with NCHW
workers      compares loading in the training process with loading in one or two worker processes
neighbours   compares settings of how OpenMP threads wait, beside zero, one and two busy processes

All of them take the arguments of train.py, and rounds=N, steps=N and json=FILE. A step is one of a
training run, including the loading of its images. In each round every candidate runs once, in a new
process, because OpenMP reads its environment variables only once. The first steps of a process are
not counted. The table shows the median over all steps, and the medians of the fastest and of the
slowest round.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from detector import entry
from detector.config import ConfigError, check_root, parse_train

WARM_UP = 2  # first steps of a process, which are not counted
BUSY = "while True: pass"
WAITING: dict[str, dict[str, str]] = {  # environment variables that set how OpenMP threads wait
    "as OpenMP does by itself": {},
    "as here": entry.OPENMP_PASSIVE_WAIT,
    "1000 looks": entry.OPENMP_PASSIVE_WAIT | {"GOMP_SPINCOUNT": "1000"},
}


@dataclass(frozen=True)
class Candidate:
    """The settings of one process that trains.

    Attributes:
        name: the candidate's name in the table.
        overrides: additional arguments of train.py.
        environment: environment variables to set.
        memory_format: the name of a torch.memory_format, or None for the one that training chooses.
        neighbours: the number of busy processes that run at the same time.
    """

    name: str
    overrides: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    memory_format: str | None = None
    neighbours: int = 0


COMPARISONS = {
    "formats": [
        Candidate("channels-last", memory_format="channels_last"),
        Candidate("NCHW", memory_format="contiguous_format"),
    ],
    "workers": [
        Candidate(f"{count} workers", overrides=(f"data.num_workers={count}",))
        for count in (0, 1, 2)
    ],
    "neighbours": [
        Candidate(f"{name}, {count} neighbours", environment=environment, neighbours=count)
        for count in (0, 1, 2)
        for name, environment in WAITING.items()
    ],
}


def compare(
    candidates: list[Candidate], overrides: list[str], *, rounds: int, steps: int
) -> dict[str, list[list[float]]]:
    """Time the candidates in turn.

    Returns:
        For each candidate's name a list of rounds, each a list of the seconds of its steps.
    """
    seconds: dict[str, list[list[float]]] = {candidate.name: [] for candidate in candidates}
    for round_ in range(1, rounds + 1):
        for candidate in candidates:
            print(f"round {round_} of {rounds}: {candidate.name}", file=sys.stderr, flush=True)
            seconds[candidate.name].append(in_child(candidate, overrides, steps))
    return seconds


def in_child(candidate: Candidate, overrides: list[str], steps: int) -> list[float]:
    """Train in a new process and return the seconds of its steps.

    Raises:
        ConfigError: the process failed; the message has the last line of its output.
    """
    words = [*overrides, *candidate.overrides, f"limit_train_batches={steps + WARM_UP}"]
    environment = {k: v for k, v in os.environ.items() if k not in entry.OPENMP_WAIT_VARIABLES}
    command = [sys.executable, "-m", "detector.settings_benchmark", "child"]
    with busy(candidate.neighbours):
        done = subprocess.run(
            [*command, str(candidate.memory_format), *words],
            env=environment | candidate.environment,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise ConfigError(f"{candidate.name}: {done.stderr.strip().splitlines()[-1]}")
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Run `count` processes that keep a core busy each, until the context ends."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def child(memory_format: str, overrides: list[str]) -> list[float]:
    """Train on the CPU in this process and return the seconds of the steps after the warm-up.

    Args:
        memory_format: the name of a torch.memory_format, or "None" for the one that training
            chooses.
    """
    import torch

    from detector.builders.data import build_data
    from detector.step_time import step_seconds

    with initialize_config_dir(version_base="1.3", config_dir=str(entry.CONFIGS)):
        config = parse_train(compose("train", overrides))
    check_root(config.data)
    train_set = build_data(config)["train"]
    chosen = None if memory_format == "None" else getattr(torch, memory_format)
    steps = int(config.limit_train_batches or 1) - WARM_UP
    cpu = torch.device("cpu")
    _, seconds = step_seconds(
        config, train_set, device=cpu, steps=steps, warm_up=WARM_UP, memory_format=chosen
    )
    return seconds


def to_markdown(seconds: dict[str, list[list[float]]]) -> str:
    """Format the medians as a markdown table with a row for each candidate."""
    lines = ["| | seconds of a step | of the rounds |", "| --- | --- | --- |"]
    for name, of_rounds in seconds.items():
        medians = sorted(statistics.median(of_round) for of_round in of_rounds)
        median = statistics.median(value for of_round in of_rounds for value in of_round)
        lines.append(f"| {name} | {median:.3f} | {medians[0]:.3f} to {medians[-1]:.3f} |")
    return "\n".join(lines)


def options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Split the words of the command line into the command's own values and those of train.py.

    Raises:
        ConfigError: rounds or steps is not a number of at least 1.
    """
    own = {"rounds": "3", "steps": "10", "json": ""}
    given = dict(word.partition("=")[::2] for word in words if word.partition("=")[0] in own)
    for name in ("rounds", "steps"):
        if not given.get(name, "1").isdecimal() or int(given.get(name, "1")) < 1:
            raise ConfigError(f"{name}={given[name]} must be a number of at least 1")
    return own | given, [word for word in words if word.partition("=")[0] not in own]


def main() -> None:
    """Measure, print a table and, with json=FILE, write the results to a file."""
    if len(sys.argv) < 2 or sys.argv[1] not in (*COMPARISONS, "child"):
        raise ConfigError(f"give one of {', '.join(COMPARISONS)}")
    name, *words = sys.argv[1:]
    if name == "child":
        print(json.dumps(child(words[0], words[1:])))
        return
    own, overrides = options(words)
    candidates, rounds, steps = COMPARISONS[name], int(own["rounds"]), int(own["steps"])
    seconds = compare(candidates, overrides, rounds=rounds, steps=steps)
    print(to_markdown(seconds))
    if own["json"]:
        from ops.benchmark import machine

        content: dict[str, Any] = {
            "machine": machine("cpu"),
            "command": [name, *words],
            "candidates": [asdict(candidate) for candidate in candidates],
            "seconds": seconds,
        }
        Path(own["json"]).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    entry.show_help(__doc__)
    with entry.one_line_errors():
        main()
