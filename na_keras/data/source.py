"""What a pipeline reads from: one split of a dataset, encoded images with labels, in an order that a seed decides."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a labelled image dataset.

    Attributes:
        name: dataset and split, for messages.
        class_names: the label's meaning, in the order of the integers.
        count: number of examples.
        examples: function of a seed (None: the stored order) that returns a tf.data.Dataset of `count` elements
            {"image": scalar string, an encoded image; "label": int64; "index": int64, the same for the same image
            under every seed; "name": scalar string, for messages}. Equal seeds give equal orders.
    """

    name: str
    class_names: tuple[str, ...]
    count: int
    examples: Callable[[int | None], tf.data.Dataset]


def permuted_range(count, seed):
    """0 .. count - 1 in an order that is a pure function of the seed, without holding it in memory; None: sorted."""
    indices = tf.data.Dataset.range(count)
    if seed is None:
        return indices
    pair = tf.constant([seed, count], tf.int64)
    return indices.map(lambda i: tf.random.experimental.index_shuffle(i, seed=pair, max_index=count - 1))
