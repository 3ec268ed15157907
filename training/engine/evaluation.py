"""Exact evaluation: every example of a source once, single crop; and the naming of images that do not decode.

Of every image a few numbers are kept (`record` of its task), in the stored order, on whatever replica or machine it was
evaluated. All that is said of an evaluation follows from them: means, the confusion matrix, the worst mistakes.
"""

import contextlib

import numpy as np
import tensorflow as tf

from engine import multiclass, multilabel, strategies
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


def task_of(multi_label):
    """What follows from the kind of a source's labels: the module multilabel or multiclass."""
    return multilabel if multi_label else multiclass


def check_recipe(recipe, source):
    """Raises ValueError on a field of a recipe that means nothing of the labels of a source."""
    task, wrong = task_of(source.multi_label), None
    kind = "is multi-label, a column for each class" if source.multi_label else "has one class an image"
    if source.multi_label and recipe.loss != multilabel.LOSS:
        wrong = (
            "give --loss binary_cross_entropy, which asks about each class by itself. The recipe has --loss "
            f"{recipe.loss}, under which the classes exclude each other"
        )
    elif source.multi_label and recipe.class_weights:
        wrong = "--class-weights weighs an image by its one class. Leave it out"
    elif source.multi_label and recipe.label_smoothing:
        wrong = "--label-smoothing spreads a part of the one class over all of them. Leave it out, or give 0"
    elif recipe.keep_best not in (None, *task.KEEP_BEST):
        wrong = f"--keep-best must be {' or '.join(task.KEEP_BEST)} there. Received: {recipe.keep_best}"
    if wrong:
        raise ValueError(f"{source.name} {kind}: {wrong}.")


def make_answers(records, source):
    """Answers, of the source's task, of each image's weight, 0 of what does not count, and `record`: float32 (images, 1
    + numbers), in the order of the source.

    Raises:
        UnreadableImageError: no image counts.
    """
    (positions,) = np.nonzero(records[:, 0])
    if not len(positions):
        raise UnreadableImageError(f"{source.name}: none of the {source.count} images can be opened and decoded")
    return task_of(source.multi_label).make_answers(positions, records[positions, 1:], len(source.class_names))


def evaluate(strategy, evaluate_steps, source, *, batch_size, **options):
    """Answers to every example of the source, of its task.

    Args:
        strategy, evaluate_steps: of steps.make_evaluate_steps, for that task.
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
        records = evaluate_steps(iterator, tf.constant(-(-source.count // batch_size))).numpy()
    # (batches, replicas, portion, numbers) -> as evaluation_batches deals them out: one image to each machine in turn,
    # and of a machine's images a portion to each of its replicas in turn. What fills the last batches up comes after.
    machines = strategies.machines(strategy)
    count, replicas, portion, numbers = records.shape
    records = records.reshape(count, machines, replicas // machines, portion, numbers).transpose(0, 2, 3, 1, 4)
    return make_answers(records.reshape(-1, numbers)[: source.count], source)


def metric_in_words(task, name, value):
    """One number of an evaluation for a person; the loss is the task's, whatever a network was trained with."""
    return f"{task.METRICS[name]} {value:.4f}" if name == "loss" else f"{task.METRICS[name]} {100 * value:.2f} %"


def in_words(task, means):
    """Means of an evaluation for a person."""
    return ", ".join(metric_in_words(task, name, means[name]) for name in task.METRICS if name in means)
