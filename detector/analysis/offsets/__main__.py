"""What deformable layers have learned, over a validation set.

    python -m detector.analysis.offsets checkpoint=RUN/checkpoints/best.pt
    python -m detector.analysis.offsets checkpoint=best.pt output=offsets max_images=100
    python -m detector.analysis.offsets checkpoint=best.pt data=coco data.root=COCO

prints, and writes as offsets.md and offsets.json into output=DIR, for each 3x3 convolution of the
backbone:

    effective dilation   Dai et al. 2017, table 2: the mean distance between neighbouring sampling
                         places, mean and deviation over the centres of small, medium and large
                         objects (by COCO's areas) and over the places that are in no object's box;
                         a plain convolution's is its dilation
    offsets              their length: mean and 99th percentile, in pixels of the layer's input;
                         the share of places that lie outside the map, beside the plain grid's; and
                         how much of them depends on the place in the image
    masks                mean and deviation; and how much of their distance from 1 depends on it

Where RoI pooling deforms, roi_bins.json and one more table say how far its bins move for the
objects' own boxes, in sizes of the box, how much of that depends on the object, and their masks.

How much depends on the place is a tap's variance over all places and images, divided by its mean
square: 0 where a tap is shifted by the same offset everywhere, 1 where its mean is none.
"""

import sys

from hydra import compose, initialize_config_dir

from detector import entry
from detector.command_configs import typed_offsets, with_data_of_evaluation


def main() -> None:
    """key=value arguments, as everywhere."""
    with initialize_config_dir(version_base="1.3", config_dir=str(entry.CONFIGS)):
        config = typed_offsets(with_data_of_evaluation(compose("offsets", sys.argv[1:])))
    from detector.commands import offsets  # torch, which takes seconds to import

    offsets.run(config)


if __name__ == "__main__":
    entry.show_help(__doc__)
    entry.run(main)
