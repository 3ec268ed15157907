"""A split as TFRecord files, written once: encoded images with their boxes, as TensorFlow Model Garden reads them, and
as its own program writes them (official/vision/data/create_coco_tf_record.py), with the categories' ids of the file.

    train-0f3c9a1e-00000-of-00231.tfrecord     the annotations' SHA-256 begins with 0f3c9a1e

A file is written under another name and renamed when it is whole, so that a conversion that was stopped goes on where
it was. Each image is decoded once on the way: one that cannot be, or whose size is not what its annotations say, stops
the conversion by its name. The bytes are kept as they are.
"""

import pathlib

import tensorflow as tf

from na_keras.data import pipeline, preprocessing
from na_keras.files import replace_file, sha256_of

IMAGES_PER_FILE = 512


def record_paths(annotations, folder, split):
    """The paths of a split's records, existing or not.

    Args:
        annotations: Annotations.
        folder: pathlib.Path of all records.
        split: name for the files, such as "train".
    """
    count = -(-len(annotations.photographs) // IMAGES_PER_FILE)
    name = f"{split}-{sha256_of(annotations.path)[:8]}"
    return [pathlib.Path(folder, f"{name}-{index:05}-of-{count:05}.tfrecord") for index in range(count)]


def example(photograph, data, category_ids):
    """A tf.train.Example of an image; official/vision/dataloaders/tf_example_decoder.py reads it.

    Args:
        photograph: coco.Photograph.
        data: the encoded image.
        category_ids: of the classes 1, 2, 3 ...
    """
    boxes, width, height = photograph.boxes, photograph.width, photograph.height

    def numbers(values):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))

    def integers(values):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    def texts(*values):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    features = {
        "image/encoded": texts(data),
        "image/source_id": texts(str(photograph.id).encode()),
        "image/height": integers([height]),
        "image/width": integers([width]),
        "image/object/bbox/xmin": numbers([box.left / width for box in boxes]),
        "image/object/bbox/xmax": numbers([box.right / width for box in boxes]),
        "image/object/bbox/ymin": numbers([box.top / height for box in boxes]),
        "image/object/bbox/ymax": numbers([box.bottom / height for box in boxes]),
        "image/object/class/label": integers([category_ids[box.label - 1] for box in boxes]),
        "image/object/is_crowd": integers([int(box.crowd) for box in boxes]),
        "image/object/area": numbers([(box.right - box.left) * (box.bottom - box.top) for box in boxes]),
    }
    return tf.train.Example(features=tf.train.Features(feature=features))


def loaded(paths):
    """(encoded image, its height and width as decoded) of each path, in order, read and decoded in parallel."""

    def load(path):
        data = tf.io.read_file(path)
        return data, tf.shape(preprocessing.decode(data, exif_orientation=False))[:2]

    return tf.data.Dataset.from_tensor_slices(paths).map(load, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def check_size(photograph, path, height, width):
    """Raises ValueError if an image has not the size that its annotations say."""
    if (photograph.width, photograph.height) != (width, height):
        turned = (
            " If a program has turned the photograph by its Exif tag before it was annotated, save it turned."
            if (photograph.height, photograph.width) == (width, height)
            else ""
        )
        raise ValueError(
            f"{path} is {width} pixels wide and {height} high; its annotations say {photograph.width} and "
            f"{photograph.height}.{turned}"
        )


def write_file(photographs, category_ids, folder, path, after_image):
    """One TFRecord file of some images."""
    paths = [str(folder / photograph.file_name) for photograph in photographs]
    images = iter(loaded(paths))
    with tf.io.TFRecordWriter(str(path)) as writer:
        for photograph, name in zip(photographs, paths, strict=True):
            try:
                data, (height, width) = (value.numpy() for value in next(images))
            except pipeline.UNREADABLE as error:
                raise ValueError(f"{name} cannot be decoded: {pipeline.reason(error)}") from error
            check_size(photograph, name, int(height), int(width))
            writer.write(example(photograph, data, category_ids).SerializeToString())
            after_image()


def write_records(annotations, images, folder, split, progress=lambda done: None):
    """Writes the records of a split that are not there yet.

    Args:
        annotations: coco.Annotations.
        images: pathlib.Path of the folder of the images.
        folder: pathlib.Path for the records; created if it is not there.
        split: name for the files, such as "train".
        progress: function that is called with the number of images that are done, after each.

    Returns:
        The paths of all of the split's records.

    Raises:
        ValueError: an image that cannot be decoded, or has another size than the annotations say; what is written so
            far stays, and the next call goes on from there.
    """
    paths = record_paths(annotations, folder, split)
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    done, ids = 0, list(annotations.categories)

    def after_image():
        nonlocal done
        done += 1
        progress(done)

    for index, path in enumerate(paths):
        photographs = annotations.photographs[index * IMAGES_PER_FILE :][:IMAGES_PER_FILE]
        if path.exists():
            done += len(photographs)
            progress(done)
            continue
        replace_file(path, lambda temporary, part=photographs: write_file(part, ids, images, temporary, after_image))
    return paths
