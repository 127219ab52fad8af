"""Which parts of the detector `torch.compile` compiles.

Compiled are the parts that run the same operators on the same kinds of shapes for any image. The
others choose their operators by the values of boxes and scores: an image has any number of
proposals, matches and samples, and anchors are kept from one step to the next anyway.
"""

import logging

from torchvision.models.detection import FasterRCNN

log = logging.getLogger(__name__)

EAGER = "anchors, proposals, matching, sampling, NMS, RoI pooling and losses"


def compile_parts(model: FasterRCNN) -> None:
    """Compile the backbone and the heads in place, when they are first called, and log it.

    The names in the state dict stay the same. The box head is compiled for any number of boxes
    from two on, the other parts for the sizes of images that they meet.
    """
    sized_by_images, sized_by_boxes = (
        ["backbone", "rpn.head"],
        ["roi_heads.box_head", "roi_heads.box_predictor"],
    )
    for name in sized_by_images:
        model.get_submodule(name).compile()
    for name in sized_by_boxes:
        model.get_submodule(name).compile(dynamic=True)
    names = ", ".join([*sized_by_images, *sized_by_boxes])
    log.info("compile=true: compiled are %s; %s stay eager", names, EAGER)
