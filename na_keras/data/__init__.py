"""Image sources and the tf.data pipelines over them (TensorFlow), shared by training and export."""

from na_keras.data.digits import digits

# name -> function of a split, "train" or "validation", that returns a Source.
DATASETS = {"digits": digits}


def load_source(dataset, split):
    """The Source of a dataset's split.

    Raises:
        ValueError: an unknown dataset (the message lists the known ones) or split.
    """
    if dataset not in DATASETS:
        raise ValueError(f"dataset must be one of {sorted(DATASETS)}. Received: {dataset!r}")
    return DATASETS[dataset](split)
