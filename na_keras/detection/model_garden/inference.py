"""What a detector of Model Garden finds in photographs, as na_keras.detection.evaluation takes it."""

import numpy as np
import tensorflow as tf
from official.vision.ops import preprocess_ops

from na_keras.data import preprocessing
from na_keras.detection.evaluation import Detection
from na_keras.detection.model_garden import images


def batches(paths, resize, side, batch_size):
    """(images, their height and width on the canvas) of all paths, in order; the last batch may be smaller."""

    def load(path):
        image = preprocessing.decode(tf.io.read_file(path), exif_orientation=False)
        canvas, shape = images.on_canvas(image, resize.shorter, resize.longer, side)
        return preprocess_ops.normalize_image(canvas), shape

    return tf.data.Dataset.from_tensor_slices(paths).map(load, tf.data.AUTOTUNE).batch(batch_size).prefetch(2)


def detections(photograph, shape, boxes, labels, scores):
    """A photograph's detections, in its own pixels and within it.

    Args:
        photograph: coco.Photograph.
        shape: (height, width) of the photograph on the canvas.
        boxes: (n, 4) top, left, bottom, right on the canvas.
        labels, scores: (n,).
    """
    height, width = photograph.height, photograph.width
    scale = np.array([height, width, height, width]) / np.tile(shape, 2)
    limits = np.array([height, width, height, width])
    corners = np.clip(boxes * scale, 0, limits)
    return [
        Detection(float(left), float(top), float(right), float(bottom), int(label), float(score))
        for (top, left, bottom, right), label, score in zip(corners, labels, scores, strict=True)
        if right > left and bottom > top
    ]


def detect(model, config, photographs, folder, batch_size=8, progress=lambda done: None):
    """Finds objects in photographs.

    Args:
        model: of detectors.retinanet or detectors.cascade_rcnn.
        config: the task's configuration (tasks.RetinaNetTask or tasks.CascadeRCNNTask).
        photographs: of coco.Annotations.
        folder: pathlib.Path of the images.
        batch_size: images at once.
        progress: function that is called with the number of images that are done, after each batch.

    Returns:
        {image id: list of evaluation.Detection}, of every photograph.

    Raises:
        tf.errors.InvalidArgumentError: an image cannot be decoded.
    """

    @tf.function(reduce_retracing=True)
    def find(batch, shapes):
        found = model(batch, image_shape=tf.cast(shapes, tf.float32), training=False)
        names = "num_detections", "detection_boxes", "detection_classes", "detection_scores"
        return [found[name] for name in names]

    found, waiting = {}, iter(photographs)
    paths = [str(folder / photograph.file_name) for photograph in photographs]
    for batch, shapes in batches(paths, config.resize, config.model.input_size[0], batch_size):
        counts, *arrays = (values.numpy() for values in find(batch, shapes))
        for index, (count, shape) in enumerate(zip(counts, shapes.numpy(), strict=True)):
            photograph = next(waiting)
            found[photograph.id] = detections(photograph, shape, *(values[index][:count] for values in arrays))
        progress(len(found))
    return found
