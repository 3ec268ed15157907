"""The data of a detector's run: two splits of a folder of images with annotations in COCO's format."""

import dataclasses
import glob
import json
import pathlib

from na_keras.detection import coco, records
from na_keras.files import sha256_of

DATA = "data.json"


@dataclasses.dataclass(frozen=True)
class Split:
    """One split: `annotations`, coco.Annotations, and `folder`, pathlib.Path of its images."""

    annotations: coco.Annotations
    folder: pathlib.Path

    @property
    def photographs(self):
        """Of the annotations."""
        return self.annotations.photographs


def open_split(data_dir, split):
    """The split "train", "val" or "test" of a folder, checked.

    Raises:
        FileNotFoundError: annotations or images are missing, by name.
        ValueError: annotations that contradict themselves.
    """
    path, folder = coco.find_split(data_dir, split)
    annotations = coco.read_annotations(path)
    coco.check_files(annotations, folder)
    return Split(annotations, folder)


def describe(training, validation):
    """What data.json has: a resumed run must have the same."""
    splits = {"train": training, "val": validation}
    return {
        name: {"images": len(split.photographs), "annotations_sha256": sha256_of(split.annotations.path)}
        for name, split in splits.items()
    }


def check_same(directory, described):
    """Raises ValueError if a resumed run's data is not what it was; a directory without data.json is anew."""
    path = directory / DATA
    if not path.exists():
        return
    stored = json.loads(path.read_text("utf-8"))
    differing = [f"{key}: {stored.get(key)} there, {described[key]} now" for key in described]
    differing = [line for key, line in zip(described, differing, strict=True) if stored.get(key) != described[key]]
    if differing:
        raise ValueError(
            f"The data is not that of the run in {directory}: {'; '.join(differing)}. Give the run its data again, or "
            "choose another --run-dir."
        )


def ready_records(pattern, annotations):
    """The TFRecords of a pattern, written by Model Garden's program or here before.

    Raises:
        FileNotFoundError: there are none.
        ValueError: the first of them is of other images than the annotations.
    """
    import tensorflow as tf

    paths = sorted(glob.glob(pattern))
    if not paths:
        raise FileNotFoundError(f"--train-records: no file is named {pattern}")
    first = next(iter(tf.data.TFRecordDataset(paths[0])), None)
    features = tf.train.Example.FromString(first.numpy() if first is not None else b"").features.feature
    source = b"".join(features["image/source_id"].bytes_list.value).decode()
    if source not in {str(photograph.id) for photograph in annotations.photographs}:
        raise ValueError(
            f"--train-records: {paths[0]} begins with the image {source!r}, which {annotations.path} does not have. "
            "Are these the records of another split?"
        )
    return paths


def converted(split, folder, progress):
    """The training records of a split in a folder; those that are not there yet are written."""
    return records.write_records(split.annotations, split.folder, folder, "train", progress)
