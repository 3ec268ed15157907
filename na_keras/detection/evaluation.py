"""COCO's average precision by pycocotools: over all images of a split, and of each class.

Detections are plain numbers in pixels of the photograph as it is stored; which network found them does not matter here.
"""

import contextlib
import dataclasses
import io
import math

# The first six of pycocotools' twelve numbers.
METRICS = ("AP", "AP50", "AP75", "APS", "APM", "APL")


@dataclasses.dataclass(frozen=True)
class Detection:
    """What was found in an image: left, top, right, bottom in pixels; class from 1 on; score 0..1."""

    left: float
    top: float
    right: float
    bottom: float
    label: int
    score: float


def as_results(annotations, found):
    """Detections as COCO's list of results, under the file's own category ids.

    Args:
        annotations: coco.Annotations.
        found: {image id: list of Detection}; every image of the split must be there, with an empty list if nothing was
            found.

    Raises:
        ValueError: images are missing or of another split, or a class is not one of the split's.
    """
    ids = {photograph.id for photograph in annotations.photographs}
    if set(found) != ids:
        raise ValueError(
            f"Expected detections of all {len(ids)} images of {annotations.path} and of no others. Received: "
            f"{len(ids - set(found))} missing, {len(set(found) - ids)} others"
        )
    categories = list(annotations.categories)
    unknown = {one.label for each in found.values() for one in each if not 1 <= one.label <= len(categories)}
    if unknown:
        raise ValueError(f"Expected classes 1 to {len(categories)}. Received: {sorted(unknown)}")
    return [
        {
            "image_id": image,
            "category_id": categories[one.label - 1],
            "bbox": [one.left, one.top, one.right - one.left, one.bottom - one.top],
            "score": one.score,
        }
        for image, each in found.items()
        for one in each
    ]


def class_precision(precision):
    """The mean of pycocotools' table of one class, whose -1 stands for "no such object"; nan without any."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else math.nan


def evaluate(annotations, found):
    """Average precision of detections.

    Args:
        annotations: coco.Annotations of the split; pycocotools reads its file anew, with all of its boxes.
        found: see `as_results`.

    Returns:
        ({name of METRICS: 0..1, nan if the split has no such objects}, {class name: AP}).

    Raises:
        ValueError: see `as_results`.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    results = as_results(annotations, found)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools talks
        truth = COCO(str(annotations.path))
        for entry in truth.dataset["annotations"]:  # what pycocotools needs and some files leave out
            entry.setdefault("iscrowd", 0)
            entry.setdefault("area", entry["bbox"][2] * entry["bbox"][3])
        evaluation = COCOeval(truth, truth.loadRes(results) if results else empty_results(truth), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = [math.nan if value == -1 else float(value) for value in evaluation.stats[: len(METRICS)]]
    # (thresholds, recalls, classes, areas, most detections): all areas, 100 detections.
    tables = evaluation.eval["precision"][:, :, :, 0, -1]
    each = {name: class_precision(tables[:, :, index]) for index, name in enumerate(annotations.class_names)}
    return dict(zip(METRICS, numbers, strict=True)), each


def empty_results(truth):
    """pycocotools' results without any detection, which its `loadRes` cannot make of an empty list."""
    from pycocotools.coco import COCO

    empty = COCO()
    empty.dataset = {key: truth.dataset[key] for key in ("images", "categories")} | {"annotations": []}
    empty.createIndex()
    return empty
