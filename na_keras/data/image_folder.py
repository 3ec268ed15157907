"""Image files sorted into one folder per class.

    DATA_DIR/train/CLASS/anything.jpg        and DATA_DIR/validation/CLASS/... (or val/, or test/)

Classes are the names of train's folders in sorted order. Only files that end as images do are read.
"""

import pathlib

import tensorflow as tf

from na_keras.data.source import Source, permuted_range

ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")
FOLDERS = {"train": ("train",), "validation": ("validation", "val", "test")}


def subfolder(data_dir, split):
    """The folder of a split.

    Raises:
        FileNotFoundError: none of its names exists.
    """
    for name in FOLDERS[split]:
        if (data_dir / name).is_dir():
            return data_dir / name
    raise FileNotFoundError(f"{data_dir} must hold a folder named {' or '.join(FOLDERS[split])} with one per class.")


def image_folder(split, data_dir):
    """A folder of image files as a Source.

    Raises:
        ValueError: no data directory is given, a class folder that train does not have, or no images.
        FileNotFoundError: the split's folder does not exist.
    """
    if data_dir is None:
        raise ValueError("The dataset folder needs --data-dir: it must hold train/CLASS/ and validation/CLASS/.")
    data_dir = pathlib.Path(data_dir)
    classes = sorted(path.name for path in subfolder(data_dir, "train").iterdir() if path.is_dir())
    folder = subfolder(data_dir, split)
    unknown = {path.name for path in folder.iterdir() if path.is_dir()} - set(classes)
    if unknown:
        raise ValueError(f"{folder} holds classes that {data_dir / 'train'} does not: {sorted(unknown)}")
    files = [
        (str(path), label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).glob("**/*"))
        if path.suffix.lower() in ENDINGS
    ]
    if not files:
        raise ValueError(f"No images in {folder}: expected files that end in {', '.join(ENDINGS)} in class folders.")
    names, labels = (tf.constant(column) for column in zip(*files, strict=True))

    def examples(seed):
        def example(i):
            return {
                "image": tf.io.read_file(names[i]),
                "label": tf.cast(labels[i], tf.int64),
                "index": i,
                "name": names[i],
            }

        return permuted_range(len(files), seed).map(example, tf.data.AUTOTUNE)

    return Source(f"{folder}", tuple(classes), len(files), examples)
