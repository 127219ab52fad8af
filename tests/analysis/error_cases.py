"""Ground truths and detections of squares, for tests of errors and of the confusion matrix."""

from typing import Any

import numpy as np

CAT, DOG = 2, 4


def truth_of(*annotations: dict[str, Any], num_images: int = 1) -> dict[str, Any]:
    return {
        "images": [{"id": number} for number in range(num_images)],
        "annotations": list(annotations),
        "categories": [{"id": DOG, "name": "dog"}, {"id": CAT, "name": "cat"}],
    }


def box(x: float, category: int = CAT, *, image: int = 0, size: float = 100, **more: Any) -> dict:
    """A square at (x, 0). Two of equal size that are a share s apart have IoU (1 - s) / (1 + s)."""
    bbox = [x, 0, size, size]
    return {"image_id": image, "category_id": category, "bbox": bbox} | more


def random_set(seed: int) -> tuple[dict[str, Any], list[dict]]:
    """Objects close together, crowds among them, and detections of any kind with equal scores."""
    rng = np.random.default_rng(seed)
    annotations, detections = [], []
    for _ in range(60):
        place = {"image_id": int(rng.integers(4)), "category_id": int(rng.choice([CAT, DOG]))}
        bbox = [*rng.uniform(0, 300, 2).tolist(), *rng.uniform(20, 100, 2).tolist()]
        crowd = int(rng.random() < 0.1)
        annotations.append(place | {"bbox": bbox, "iscrowd": crowd})
        for _ in range(rng.integers(4)):
            near = (np.array(bbox) + rng.normal(0, 10, 4)).clip(5).tolist()
            category = int(rng.choice([CAT, DOG]))
            score = float(rng.integers(1, 9) / 10)
            detections.append(place | {"category_id": category, "bbox": near, "score": score})
    detections.append(box(5000, score=0.5))
    return truth_of(*annotations, num_images=4), detections
