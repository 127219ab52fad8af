"""Says what a file of weights is, which parts of it would be loaded, and how to use it.

    python -m detector.model.weights model_final_280758.pkl
    python -m detector.model.weights faster_rcnn_r50_fpn_dconv_c3-c5_1x_coco.pth
    python -m detector.model.weights FILE convert=model.pt

The file may hold a detector of torchvision, mmdetection, detectron2 or this project, or the ResNet
of a classifier. It may be a torch file, a plain pickle or safetensors. No code in the file is run,
and no network is built unless convert= is given.

    convert=OUT   write a checkpoint that evaluate.py and predict.py accept. Overrides of train.py
                  may follow, such as data.root=COCO data.val.images=... data.val.annotations=...
                  for its data. If the file has no class names, they are those of the annotations.
"""

import sys

from detector import entry


def main() -> None:
    """Run the command line."""
    entry.show_help(__doc__)
    files = [word for word in sys.argv[1:] if "=" not in word]
    words = [word for word in sys.argv[1:] if "=" in word]
    with entry.one_line_errors():
        if len(files) != 1:
            raise entry.ConfigError(f"give one FILE, not {len(files)}; --help says more")
        converted = [word.partition("=")[2] for word in words if word.startswith("convert=")]
        others = [word for word in words if not word.startswith("convert=")]
        if others and not converted:
            raise entry.ConfigError(f"{others[0]} is only for convert=OUT; --help says more")
        from detector.commands import weights  # torch, which takes seconds to import

        weights.run(files[0], converted[0] if converted else None, others)


if __name__ == "__main__":
    main()
