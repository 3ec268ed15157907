"""What one looks at of an evaluation, as files of a folder; of images of one class and of multi-label ones alike:

per_class.csv   a row per class
mistakes.csv    the worst mistakes: the image's name, and what is wrong
mistakes.png    the same images as the network saw them

What stands in them, and what there is besides, is in multiclass_files.py and multilabel_files.py, which each have

    write(folder, answers, source, pixels, mistakes)   writes all of them, each in place of an older one
    worst_table(answers, class_names)                  (header, rows) of the worst classes, for a terminal
"""

import csv
import io

import numpy as np
import tensorflow as tf

import plots
from na_keras.data import pipeline, preprocessing
from run_files import run_directory

PER_CLASS, MISTAKES_TABLE, MISTAKES_PICTURE = "per_class.csv", "mistakes.csv", "mistakes.png"
MISTAKES = 40  # images on a sheet
WORST = 5  # classes on a terminal


def write_table(path, header, rows):
    """Replaces a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    run_directory.write_text(path, text.getvalue())


def read_images(source, positions, pixels):
    """[(name, image as evaluation crops it)] at positions of a source's stored order; None for one that has become
    unreadable. Nothing but these is read of files; of others, what comes before is skipped.
    """
    if not len(positions):
        return []
    examples, read = source.unread(None)
    chosen = examples.enumerate().filter(lambda position, _: tf.reduce_any(position == positions))
    found = {}
    for position, example in chosen.take(len(np.unique(positions))):
        try:
            image = preprocessing.evaluation_image(read(example)["image"], *pixels).numpy()
        except pipeline.UNREADABLE:
            image = None
        found[int(position)] = (example["name"].numpy().decode(errors="backslashreplace"), image)
    return [found[position] for position in positions]


def write_mistakes(folder, images, columns, captions, title):
    """Writes table and sheet of mistakes.

    Args:
        folder: pathlib.Path.
        images: from `read_images`.
        columns: {name: cells, one an image}, beside the images' names.
        captions: two lines over each image.
        title: of the sheet.
    """
    rows = zip((name for name, _ in images), *columns.values(), strict=True)
    write_table(folder / MISTAKES_TABLE, ("image", *columns), rows)
    plots.save(plots.image_sheet([image for _, image in images], captions, title), folder / MISTAKES_PICTURE)
