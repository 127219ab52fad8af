"""Measures what the deformable layers of a checkpoint have learned, over a validation set.

    python -m detector.analysis.offsets checkpoint=RUN/checkpoints/best.pt
    python -m detector.analysis.offsets checkpoint=best.pt output=offsets max_images=100
    python -m detector.analysis.offsets checkpoint=best.pt data=coco data.root=COCO

The command prints these numbers for each 3x3 convolution of the backbone, and writes them to
offsets.md and offsets.json in output=DIR (by default the run's folder):

    effective dilation   the mean distance between neighbouring sampling places of the kernel, as in
                         table 2 of Dai et al. 2017. It is given as mean and standard deviation over
                         the centres of small, medium and large objects (by COCO's areas) and over
                         the background, which is every place outside all boxes. For a plain
                         convolution it equals the dilation.
    offsets              the mean and the 99th percentile of their length, in pixels of the layer's
                         input; the share of sampling places that lie outside the feature map,
                         and that share for a plain convolution; and how much the offsets depend
                         on the place in the image
    masks                their mean and standard deviation, and how much their distance from 1
                         depends on the place in the image

If RoI pooling is deformable, one more table and roi_bins.json say how far its bins move for the
ground-truth boxes, as a share of the box's size, how much of this movement depends on the object,
and which masks the bins have.

How much the offsets depend on the place is their variance over all places and images divided by
their mean square, both summed over the taps. It is 0 if each tap has the same offset everywhere,
and 1 if the mean offset of each tap is zero.
"""

import sys

from hydra import compose, initialize_config_dir

from detector import entry
from detector.command_configs import fill_in_training_data, parse_offsets


def main() -> None:
    """Run the command with the key=value arguments of the command line."""
    with initialize_config_dir(version_base="1.3", config_dir=str(entry.CONFIGS)):
        config = parse_offsets(fill_in_training_data(compose("offsets", sys.argv[1:])))
    from detector.commands import offsets  # imports torch, which takes seconds

    offsets.run(config)


if __name__ == "__main__":
    entry.show_help(__doc__)
    entry.run(main)
