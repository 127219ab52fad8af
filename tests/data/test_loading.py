"""Tests of the loaders: the stream of samples depends only on the seed and the epoch."""

import gc
import hashlib
import multiprocessing
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.functional import to_pil_image

from detector.data import loading
from detector.data.dataset import DatasetError, DetectionDataset, Record, Sample
from detector.data.loading import (
    Augmented,
    EpochBatchSampler,
    LoadingError,
    collate,
    converted_worker_errors,
    eval_loader,
    init_worker,
    kill_workers,
    train_loader,
)
from detector.data.transforms import TrainTransform, sample_seed
from detector.evaluation.inference import detect

CROWDS = [[False], [], [True], [True, False], [False, False], [False], [True, True], [False]]
HAS_OBJECT = [0, 3, 4, 5, 7]


@pytest.fixture
def dataset(tmp_path: Path) -> DetectionDataset:
    """Eight images of noise, of which two have crowds only and one has no objects."""
    records = []
    for index, crowds in enumerate(CROWDS):
        height, width = 20 + index, 31 - index
        noise = torch.Generator().manual_seed(index)
        pixels = torch.randint(0, 256, (3, height, width), generator=noise, dtype=torch.uint8)
        to_pil_image(pixels).save(tmp_path / f"{index}.png")
        m = len(crowds)
        records.append(
            Record(
                image_id=900_100_581_187 + index,
                path=tmp_path / f"{index}.png",
                height=height,
                width=width,
                boxes=np.array([[1, 2, 11 + i, 13] for i in range(m)], np.float32).reshape(-1, 4),
                labels=np.arange(1, m + 1, dtype=np.int64),
                area=np.full(m, 50, np.float32),
                iscrowd=np.array(crowds, dtype=bool),
            )
        )
    return DetectionDataset(records=records, classes=("a", "b"), category_ids=(1, 2), faults=())


def augmented(dataset: DetectionDataset, *, seed: int = 5) -> Augmented:
    transform = TrainTransform(
        min_sizes=[16, 24, 32],
        max_size=60,
        flip_probability=0.5,
        crop_probability=0.5,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
    )
    return Augmented(dataset, transform=transform, seed=seed)


def sampler_of(dataset: DetectionDataset, **changes: int) -> EpochBatchSampler:
    arguments = {"batch_size": 3, "seed": 5, "keep_empty": True}
    return EpochBatchSampler(dataset, **(arguments | changes))


def digest(sample: Sample) -> str:
    parts = [sample["image_id"], sample["image"].shape]
    parts += [sample[key].tolist() for key in ("image", "boxes", "labels", "area", "iscrowd")]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def stream(dataset: DetectionDataset, *, num_workers: int, epochs: list[int]) -> list[list[str]]:
    sampler = sampler_of(dataset)
    loader = train_loader(augmented(dataset), sampler=sampler, num_workers=num_workers)
    digests = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        digests.append([digest(sample) for batch in loader for sample in batch])
    return digests


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4")
def test_workers_and_earlier_epochs_do_not_change_the_stream(dataset: DetectionDataset) -> None:
    expected = stream(dataset, num_workers=0, epochs=[0, 1, 2])
    assert len({digest for epoch in expected for digest in epoch}) == 18  # all are different
    for num_workers in (1, 2, 4):
        assert stream(dataset, num_workers=num_workers, epochs=[0, 1, 2]) == expected
    assert stream(dataset, num_workers=2, epochs=[2, 1]) == [expected[2], expected[1]]


@pytest.mark.parametrize("start", multiprocessing.get_all_start_methods())
def test_how_workers_start_does_not_change_the_stream(
    dataset: DetectionDataset, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = stream(dataset, num_workers=0, epochs=[3])
    monkeypatch.setattr(loading, "START", start)
    assert stream(dataset, num_workers=2, epochs=[3]) == expected


def test_loaders_leave_the_global_generators_alone(dataset: DetectionDataset) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    stream(dataset, num_workers=0, epochs=[0])
    stream(dataset, num_workers=1, epochs=[0])
    list(eval_loader(dataset, batch_size=1, num_workers=1))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state


def test_augmented_is_the_transform_of_the_sample(dataset: DetectionDataset) -> None:
    train_set = augmented(dataset, seed=11)
    expected = train_set.transform(dataset[4], seed=sample_seed(11, 3, 4))
    assert digest(train_set[3, 4]) == digest(expected)
    assert len(train_set) == 8


def test_an_epoch_is_a_permutation(dataset: DetectionDataset) -> None:
    sampler = sampler_of(dataset, batch_size=2)
    orders = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(sampler) == len(batches) == 4 and {len(batch) for batch in batches} == {2}
        assert {key[0] for batch in batches for key in batch} == {epoch}
        orders.append(tuple(index for batch in batches for _, index in batch))
        assert sorted(orders[-1]) == list(range(8))
    assert len(set(orders)) == 4
    sampler.set_epoch(1)
    assert tuple(index for batch in sampler for _, index in batch) == orders[1]
    assert list(sampler_of(dataset, seed=6)) != list(sampler_of(dataset))


def test_the_last_incomplete_batch_is_dropped(dataset: DetectionDataset) -> None:
    sampler = sampler_of(dataset, batch_size=3)
    left_out = Counter()
    for epoch in range(40):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(sampler) == len(batches) == 2 and {len(batch) for batch in batches} == {3}
        left_out.update(set(range(8)) - {index for batch in batches for _, index in batch})
    assert set(left_out) == set(range(8))  # not always the same images


def test_an_epoch_can_be_resumed(dataset: DetectionDataset) -> None:
    sampler = sampler_of(dataset, batch_size=2)
    sampler.set_epoch(6)
    whole = list(sampler)
    sampler.set_epoch(6, first_step=3)
    assert list(sampler) == whole[3:]
    sampler.set_epoch(7)
    assert len(list(sampler)) == 4


def test_ranks_share_the_batch_of_a_step(dataset: DetectionDataset) -> None:
    whole = list(sampler_of(dataset, batch_size=4))
    first, second = (list(sampler_of(dataset, batch_size=4, rank=r, num_ranks=2)) for r in (0, 1))
    assert [one + other for one, other in zip(first, second, strict=True)] == whole


def test_parts_make_up_the_batch_of_a_step(dataset: DetectionDataset) -> None:
    whole = list(sampler_of(dataset, batch_size=4))
    parts = sampler_of(dataset, batch_size=4, num_parts=2)
    assert len(parts) == 4 and parts.num_steps == 2
    first, second, third, fourth = parts
    assert [first + second, third + fourth] == whole
    ranks = [
        list(sampler_of(dataset, batch_size=8, num_parts=2, rank=r, num_ranks=2)) for r in (0, 1)
    ]
    (step,) = sampler_of(dataset, batch_size=8)
    assert ranks[0][0] + ranks[1][0] + ranks[0][1] + ranks[1][1] == step
    parts.set_epoch(0, first_step=1)
    assert list(parts) == [third, fourth]


def test_an_epoch_can_be_shortened(dataset: DetectionDataset) -> None:
    short = sampler_of(dataset, batch_size=2, max_steps=3)
    assert len(short) == 3 and list(short) == list(sampler_of(dataset, batch_size=2))[:3]
    assert sampler_of(dataset, batch_size=2, max_steps=9).num_steps == 4


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"num_parts": 2}, {"num_ranks": 2}])
def test_a_batch_that_cannot_be_shared_is_refused(dataset: DetectionDataset, changes: dict) -> None:
    with pytest.raises(ValueError, match="expected a batch size that is a multiple of"):
        sampler_of(dataset, **changes)


def test_wide_and_tall_images_are_grouped() -> None:
    """11 wide, 7 square and 9 tall images make batches of 4."""
    sizes = [(10, 20)] * 11 + [(10, 10)] * 7 + [(20, 10)] * 9
    empty = np.zeros(0)
    records = [
        Record(number, Path(), height, width, empty.reshape(0, 4), empty, empty, empty.astype(bool))
        for number, (height, width) in enumerate(sizes)
    ]
    dataset = DetectionDataset(records=records, classes=("a",), category_ids=(1,), faults=())
    sampler = sampler_of(dataset, batch_size=4, group_by_aspect=True)
    orders = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        batches = [[index for _, index in batch] for batch in sampler]
        assert len(batches) == len(sampler) == 6
        seen = [index for batch in batches for index in batch]
        assert len(set(seen)) == 24
        tall = [sum(index >= 18 for index in batch) for batch in batches]
        assert sorted(tall)[:4] == [0] * 4 and sorted(tall)[4:] == [4, 4]
        orders.add(tuple(tall))
        assert batches == [[index for _, index in batch] for batch in sampler]
    assert len(orders) > 5  # the batches of tall images are at different positions


def test_images_without_objects_are_left_out(dataset: DetectionDataset) -> None:
    sampler = sampler_of(dataset, batch_size=5, keep_empty=False)
    assert sorted(index for batch in sampler for _, index in batch) == HAS_OBJECT


def test_faults_are_named(dataset: DetectionDataset) -> None:
    empty = dataset.without(900_100_581_187 + index for index in HAS_OBJECT)
    with pytest.raises(DatasetError, match=r"none of the 3 images has an object to train on"):
        sampler_of(empty, batch_size=6, keep_empty=False)


@pytest.mark.parametrize("max_steps", [0, -1])
def test_an_epoch_without_steps_is_refused(dataset: DetectionDataset, max_steps: int) -> None:
    with pytest.raises(ValueError, match=f"expected at least one step per epoch, got {max_steps}"):
        sampler_of(dataset, batch_size=2, max_steps=max_steps)


def test_few_images_are_repeated_until_they_fill_a_batch(dataset: DetectionDataset) -> None:
    (batch,) = sampler_of(dataset, batch_size=12, keep_empty=False)
    indices = [index for _, index in batch]
    assert sorted(set(indices)) == HAS_OBJECT  # five images
    assert sorted(indices.count(index) for index in HAS_OBJECT) == [2, 2, 2, 3, 3]
    (batch,) = sampler_of(dataset.first(1), batch_size=2, keep_empty=True)
    assert [index for _, index in batch] == [0, 0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_is_in_order_and_complete(dataset: DetectionDataset, num_workers: int) -> None:
    batches = list(eval_loader(dataset, batch_size=1, num_workers=num_workers))
    assert [len(batch) for batch in batches] == [1] * 8
    samples = [sample for batch in batches for sample in batch]
    assert [digest(sample) for sample in samples] == [digest(dataset[i]) for i in range(8)]


def test_shares_of_several_ranks(dataset: DetectionDataset) -> None:
    shares = [dataset.share(rank, 3) for rank in range(3)]
    ids = [[record.image_id - 900_100_581_187 for record in share.records] for share in shares]
    assert ids == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert shares[1].classes == dataset.classes


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_in_batches(dataset: DetectionDataset, num_workers: int) -> None:
    # The images are 20x31, 21x30, ... 27x24. Those of the last three get the size of the first.
    pixels = dataset.records[0].path.read_bytes()
    for index in (5, 6, 7):
        dataset.records[index].path.write_bytes(pixels)
        dataset.records[index] = replace(dataset.records[index], height=20, width=31)
    batches = list(eval_loader(dataset, batch_size=3, num_workers=num_workers))
    indices = [[sample["image_id"] - 900_100_581_187 for sample in batch] for batch in batches]
    assert indices == [[0, 5, 6], [1], [2], [3], [4], [7]]
    for batch in batches:
        assert len({sample["image"].shape for sample in batch}) == 1
        for sample in batch:
            assert digest(sample) == digest(dataset[sample["image_id"] - 900_100_581_187])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_image_is_named(dataset: DetectionDataset, num_workers: int) -> None:
    dataset.records[4].path.write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"4\.png: cannot be decoded"):
        list(eval_loader(dataset, batch_size=1, num_workers=num_workers))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_crowds_are_no_targets(dataset: DetectionDataset, num_workers: int) -> None:
    sampler = sampler_of(dataset, batch_size=8)
    loader = train_loader(augmented(dataset), sampler=sampler, num_workers=num_workers)
    (batch,) = loader
    assert len(batch) == 8
    for sample in batch:
        crowds = CROWDS[sample["image_id"] - 900_100_581_187]
        labels = [label for label, is_crowd in enumerate(crowds, start=1) if not is_crowd]
        assert sample["labels"].tolist() == labels
        assert len(sample["boxes"]) == len(sample["area"]) == len(labels)
        assert sample["iscrowd"].tolist() == [False] * len(labels) and "seed" in sample


def test_collate_and_worker_init(dataset: DetectionDataset) -> None:
    samples = [dataset[0], dataset[1]]
    assert collate(samples) is samples
    threads = cv2.getNumThreads()
    try:
        init_worker(3)
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(threads)


class Faulty(Augmented):
    """A dataset that calls `fault` in the process that loads the third image and later ones."""

    def __init__(self, dataset: DetectionDataset, fault) -> None:
        whole = augmented(dataset)
        super().__init__(whole.dataset, transform=whole.transform, seed=whole.seed)
        self.records = dataset.records
        self.fault = fault
        self.loaded = 0

    def __getitem__(self, key):
        self.loaded += 1
        if self.loaded > 2:
            self.fault()
        return super().__getitem__(key if isinstance(key, tuple) else (0, key))


def wrong() -> None:
    raise RuntimeError("no such luck")


class Nothing(nn.Module):
    """A model that detects nothing."""

    def forward(self, images):
        empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0)}
        return [empty] * len(images)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "fault, kind, message",
    [
        (
            lambda: os.kill(os.getpid(), signal.SIGKILL),
            LoadingError,
            "died or is stuck .*(Killed|exited|reset|EOFError)",
        ),
        (lambda: time.sleep(60), LoadingError, "died or is stuck .*timed out after 2 seconds"),
        (wrong, RuntimeError, "no such luck"),
    ],
    ids=["killed", "stuck", "an error of its own"],
)
def test_workers_that_fail(
    dataset: DetectionDataset, fault, kind, message: str, training: bool
) -> None:
    faulty: Any = Faulty(dataset, fault)
    start = time.monotonic()
    with pytest.raises(kind, match=message) as caught:
        if training:
            sampler = EpochBatchSampler(dataset, batch_size=2, seed=1, keep_empty=False)
            with converted_worker_errors():
                list(train_loader(faulty, sampler=sampler, num_workers=1, time_limit=2))
        else:
            batches = eval_loader(faulty, batch_size=1, num_workers=1, time_limit=2)
            detect(Nothing(), batches, device=torch.device("cpu"), precision=torch.float32)
    assert type(caught.value) is kind and time.monotonic() - start < 30
    # The traceback keeps the loader alive. While a loader with a dead worker is alive, torch raises
    # an error whenever any child process ends.
    del caught
    gc.collect()
    kill_workers()


class ResetBeforeTheSignal(ConnectionResetError):
    """An error during whose conversion to text torch's signal handler reports the same worker."""

    def __str__(self) -> str:
        raise RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed.")


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "reset by peer"), EOFError(), ResetBeforeTheSignal()]
)
def test_a_worker_that_dies_while_its_batch_is_fetched(error: Exception) -> None:
    """The system decides which of the two errors comes first."""
    with pytest.raises(LoadingError, match="a worker that loads images died"):
        with converted_worker_errors():
            raise error
