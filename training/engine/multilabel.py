"""Labels of any number of classes an image, none too, and a network that ends in sigmoids (multi-label classification):
a class is answered yes where its probability is at least one half.

    loss                     binary cross-entropy, mean over the classes
    binary_accuracy          share of all answers, images times classes, that is right
    exact_match              share of the images of which every answer is right
    mean_average_precision   mean over the classes of  AP = sum over n of (R_n - R_(n-1)) P_n  (macro, not interpolated)
    macro_f1                 mean over the classes of  F1 = 2 TP / (2 TP + FP + FN)

R_n and P_n are recall and precision of the images whose probability is at least the n-th highest different one: equal
ones count together, as in scikit-learn's average_precision_score. The last two are means over the classes that an image
has; of others neither number is defined, and they are named.

Both AP and F1 need all images at once: a step adds up the first three alone. A share of a class, which mixing leaves,
is a yes there where it is at least one half. The other kind of labels is multiclass.py's, whose names are the same.
"""

import dataclasses

import numpy as np
import tensorflow as tf

import plots
from na_keras.data.source import shortened
from run_files import multilabel_files as files  # noqa: F401  what one looks at, a part of every task

ACTIVATION, LOSS = "sigmoid", "binary_cross_entropy"  # see multiclass.py, for all of these
SUMS = ("loss", "binary_accuracy", "exact_match", "examples")
METRICS = {
    **{"mean_average_precision": "mean average precision", "macro_f1": "macro F1", "exact_match": "exact match"},
    **{"binary_accuracy": "binary accuracy", "loss": "binary cross-entropy"},
}
KEEP_BEST = ("mean_average_precision", "loss")
MEAN_OF_CLASSES = "validation, mean average precision"
CURVES = plots.Curves(
    "binary accuracy, %",
    {
        **{"training": "binary_accuracy", "validation": "validation_binary_accuracy"},
        MEAN_OF_CLASSES: "validation_mean_average_precision",
    },
    (MEAN_OF_CLASSES,),
)
YES = 0.5


def statistics(classes):
    """Names of the means of a step's sums, whatever the number of classes."""
    return SUMS[:-1]


def example_values(losses, targets, logits):
    """The numbers of `SUMS` of each example, float32 (4, examples).

    Args:
        losses: (examples,), float32.
        targets: 0 and 1, or shares, float32 (examples, classes).
        logits: (examples, classes).
    """
    right = tf.cast((targets >= YES) == (logits >= 0), tf.float32)
    return tf.stack([losses, tf.reduce_mean(right, 1), tf.reduce_min(right, 1), tf.ones_like(losses)])


def record(losses, targets, outputs, from_logits):
    """What evaluation keeps of each example, for `make_answers`: float32 (examples, 1 + 2 classes), its loss, of each
    class 0 or 1, and of each its probability.
    """
    return tf.concat([losses[:, None], targets, tf.sigmoid(outputs) if from_logits else outputs], axis=1)


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a network answers to the images of a source, without those that were left out.

    Attributes:
        positions: int64 (images,), of each image in the source's stored order.
        losses: float32 (images,), binary cross-entropies.
        targets: bool (images, classes).
        probabilities: float32 (images, classes).
        average_precisions: float64 (classes,), NaN of classes that no image has.
        means: {"loss", "binary_accuracy", "exact_match", "mean_average_precision", "macro_f1": float}, the last two NaN
            if no image has a class.
    """

    positions: np.ndarray
    losses: np.ndarray
    targets: np.ndarray
    probabilities: np.ndarray
    average_precisions: np.ndarray
    means: dict

    @property
    def count(self):
        """How many images."""
        return len(self.positions)

    @property
    def yes(self):
        """bool (images, classes): the answers."""
        return self.probabilities >= YES

    def notes(self, class_names):
        """Sentences without which the means mislead: over which classes they are."""
        missing = [name for name, present in zip(class_names, self.targets.any(0), strict=True) if not present]
        if not missing:
            return []
        return [
            f"Mean average precision and macro F1 are over {len(class_names) - len(missing)} of {len(class_names)} "
            f"classes: no image has {shortened(missing)}"
        ]


def average_precision(targets, probabilities):
    """AP of one class, see above; NaN if one of the probabilities is, or no image has the class.

    Args:
        targets: bool (images,).
        probabilities: float (images,), or other scores.
    """
    if not targets.any() or np.isnan(probabilities).any():
        return float("nan")
    order = np.argsort(-probabilities)
    ranked, hits = probabilities[order], np.cumsum(targets[order])
    last = np.append(ranked[1:] != ranked[:-1], True)  # of equal ones
    precision = hits[last] / (np.flatnonzero(last) + 1)
    return float(np.diff(hits[last], prepend=0) @ precision / hits[-1])


def f1_scores(targets, yes):
    """F1 of the classes that an image has, float64 (at most classes,). Arguments bool (images, classes)."""
    images, answered, right = targets.sum(0), yes.sum(0), (targets & yes).sum(0)
    return (2 * right / np.maximum(images + answered, 1))[images > 0]


def mean_or_nan(values):
    """The mean of numbers; NaN of none."""
    return float(np.mean(values)) if len(values) else float("nan")


def make_answers(positions, records, classes):
    """Answers of `record` of each image that counts, float32 (images, 1 + 2 classes), and of its position."""
    losses, targets, probabilities = np.split(records, [1, 1 + classes], axis=1)
    losses, targets, yes = losses[:, 0], targets >= YES, probabilities >= YES
    right = targets == yes
    pairs = zip(targets.T, probabilities.T, strict=True)
    average_precisions = np.array([average_precision(*pair) for pair in pairs])
    means = {
        "loss": float(losses.mean(dtype=np.float64)),
        "binary_accuracy": float(right.mean()),
        "exact_match": float(right.all(1).mean()),
        "mean_average_precision": mean_or_nan(average_precisions[targets.any(0)]),
        "macro_f1": mean_or_nan(f1_scores(targets, yes)),
    }
    return Answers(positions, losses, targets, probabilities, average_precisions, means)
