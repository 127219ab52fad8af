"""Draws where a network samples for a place in an image, and what reaches that place.

    python -m detector.analysis.sampling checkpoint=best.pt images=photos output=looks
    python -m detector.analysis.sampling checkpoint=best.pt images=photo.jpg output=. points=120,80
    python -m detector.analysis.sampling checkpoint=best.pt images=a.jpg output=. points=9,9 40,80

writes one picture an image into output=DIR: a row for each point x,y (pixels of the image; without
any, the middles of the three detections of the highest scores), and in it

    the 9^3 = 729 places that the last three deformable layers sample for it, as figure 6 of Dai et
    al. 2017; of the last three 3x3 convolutions, where none is deformable
    those of the same layers without offsets
    the effective receptive field of the last of them: the gradient of its output there with respect
    to the image (Luo et al., "Understanding the Effective Receptive Field", NeurIPS 2016)
"""

import re
import sys

from hydra import compose, initialize_config_dir

from detector import entry
from detector.command_configs import typed_sampling
from detector.config import ConfigError

POINT = re.compile(r"(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)")


def main() -> None:
    """key=value arguments, as everywhere; points are separated by spaces."""
    words, points = split_points(sys.argv[1:])
    with initialize_config_dir(version_base="1.3", config_dir=str(entry.CONFIGS)):
        composed = compose("sampling", words)
    composed.points = points
    config = typed_sampling(composed)
    from detector.commands import sampling  # torch, which takes seconds to import

    sampling.run(config)


def split_points(words: list[str]) -> tuple[list[str], list[list[float]]]:
    """The arguments without the points, and these as (x, y).

    Raises:
        ConfigError: a point is no pair of numbers.
    """
    others, points = [], []
    for word in words:
        if "=" in word and not word.startswith("points="):
            others.append(word)
            continue
        found = POINT.fullmatch(word.removeprefix("points="))
        if found is None:
            raise ConfigError(f"points: {word} is no place; give x,y in pixels, such as 120,80")
        points.append([float(found[1]), float(found[2])])
    return others, points


if __name__ == "__main__":
    entry.show_help(__doc__)
    entry.run(main)
