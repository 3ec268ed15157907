"""Annotations of one split in COCO's format, read and checked.

    {"images":      [{"id": 7, "file_name": "a.jpg", "width": 640, "height": 480}, ...],
     "annotations": [{"id": 1, "image_id": 7, "category_id": 18, "bbox": [x, y, width, height], "iscrowd": 0}, ...],
     "categories":  [{"id": 18, "name": "dog"}, ...]}

Categories have whatever ids their file gives them; in a network they are the classes 1, 2, 3 ... in the order of these
ids, 0 being the background. What training does with odd boxes is what mmdetection does (mmdet/datasets/coco.py); the
evaluation reads the file itself, by pycocotools, and counts them all:

    outside      a box that reaches over the image's edge is cut off there
    degenerate   a box that is less than a pixel wide or high within the image is left out
    crowd        a box around a crowd is no object: training passes over it, the evaluation ignores what is found there
"""

import collections
import dataclasses
import json
import math
import pathlib

SHOWN = 5  # of each kind of fault, for a message
SMALLEST_SIDE = 1.0  # pixels
# Of COCO's 80 categories: 1 to 90 without those that it never annotated.
COCO_CATEGORY_IDS = tuple(sorted({*range(1, 91)} - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}))


@dataclasses.dataclass(frozen=True)
class Box:
    """One object: left, top, right, bottom in pixels, within the image; class from 1 on; whether it is a crowd."""

    left: float
    top: float
    right: float
    bottom: float
    label: int
    crowd: bool = False


@dataclasses.dataclass(frozen=True)
class Photograph:
    """One image: its id and file name in the annotations, width and height in pixels, and its boxes."""

    id: int
    file_name: str
    width: int
    height: int
    boxes: tuple[Box, ...]


@dataclasses.dataclass(frozen=True)
class Annotations:
    """A split.

    Attributes:
        path: of the file.
        photographs: in the file's order.
        categories: {id in the file: name}, by ascending ids; the class of the n-th is n, from 1 on.
        odd: {"outside": how many boxes were cut, "degenerate": left out, "crowd": ..., "empty": images without boxes}.
    """

    path: pathlib.Path
    photographs: tuple[Photograph, ...]
    categories: dict[int, str]
    odd: dict[str, int]

    @property
    def class_names(self):
        """Of the classes 1, 2, 3 ..."""
        return tuple(self.categories.values())

    @property
    def summary(self):
        """Lines for a person: what there is of what, and what is odd."""
        boxes = collections.Counter(box.label for photograph in self.photographs for box in photograph.boxes)
        each = ", ".join(f"{name} {boxes[label]}" for label, name in enumerate(self.class_names, start=1))
        lines = [
            f"{self.path}: {len(self.photographs)} images, {boxes.total()} boxes in {len(self.categories)} classes"
        ]
        lines += [f"{self.path}: {each}"] if len(self.categories) <= 20 else []
        meanings = {
            "outside": "boxes reach over the edge of their image and are cut off there",
            "degenerate": "boxes are less than a pixel wide or high and are left out of training",
            "crowd": "boxes are crowds, which training passes over",
            "empty": "images have no boxes",
        }
        return lines + [f"{self.path}: {self.odd[kind]} {text}" for kind, text in meanings.items() if self.odd[kind]]


def refuse(path, what, found):
    """Raises ValueError about a kind of fault, if there are any: `found` are lines."""
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise ValueError(f"{path}: {what}: {'; '.join(map(str, found[:SHOWN]))}{more}.")


def read_json(path):
    """The three lists of a file of COCO's format.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or another one.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text("utf-8"))
    except ValueError as error:  # undecodable bytes too
        raise ValueError(f"{path} is no JSON file: {error}") from error
    expected = {"images": {"id", "file_name", "width", "height"}, "categories": {"id", "name"}}
    expected["annotations"] = {"image_id", "category_id", "bbox"}
    for key, fields in expected.items():
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(
                f'{path} must hold COCO\'s annotations, a dictionary with the lists "images", "annotations" and '
                f'"categories". Received: no list "{key}"'
            )
        lacking = [
            f"{sorted(fields - set(entry))} of {entry.get('id')}" for entry in entries if not fields <= set(entry)
        ]
        refuse(path, f'entries of "{key}" lack what they must have', lacking)
    if not content["images"] or not content["categories"]:
        raise ValueError(f"{path} names no {'images' if not content['images'] else 'categories'}.")
    return content


def repeated(values):
    """Those that are there more than once."""
    return [value for value, times in collections.Counter(values).items() if times > 1]


def check_references(path, content):
    """Raises ValueError on ids that are there twice, and on boxes of images or categories that are not there."""
    for key in ("images", "categories"):
        other = [repr(entry["id"]) for entry in content[key] if type(entry["id"]) is not int]
        refuse(path, f'ids in "{key}" that are no whole numbers', other)
        refuse(path, f'ids that are there more than once in "{key}"', repeated(entry["id"] for entry in content[key]))
    refuse(
        path, "file names that are there more than once", repeated(entry["file_name"] for entry in content["images"])
    )
    refuse(path, "category names that are there more than once", repeated(c["name"] for c in content["categories"]))
    for key, target in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in content[target]}
        unknown = sorted({str(entry[key]) for entry in content["annotations"] if entry[key] not in known})
        refuse(path, f'"annotations" have values of {key} that are not in "{target}"', unknown)


def check_boxes(path, annotations):
    """Raises ValueError on a box that is not four finite numbers, or has a negative side."""

    def is_box(bbox):
        return (
            isinstance(bbox, list)
            and len(bbox) == 4
            and all(isinstance(number, int | float) and math.isfinite(number) for number in bbox)
        )

    wrong = [entry for entry in annotations if not is_box(entry["bbox"]) or min(entry["bbox"][2:]) < 0]
    found = [f"{entry.get('id')} of image {entry['image_id']}: {entry['bbox']}" for entry in wrong]
    refuse(path, "boxes that are not [x, y, width, height] in pixels", found)


def within(image, entry, label, odd):
    """The Box of an annotation, cut off at the image's edges; None if too little is left. Counts into `odd`."""
    x, y, width, height = entry["bbox"]
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + width, image["width"]), min(y + height, image["height"])
    if right - left < SMALLEST_SIDE or bottom - top < SMALLEST_SIDE:
        odd["degenerate"] += 1
        return None
    # Annotations are rounded to a hundredth of a pixel, which is no reaching over.
    if max(left - x, top - y, x + width - right, y + height - bottom) > 0.01:
        odd["outside"] += 1
    crowd = bool(entry.get("iscrowd", 0))
    odd["crowd"] += crowd
    return Box(left, top, right, bottom, label, crowd)


def read_annotations(path):
    """Reads a split's file.

    Args:
        path: of the JSON file.

    Returns:
        Annotations.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of COCO's format, or contradicts itself; the message names the file and the first entries.
    """
    path = pathlib.Path(path)
    content = read_json(path)
    check_references(path, content)
    check_boxes(path, content["annotations"])
    categories = {entry["id"]: entry["name"] for entry in sorted(content["categories"], key=lambda entry: entry["id"])}
    labels = {category: label for label, category in enumerate(categories, start=1)}
    images = {entry["id"]: entry for entry in content["images"]}
    odd = dict.fromkeys(("outside", "degenerate", "crowd", "empty"), 0)
    boxes = {image: [] for image in images}
    for entry in content["annotations"]:
        if box := within(images[entry["image_id"]], entry, labels[entry["category_id"]], odd):
            boxes[entry["image_id"]].append(box)
    odd["empty"] = sum(not found for found in boxes.values())
    photographs = tuple(
        Photograph(image["id"], image["file_name"], image["width"], image["height"], tuple(boxes[image["id"]]))
        for image in images.values()
    )
    return Annotations(path, photographs, categories, odd)


def check_same_categories(training, validation):
    """Raises ValueError if two splits do not have the same categories under the same ids."""
    if training.categories == validation.categories:
        return
    differing = {*training.categories.items()} ^ {*validation.categories.items()}
    refuse(validation.path, f"its categories are not those of {training.path}, (id, name)", sorted(differing))


def check_files(annotations, folder):
    """Raises FileNotFoundError if images of a split are not in the folder; names the first."""
    missing = [entry.file_name for entry in annotations.photographs if not (folder / entry.file_name).is_file()]
    if missing:
        some = ", ".join(missing[:SHOWN])
        raise FileNotFoundError(
            f"{len(missing)} of the {len(annotations.photographs)} images that {annotations.path} names are not in "
            f"{folder}: {some}{' ...' if len(missing) > SHOWN else ''}. Are these the annotations of another split?"
        )


# Where COCO's archives and others put things, below a data directory; {split} is train or val, {stem} train2017.
ANNOTATIONS = ("annotations/instances_{split}*.json", "instances_{split}*.json")
IMAGES = ("{stem}", "{split}", "images/{stem}", "images/{split}", "images")


def find_split(data_dir, split):
    """The annotations and images of a split below a data directory.

    Args:
        data_dir: pathlib.Path.
        split: "train", "val" or "test".

    Returns:
        (path of the JSON file, folder of the images).

    Raises:
        FileNotFoundError: there is none; the message says where it was looked for.
        ValueError: there are several JSON files.
    """
    patterns = [pattern.format(split=split) for pattern in ANNOTATIONS]
    found = [path for pattern in patterns for path in sorted(data_dir.glob(pattern))]
    if not found:
        raise FileNotFoundError(f"{data_dir} must hold {' or '.join(patterns)}, annotations in COCO's format.")
    if len(found) > 1:
        raise ValueError(f"{data_dir} holds several annotations: {', '.join(map(str, found))}. Give one by its path.")
    stem = found[0].stem.removeprefix("instances_")  # train2017
    folders = [data_dir / pattern.format(split=split, stem=stem) for pattern in IMAGES]
    for folder in folders:
        if folder.is_dir():
            return found[0], folder
    names = ", ".join(str(folder.relative_to(data_dir)) for folder in folders)
    raise FileNotFoundError(f"{data_dir} must hold the images of {found[0].name} in a folder named {names}.")
