"""Weights of training examples by their class, for classes of unequal size.

    loss of a step = sum over its examples of  weight * loss,  over the GLOBAL batch size

where the weight is that of the example's class, as `class_weight` of Keras' fit has it, and of a mixed example (MixUp,
CutMix) the mean of its classes' weights by their shares. The `loss` of history.csv is the mean of weight * loss over
the examples, which is what is minimised. Held-out images have no weights.

    balanced    images / (classes * images of the class), as scikit-learn's class_weight="balanced": every class weighs
                the same in an epoch, and the mean weight of its images is 1
    a file      a number above 0 for every class: CSV, "class,weight" a line, or JSON, {"class": weight}
"""

import csv
import json
import math
import pathlib

import numpy as np

import progress

BALANCED = "balanced"
AT_ONCE = 4096  # labels
LISTED = 20  # up to so many classes, a note gives each weight


def rows_of_file(path):
    """[(class name, number as it stands there, where it stands)] of a CSV or JSON file."""
    text = path.read_text("utf-8-sig")
    if path.suffix.lower() == ".json":
        pairs = json.loads(text, object_pairs_hook=list)
        if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
            raise ValueError('it holds no dictionary {"class": weight}')
        return [(name, value, f"the entry {name!r}") for name, value in pairs]
    rows = [(number, row) for number, row in enumerate(csv.reader(text.splitlines()), 1) if row]
    if rows and [cell.strip().lower() for cell in rows[0][1]] == ["class", "weight"]:
        rows = rows[1:]
    for number, row in rows:
        if len(row) != 2:
            raise ValueError(f"line {number} is no class,weight: {','.join(row)}")
    return [(*row, f"line {number}") for number, row in rows]


def read_weights(path):
    """{class name: weight} of a file, see above.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is neither, a class stands there twice, or a weight is no number above 0.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"--class-weights must be {BALANCED}, or a CSV or JSON file. There is no file {path}")
    weights = {}
    try:
        for name, value, place in rows_of_file(path):
            try:
                weight = math.nan if isinstance(value, bool) else float(value)
            except (TypeError, ValueError):
                weight = math.nan
            if not 0 < weight < math.inf:
                raise ValueError(f"{place}: expected a number above 0. Received: {value!r}")
            if name in weights:
                raise ValueError(f"{place}: the class {name!r} was there before")
            weights[name] = weight
    except ValueError as error:  # of json and of UTF-8, too
        raise ValueError(f"{path} cannot be read as class weights: {error}") from error
    return weights


def recorded(class_weights):
    """What recipe.json holds besides the name of a file: its numbers. Those of "balanced" follow from the data, which
    data.json holds.
    """
    return {} if class_weights in (None, BALANCED) else {"class_weight_values": read_weights(class_weights)}


def count_images(source):
    """{class name: images} of a source, by one pass over its labels; nothing is decoded."""
    counts = np.zeros(len(source.class_names), np.int64)
    examples, _ = source.unread(None)
    print("Counting the images of each class", flush=True)
    shown = progress.Progress(source.count, "images")
    for labels in examples.map(lambda example: example["label"]).batch(AT_ONCE):
        counts += np.bincount(labels.numpy(), minlength=len(counts))
        shown.update(int(counts.sum()), count=len(labels))
    return dict(zip(source.class_names, counts.tolist(), strict=True))


def images_per_class(source, record=None):
    """{class name: images} of the training images; counted if neither source nor record has it, and recorded then.

    Args:
        source: na_keras.data.source.Source.
        record: DataRecord of it as the training images, or None.
    """
    now = record.data["splits"]["training"] if record else source.details()
    if "images_per_class" not in now:
        before = (record.before or {}).get("splits", {}).get("training", {}) if record and not record.accepted else {}
        now["images_per_class"] = before.get("images_per_class") or count_images(source)
    return now["images_per_class"]


def resolve(class_weights, source, record=None):
    """The weight of each class, float32 (classes,); None without any.

    Args:
        class_weights: None, "balanced", or the path of a file.
        source, record: of the training images; see `images_per_class`.

    Raises:
        ValueError: a class without images has no balanced weight; a file lacks a class or has one that the data has
            not; or see `read_weights`.
        FileNotFoundError: there is no such file.
    """
    if class_weights is None:
        return None
    if class_weights == BALANCED:
        counts = images_per_class(source, record)
        if empty := [name for name in source.class_names if not counts.get(name)]:
            raise ValueError(
                f"--class-weights={BALANCED} needs training images of every class. {source.name} has none of "
                f"{', '.join(empty)}: remove the class, or give a file with a weight for each."
            )
        weights = {name: sum(counts.values()) / (len(counts) * number) for name, number in counts.items()}
    else:
        weights = read_weights(class_weights)
        differing = set(weights) ^ set(source.class_names)
        if differing:
            missing = [name for name in source.class_names if name not in weights]
            unknown = [name for name in weights if name not in source.class_names]
            raise ValueError(
                f"{class_weights} must have a weight for each class of {source.name} and for no other. "
                f"Missing: {', '.join(missing) or 'none'}. Unknown: {', '.join(unknown) or 'none'}"
            )
    return np.array([weights[name] for name in source.class_names], np.float32)


def note(weights, class_names):
    """A line that says the weights."""
    if len(class_names) > LISTED:
        return f"Class weights: {weights.min():.4g} to {weights.max():.4g}"
    pairs = zip(class_names, weights, strict=True)
    return f"Class weights: {', '.join(f'{name} {weight:.4g}' for name, weight in pairs)}"
