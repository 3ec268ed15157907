"""A detector as a SavedModel: two signatures, plain TensorFlow, nothing of Keras needed to run it.

    serving_default   images: uint8 (batch, height, width, 3), RGB, of any one size
    serve_bytes       image_bytes: string (batch,), encoded JPEG, PNG, GIF, BMP or still WebP, each of its own size

Both resize as training does (images.py) and answer, for at most n objects in each image,

    num_detections      int32 (batch,)          how many rows of the others count, best score first
    detection_boxes     float32 (batch, n, 4)   top, left, bottom, right in pixels of the given image, within it
    detection_classes   int32 (batch, n)        from 1 on
    detection_scores    float32 (batch, n)      0..1
    detection_labels    string (batch, n)       the classes' names

Rows beyond `num_detections` are zeros and empty names. A batch may be empty. Pixels and boxes are those of the file as
it is stored: no Exif tag turns it, as annotations in COCO's format have it. Names are public: clients and server
configurations hold them. Bytes that do not decode are INVALID_ARGUMENT for their batch, as in na_keras.deploy.
"""

import tensorflow as tf
from official.vision.ops import preprocess_ops

from na_keras.data import preprocessing
from na_keras.detection.model_garden import images
from na_keras.detection.model_garden.inference import FOUND

LABELS = "detection_labels"
ANSWERS = (*FOUND, LABELS)


def in_pixels(found, shapes, sizes, names):
    """A model's answer as the signatures give it.

    Args:
        found: {name: tensor}, those of inference.FOUND, boxes in pixels of the canvas.
        shapes: int32 (batch, 2), height and width of each image on its canvas.
        sizes: float32 (batch, 2), height and width of each image as it was given.
        names: of the classes, the first of class 1.
    """
    boxes, scores = found["detection_boxes"], found["detection_scores"]
    limits = tf.tile(sizes, [1, 2])[:, None]
    boxes = boxes * (limits / tf.tile(tf.cast(shapes, tf.float32), [1, 2])[:, None])
    count = tf.cast(found["num_detections"], tf.int32)
    counts = tf.range(tf.shape(scores)[1]) < count[:, None]
    classes = tf.where(counts, tf.cast(found["detection_classes"], tf.int32), 0)
    return {
        "num_detections": count,
        "detection_boxes": tf.where(counts[..., None], tf.clip_by_value(boxes, 0.0, limits), 0.0),
        "detection_classes": classes,
        "detection_scores": tf.where(counts, tf.cast(scores, tf.float32), 0.0),
        LABELS: tf.gather(["", *names], classes),
    }


def signature_functions(detector):
    """{signature: tf.function} of a saved.Detector."""
    resize, side = detector.config.resize, detector.config.model.input_size[0]
    names = list(detector.categories.values())
    prepared = tf.TensorSpec((side, side, 3)), tf.TensorSpec((2,), tf.int32), tf.TensorSpec((2,))

    def prepare(image):
        canvas, shape = images.on_canvas(image, resize.shorter, resize.longer, side)
        return canvas, shape, tf.cast(tf.shape(image)[:2], tf.float32)

    def prepare_file(data):
        return prepare(preprocessing.decode(data, exif_orientation=False))

    def answer(function, values):
        canvases, shapes, sizes = tf.map_fn(function, values, fn_output_signature=prepared)
        # Convolutions fail on no images at all: these become one, whose row is cut off again.
        count = tf.shape(shapes)[0]
        more = tf.cast(count == 0, tf.int32)
        canvases = tf.pad(canvases, [[0, more], [0, 0], [0, 0], [0, 0]])
        shapes, sizes = (tf.pad(x, [[0, more], [0, 0]], constant_values=1) for x in (shapes, sizes))
        pixels = tf.ensure_shape(preprocess_ops.normalize_image(canvases), (None, side, side, 3))
        found = detector.model(pixels, image_shape=tf.cast(shapes, tf.float32), training=False)
        return {name: value[:count] for name, value in in_pixels(found, shapes, sizes, names).items()}

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")])
    def serving_default(images):
        return answer(prepare, images)

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="image_bytes")])
    def serve_bytes(image_bytes):
        return answer(prepare_file, image_bytes)

    return {"serving_default": serving_default, "serve_bytes": serve_bytes}


def write_saved_model(detector, folder):
    """Writes a saved.Detector as a SavedModel with the signatures at the head of this file.

    Args:
        detector: saved.Detector, of RetinaNet or of Cascade R-CNN.
        folder: to write into; it is made if it is not there.
    """
    module = tf.Module()
    module.weights = list(detector.model.variables)  # not the model: its layers would be written with Keras' own traces
    functions = {name: function.get_concrete_function() for name, function in signature_functions(detector).items()}
    tf.saved_model.save(module, str(folder), signatures=functions)
