"""The values that builders choose automatically."""

import os
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from detector.builders import device as build
from detector.builders.data import images_folder, voc_roots
from detector.builders.device import build_num_workers, check_devices
from detector.config import ConfigError, parse_train
from detector.data import loading
from detector.entry import CONFIGS
from detector.schema import VocConfig
from detector.training.distribution import Ranks, ranks_of_environment

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    "given, device, cores, ranks_here, expected",
    [
        ("auto", CPU, 16, 1, 0),
        ("auto", GPU, 2, 1, 2),
        ("auto", GPU, 6, 1, 6),
        ("auto", GPU, 16, 1, 8),
        ("auto", GPU, 16, 4, 4),
        ("auto", GPU, 4, 8, 1),
        (3, CPU, 2, 1, 3),
        (0, GPU, 16, 1, 0),
    ],
)
def test_workers(
    given: int | str,
    device: torch.device,
    cores: int,
    ranks_here: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "num_cores", lambda: cores)
    ranks = Ranks(num_ranks=2 * ranks_here, num_local=ranks_here)  # on two machines
    assert build_num_workers(given, device, ranks) == expected


def test_cores_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading.os, "sched_getaffinity", lambda process: {1, 5, 7}, raising=False)
    assert loading.num_cores() == 3
    monkeypatch.delattr(loading.os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(loading.os, "cpu_count", lambda: 10)
    assert loading.num_cores() == 10


def test_ranks_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
    }.items():
        monkeypatch.setenv(name, value)
    assert ranks_of_environment() == Ranks(rank=5, num_ranks=8, local_rank=1, num_local=4)


def test_where_the_validation_images_are(tmp_path: Path) -> None:
    def of(*overrides: str) -> Path:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return images_folder(
                parse_train(compose("train", overrides=list(overrides))).data, "val"
            )

    assert of("+experiment=aquarium", "data.root=there") == Path("there/valid")
    assert of("data=voc", "data.root=VOC2007") == Path("VOC2007/JPEGImages")
    small = ["data.num_train=1", "data.num_val=2", f"data.cache={tmp_path}"]
    assert len(list(of(*small).iterdir())) == 2


VOC_ROOTS = {  # data.root, data.train.roots -> the folders
    ("my", None): ["my"],
    ("my", "[train]"): ["my/train"],
    ("my", "[my/train]"): ["my/train"],
    ("my", "[${data.root}/train,val]"): ["my/train", "my/val"],
    ("my/train", "[my/train,my/val]"): ["my/train", "my/val"],  # neither is in my/train
    ("my", "[lost]"): ["my/lost"],
    (".", "[my/train]"): ["my/train"],
    ("my", "[other]"): ["other"],
}


@pytest.mark.parametrize(("root", "roots"), VOC_ROOTS)
def test_roots_of_voc_are_relative_to_the_root_of_the_data(
    root: str, roots: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("my/train", "my/val", "other"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    data = voc_data(root, roots)
    assert voc_roots(data, "train") == [Path(folder) for folder in VOC_ROOTS[root, roots]]
    absolute = voc_data(str(tmp_path / root), f"[{tmp_path / 'other'}]")
    assert voc_roots(absolute, "train") == [tmp_path / "other"]


def test_roots_of_voc_that_could_be_two_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("my/train", "train"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.train\.roots: train could be .*/my/train; give"):
        voc_roots(voc_data("my", "[train]"), "train")
    assert voc_roots(voc_data("my", f"[{tmp_path}/train]"), "train") == [tmp_path / "train"]
    (tmp_path / "train").rmdir()
    (tmp_path / "train").symlink_to("my/train")  # the same folder
    assert voc_roots(voc_data("my", "[train]"), "train") == [Path("my/train")]


def voc_data(root: str, roots: str | None) -> VocConfig:
    words = ["data=voc", f"data.root={root}"]
    words += [] if roots is None else [f"data.train.roots={roots}"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        data = parse_train(compose("train", overrides=words)).data
    assert isinstance(data, VocConfig)
    return data


@pytest.mark.parametrize(
    "device, message",
    [
        ("mps", "device=mps cannot be used with devices=2: several processes train on cpu or cuda"),
        ("xpu:0", "device=xpu:0 cannot be used with devices=2"),
        ("cuda:1", "device=cuda:1 names a single device, .*: give device=cuda"),
    ],
)
def test_devices_for_several_processes(device: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_devices(device, 2)


def test_the_rank_of_a_task_of_srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is the sixth of seven tasks, on nodes with three, three and one task."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        '#!/bin/sh\n[ "$*" = "show hostnames n[7-9]" ] && printf "n7\\nn8\\nn9\\n"\n'
    )
    scontrol.chmod(0o755)
    slurm = {"STEP_NUM_TASKS": 7, "STEP_NODELIST": "n[7-9]", "STEP_TASKS_PER_NODE": "3(x2),1"}
    slurm |= {"PROCID": 5, "LOCALID": 2, "NODEID": 1, "JOB_ID": 1234, "STEP_ID": 0}
    named = {f"SLURM_{key}": str(value) for key, value in slurm.items()}
    monkeypatch.setattr(os, "environ", named | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert ranks_of_environment() == Ranks(rank=5, num_ranks=7, local_rank=2, num_local=3)
    assert os.environ["MASTER_ADDR"] == "n7" and 20_000 <= int(os.environ["MASTER_PORT"]) < 32_000
