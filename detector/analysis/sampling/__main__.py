"""Draws where a network samples for a point of an image, and the effective receptive field there.

    python -m detector.analysis.sampling checkpoint=best.pt images=photos output=looks
    python -m detector.analysis.sampling checkpoint=best.pt images=photo.jpg output=. points=120,80
    python -m detector.analysis.sampling checkpoint=best.pt images=a.jpg output=. points=9,9 40,80

The command writes one picture per image into output=DIR. It has a row for each point x,y, in pixels
of the image; if no points are given, they are the centres of the three detections with the highest
scores. The panels of a row show

    1. the 9^3 = 729 places that the last three deformable layers sample for the point, as in figure
       6 of Dai et al. 2017; if no layer is deformable, the last three 3x3 convolutions are taken
    2. the places that these layers would sample without offsets
    3. the effective receptive field of the last of these layers: the gradient of its output at the
       point with respect to the image (Luo et al., "Understanding the Effective Receptive Field",
       NeurIPS 2016)
"""

import re
import sys

from hydra import compose, initialize_config_dir

from detector import entry
from detector.command_configs import parse_sampling
from detector.config import ConfigError

POINT = re.compile(r"(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)")


def main() -> None:
    """Run the command with the arguments of the command line.

    They are key=value pairs; further points stand as x,y after points=x,y.
    """
    words, points = split_points(sys.argv[1:])
    with initialize_config_dir(version_base="1.3", config_dir=str(entry.CONFIGS)):
        composed = compose("sampling", words)
    composed.points = points
    config = parse_sampling(composed)
    from detector.commands import sampling  # imports torch, which takes seconds

    sampling.run(config)


def split_points(words: list[str]) -> tuple[list[str], list[list[float]]]:
    """Split the arguments into those that are not points, and the points as [x, y].

    Raises:
        ConfigError: a point is not a pair of numbers.
    """
    others, points = [], []
    for word in words:
        if "=" in word and not word.startswith("points="):
            others.append(word)
            continue
        found = POINT.fullmatch(word.removeprefix("points="))
        if found is None:
            raise ConfigError(f"points: {word} is not a point; give x,y in pixels, such as 120,80")
        points.append([float(found[1]), float(found[2])])
    return others, points


if __name__ == "__main__":
    entry.show_help(__doc__)
    entry.run(main)
