"""What a detector of Model Garden finds in photographs, as na_keras.detection.evaluation takes it."""

import numpy as np
import tensorflow as tf
from official.vision.ops import preprocess_ops

from na_keras.data import preprocessing
from na_keras.detection.evaluation import Detection
from na_keras.detection.model_garden import images

FOUND = ("num_detections", "detection_boxes", "detection_classes", "detection_scores")


def batches(paths, resize, side, batch_size):
    """(images, their height and width on the canvas) of all paths, in order. The last image is repeated until the last
    batch is full.
    """

    def load(path):
        image = preprocessing.decode(tf.io.read_file(path), exif_orientation=False)
        canvas, shape = images.on_canvas(image, resize.shorter, resize.longer, side)
        return preprocess_ops.normalize_image(canvas), shape

    filled = [*paths, *[paths[-1]] * (-len(paths) % batch_size)]
    dataset = tf.data.Dataset.from_tensor_slices(filled).map(load, tf.data.AUTOTUNE)
    return dataset.batch(batch_size, drop_remainder=True).prefetch(2)


def detections(photograph, shape, boxes, labels, scores):
    """A photograph's detections, in its own pixels and within it.

    Args:
        photograph: coco.Photograph.
        shape: (height, width) of the photograph on the canvas.
        boxes: (n, 4) top, left, bottom, right on the canvas.
        labels, scores: (n,).
    """
    limits = np.array([photograph.height, photograph.width] * 2)
    corners = np.clip(boxes * (limits / np.tile(shape, 2)), 0, limits)
    return [
        Detection(float(left), float(top), float(right), float(bottom), int(label), float(score))
        for (top, left, bottom, right), label, score in zip(corners, labels, scores, strict=True)
        if right > left and bottom > top
    ]


def make_find(model, strategy):
    """A compiled function of a batch as the strategy deals it, (images, shapes on the canvas), and what it returns.

    Args:
        model: of detectors.retinanet or detectors.cascade_rcnn, made in the strategy's scope.
        strategy: tf.distribute.Strategy.

    Returns:
        find(images, shapes), which returns numpy arrays: the shapes and what FOUND names, of the whole batch in order.
    """

    def replica(batch, shapes):
        found = model(batch, image_shape=tf.cast(shapes, tf.float32), training=False)
        return [shapes, *(found[name] for name in FOUND)]

    compiled = tf.function(lambda batch, shapes: strategy.run(replica, args=(batch, shapes)))

    def find(batch, shapes):
        parts = (strategy.experimental_local_results(value) for value in compiled(batch, shapes))
        return [np.concatenate([part.numpy() for part in each]) for each in parts]

    return find


def detect(find, config, photographs, folder, *, strategy, batch_size=8, progress=lambda done: None):
    """Finds objects in photographs.

    Args:
        find: of `make_find`.
        config: the task's configuration (tasks.RetinaNetTask or tasks.CascadeRCNNTask).
        photographs: of coco.Annotations.
        folder: pathlib.Path of the images.
        strategy: that `find` was made for.
        batch_size: images at once, on all replicas together.
        progress: function that is called with the number of images that are done, after each batch.

    Returns:
        {image id: list of evaluation.Detection}, of every photograph.

    Raises:
        tf.errors.InvalidArgumentError: an image cannot be decoded.
    """
    found, waiting = {}, iter(photographs)
    paths = [str(folder / photograph.file_name) for photograph in photographs]
    data = batches(paths, config.resize, config.model.input_size[0], batch_size)
    for batch in strategy.experimental_distribute_dataset(data):
        shapes, counts, *arrays = find(*batch)
        # The photographs end before the batch does, if that is filled up.
        for index, photograph in zip(range(batch_size), waiting, strict=False):
            own = (values[index][: counts[index]] for values in arrays)
            found[photograph.id] = detections(photograph, shapes[index], *own)
        progress(len(found))
    return found
