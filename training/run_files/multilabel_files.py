"""What one looks at of an evaluation of multi-label images; see evaluation_files.py.

per_class.csv        a row per class: images that have it, average precision, how often it is answered, and precision
                     and recall of these answers (yes where the probability is at least one half); empty where nothing
                     is divided by
mistakes.csv, .png   pairs of an image and a class that are answered wrong, the surest first: the class, whether the
                     image has it (1 or 0), its probability. An image may stand there with several classes

There is no confusion matrix: that a class is missed and another is answered instead cannot be told.
"""

import numpy as np

import plots
from run_files.evaluation_files import (
    MISTAKES,
    MISTAKES_PICTURE,
    MISTAKES_TABLE,
    PER_CLASS,
    WORST,
    read_images,
    write_mistakes,
    write_table,
)
from run_files.multiclass_files import MATRIX, MATRIX_PICTURE


def per_class(answers, class_names):
    """[(class name, images, average precision, times that it is answered, precision, recall)], None for a number that
    is not defined: of a class that no image has, and the precision of one that is never answered.
    """
    images, answered = answers.targets.sum(0), answers.yes.sum(0)
    right = (answers.targets & answers.yes).sum(0)
    rows = zip(class_names, images, answers.average_precisions, answered, right, strict=True)
    return [
        (name, int(n), float(ap) if n else None, int(a), float(r / a) if a else None, float(r / n) if n else None)
        for name, n, ap, a, r in rows
    ]


def percent(value):
    """A share for a person."""
    return "" if value is None else f"{100 * value:.2f} %"


def worst_table(answers, class_names):
    """(header, rows of text) of the classes of the lowest average precision below 1."""
    rows = [row for row in per_class(answers, class_names) if row[2] is not None and not row[2] >= 1]
    rows.sort(key=lambda row: -1 if np.isnan(row[2]) else row[2])
    header = ("worst classes", "images", "average precision", "precision", "recall")
    return header, [(c, n, percent(ap), percent(p), percent(r)) for c, n, ap, _, p, r in rows[:WORST]]


def worst_mistakes(answers, number):
    """(indices into Answers, classes) of wrong answers, the surest first, NaN before all; at most so many."""
    images, classes = np.nonzero(answers.targets != answers.yes)
    doubt = np.abs(answers.targets - answers.probabilities)[images, classes]  # of the truth
    order = np.argsort(-np.where(np.isnan(doubt), np.inf, doubt), kind="stable")[:number]
    return images[order], classes[order]


def write(folder, answers, source, pixels, mistakes=MISTAKES):
    """Writes all of them; arguments and result as of multiclass_files.write, with engine.multilabel.Answers."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (MATRIX, MATRIX_PICTURE):  # of an older evaluation, with which the rest would not agree
        (folder / name).unlink(missing_ok=True)
    header = ("class", "images", "average_precision", "answered", "precision", "recall")
    write_table(folder / PER_CLASS, header, per_class(answers, source.class_names))

    rows, classes = worst_mistakes(answers, mistakes)
    names, truths = [source.class_names[index] for index in classes], answers.targets[rows, classes].astype(int)
    probabilities = answers.probabilities[rows, classes]
    columns = {"class": names, "truth": truths, "probability": [f"{value:.6f}" for value in probabilities]}
    captions = [
        f"{'' if truth else 'not '}{plots.shortened(name)}\n{100 * probability:.0f} %"
        for name, truth, probability in zip(names, truths, probabilities, strict=True)
    ]
    total = int((answers.targets != answers.yes).sum())
    title = (
        f"{len(rows)} worst of {total} mistakes among {answers.count} images and {len(source.class_names)} classes: "
        "truth, probability of the class"
    )
    write_mistakes(folder, read_images(source, answers.positions[rows], pixels), columns, captions, title)
    return PER_CLASS, MISTAKES_TABLE, MISTAKES_PICTURE
