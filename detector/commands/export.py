"""The work of `python -m detector.export`."""

import importlib.util
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.models.detection import FasterRCNN

from detector.builders.data import build_val_set
from detector.builders.model import trained_model
from detector.command_configs import with_nms
from detector.commands.input_images import image_paths
from detector.config import ConfigError, parse_train
from detector.data.dataset import DatasetError
from detector.data.images import read_image
from detector.export.agreement import ExportError, Found, agreement, found_by
from detector.schema import ExportConfig
from detector.training.checkpoint import load_checkpoint

log = logging.getLogger("export")

NUM_IMAGES = 3  # images on which the exported model is compared with the original
ROUNDS = 3  # rounds of timing, of which the median is reported
SIZES = ((240, 320), (333, 250), (300, 300))  # (height, width) of the generated images

Run = Callable[[np.ndarray], Found]


def run(config: ExportConfig) -> None:
    """Export a checkpoint, compare the result with the model, and log its size and speed.

    Raises:
        ConfigError: the checkpoint cannot be exported to this format, a package is missing, or the
            output cannot be written.
        CheckpointError, WeightsError: the checkpoint cannot be used.
        DatasetError: the images cannot be read.
        ExportError: the exported model gives other detections. The file is kept.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output = Path(config.output)
    if output.exists() and output.samefile(config.checkpoint):
        raise ConfigError(f"output={output} would replace the checkpoint: give another name")
    checkpoint = load_checkpoint(Path(config.checkpoint))
    trained = with_nms(parse_train(checkpoint["config"]), config.nms, None, None)
    if trained.model.nms != "hard":
        raise ConfigError(
            f"model.nms={trained.model.nms} cannot be exported, only hard NMS can: give nms=hard"
        )
    model = trained_model(trained, checkpoint).eval()
    if config.format == "onnx" and trained.model.roi_pool != "align":
        raise ConfigError(
            f"{config.checkpoint} has model.roi_pool={trained.model.roi_pool}, which ONNX has no "
            "operator for: give format=torch"
        )
    images = given_images(config) if config.images else own_images(trained, checkpoint)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        exported = to_onnx(model, checkpoint, output) if config.format == "onnx" else None
        if exported is None:
            height, width = config.size or images[0].shape[:2]
            images = [of_size(pixels, height, width) for pixels in images]
            exported = to_program(model, images[0], output)
    except OSError as error:
        raise ConfigError(f"output={output} cannot be written ({error.strerror})") from error
    exported(np.full_like(images[0], 128))  # must run even on an image without any detection
    result = agreement(model, exported, images)
    ours = seconds(lambda pixels: found_by(model, pixels), images)
    theirs = seconds(exported, images)
    log.info(
        "%s: %.1f MB, %.0f ms an image on this CPU; the model in PyTorch %.0f ms",
        *(output, output.stat().st_size / 1e6, 1000 * theirs, 1000 * ours),
    )
    log.info("checked: %s", result.describe())
    if not result.detections:
        log.warning("nothing was found in these images, so nothing was compared: give images=DIR")
    if not result.holds:
        raise ExportError(f"{output} gives other detections than {config.checkpoint}")


def to_onnx(model: FasterRCNN, checkpoint: dict[str, Any], output: Path) -> Run:
    """Write the ONNX file; return a function that runs it on one image."""
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"format=onnx needs {', '.join(missing)}: pip install -e '.[onnx]'")
    import onnx
    import onnxruntime

    from detector.export.onnx_detector import onnx_model

    metadata = {"score_threshold": str(model.roi_heads.score_thresh)}
    onnx.save(onnx_model(model, list(checkpoint["classes"]), metadata), output)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(output, options, providers=["CPUExecutionProvider"])

    def found(pixels: np.ndarray) -> Found:
        boxes, scores, labels, (number,) = session.run(None, {"images": pixels[None]})
        values = {"boxes": boxes, "scores": scores, "labels": labels}
        return {key: torch.from_numpy(value[0, :number]) for key, value in values.items()}

    return found


def to_program(model: FasterRCNN, pixels: np.ndarray, output: Path) -> Run:
    """Write a program for images of the size of `pixels`; return a function that runs it on one
    image.
    """
    from detector.export.program import Program

    size = (pixels.shape[0], pixels.shape[1])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own internals
        program = torch.export.export(
            Program(model, size).eval(), (torch.from_numpy(pixels),), strict=False
        )
        torch.export.save(program, output)
        loaded = torch.export.load(output).module()

    def found(pixels: np.ndarray) -> Found:
        with torch.no_grad():
            values = loaded(torch.from_numpy(pixels))
        return dict(zip(("boxes", "scores", "labels"), values, strict=True))

    return found


def seconds(run_one: Run, images: list[np.ndarray]) -> float:
    """Return the median of the seconds that `run_one` takes for an image."""
    taken = []
    for _ in range(ROUNDS):
        for pixels in images:
            start = time.perf_counter()
            run_one(pixels)
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def given_images(config: ExportConfig) -> list[np.ndarray]:
    """Read the image, or the first images of the folder, that the user has given.

    Returns:
        uint8 arrays of shape (H, W, 3).
    """
    paths, _ = image_paths(Path(str(config.images)), recursive=True, exclude=Path(config.output))
    return [pixels_of(path) for path in paths[:NUM_IMAGES]]


def own_images(trained: Any, checkpoint: dict[str, Any]) -> list[np.ndarray]:
    """Read the first images of the training's validation set or, if they cannot be read, generate
    images.

    Returns:
        uint8 arrays of shape (H, W, 3).
    """
    try:
        records = build_val_set(trained.data, tuple(checkpoint["classes"])).records
        return [pixels_of(record.path) for record in records[:NUM_IMAGES]]
    except (DatasetError, OSError) as error:
        log.warning(
            "checking on generated images, because the validation images cannot be read: %s", error
        )
        return [generated(seed, *size) for seed, size in enumerate(SIZES)]


def pixels_of(path: Path) -> np.ndarray:
    """Read an image as a uint8 array of shape (H, W, 3)."""
    return np.ascontiguousarray(read_image(path).permute(1, 2, 0).numpy())


def generated(seed: int, height: int, width: int) -> np.ndarray:
    """Generate coloured noise of several scales, a uint8 array of shape (height, width, 3)."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 3, height, width)
    for side in (4, 12, 40):
        noise = torch.rand(1, 3, side, side, generator=generator)
        image += torch.nn.functional.interpolate(noise, (height, width), mode="bicubic") / 3
    return (image[0].clamp(0, 1) * 255).byte().permute(1, 2, 0).contiguous().numpy()


def of_size(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image of shape (H, W, 3)."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(image, (height, width), mode="bilinear")
    return resized[0].round().byte().permute(1, 2, 0).contiguous().numpy()
