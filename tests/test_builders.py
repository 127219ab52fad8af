"""What the builders decide by themselves."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from detector import build
from detector.build import build_num_workers, val_images
from detector.config import typed_train
from detector.data import loading
from detector.entry import CONFIGS
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
            return val_images(typed_train(compose("train", overrides=list(overrides))).data)

    assert of("+experiment=aquarium", "data.root=there") == Path("there/valid")
    assert of("data=voc", "data.root=VOC2007") == Path("VOC2007/JPEGImages")
    small = ["data.num_train=1", "data.num_val=2", f"data.cache={tmp_path}"]
    assert len(list(of(*small).iterdir())) == 2
