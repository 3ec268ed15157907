"""Real images for the ranges of a quantized file, through the preprocessing of evaluation and serving.

They come from a folder of any image files, or from the training split of the dataset that the network was trained on.
A few hundred, drawn over all classes, are enough: what counts is that bright, dark, plain and busy ones are among them.
"""

import pathlib

import tensorflow as tf

from na_keras.data import load_source
from na_keras.data.image_folder import IMAGE_SUFFIXES, images_and_others

SEED = 0  # of the draw, so that the same export gives the same file


def image_files(folder):
    """The paths of the image files in a folder and those below it, in sorted order; hidden ones are left out.

    Raises:
        FileNotFoundError: no such folder, or no images in it.
    """
    folder = pathlib.Path(folder)
    files, _, _ = images_and_others(folder) if folder.is_dir() else ([], [], 0)
    if not files:
        raise FileNotFoundError(
            f"No images in {folder}: expected a folder with files that end in {', '.join(IMAGE_SUFFIXES)}."
        )
    return files


def from_folder(folder):
    """The images in a folder and those below it, in a mixed order.

    Returns:
        tf.data.Dataset of {"image": scalar string, encoded; "name": scalar string}.

    Raises:
        FileNotFoundError: no such folder, or no images in it.
    """
    files = image_files(folder)
    names = tf.data.Dataset.from_tensor_slices([str(path) for path in files])
    mixed = names.shuffle(len(files), SEED, reshuffle_each_iteration=False)
    return mixed.map(lambda name: {"image": tf.io.read_file(name), "name": name})


def from_dataset(dataset, data_dir=None, **splits):
    """The images of a dataset's training split, in a mixed order; see na_keras.data.load_source for `splits` (of a run:
    na_keras.data.recorded_splits) and for what it raises.
    """
    return load_source(dataset, "train", data_dir, **splits).examples(SEED)


def representative_images(examples, images, count):
    """Representative images as convert_tflite asks for them.

    Args:
        examples: tf.data.Dataset with "image" and "name", as the functions above return it.
        images: the ImageFormat that they are brought into.
        count: how many images, at most.

    Returns:
        A function without arguments that yields [float32 (1, height, width, channels)], the same images each time.

    Raises:
        ValueError: an image does not decode; it is named. Before anything is converted.
    """
    crops = []
    for example in examples.take(count):
        try:
            crops.append(images.crop(example["image"]).numpy()[None])
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(f"{example['name'].numpy().decode()} does not decode: {error.message}") from error
    return lambda: ([image.astype("float32")] for image in crops)
