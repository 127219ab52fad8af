"""Checkpoints of detectron2 and mmdetection, compared with the outputs of the frameworks' own code.

The expected outputs are in a folder next to the project. It holds the names and shapes of the
weights, a rule that computes every weight from its name, three synthetic images, and the outputs of
the frameworks for them. NOTES.md in the folder describes how these were made.
"""

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from detector.builders.model import build_model
from detector.config import CONFIGS, parse_train

PARITY = Path(__file__).resolve().parents[3] / "shared" / "data" / "parity"
MODELS = sorted(path.stem for path in PARITY.glob("*.json"))
DEFORM = {
    "plain": ["deform=none"],
    "v1": ["deform=c3-c5_v1"],
    "v2": ["deform=c3-c5_v2", "deform.mask_start=0.5"],
}

pytestmark = pytest.mark.skipif(not MODELS, reason="no ../shared/data/parity")


def load_module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"parity_{name}", PARITY / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def built(name: str, file: Path) -> FasterRCNN:
    """Build the network with its weights and conventions from `model.weights=FILE`."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        words = ["model=resnet50_fpn", f"model.weights={file}", *DEFORM[name.split("_")[1]]]
        config = parse_train(compose("train", words))
    return build_model(config.model, config.deform, config.data.transform, 80).eval()


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A model's name, its expected statistics, its expected detections, and the model."""
    name = request.param
    expected = json.loads((PARITY / f"{name}.json").read_text())
    values = load_module("fill").state_dict_values(expected["state_dict"])
    state = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in values.items()}
    file = tmp_path_factory.mktemp("parity") / f"{name}.pth"
    torch.save({"model" if name.startswith("detectron2") else "state_dict": state}, file)
    yield name, expected, np.load(PARITY / f"{name}.npz"), built(name, file)


def images() -> list[np.ndarray]:
    """Return the images, uint8 (H, W, 3), RGB."""
    made = load_module("images")
    return [made.image(*one) for one in made.IMAGES]


def outputs(model: FasterRCNN, pixels: np.ndarray) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the detections in an image of its own size, and the parts' inputs and outputs."""
    model.transform.min_size, model.transform.max_size = (min(pixels.shape[:2]),), 10_000
    seen: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: seen.update({name: output, f"into {name}": inputs})

    parts = {
        "features": model.backbone,
        "rpn": model.rpn.head,
        "anchors": model.rpn.anchor_generator,
        "pooled": model.roi_heads.box_roi_pool,
        "boxes": model.roi_heads.box_predictor,
    }
    hooks = [part.register_forward_hook(keep(name)) for name, part in parts.items()]
    with torch.no_grad():
        (found,) = model([torch.from_numpy(pixels).permute(2, 0, 1) / 255])
    for hook in hooks:
        hook.remove()
    return found, seen


@pytest.fixture(scope="module")
def run(case: Any) -> list[tuple[dict[str, Tensor], dict[str, Any]]]:
    return [outputs(case[3], pixels) for pixels in images()]


def test_every_detection_has_its_partner(case: Any, run: Any) -> None:
    _, _, stored, _ = case
    for index, (found, _) in enumerate(run):
        boxes = torch.from_numpy(stored[f"boxes_{index}"]).float()
        labels = torch.from_numpy(stored[f"labels_{index}"]).long() + 1  # labels begin at 1 here
        assert len(found["boxes"]) == len(boxes) > 5
        free = set(range(len(boxes)))
        for box, label, score in zip(boxes, labels, stored[f"scores_{index}"], strict=True):
            of_label = [i for i in free if found["labels"][i] == label]
            assert of_label, f"no partner of {box} in image {index}"
            nearest = min(of_label, key=lambda i: (found["boxes"][i] - box).abs().max())
            assert (found["boxes"][nearest] - box).abs().max() < 1e-2
            assert abs(found["scores"][nearest] - score) < 1e-4
            free.remove(nearest)


def test_every_stage_has_the_same_numbers(case: Any, run: Any) -> None:
    _, expected, _, _ = case
    for (_, seen), of_image in zip(run, expected["images"], strict=True):
        check(seen["into features"][0], of_image["input"], elements=True)
        features = list(seen["features"].values())
        for level in range(5):
            key = f"p{level + 2}"
            check(features[level], of_image["fpn"][key], elements=True)
            check(seen["rpn"][0][level], of_image["rpn_score"][key], elements=True)
            check(seen["rpn"][1][level], of_image["rpn_box"][key], elements=True)
        logits, deltas = seen["boxes"]
        # Proposals may be in another order, so single elements are not compared.
        check(seen["pooled"], of_image["pooled"], elements=False)
        check(logits, of_image["class_logits"], elements=False)
        check(deltas[:, 4:], of_image["box_deltas"], elements=False)


def check(values: Tensor, expected: dict[str, Any], *, elements: bool) -> None:
    """Compare the mean, the mean absolute value and 16 of the values, to 1e-4 of their size."""
    assert list(values.shape) == expected["shape"]
    size = expected["abs_mean"]
    assert abs(values.double().mean() - expected["mean"]) < 1e-4 * size
    assert abs(values.double().abs().mean() - size) < 1e-4 * size
    if elements:
        places = (torch.arange(16) * 7919 + 13) % values.numel()
        torch.testing.assert_close(
            values.flatten()[places],
            torch.tensor(expected["elements"]),
            rtol=1e-4,
            atol=1e-4 * size,
        )


def test_proposals_reach_the_same_levels(case: Any, run: Any) -> None:
    _, expected, _, model = case
    for (_, seen), of_image in zip(run, expected["images"], strict=True):
        (proposals,) = seen["into pooled"][1]
        levels = model.roi_heads.box_roi_pool.levels(proposals).bincount(minlength=4)
        assert levels.tolist() == of_image["proposals_per_roi_level"]


def test_anchors(case: Any, run: Any) -> None:
    """They are computed here from the anchors of a cell and the strides, for p6 too."""
    _, expected, _, _ = case
    cells = expected["cfg_values"]["cell_anchors_per_level"]
    strides = expected["cfg_values"]["anchor_strides"]
    for _, seen in run:
        (anchors,) = seen["anchors"]
        sizes = [level.shape[2:] for level in seen["features"].values()]
        wanted = [
            np.array(cell) + stride * np.array([x, y, x, y])
            for (height, width), cell, stride in zip(sizes, cells, strides, strict=True)
            for y in range(height)
            for x in range(width)
        ]
        np.testing.assert_allclose(anchors, np.concatenate(wanted), rtol=0, atol=1e-3)


def test_the_configuration_shows_the_conventions(case: Any) -> None:
    name, expected, _, model = case
    told = expected["cfg_values"]
    assert isinstance(model.backbone, nn.Module)
    stride = model.backbone.body.layer2[0].conv1.stride
    assert (stride == (2, 2)) is told["resnet_stride_in_1x1"], name
