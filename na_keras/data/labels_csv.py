"""Image files whose labels stand in a CSV file, one image a line; of one class each, or of any number (multi-label).

    DATA_DIR/train.csv    and DATA_DIR/validation.csv (or val.csv, or test.csv)

or, with a share to hold out (held_out.py), train.csv or the only CSV file in DATA_DIR. The header says which form it
is:

    image,label          two columns, the second named "label" or "class": its cells are class names
    image,cat,dog        each further column is a class, its cells are 0 or 1

The first column, of any name, is the path of the image file, relative to the CSV file's folder. Commas, semicolons or
tabs separate the columns, whichever the header has; text is UTF-8, with or without a byte-order mark, lines may end as
Windows' do; empty lines, and empty cells behind a line's end, are ignored.
"""

import csv
import dataclasses
import functools
import hashlib
import io
import os
import pathlib
import posixpath
import re

import numpy as np

from na_keras.data.held_out import divide, parse_share
from na_keras.data.image_folder import count_notes, file_size
from na_keras.data.source import Source, file_examples, shortened

FILES = {
    "train": ("train.csv",),
    "validation": ("validation.csv", "val.csv", "test.csv"),
    "test": ("test.csv",),
}
ONE_CLASS = ("label", "class")  # names of the second of two columns that hold class names
VALUES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}  # as pandas writes them, too


@dataclasses.dataclass(frozen=True)
class Table:
    """A CSV file as it was read.

    Attributes:
        path: of the file.
        columns: the classes' names, of multi-label data; None where each image has one class.
        names: of the images, relative to the file's folder, as they are written there.
        lines: on which they stand, from 1.
        labels: of each image its class's name, or a tuple of 0 and 1.
    """

    path: pathlib.Path
    columns: tuple[str, ...] | None
    names: list[str]
    lines: list[int]
    labels: list

    def error(self, position, text):
        """A ValueError that names the line of an image."""
        return ValueError(f"{self.path}, line {self.lines[position]}: {text}")


def rows_of(path):
    """The non-empty rows of a CSV file: [(line number, cells without surrounding space)].

    Raises:
        ValueError: no text in UTF-8, nothing in it, no separator or several in its header, or broken quotes.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: expected text in UTF-8. Spreadsheets write it as CSV UTF-8.") from error
    header = next((line for line in text.splitlines() if line.strip(" ,;\t")), None)
    if header is None:
        raise ValueError(f"{path} is empty: expected a header, image,label or image and the classes, then a line each.")
    found = [separator for separator in ",;\t" if separator in re.sub('"[^"]*"', "", header)]
    if len(found) != 1:
        raise ValueError(
            f"{path}: expected a header of two columns or more, separated by commas, by semicolons or by tabs. "
            f"Received: {header!r}"
        )
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=found[0], strict=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    return [(line, cells) for line, cells in rows if any(cells)]


def header_columns(path, header):
    """The header's names without empty ones at its end.

    Raises:
        ValueError: fewer than two columns, one without a name, two of one name, or class names beside further columns.
    """
    names = header[: max(index + 1 for index, name in enumerate(header) if name)]
    if len(names) < 2 or not all(names[1:]) or len(set(names)) < len(names):
        raise ValueError(f"{path}: expected a header of two or more different names. Received: {names}")
    beside = [name for name in names[1:] if name.lower() in ONE_CLASS]
    if beside and len(names) > 2:
        raise ValueError(
            f"{path}: expected two columns, image,{beside[0]}, or an image and one column of 0 and 1 for each class. "
            f"Received: {beside[0]!r} among {len(names)} columns"
        )
    return names


def read_table(path):
    """Reads a CSV file; see above.

    Raises:
        ValueError: what is wrong, and in which line.
    """
    (_, header), *rows = rows_of(path)
    names = header_columns(path, header)
    width, one_class = len(names), len(names) == 2 and names[1].lower() in ONE_CLASS
    table = Table(path, None if one_class else tuple(names[1:]), [], [], [])
    first = {}  # position of each image, whatever way its path is written
    for position, (line, cells) in enumerate(rows):
        table.lines.append(line)
        cells, beyond = cells[:width], cells[width:]
        if len(cells) < width or any(beyond) or not cells[0]:
            raise table.error(position, f"expected {width} cells: {', '.join(names)}. Received: {cells + beyond}")
        image, *values = cells
        same = first.setdefault(posixpath.normpath(image), position)
        if same != position:
            raise table.error(position, f"the image {image} stands in line {table.lines[same]} already")
        if one_class and not values[0]:
            raise table.error(position, f"the image {image} has no {names[1]}")
        for name, value in zip(names[1:], values, strict=True):
            if not one_class and value not in VALUES:
                hint = f" A column of class names must be the second of two, named {' or '.join(ONE_CLASS)}."
                raise table.error(position, f"expected 0 or 1 for {name}. Received: {value!r}.{hint}")
        table.names.append(image)
        table.labels.append(values[0] if one_class else tuple(VALUES[value] for value in values))
    if not rows:
        raise ValueError(f"{path} holds a header and no images.")
    return table


def find_file(data_dir, split, divided):
    """The CSV file of a split; `divided`: of which a part is held out.

    Raises:
        ValueError: a share is asked for, and there are validation images already.
        FileNotFoundError: there is no such file.
    """
    present = sorted(path for path in data_dir.glob("*.csv") if path.is_file() and not path.name.startswith("."))
    names = [path.name for path in present]
    own = [data_dir / name for name in FILES[split] if name in names]
    if not divided:
        if own:
            return own[0]
        hint = " Or hold a part of one file out, for example by --validation-split=0.2." if len(names) == 1 else ""
        raise FileNotFoundError(f"{data_dir} must hold a file named {' or '.join(FILES[split])}.{hint}")
    for name in ("validation.csv", "val.csv"):
        if name in names:
            raise ValueError(
                f"{data_dir / name} names validation images, and --validation-split asks for a part of the training "
                "images instead. Leave it out, or move that file away."
            )
    candidates = [path for path in present if path.name == "train.csv"] or [
        path for path in present if path.name != "test.csv"
    ]
    if len(candidates) != 1:
        raise FileNotFoundError(
            f"{data_dir} must hold a file named train.csv, or a single CSV file. Received: {shortened(names) or 'none'}"
        )
    return candidates[0]


def check_columns(table, expected, whose):
    """Raises ValueError unless the table has the expected classes in the expected order."""
    if table.columns == expected:
        return
    if table.columns is None or expected is None:
        form = {True: "one class name an image", False: "a column of 0 and 1 for each class"}
        raise ValueError(f"{table.path} has {form[table.columns is None]}, {whose} {form[expected is None]}.")
    pairs = enumerate(zip(table.columns, expected, strict=False), 2)
    first = next((f"column {k} is {own!r}, not {name!r}" for k, (own, name) in pairs if own != name), None)
    counts = f"{len(table.columns)} classes, not {len(expected)}"
    raise ValueError(f"{table.path} must have the classes of {whose} in the same order: {first or counts}")


def class_numbers(table, class_names, whose):
    """Of each image the numbers of its classes, in a tuple.

    Raises:
        ValueError: a class that `whose` do not have.
    """
    if table.columns is not None:
        return [tuple(k for k, value in enumerate(values) if value) for values in table.labels]
    numbers = {name: number for number, name in enumerate(class_names)}
    for position, label in enumerate(table.labels):
        if label not in numbers:
            raise table.error(position, f"{whose} no class {label!r}: {shortened(list(class_names))}")
    return [(numbers[label],) for label in table.labels]


def check_images(table):
    """Raises ValueError if a path is absolute, or nothing lies there."""
    folder = table.path.parent
    bad = [k for k, name in enumerate(table.names) if os.path.isabs(name) or file_size(folder / name) is None]
    if not bad:
        return
    name, more = table.names[bad[0]], f" The same of {len(bad) - 1} more lines." if len(bad) > 1 else ""
    if os.path.isabs(name):
        raise table.error(bad[0], f"expected a path relative to {folder}. Received: {name}.{more}")
    hint = " Folders are separated by /." if "\\" in name else ""
    raise table.error(bad[0], f"there is no image file {folder / name}.{hint}{more}")


def csv_details(table, chosen, counts):
    """What tells these images and labels from others, wherever they lie: counts and a digest."""
    digest = hashlib.sha256()
    for position in chosen:
        size = file_size(table.path.parent / table.names[position])
        digest.update(f"{table.names[position]}\0{size}\0{table.labels[position]}\n".encode())
    return {"images_per_class": counts, "sha256_of_names_sizes_and_labels": digest.hexdigest()}


def labels_csv(split, data_dir, class_names=None, validation_split=None):
    """Image files with labels in a CSV file as a Source.

    Args:
        split: "train", "validation" (validation.csv, val.csv or test.csv, whichever is there first) or "test".
        data_dir: the folder of the CSV files.
        class_names: the names of the classes in the order of their labels, for instance those of a trained network; by
            default the sorted labels of the training images, or the columns of their file.
        validation_split: None, or the share of the images of one file, 0 to 1, that is the validation split; see
            held_out.py.

    Returns:
        Source, with `multi_label` where each class has a column.

    Raises:
        ValueError: no data directory is given, or a file is not as expected: the message names the line.
        FileNotFoundError: the split's file does not exist.
    """
    if data_dir is None:
        raise ValueError("The dataset csv needs --data-dir: it must hold train.csv and validation.csv.")
    data_dir = pathlib.Path(data_dir)
    share = None if validation_split is None or split == "test" else parse_share(validation_split)
    table = read_table(find_file(data_dir, split, share is not None))
    if class_names is not None:
        classes, whose = tuple(class_names), "the class names that are asked for have"
        if table.columns is not None:
            check_columns(table, classes, "what is asked for")
    else:
        train = table if share is not None or split == "train" else read_table(find_file(data_dir, "train", False))
        check_columns(table, train.columns, f"{train.path}")
        classes, whose = train.columns or tuple(sorted(set(train.labels))), f"{train.path} has"
    numbers = class_numbers(table, classes, whose)
    check_images(table)
    chosen, name, notes = range(len(table.names)), f"{table.path}", []
    if share is not None:
        images = [os.fsencode(image) for image in table.names]
        chosen, notes = divide(images, numbers, share, split, table.path)
        name += ", training part" if split == "train" else ", held-out part"
    one_hot = np.zeros((len(chosen), len(classes)), np.uint8)
    for row, position in enumerate(chosen):
        one_hot[row, list(numbers[position])] = 1
    counts = dict(zip(classes, one_hot.sum(axis=0, dtype=int).tolist(), strict=True))
    notes = [*count_notes(name, counts, len(chosen)), *notes]
    multi_label = table.columns is not None
    if multi_label and not one_hot.any(axis=1).all():
        notes.append(f"{name}: {int((~one_hot.any(axis=1)).sum())} images of no class")
    paths = [os.fsencode(table.path.parent / table.names[position]) for position in chosen]
    examples = file_examples(paths, one_hot if multi_label else one_hot.argmax(axis=1))
    details = functools.partial(csv_details, table, chosen, counts)
    return Source(name, classes, len(chosen), examples, tuple(notes), details, multi_label)
