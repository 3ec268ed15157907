"""Image sources and the tf.data pipelines over them (TensorFlow), shared by training and export."""

from na_keras.data.digits import digits
from na_keras.data.image_folder import image_folder
from na_keras.data.tfds import tfds_source

SPLITS = ("train", "validation")


def load_source(dataset, split, data_dir=None):
    """The Source of a dataset's split.

    Args:
        dataset: "digits" (embedded), "folder" (image files, see image_folder), or the name of a dataset that TFDS has
            prepared ("imagenet2012"; see tfds).
        split: "train" or "validation".
        data_dir: where the data lies; the digits need none.

    Raises:
        ValueError: an unknown dataset or split, or data of another kind than expected.
        FileNotFoundError: data that is not there. Nothing is downloaded.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}. Received: {split!r}")
    if dataset == "digits":
        return digits(split)
    if dataset == "folder":
        return image_folder(split, data_dir)
    return tfds_source(dataset, split, data_dir)
