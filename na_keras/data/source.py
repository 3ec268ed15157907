"""What a pipeline reads from: one split of a dataset, encoded images with labels, in an order that a seed decides."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class FileExamples:
    """The `examples` of a Source whose images are files: what is skipped or given to another machine is never read.

    Attributes:
        entries: function of a seed that returns the examples without their "image".
        read: function of one entry that returns it with its "image".
    """

    entries: Callable[[int | None], tf.data.Dataset]
    read: Callable[[dict], dict]

    def __call__(self, seed):
        """The examples with their images; see `Source`."""
        return self.entries(seed).map(self.read, tf.data.AUTOTUNE)


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a labelled image dataset.

    Attributes:
        name: dataset and split, for messages.
        class_names: the label's meaning, in the order of the integers.
        count: number of examples.
        examples: function of a seed (None: the stored order) that returns a tf.data.Dataset of `count` elements
            {"image": scalar string, an encoded image; "label": int64; "index": int64, the same for the same image
            under every seed; "name": scalar string, for messages}. Equal seeds give equal orders. With `multi_label`,
            "label" is float32 (classes,), 1 for each class that the image has and 0 for the others.
        notes: lines for a person who starts a run: how many images each class has, what was ignored.
        details: function without arguments that returns what tells this data from other data besides names and count:
            a dictionary of JSON values, of files their counts and a digest, of TFDS the version.
        multi_label: whether an image has any number of classes, none too, instead of one.
    """

    name: str
    class_names: tuple[str, ...]
    count: int
    examples: Callable[[int | None], tf.data.Dataset]
    notes: tuple[str, ...] = ()
    details: Callable[[], dict] = dict
    multi_label: bool = False

    @property
    def summary(self):
        """The notes, or without any a line with the counts."""
        return self.notes or (f"{self.name}: {self.count} images in {len(self.class_names)} classes",)

    def unread(self, seed):
        """The elements of `examples(seed)` before their files are read, and the function that reads one of them."""
        if isinstance(self.examples, FileExamples):
            return self.examples.entries(seed), self.examples.read
        return self.examples(seed), lambda example: example


def shortened(names):
    """The first names of a list, for a message."""
    return f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"


def permuted_range(count, seed):
    """0 .. count - 1 in an order that is a pure function of the seed, without holding it in memory; None: sorted."""
    indices = tf.data.Dataset.range(count)
    if seed is None:
        return indices
    pair = tf.constant([seed, count], tf.int64)
    return indices.map(lambda i: tf.random.experimental.index_shuffle(i, seed=pair, max_index=count - 1))


def file_examples(paths, labels):
    """The `examples` of a Source whose images are files.

    Args:
        paths: bytes, in the stored order.
        labels: NumPy array of integers, (files,) of one class each, or (files, classes) of 0 and 1.
    """
    names, labels = tf.constant(paths), tf.constant(labels)
    dtype = tf.int64 if labels.shape.rank == 1 else tf.float32

    def entries(seed):
        entry = lambda i: {"label": tf.cast(labels[i], dtype), "index": i, "name": names[i]}  # noqa: E731
        return permuted_range(len(paths), seed).map(entry)

    def read(entry):
        return {**entry, "image": tf.io.read_file(entry["name"])}

    return FileExamples(entries, read)
