"""What one looks at of an evaluation, as files of a folder.

per_class.csv          a row per class: its images, the share that is answered right (accuracy, or recall), how often
                       the class is the answer, and the most frequent wrong answer; empty where there is none
confusion_matrix.csv   images by class (row) and answer (column)
confusion_matrix.png   the same as shares of a row. Of more than 40 classes without names, beside the pairs of classes
                       that are confused most
mistakes.csv           the worst mistakes, the largest cross-entropy first: the image's name, truth, answer, their
                       probabilities
mistakes.png           the same images as the network saw them
"""

import csv
import io

import numpy as np
import tensorflow as tf

import plots
from na_keras.data import pipeline, preprocessing
from run_files import run_directory

PER_CLASS, MATRIX, MISTAKES_TABLE = "per_class.csv", "confusion_matrix.csv", "mistakes.csv"
MATRIX_PICTURE, MISTAKES_PICTURE = "confusion_matrix.png", "mistakes.png"
MISTAKES = 40  # images on a sheet
WORST = 5  # classes on a terminal


def write_table(path, header, rows):
    """Replaces a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    run_directory.write_text(path, text.getvalue())


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


def worst_mistakes(answers, number):
    """Indices into Answers of the wrong ones, the largest cross-entropy first, NaN before all; at most so many."""
    (wrong,) = np.nonzero(answers.labels != answers.answers)
    losses = np.where(np.isnan(answers.losses[wrong]), np.inf, answers.losses[wrong])
    return wrong[np.argsort(-losses, kind="stable")][:number]


def read_images(source, positions, pixels):
    """[(name, image as evaluation crops it)] at positions of a source's stored order; None for one that has become
    unreadable. Nothing but these is read of files; of others, what comes before is skipped.
    """
    if not len(positions):
        return []
    examples, read = source.unread(None)
    chosen = examples.enumerate().filter(lambda position, _: tf.reduce_any(position == positions))
    found = {}
    for position, example in chosen.take(len(positions)):
        try:
            image = preprocessing.evaluation_image(read(example)["image"], *pixels).numpy()
        except pipeline.UNREADABLE:
            image = None
        found[int(position)] = (example["name"].numpy().decode(errors="backslashreplace"), image)
    return [found[position] for position in positions]


def write(folder, answers, source, pixels, mistakes=MISTAKES):
    """Writes all of them, each in place of an older one.

    Args:
        folder: pathlib.Path, made if it is not there.
        answers: evaluation.Answers to the images of `source`.
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
    probabilities = answers.probabilities[worst], np.exp(-answers.losses[worst])
    texts = [[f"{value:.6f}" for value in column] for column in (*probabilities, answers.losses[worst])]
    header = ("image", "truth", "answer", "probability_of_answer", "probability_of_truth", "cross_entropy")
    write_table(folder / MISTAKES_TABLE, header, zip((name for name, _ in images), truths, wrong, *texts, strict=True))
    captions = [
        f"{plots.shortened(truth)}\nas {plots.shortened(answer, 16)}: {100 * probability:.0f} %"
        for truth, answer, probability in zip(truths, wrong, probabilities[0], strict=True)
    ]
    total = int((answers.labels != answers.answers).sum())
    title = f"{len(worst)} worst of {total} mistakes among {answers.count} images: truth, answer, its probability"
    plots.save(plots.image_sheet([image for _, image in images], captions, title), folder / MISTAKES_PICTURE)
    return PER_CLASS, MATRIX, MATRIX_PICTURE, MISTAKES_TABLE, MISTAKES_PICTURE
