"""Collects what the page of a study shows of single images.

The page shows the detections of the arms beside the ground truth, and where the network of each arm
samples. Offsets are stored in 32nds of a pixel and masks in 128ths, and of a large feature map only
every n-th cell along each axis is kept, so that a page with ten images stays below 15 MB.
"""

import base64
from collections import defaultdict
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.models.detection import FasterRCNN

from detector.analysis.coordinates import centres_of
from detector.analysis.layers import Layer, record_layers
from detector.analysis.study.runs import Runs
from detector.data.dataset import DetectionDataset
from detector.evaluation.coco_matches import coco_matches
from detector.evaluation.columns import Detections, GroundTruth
from detector.evaluation.inference import to_float
from detector.model.resnet import STAGES

NUM_IMAGES = 10
MIN_SCORE = 0.5  # of the detections that are drawn, and that count in the choice of images
LONGEST_SIDE = 640  # pixels of a picture on the page
MOST_BYTES = 9_000_000  # of all maps together, before they are encoded as text
OFFSET_SCALE, MASK_SCALE = 32, 128  # stored integers per pixel, and per mask of 1
BYTES_A_TAP = 5  # two for dy, two for dx and one for the mask


def differing_images(runs: Runs, baseline: str) -> list[int]:
    """Choose the images in which an arm differs most from the baseline.

    An arm is measured in each image by its true positives minus its false positives among the
    detections with a score of at least `MIN_SCORE`, as a mean over its seeds.

    Returns:
        The ids of at most `NUM_IMAGES` images, from the largest difference on.
    """
    image_ids = runs.ground_truth.image_ids.tolist()
    means = {
        arm: np.mean([_balance(runs.ground_truth, run.detections) for run in of_arm], axis=0)
        for arm, of_arm in runs.arms.items()
    }
    apart = np.zeros(len(image_ids))
    for arm, mean in means.items():
        if arm != baseline:
            apart = np.maximum(apart, np.abs(mean - means[baseline]))
    order = np.argsort(-apart, kind="stable")[:NUM_IMAGES]
    return [image_ids[place] for place in order]


def _balance(ground_truth: GroundTruth, detections: Detections) -> np.ndarray:
    """Count the true positives minus the false positives of each image (I,), by rising id."""
    sure = detections.select(detections.scores >= MIN_SCORE)
    balance = np.zeros(len(ground_truth.image_ids))
    for of_class in coco_matches(ground_truth, sure).classes:
        np.add.at(
            balance, of_class.images, 1.0 * of_class.true_positives[0] - of_class.false_positives[0]
        )
    return balance


def images_of(
    runs: Runs, seeds: dict[str, int], dataset: DetectionDataset, image_ids: list[int]
) -> list[dict[str, Any]]:
    """Describe images for the page: the picture, the ground truth, and each arm's detections.

    Args:
        seeds: arm -> the seed of the run whose detections are shown.
    """
    places = {record.image_id: place for place, record in enumerate(dataset.records)}
    coco = runs.ground_truth.to_coco()
    names = {one["id"]: one["name"] for one in coco["categories"]}
    truth: dict[int, list[Any]] = defaultdict(list)
    for one in coco["annotations"]:
        truth[one["image_id"]].append([*_rounded(one["bbox"]), names[one["category_id"]]])
    found: dict[tuple[str, int], list[Any]] = defaultdict(list)
    for arm, of_arm in runs.arms.items():
        run = next(run for run in of_arm if run.seed == seeds[arm])
        for one in run.detections.select(run.detections.scores >= MIN_SCORE).to_coco():
            label = f"{names[one['category_id']]} {one['score']:.2f}"
            found[arm, one["image_id"]].append([*_rounded(one["bbox"]), label])
    shown = []
    for image_id in image_ids:
        record = dataset.records[places[image_id]]
        pixels = dataset[places[image_id]]["image"].permute(1, 2, 0).numpy()
        shown.append(
            {
                "name": record.path.name,
                "width": record.width,
                "height": record.height,
                "picture": _jpeg(pixels),
                "truth": truth[image_id],
                "found": {arm: found[arm, image_id] for arm in runs.arms},
            }
        )
    return shown


def _rounded(box: list[float]) -> list[float]:
    return [round(float(value), 1) for value in box]


def _jpeg(pixels: np.ndarray) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


@torch.no_grad()
def maps_of(
    model: FasterRCNN,
    dataset: DetectionDataset,
    image_ids: list[int],
    *,
    device: torch.device,
    most_cells: int,
) -> list[dict[str, Any]]:
    """Record where the last 3x3 convolution of each stage samples, for each image.

    Args:
        most_cells: the largest number of cells that are kept of a feature map.

    Returns:
        For each image, name of a stage -> the content that `page.js` reads.
    """
    model.eval()
    places = {record.image_id: place for place, record in enumerate(dataset.records)}
    maps = []
    for image_id in image_ids:
        image = to_float(dataset[places[image_id]]["image"], device)
        with record_layers(model) as layers:
            images, _ = model.transform([image])
            model.backbone(images.tensors)
        scale = np.array(images.image_sizes[0]) / np.array(image.shape[-2:])
        padded = np.array(images.tensors.shape[-2:])
        stages = {}
        for stage, module in STAGES.items():
            last = [layer for name, layer in layers.items() if name.startswith(f"{module}.")][-1]
            stages[stage] = _map(last, padded / np.array(last.input_size), scale, most_cells)
        maps.append(stages)
    return maps


def most_cells(num_maps: int) -> int:
    """Return how many cells each map may keep for all maps together to fit into `MOST_BYTES`."""
    return max(16, MOST_BYTES // (9 * BYTES_A_TAP * max(num_maps, 1)))


def _map(layer: Layer, stride: np.ndarray, scale: np.ndarray, cells: int) -> dict[str, Any]:
    """Describe one layer as `page.js` reads it.

    Args:
        stride, scale: of the layer's input, as `centres_of` takes them.
        cells: the largest number of cells that are kept.
    """
    height, width = layer.output_size
    step = 1
    while -(-height // step) * -(-width // step) > cells:
        step += 1
    content: dict[str, Any] = {
        "layer": layer.name,
        "deformable": layer.is_deformable,
        "modulated": layer.is_modulated,
        "size": [height, width],
        "step": step,
        "groups": len(layer.offsets),
        "pixels": (stride / scale).tolist(),
        "origin": centres_of(np.zeros(2), stride, scale).tolist(),
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "scales": [OFFSET_SCALE, MASK_SCALE],
    }
    if layer.is_deformable:  # only the first offset group: (K, 2, h, w) and (K, h, w)
        offsets = np.rint(OFFSET_SCALE * layer.offsets[0, ..., ::step, ::step])
        limits = np.iinfo(np.int16)
        content["offsets"] = _text(np.nan_to_num(offsets).clip(limits.min, limits.max), "<i2")
        masks = np.rint(MASK_SCALE * layer.masks[0, ..., ::step, ::step])
        content["masks"] = _text(np.nan_to_num(masks).clip(0, 255), "u1")
    return content


def _text(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values).astype(dtype).tobytes()).decode()
