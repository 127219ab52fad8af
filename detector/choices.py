"""The values among which a configuration chooses, for keys whose value is one of a few names.

`config.py` and `command_configs.py` refuse any other value before torch is imported. This module
imports nothing of ours, since both the configuration and the code that it configures use it.
"""

METRICS = ("coco", "voc07", "voc12")
BACKENDS = ("numpy", "pycocotools")  # of the metric coco
PRECISIONS = ("float32", "bfloat16", "float16")

# Keys of a results file, which `detector/evaluation/result_files.py` reads. A box is its upper left
# corner and size, two corners, or its centre and size; in pixels or, if normalised, as fractions of
# the image's width and height.
BOX_FORMATS = tuple(
    f"{form}{unit}" for unit in ("", "_normalised") for form in ("xywh", "xyxy", "cxcywh")
)
# A category id is an id of the ground truth, or the index of one in ascending order, from 0 or 1.
CATEGORIES = ("ids", "from_zero", "from_one")

# Keys of a model. `detector/model/` builds each of them.
BACKBONES = (
    *("resnet10", "resnet18", "resnet34", "resnet50", "resnet101"),
    *("resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2"),
)
NORMS = ("frozen_batch", "batch", "sync_batch", "group")
NECKS = ("fpn", "dc5")
ROI_POOLS = ("align", "deform_v1", "deform_v2")
NMS = ("hard", "soft_linear", "soft_gaussian")
STAGES = ("none", "c5", "c4-c5", "c3-c5", "c2-c5")
VERSIONS = ("v1", "v2")

# Outputs of predict.py besides predictions.json, and formats of an exported model.
SAVED = ("drawn", "crops", "coco", "yolo", "csv")
EXPORT_FORMATS = ("onnx", "torch")

# Keys of a schedule, and of the data.
OPTIMIZERS = ("sgd", "adamw")
DECAYS = ("step", "cosine")
ON_ERROR = ("stop", "warn")
