"""The data sets of a training run: read by all processes, checked by the first one."""

import logging
from functools import partial
from pathlib import Path

from detector.builders.data import build_data, check_data
from detector.commands.run_log import shortest
from detector.data.check import Report
from detector.data.dataset import DetectionDataset
from detector.data.problems import Problem
from detector.schema import TrainConfig
from detector.training.distribution import Ranks
from detector.training.durable import write_json
from detector.training.preemption import StopRequest

log = logging.getLogger("train")


def load_data(
    config: TrainConfig, folder: Path, ranks: Ranks, stop: StopRequest
) -> tuple[DetectionDataset, DetectionDataset]:
    """Read the training and the validation set. The first rank checks them and writes all problems
    to data_check.json.

    Raises:
        DatasetError: there is an error and data.on_error=stop, or no image can be used.
        Preempted: a signal asked a rank to stop.
    """
    with ranks.local_main_first():  # one rank generates images, the others read them
        splits = build_data(config)
    problems: list[Problem] = []
    if ranks.is_first:
        wrap = partial(stop.until_stopped, ranks=ranks)
        problems = check_data(splits, config.data, wrap=wrap).problems
    stop.raise_if_stopped(ranks)
    report = Report(splits, ranks.broadcast(problems))
    if ranks.is_first:
        write_json(folder / "data_check.json", report.to_json())
        for split, dataset in splits.items():
            log.info("%s: %s", split, dataset.describe())
        lines = report.lines()
        for line in lines:
            log.warning(line)
        if lines:
            log.info("every problem, with its file: %s", shortest(folder / "data_check.json"))
        if "val" not in splits:
            log.warning("overfit: validation is on the training images")
    usable = report.usable(config.data.on_error)
    train_set, val_set = usable["train"], usable.get("val", usable["train"])
    if ranks.is_first:
        write_json(folder / "ground_truth.json", val_set.ground_truth(), indent=None)
    return train_set, val_set
