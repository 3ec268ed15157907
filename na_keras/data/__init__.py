"""Image sources and the tf.data pipelines over them (TensorFlow), shared by training and export."""

from na_keras.data.digits import digits
from na_keras.data.fit import fit_arguments
from na_keras.data.image_folder import image_folder
from na_keras.data.labels_csv import labels_csv
from na_keras.data.source import shortened
from na_keras.data.tfds import tfds_source

__all__ = ["SPLITS", "fit_arguments", "image_folder", "labels_csv", "load_source", "recorded_splits", "tfds_source"]

SPLITS = ("train", "validation", "test")
FILES = {"folder": image_folder, "csv": labels_csv}


def recorded_splits(recipe):
    """What `load_source` takes of a run's recipe.json, a dictionary; runs of before there were splits have none."""
    return {name: recipe.get(name) for name in ("train_split", "validation_split")}


def load_source(dataset, split, data_dir=None, class_names=None, *, train_split=None, validation_split=None):
    """The Source of a dataset's split.

    Args:
        dataset: "digits" (embedded), "folder" (image files, see image_folder), "csv" (image files with labels in a
            table, see labels_csv), or the name of a dataset that TFDS has prepared ("imagenet2012"; see tfds).
        split: "train" or "validation", or "test" of data that has one; where there is no validation split,
            "validation" is the test split.
        data_dir: where the data lies; None for the digits, which an installed package holds.
        class_names: the classes that the data must have, in the order of their labels; by default the data decides.
            With them, a folder needs no training split, and may lack some of the classes.
        train_split, validation_split: what "train" and "validation" are, if not what the data has under these names: of
            TFDS's datasets in TFDS's syntax, "train[:80%]" and "train[80%:]"; of "folder" and "csv" without validation
            images, validation_split is the share of the training images to hold out, 0.2.

    Raises:
        ValueError: an unknown dataset or split, data of another kind or with other classes than expected, training and
            validation splits that share images, or a folder or splits for the digits.
        FileNotFoundError: data that is not there. Nothing is downloaded.
    """
    splits = ("train", "validation") if dataset == "digits" else SPLITS
    if split not in splits:
        raise ValueError(f"split must be one of {splits}. Received: {split!r}")
    if dataset == "digits" and data_dir is not None:
        raise ValueError(
            f"The digits lie in an installed package. For the images in {data_dir} give --dataset=folder, or leave "
            "--data-dir out."
        )
    if dataset == "digits" and (train_split, validation_split) != (None, None):
        raise ValueError("The digits have splits of their own: leave --train-split and --validation-split out.")
    if dataset in FILES:
        if train_split is not None:
            raise ValueError(
                f"--train-split is for datasets of TFDS. Of the dataset {dataset}, hold a share of the training images "
                f"out: --validation-split=0.2. Received: {train_split!r}"
            )
        return FILES[dataset](split, data_dir, class_names, validation_split)
    source = (
        digits(split) if dataset == "digits" else tfds_source(dataset, split, data_dir, train_split, validation_split)
    )
    if class_names is not None and tuple(class_names) != source.class_names:
        pairs = enumerate(zip(class_names, source.class_names, strict=False))
        first = next((f". Class {index} is {own!r}, not {name!r}" for index, (name, own) in pairs if name != own), "")
        raise ValueError(
            f"{source.name} must have the {len(class_names)} classes {shortened(class_names)}. "
            f"Received: {len(source.class_names)} classes {shortened(source.class_names)}{first}"
        )
    return source
