"""Image sources and the tf.data pipelines over them (TensorFlow), shared by training and export."""

from na_keras.data.digits import digits
from na_keras.data.image_folder import image_folder
from na_keras.data.tfds import tfds_source

SPLITS = ("train", "validation", "test")


def shortened(names):
    """The first names of a list, for a message."""
    return f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"


def load_source(dataset, split, data_dir=None, class_names=None):
    """The Source of a dataset's split.

    Args:
        dataset: "digits" (embedded), "folder" (image files, see image_folder), or the name of a dataset that TFDS has
            prepared ("imagenet2012"; see tfds).
        split: "train" or "validation", or "test" of data that has one; where there is no validation split,
            "validation" is the test split.
        data_dir: where the data lies; None for the digits, which an installed package holds.
        class_names: the classes that the data must have, in the order of their labels; by default the data decides.
            With them, a folder needs no training split, and may lack some of the classes.

    Raises:
        ValueError: an unknown dataset or split, data of another kind or with other classes than expected, or a folder
            for the digits.
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
    if dataset == "folder":
        return image_folder(split, data_dir, class_names)
    source = digits(split) if dataset == "digits" else tfds_source(dataset, split, data_dir)
    if class_names is not None and tuple(class_names) != source.class_names:
        pairs = enumerate(zip(class_names, source.class_names, strict=False))
        first = next((f". Class {index} is {own!r}, not {name!r}" for index, (name, own) in pairs if name != own), "")
        raise ValueError(
            f"{source.name} must have the {len(class_names)} classes {shortened(class_names)}. "
            f"Received: {len(source.class_names)} classes {shortened(source.class_names)}{first}"
        )
    return source
