"""How the boxes and categories of a results file can be read; `result_files.py` does it."""

# Corner and size, two corners, or centre and size; in pixels, or in parts of the image's sides.
BOX_FORMATS = tuple(
    f"{form}{unit}" for unit in ("", "_normalised") for form in ("xywh", "xyxy", "cxcywh")
)
# A category id is the ground truth's, or a place in these when they ascend, counted from 0 or 1.
CATEGORIES = ("ids", "from_zero", "from_one")
