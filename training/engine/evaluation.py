"""Exact evaluation: every example of a source once, single crop; and the naming of images that do not decode."""

import contextlib

import tensorflow as tf

from engine import steps
from na_keras.data import pipeline


class UnreadableImageError(ValueError):
    """An image does not decode; the message names it."""


@contextlib.contextmanager
def naming_unreadable_images(source, *position):
    """Turns TensorFlow's error about some image into one that names it; `position` as in pipeline.first_unreadable."""
    try:
        yield
    except pipeline.UNREADABLE as error:
        found = pipeline.first_unreadable(source, *position)
        if found is None:
            raise
        raise UnreadableImageError(f"{source.name}: the image {found[0]} cannot be decoded: {found[1]}") from error


def evaluate(strategy, evaluate_steps, source, *, batch_size, **options):
    """Means over every example of the source, and how many that were.

    Args:
        strategy, evaluate_steps: of steps.make_evaluate_steps.
        source: na_keras.data.source.Source.
        batch_size: examples per step, all replicas together.
        **options: `resize`, `size`, `exif_orientation`, `skip_unreadable` of pipeline.evaluation_batches.

    Raises:
        UnreadableImageError: an image cannot be opened or decoded, and is not to be skipped; or none can.
    """

    def batches(context):
        return pipeline.evaluation_batches(source, batch_size=batch_size, **options, context=context)

    iterator = iter(strategy.distribute_datasets_from_function(batches))
    with naming_unreadable_images(source, None, 0, 0, batch_size):
        count = tf.constant(-(-source.count // batch_size))
        sums = evaluate_steps(iterator, count, steps.NO_SUMS, tf.constant(0.0))["sums"].numpy()
    if not sums[-1]:
        raise UnreadableImageError(f"{source.name}: none of the {source.count} images can be opened and decoded")
    return steps.means(sums, len(source.class_names)), int(sums[-1])


def in_words(means):
    """Means of an evaluation for a person; its loss is the cross-entropy, whatever the network was trained with."""
    accuracies = [f"{name.replace('top', 'top-')} {100 * means[name]:.2f} %" for name in means if name != "loss"]
    return ", ".join([*accuracies, f"cross-entropy {means['loss']:.4f}"])
