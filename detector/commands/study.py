"""Studies the runs of sweeps and writes study.json, study.md and study.html."""

import logging
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from detector.analysis.offsets.layer_statistics import as_json, measure_layers
from detector.analysis.study.content import study_content
from detector.analysis.study.explorer import differing_images, images_of, maps_of, most_cells
from detector.analysis.study.page import page
from detector.analysis.study.report import arms_rows, markdown
from detector.analysis.study.runs import Run, Runs, read_runs
from detector.builders.data import build_val_set
from detector.builders.device import build_device
from detector.builders.model import trained_model
from detector.config import parse_train
from detector.data.dataset import DetectionDataset
from detector.data.errors import DatasetError
from detector.model.resnet import STAGES
from detector.tables import table
from detector.training.checkpoint import load_checkpoint
from detector.training.durable import write_json

log = logging.getLogger("study")

RESAMPLES = 1000
LOOKED_AT = 200  # images on which the statistics of learned offsets are computed


def write(
    folders: list[Path],
    output: Path,
    *,
    baseline: str | None = None,
    num_resamples: int = RESAMPLES,
    seed: int = 0,
) -> None:
    """Study the runs in these folders and write the three files.

    Args:
        folders: folders of sweeps.
        output: the folder to write to.
        baseline: the arm that the others are compared with. None selects the arm `none`, or the
            first arm if there is no such arm.
        num_resamples: the number of bootstrap samples of the images.

    Raises:
        StudyError: there is no run to study, or the baseline is not one of the arms.
    """
    runs = read_runs(folders)
    total = sum(len(of_arm) for of_arm in runs.arms.values())
    with tqdm(total=total, desc="resampling", unit="run", disable=None, leave=False) as bar:
        content = study_content(
            runs,
            baseline=baseline,
            num_resamples=num_resamples,
            seed=seed,
            progress=lambda _: bar.update(),
        )
    explorer = look(runs, content)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "study.json", content)
    (output / "study.md").write_text(markdown(content), encoding="utf-8")
    (output / "study.html").write_text(page(content, explorer), encoding="utf-8")
    said = table(*arms_rows(content))
    log.info("%s\n\n%s\n\nall of it is in %s", content["says"], said, output / "study.html")


def look(runs: Runs, content: dict[str, Any]) -> dict[str, Any] | None:
    """Run one model of each arm on the validation images, if its checkpoint and the images exist.

    Adds the statistics of the learned offsets, and notes on what is missing, to `content`.

    Returns:
        The data of the explorer on the study's page, or None without checkpoints or images.
    """
    chosen = {arm: run for arm, of_arm in runs.arms.items() if (run := _with_checkpoint(of_arm))}
    missing = [arm for arm in runs.arms if arm not in chosen]
    if missing:
        content["notes"].append(f"There is no checkpoint of {', '.join(missing)} to look into.")
    try:
        dataset = _images(next(iter(chosen.values()))) if chosen else None
        ids = {record.image_id for record in dataset.records} if dataset else set()
        if not dataset or not ids.issuperset(runs.ground_truth.image_ids.tolist()):
            raise DatasetError("they are not those of the ground truth")
    except DatasetError as error:
        content["notes"].append(f"The validation images cannot be shown: {error}.")
        return None
    device = build_device("auto")
    image_ids = differing_images(runs, content["baseline"])
    cells = most_cells(len(chosen) * len(STAGES) * len(image_ids))
    content["learned"], maps = {}, {}
    for arm, run in chosen.items():
        model = _model(run, device)
        layers = as_json(measure_layers(model, dataset, device=device, max_images=LOOKED_AT))
        num_images = min(LOOKED_AT, len(dataset))
        content["learned"][arm] = {"seed": run.seed, "num_images": num_images, "layers": layers}
        maps[arm] = maps_of(model, dataset, image_ids, device=device, most_cells=cells)
    seeds = {arm: chosen.get(arm, of_arm[0]).seed for arm, of_arm in runs.arms.items()}
    return {
        "baseline": content["baseline"],
        "arms": list(runs.arms),
        "mapped": list(maps),
        "stages": list(STAGES),
        "images": images_of(runs, seeds, dataset, image_ids),
        "maps": maps,
    }


def _with_checkpoint(runs: list[Run]) -> Run | None:
    return next((run for run in runs if _checkpoint(run).exists()), None)


def _checkpoint(run: Run) -> Path:
    return run.folder / "checkpoints" / "last.pt"  # the study compares the detections of this one


def _images(run: Run) -> DetectionDataset:
    checkpoint = load_checkpoint(_checkpoint(run))
    data = parse_train(checkpoint["config"]).data
    return build_val_set(data, tuple(checkpoint["classes"]))


def _model(run: Run, device: torch.device) -> Any:
    checkpoint = load_checkpoint(_checkpoint(run))
    return trained_model(parse_train(checkpoint["config"]), checkpoint).to(device)
