"""The two tf.data pipelines: augmented training batches that can start at any step, and exact evaluation batches.

Order and augmentation are pure functions of (seed, epoch, example), so training that starts at step k of an epoch sees
exactly the batches that an uninterrupted epoch would have seen from there on. Iterators need not be saved.
"""

import tensorflow as tf

from na_keras import preprocessing


def epoch_seed(seed, epoch):
    """One non-negative number per (seed, epoch); consecutive epochs of one run never share it."""
    return seed * 100_003 + epoch


def training_batches(source, *, seed, epoch, first_step, batch_size, size, **augmentation):
    """Batches of one epoch from `first_step` on; the last, incomplete batch is dropped.

    Args:
        source: na_keras.data.source.Source.
        seed, epoch: decide the order, and with each example's index its crop and flip.
        first_step: how many batches to leave out; they are skipped before decoding.
        batch_size: examples per batch, all replicas together.
        size: pixels of the images' sides.
        **augmentation: `area`, `aspect`, `flip`, `antialias` of `preprocessing.training_image`.

    Returns:
        tf.data.Dataset of (uint8 (batch_size, size, size, 3), int64 labels (batch_size,)).

    Raises:
        ValueError: fewer examples than one batch.
    """
    if source.count < batch_size:
        raise ValueError(f"{source.name} holds {source.count} images, fewer than one batch of {batch_size}")
    base = tf.constant([seed, epoch], tf.int64)

    def load(example):
        image_seed = tf.random.fold_in(base, example["index"])
        return preprocessing.training_image(example["image"], image_seed, size, **augmentation), example["label"]

    examples = source.examples(epoch_seed(seed, epoch)).skip(first_step * batch_size)
    batches = examples.map(load, tf.data.AUTOTUNE).batch(batch_size, drop_remainder=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def evaluation_batches(source, *, batch_size, resize, size):
    """Every example once, in the stored order, in full batches: the last is filled up with weight 0.

    Args:
        source: na_keras.data.source.Source.
        batch_size: examples per batch, all replicas together.
        resize, size: see `preprocessing.evaluation_image`.

    Returns:
        tf.data.Dataset of (uint8 (batch_size, size, size, 3), int64 labels, float32 weights 1 or 0, each
        (batch_size,)). The weights add up to `source.count`.
    """

    def load(example):
        return preprocessing.evaluation_image(example["image"], resize, size), example["label"], 1.0

    filler = tf.data.Dataset.from_tensors((tf.zeros((size, size, 3), tf.uint8), tf.constant(0, tf.int64), 0.0))
    examples = source.examples(None).map(load, tf.data.AUTOTUNE)
    filled = examples.concatenate(filler.repeat(-source.count % batch_size))
    return filled.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def first_unreadable(source, seed, epoch, first_step, batch_size):
    """Finds the image that stopped a pipeline: decodes one by one from where it stood.

    Args:
        source: na_keras.data.source.Source.
        seed, epoch, first_step, batch_size: of `training_batches`; a seed of None is evaluation's order.

    Returns:
        (name, message) of the first image that does not decode, or None if all do.
    """
    order = source.examples(None if seed is None else epoch_seed(seed, epoch))
    for example in order.skip(first_step * batch_size):
        try:
            preprocessing.decode(example["image"])
        except tf.errors.InvalidArgumentError as error:
            return example["name"].numpy().decode(), error.message.splitlines()[0]
    return None
