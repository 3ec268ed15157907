"""Exact evaluation: every example of a source once, single crop; and the naming of images that do not decode.

Of every image a few numbers are kept (steps.RECORD), in the stored order, on whatever replica or machine it was
evaluated. All that is said of an evaluation follows from them: means, the confusion matrix, the worst mistakes.
"""

import contextlib
import dataclasses

import numpy as np
import tensorflow as tf

from engine import steps, strategies
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


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a network answers to the images of a source, without those that were left out.

    Attributes:
        classes: how many.
        positions: int64 (images,), of each image in the source's stored order.
        losses, probabilities: float32 (images,), cross-entropies, and the probabilities of the answers.
        labels, answers: int64 (images,); of equal scores the first class is the answer.
        means: {"loss", "top1", "top5", "mean_class_accuracy": float}; see `steps.statistics`. The last is the mean of
            the classes' own accuracies, over classes that have images.
    """

    classes: int
    positions: np.ndarray
    losses: np.ndarray
    labels: np.ndarray
    answers: np.ndarray
    probabilities: np.ndarray
    means: dict

    @property
    def count(self):
        """How many images."""
        return len(self.positions)

    @property
    def confusion_matrix(self):
        """int64 (classes, classes): how many images of a class, the row, were answered with a class, the column."""
        cells = np.bincount(self.labels * self.classes + self.answers, minlength=self.classes**2)
        return cells.reshape(self.classes, self.classes)


def mean_class_accuracy(labels, answers):
    """The mean over the classes that occur in `labels` of the share of their images that is answered right."""
    images = np.bincount(labels)
    right = np.bincount(labels[labels == answers], minlength=len(images))
    return float(np.mean(right[images > 0] / images[images > 0]))


def make_answers(records, source):
    """Answers of steps.RECORD of each image, float32 (images, 7), in the order of the source.

    Raises:
        UnreadableImageError: no image counts.
    """
    (positions,) = np.nonzero(records[:, steps.RECORD.index("examples")])
    if not len(positions):
        raise UnreadableImageError(f"{source.name}: none of the {source.count} images can be opened and decoded")
    columns = dict(zip(steps.RECORD, records[positions].T, strict=True))
    labels, answers = (columns[name].astype(np.int64) for name in ("label", "answer"))
    classes = len(source.class_names)
    means = steps.means([columns[name].sum(dtype=np.float64) for name in steps.SUMS], classes)
    means["mean_class_accuracy"] = mean_class_accuracy(labels, answers)
    return Answers(classes, positions, columns["loss"], labels, answers, columns["probability"], means)


def evaluate(strategy, evaluate_steps, source, *, batch_size, **options):
    """Answers to every example of the source.

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
        records = evaluate_steps(iterator, tf.constant(-(-source.count // batch_size))).numpy()
    # (batches, replicas, portion, 7) -> as evaluation_batches deals them out: one image to each machine in turn, and of
    # a machine's images a portion to each of its replicas in turn. What fills the last batches up comes after them.
    machines = strategies.machines(strategy)
    count, replicas, portion, numbers = records.shape
    records = records.reshape(count, machines, replicas // machines, portion, numbers).transpose(0, 2, 3, 1, 4)
    return make_answers(records.reshape(-1, numbers)[: source.count], source)


NAMES = {"top1": "top-1", "top5": "top-5", "mean_class_accuracy": "mean per-class accuracy", "loss": "cross-entropy"}


def metric_in_words(name, value):
    """One number of an evaluation for a person; the loss is the cross-entropy, whatever a network was trained with."""
    return f"{NAMES[name]} {value:.4f}" if name == "loss" else f"{NAMES[name]} {100 * value:.2f} %"


def in_words(means):
    """Means of an evaluation for a person."""
    return ", ".join(metric_in_words(name, means[name]) for name in NAMES if name in means)
