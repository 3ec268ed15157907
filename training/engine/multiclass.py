"""Labels of one class an image, and a network that ends in a softmax (multi-class classification).

    loss                  cross-entropy
    top1, top5            whether the class is the answer, or among the five best; of equal scores the first classes
    mean_class_accuracy   mean over the classes that have images of the share of each that is answered right

The other kind of labels is multilabel.py's. Both modules have the same names, and a step, an evaluation or a report
takes either as its `task`; evaluation.task_of says which one.
"""

import dataclasses

import numpy as np
import tensorflow as tf

import plots
from run_files import multiclass_files as files  # noqa: F401  what one looks at, a part of every task

ACTIVATION, LOSS = "softmax", "cross_entropy"  # of the saved network; what evaluation computes, a key of steps.LOSSES
# What a step adds up, over examples.
SUMS = ("loss", "top1", "top5", "examples")
BEST = 5  # top-5 says nothing of five classes or fewer, and is left out there
# Of an evaluation, in words, in the order in which they are said.
METRICS = {"top1": "top-1", "top5": "top-5", "mean_class_accuracy": "mean per-class accuracy", "loss": "cross-entropy"}
KEEP_BEST = ("top1", "loss", "mean_class_accuracy")  # what an epoch can be the best by; the first is the headline
MEAN_OF_CLASSES = "validation, mean of classes"
CURVES = plots.Curves(
    "top-1 accuracy, %",
    {"training": "top1", "validation": "validation_top1", MEAN_OF_CLASSES: "validation_mean_class_accuracy"},
    (MEAN_OF_CLASSES,),
)


def statistics(classes):
    """Names of the means of a step's sums, of so many classes: "loss", "top1", and "top5" of more than five."""
    return SUMS[: -1 if classes > BEST else -2]


def ranked(losses, targets, outputs):
    """The numbers of `SUMS` of each example, float32 (4, examples); labels and answers, int32 (examples,).

    Args:
        losses: (examples,), float32.
        targets: labels (examples,), or shares (examples, classes), of which the largest is the label.
        outputs: logits or probabilities (examples, classes).
    """
    labels = tf.cast(targets if targets.shape.rank == 1 else tf.argmax(targets, axis=1), tf.int32)
    # Not tf.math.in_top_k, which counts ties as hits: a collapsed network would have 100 %.
    best = tf.math.top_k(outputs, min(BEST, outputs.shape[-1])).indices
    hits = tf.cast(best == labels[:, None], tf.float32)  # (examples, 5)
    values = tf.stack([losses, hits[:, 0], tf.reduce_sum(hits, axis=1), tf.ones_like(losses)])
    return values, labels, best[:, 0]


def example_values(losses, targets, logits):
    """The numbers of `SUMS` of each example, float32 (4, examples); arguments as of `ranked`."""
    return ranked(losses, targets, logits)[0]


def record(losses, labels, outputs, from_logits):
    """What evaluation keeps of each example, for `make_answers`: float32 (examples, 6), its loss, top1 and top5, label,
    answer, and the answer's probability.
    """
    values, labels, answers = ranked(losses, labels, outputs)
    probabilities = tf.nn.softmax(outputs) if from_logits else outputs
    probabilities = tf.gather(probabilities, answers, axis=1, batch_dims=1)
    details = [tf.cast(value, tf.float32) for value in (labels, answers, probabilities)]
    return tf.stack([*tf.unstack(values)[:-1], *details], axis=1)


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a network answers to the images of a source, without those that were left out.

    Attributes:
        classes: how many.
        positions: int64 (images,), of each image in the source's stored order.
        losses, probabilities: float32 (images,), cross-entropies, and the probabilities of the answers.
        labels, answers: int64 (images,); of equal scores the first class is the answer.
        means: {"loss", "top1", "top5", "mean_class_accuracy": float}; without "top5" of five classes or fewer.
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

    def notes(self, class_names):
        """Sentences without which the means mislead: none."""
        return []


def mean_class_accuracy(labels, answers):
    """The mean over the classes that occur in `labels` of the share of their images that is answered right."""
    images = np.bincount(labels)
    right = np.bincount(labels[labels == answers], minlength=len(images))
    return float(np.mean(right[images > 0] / images[images > 0]))


def make_answers(positions, records, classes):
    """Answers of `record` of each image that counts, float32 (images, 6), and of its position."""
    losses, top1, top5, labels, answers, probabilities = records.T
    labels, answers = labels.astype(np.int64), answers.astype(np.int64)
    sums = (losses, top1, top5)
    means = {name: float(value.mean(dtype=np.float64)) for name, value in zip(statistics(classes), sums, strict=False)}
    means["mean_class_accuracy"] = mean_class_accuracy(labels, answers)
    return Answers(classes, positions, losses, labels, answers, probabilities, means)
