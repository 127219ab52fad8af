"""Detections in batches are those of single images, in the order of the data set."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import deformable_detector
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.transforms.functional import to_pil_image

from detector.data.dataset import DetectionDataset, Record
from detector.data.loading import eval_loader
from detector.evaluation import inference
from detector.evaluation.entries import EvaluationError
from detector.evaluation.inference import Found, detect, in_order, progress, rows_of
from detector.evaluation.test_time_augmentation import AtSizes

CPU = torch.device("cpu")
WIDE, TALL, SQUARE = (60, 90), (90, 60), (70, 70)
SIZES = [WIDE, TALL, WIDE, SQUARE, WIDE, TALL, WIDE]


@pytest.fixture
def dataset(tmp_path: Path) -> DetectionDataset:
    """Images of noise without objects, four wide ones, two tall ones and a square one."""
    records = []
    for index, (height, width) in enumerate(SIZES):
        noise = torch.Generator().manual_seed(index)
        pixels = torch.randint(0, 256, (3, height, width), generator=noise, dtype=torch.uint8)
        path = tmp_path / f"{index}.png"
        to_pil_image(pixels).save(path)
        nothing = np.zeros(0)
        records.append(
            Record(
                image_id=900 - index,
                path=path,
                height=height,
                width=width,
                boxes=nothing.reshape(0, 4),
                labels=nothing.astype(np.int64),
                area=nothing,
                iscrowd=nothing.astype(bool),
            )
        )
    return DetectionDataset(records=records, classes=("a", "b"), category_ids=(1, 2))


def detector(stages: str, neck: str) -> FasterRCNN:
    return deformable_detector(stages, c5_dilation=2 if neck == "dc5" else 1, neck=neck)


def in_batches(model: nn.Module, dataset: DetectionDataset, batch_size: int) -> list[Found]:
    batches = eval_loader(dataset, batch_size=batch_size, num_workers=0)
    found, seconds = detect(model, batches, device=CPU, precision=torch.float32)
    assert seconds > 0
    return in_order(found, [record.image_id for record in dataset.records])


@torch.no_grad()
def one_by_one(model: nn.Module, dataset: DetectionDataset) -> list[dict[str, Tensor]]:
    images = [dataset[index]["image"].float() / 255 for index in range(len(dataset))]
    return [model([image])[0] for image in images]


def distances(found: list[Found], expected: list[dict[str, Tensor]]) -> tuple[float, float]:
    """Return the largest distance of two boxes in pixels, and the largest relative one of scores.

    The labels must be the same.
    """
    of_boxes, of_scores = [0.0], [0.0]
    for one, result in zip(found, expected, strict=True):
        assert one.labels.tolist() == result["labels"].tolist()
        assert one.boxes.dtype == np.float64 and one.scores.dtype == np.float32
        corners = np.hstack([one.boxes[:, :2], one.boxes[:, :2] + one.boxes[:, 2:]])
        scores = result["scores"].numpy()
        of_boxes.append(np.abs(corners - result["boxes"].numpy()).max(initial=0))
        of_scores.append((np.abs(one.scores - scores) / scores).max(initial=0))
    return max(of_boxes), max(of_scores)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("neck", ["fpn", "dc5"])
@pytest.mark.parametrize("stages", ["none", "c3-c5"])
def test_batches_find_what_single_images_do(
    dataset: DetectionDataset, stages: str, neck: str, batch_size: int
) -> None:
    """In batches, coordinates and scores agree to 20 of their 24 bits; one by one, to all of them.

    On a processor with AVX2 alone, all differences came from oneDNN's plain 3x3 convolutions, some
    of which give other bits in a batch. Coordinates, which are below 128, and scores were at most
    2 units in the last place apart.
    """
    model = detector(stages, neck)
    found = in_batches(model, dataset, batch_size)
    assert [one.image_id for one in found] == [900, 899, 898, 897, 896, 895, 894]
    assert sum(len(one.labels) for one in found) > 20
    of_boxes, of_scores = distances(found, one_by_one(model, dataset))
    limit = 0 if batch_size == 1 else 2.0**-20
    assert of_boxes <= 128 * limit and of_scores <= limit


def test_several_sizes_and_mirrored_images_in_batches(dataset: DetectionDataset) -> None:
    model = AtSizes(detector("none", "fpn"), min_sizes=[48, 64], flip=True)
    of_boxes, of_scores = distances(in_batches(model, dataset, 8), one_by_one(model, dataset))
    assert of_boxes <= 2.0**-13 and of_scores <= 2.0**-20


class Sizes(nn.Module):
    """A model that notes the sizes of its images and finds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[tuple[int, ...]]] = []

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        self.batches.append([tuple(image.shape[1:]) for image in images])
        empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0)}
        return [empty] * len(images)


def test_the_images_of_a_batch_are_equal(dataset: DetectionDataset) -> None:
    model = Sizes()
    found = in_batches(model, dataset, 3)
    assert model.batches == [[WIDE] * 3, [TALL] * 2, [SQUARE], [WIDE]]
    assert [one.labels.shape for one in found] == [(0,)] * 7
    assert [one.boxes.shape for one in found] == [(0, 4)] * 7


def test_the_copy_of_results_is_exact() -> None:
    score = torch.tensor([0.1, 0.7], dtype=torch.bfloat16)
    box = torch.tensor([[0.1, 0.2, 333.3, 1e-3], [4.0, 5.0, 6.0, 7.0]])
    results = [
        {"boxes": box, "scores": score, "labels": torch.tensor([2**24 + 1, 3])},
        {"boxes": box[:0], "scores": score[:0], "labels": torch.zeros(0, dtype=torch.int64)},
        {"boxes": box[1:], "scores": score[1:], "labels": torch.tensor([9])},
    ]
    rows = rows_of(results)
    assert [of_image.shape for of_image in rows] == [(2, 6), (0, 6), (1, 6)]
    assert rows[0][:, :4].tolist() == box.tolist() and rows[0][:, 4].tolist() == score.tolist()
    assert rows[0][:, 5].tolist() == [2**24 + 1, 3] and rows[2].tolist() == [
        [4, 5, 6, 7, score[1].item(), 9]
    ]


class Full(Sizes):
    """A model for which two images are too many."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        if len(images) > 1 or images[0].shape[1:] == SQUARE:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(images)


def test_too_little_memory_for_a_batch(dataset: DetectionDataset) -> None:
    message = "on a batch of 4 images of 90x60 pixels: give a smaller eval_batch_size"
    with pytest.raises(EvaluationError, match=message):
        in_batches(Full(), dataset, 8)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        in_batches(Full(), dataset, 1)  # a smaller batch would not help


def test_the_progress_bar_counts_images(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bar:
        def __init__(self, **options: Any) -> None:
            bars.append(options)

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, number: int) -> None:
            counts.append(number)

    bars: list[dict[str, Any]] = []
    counts: list[int] = []
    monkeypatch.setattr(inference, "tqdm", Bar)
    batches: list[list[Any]] = [[1, 2, 3], [4, 5, 6], [7]]
    assert list(progress(batches, num_images=7, shown=False)) == batches
    assert bars[0]["total"] == 7 and bars[0]["disable"] is True and counts == [3, 3, 1]
