"""What one looks at of an evaluation of images of one class each; see evaluation_files.py.

per_class.csv          a row per class: its images, the share that is answered right (accuracy, or recall), how often
                       the class is the answer, and the most frequent wrong answer; empty where there is none
confusion_matrix.csv   images by class (row) and answer (column)
confusion_matrix.png   the same as shares of a row. Of more than 40 classes without names, beside the pairs of classes
                       that are confused most
mistakes.csv, .png     images that are answered wrong, the largest cross-entropy first: truth, answer, their
                       probabilities
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

MATRIX, MATRIX_PICTURE = "confusion_matrix.csv", "confusion_matrix.png"


def most_frequent_wrong_answers(matrix, class_names):
    """[(class name, images)] for each row of a confusion matrix, ("", 0) where all answers are right."""
    wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    answers, counts = wrong.argmax(axis=1), wrong.max(axis=1)
    return [(class_names[answer] if n else "", int(n)) for answer, n in zip(answers, counts, strict=True)]


def per_class(matrix, class_names):
    """[(class name, images, accuracy, times that it is the answer, most frequent wrong answer, its images)] of a
    confusion matrix; the accuracy is None of a class without images.
    """
    images, right, answered = matrix.sum(axis=1), np.diagonal(matrix), matrix.sum(axis=0)
    rows = zip(class_names, images, right, answered, most_frequent_wrong_answers(matrix, class_names), strict=True)
    return [(name, int(n), float(r / n) if n else None, int(a), *wrong) for name, n, r, a, wrong in rows]


def worst_classes(matrix, class_names):
    """[(class name, images, accuracy, most frequent wrong answer, its images)] of the lowest accuracies below 1."""
    rows = [(name, n, r, *wrong) for name, n, r, _, *wrong in per_class(matrix, class_names) if n and r < 1]
    return sorted(rows, key=lambda row: row[2])[:WORST]


def worst_table(answers, class_names):
    """(header, rows of text) of the worst classes."""
    rows = worst_classes(answers.confusion_matrix, class_names)
    header = ("worst classes", "images", "accuracy", "most frequent wrong answer")
    return header, [(c, n, f"{100 * a:.2f} %", f"{wrong} ({times})") for c, n, a, wrong, times in rows]


def worst_mistakes(answers, number):
    """Indices into Answers of the wrong ones, the largest cross-entropy first, NaN before all; at most so many."""
    (wrong,) = np.nonzero(answers.labels != answers.answers)
    losses = np.where(np.isnan(answers.losses[wrong]), np.inf, answers.losses[wrong])
    return wrong[np.argsort(-losses, kind="stable")][:number]


def write(folder, answers, source, pixels, mistakes=MISTAKES):
    """Writes all of them, each in place of an older one.

    Args:
        folder: pathlib.Path, made if it is not there.
        answers: engine.multiclass.Answers to the images of `source`.
        source: na_keras.data.source.Source.
        pixels: (the shorter side before the crop, the crop's side, whether photographs are turned upright).
        mistakes: at most so many are written.

    Returns:
        The files' names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names, matrix = source.class_names, answers.confusion_matrix
    header = ("class", "images", "accuracy", "answered", "most_frequent_wrong_answer", "wrong_images")
    write_table(folder / PER_CLASS, header, per_class(matrix, names))
    rows = ((name, *row) for name, row in zip(names, matrix.tolist(), strict=True))
    write_table(folder / MATRIX, ("truth", *names), rows)
    title = f"{answers.count} images, mean per-class accuracy {100 * answers.means['mean_class_accuracy']:.2f} %"
    plots.save(plots.confusion_matrix(matrix, names, title), folder / MATRIX_PICTURE)

    worst = worst_mistakes(answers, mistakes)
    images = read_images(source, answers.positions[worst], pixels)
    truths, wrong = ([names[index] for index in indices[worst]] for indices in (answers.labels, answers.answers))
    losses, probabilities = answers.losses[worst], answers.probabilities[worst]
    numbers = {
        "probability_of_answer": probabilities,
        "probability_of_truth": np.exp(-losses),
        "cross_entropy": losses,
    }
    texts = {name: [f"{value:.6f}" for value in column] for name, column in numbers.items()}
    captions = [
        f"{plots.shortened(truth)}\nas {plots.shortened(answer, 16)}: {100 * probability:.0f} %"
        for truth, answer, probability in zip(truths, wrong, probabilities, strict=True)
    ]
    total = int((answers.labels != answers.answers).sum())
    title = f"{len(worst)} worst of {total} mistakes among {answers.count} images: truth, answer, its probability"
    write_mistakes(folder, images, {"truth": truths, "answer": wrong, **texts}, captions, title)
    return PER_CLASS, MATRIX, MATRIX_PICTURE, MISTAKES_TABLE, MISTAKES_PICTURE
