"""The ways in which the boxes and categories of a results file can be interpreted;
`detector/evaluation/result_files.py` reads them.
"""

# Upper left corner and size, two corners, or centre and size; in pixels or, if normalised, as
# fractions of the image's width and height.
BOX_FORMATS = tuple(
    f"{form}{unit}" for unit in ("", "_normalised") for form in ("xywh", "xyxy", "cxcywh")
)
# A category id is an id of the ground truth, or the index of one in ascending order, from 0 or 1.
CATEGORIES = ("ids", "from_zero", "from_one")
