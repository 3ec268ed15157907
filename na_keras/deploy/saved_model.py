"""The SavedModel: two signatures, plain TensorFlow, nothing of Keras needed to run it.

    serving_default   images: float32 or uint8 (batch, size, size, 3), RGB, 0..255
                      -> probabilities float32 (batch, classes), and the top k as below
    serve_bytes       image_bytes: string (batch,), encoded JPEG, PNG, GIF, BMP or still WebP files, any size
                      -> classes int32, scores float32, labels string, each (batch, k), best first

`serve_bytes` decodes, resizes and crops in the graph as evaluation does (na_keras.preprocessing). It leaves the full
probabilities out: answers travel as JSON. Names are public: clients and server configurations hold them.

A batch may be empty. Images of another shape, and bytes that do not decode to an image, are errors with the code
INVALID_ARGUMENT for the whole batch. So are files that declare more than 179 million pixels, before they are decoded;
below that, one may take 2.7 GB for a moment, and ten of a batch are decoded at a time. Pixel values are not checked:
outside 0..255 the network extrapolates, and a NaN or an infinity makes all scores of its own row NaN.
"""

import keras
import tensorflow as tf

from na_keras.data import preprocessing
from na_keras.deploy.not_a_number import with_image_check
from na_keras.deploy.rewrite import image_size, in_deploy_form

IMAGE_DTYPES = ("float32", "uint8")  # a signature has one; uint8 is a quarter of the bytes on the wire


class Classifier(tf.Module):
    """A network with its class names and preprocessing, as the functions of the two signatures.

    The arguments are those of write_saved_model.
    """

    def __init__(self, model, labels, resize, size, top, exif_orientation):
        super().__init__()
        self.model, self.labels = model, tf.constant(labels)
        self.resize, self.size, self.top = resize, size, min(top, len(labels))
        self.exif_orientation = exif_orientation

    def predict(self, images):
        """uint8 or float32 (batch, size, size, 3) -> probabilities; of an empty batch too."""
        # TensorFlow's convolutions fail on no images at all: these become one, whose row is cut off again. With any
        # other number, the padding is zero wide and copies nothing.
        count = tf.shape(images)[0]
        images = tf.pad(images, [[tf.cast(count == 0, tf.int32), 0], [0, 0], [0, 0], [0, 0]])
        probabilities = self.model(tf.cast(images, tf.float32), training=False)
        if images.dtype.is_floating:
            probabilities = with_image_check(images, probabilities)
        return probabilities[:count]

    def answer(self, probabilities):
        """The best classes of each row, best first."""
        scores, classes = tf.math.top_k(probabilities, self.top)
        return {"classes": classes, "scores": scores, "labels": tf.gather(self.labels, classes)}

    def serving_default(self, images):
        """float32 or uint8 (batch, size, size, 3) -> probabilities and best classes."""
        # A server checks the dtype of a request, not its shape; a network that pools would answer for any size.
        images = tf.ensure_shape(images, (None, self.size, self.size, 3), name="shape_of_images")
        probabilities = self.predict(images)
        return {"probabilities": probabilities, **self.answer(probabilities)}

    def serve_bytes(self, image_bytes):
        """string (batch,) -> best classes."""

        def crop(data):
            return preprocessing.evaluation_image(data, self.resize, self.size, self.exif_orientation)

        pixels = tf.TensorSpec((self.size, self.size, 3), tf.uint8)
        return self.answer(self.predict(tf.map_fn(crop, image_bytes, fn_output_signature=pixels)))


def write_saved_model(
    model, path, labels, *, size=None, resize=None, top=5, image_dtype="float32", exif_orientation=True
):
    """Writes a classifier as a SavedModel for TensorFlow Serving, with the signatures at the head of this file.

    Args:
        model: functional Keras classifier from float32 RGB images (batch, size, size, 3), pixels 0..255, which it
            normalises itself, to probabilities (batch, classes). It ships in deploy form; a model that `deploy_copy`
            made is written as it is.
        path: folder to write; it is made if it is not there.
        labels: class names (str) in the order of the outputs.
        size: pixels of the images' sides; needed where the model's input shape leaves them open.
        resize: pixels of the shorter side before `serve_bytes` crops the square (default: 8/7 of the size, 256 for
            224).
        top: how many classes an answer names, at most all.
        image_dtype: dtype of the `images` that serving_default takes, "float32" or "uint8"; the latter is a quarter of
            the bytes on the wire.
        exif_orientation: whether `serve_bytes` turns JPEG photographs upright as their Exif tag says.

    Raises:
        ValueError: the model is no such classifier or has no graph (see deploy_copy); another number of labels than
            classes; an argument out of range; the message says what was expected.
    """
    size = image_size(model, size)
    classes = model.output_shape[-1]
    if isinstance(labels, str) or len(labels) != classes:
        raise ValueError(f"Expected {classes} class names, a list. Received: {len(labels)} labels, {labels!r:.80}")
    resize = round(size * 256 / 224) if resize is None else resize
    if resize < size:
        raise ValueError(f"resize must be at least the image size {size}. Received: {resize}")
    if top < 1:
        raise ValueError(f"top must be at least 1. Received: {top}")
    if image_dtype not in IMAGE_DTYPES:
        raise ValueError(f"image_dtype must be one of {IMAGE_DTYPES}. Received: {image_dtype}")
    classifier = Classifier(in_deploy_form(model, "tensorflow"), labels, resize, size, top, exif_orientation)
    archive = keras.export.ExportArchive()  # without track(model), which would write every variable twice
    images = tf.TensorSpec((None, size, size, 3), image_dtype, name="images")
    archive.add_endpoint("serving_default", classifier.serving_default, [images])
    image_bytes = tf.TensorSpec((None,), tf.string, name="image_bytes")
    archive.add_endpoint("serve_bytes", classifier.serve_bytes, [image_bytes])
    archive.write_out(str(path), verbose=False)
