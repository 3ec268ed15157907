"""The SavedModel: two signatures, plain TensorFlow, nothing of Keras needed to run it.

    serving_default   images: float32 or uint8 (batch, height, width, channels), RGB or grey, 0..255
                      -> probabilities or logits, float32 (batch, classes), the top k as below, and what else the
                      network answers, under its names
    serve_bytes       image_bytes: string (batch,), encoded JPEG, PNG, GIF, BMP or still WebP files, any size
                      -> classes int32, scores float32, labels string, each (batch, k), best first

`serve_bytes` decodes, resizes and crops in the graph as evaluation does (images.py). It leaves the full probabilities
out: answers travel as JSON. The scores of a network that answers logits are logits. Names are public: clients and
server configurations hold them.

A batch may be empty. Images of another shape, and bytes that do not decode to an image, are errors with the code
INVALID_ARGUMENT for the whole batch. So are files that declare more than 179 million pixels, before they are decoded;
below that, one may take 2.7 GB for a moment, and ten of a batch are decoded at a time. Pixel values are not checked:
outside 0..255 the network extrapolates, and a NaN or an infinity makes all scores of its own row NaN.
"""

import keras
import tensorflow as tf

from na_keras.deploy.images import ImageFormat, image_shape
from na_keras.deploy.not_a_number import with_image_check
from na_keras.deploy.outputs import check_answer, named
from na_keras.deploy.rewrite import in_deploy_form

IMAGE_DTYPES = ("float32", "uint8")  # a signature has one; uint8 is a quarter of the bytes on the wire


class Classifier(tf.Module):
    """A network with its class names and preprocessing, as the functions of the two signatures.

    Args:
        model: in deploy form.
        labels: class names.
        images: ImageFormat.
        top: how many classes an answer names, at most all.
    """

    def __init__(self, model, labels, images, top):
        super().__init__()
        self.model, self.labels = model, tf.constant(labels)
        self.images, self.top = images, min(top, len(labels))
        self.answer_name, _ = check_answer(model)

    def predict(self, images):
        """uint8 or float32 (batch, height, width, channels) -> {name: output}; of an empty batch too."""
        # TensorFlow's convolutions fail on no images at all: these become one, whose row is cut off again. With any
        # other number, the padding is zero wide and copies nothing.
        count = tf.shape(images)[0]
        images = tf.pad(images, [[tf.cast(count == 0, tf.int32), 0], [0, 0], [0, 0], [0, 0]])
        outputs = named(self.model(tf.cast(images, tf.float32), training=False))
        if images.dtype.is_floating:
            outputs = {
                name: with_image_check(images, output) if output.dtype.is_floating else output
                for name, output in outputs.items()
            }
        return {name: output[:count] for name, output in outputs.items()}

    def answer(self, outputs):
        """The best classes of each row, best first."""
        scores, classes = tf.math.top_k(outputs[self.answer_name], self.top)
        return {"classes": classes, "scores": scores, "labels": tf.gather(self.labels, classes)}

    def serving_default(self, images):
        """float32 or uint8 (batch, height, width, channels) -> all outputs, and the best classes."""
        # A server checks the dtype of a request, not its shape; a network that pools would answer for any size.
        images = tf.ensure_shape(images, (None, *self.images.shape), name="shape_of_images")
        outputs = self.predict(images)
        return {**outputs, **self.answer(outputs)}

    def serve_bytes(self, image_bytes):
        """string (batch,) -> best classes."""
        pixels = tf.TensorSpec(self.images.shape, tf.uint8)
        return self.answer(self.predict(tf.map_fn(self.images.crop, image_bytes, fn_output_signature=pixels)))


def write_saved_model(
    model, path, labels, *, size=None, resize=None, top=5, image_dtype="float32", exif_orientation=True
):
    """Writes a classifier as a SavedModel for TensorFlow Serving, with the signatures at the head of this file.

    Args:
        model: functional Keras classifier from float32 images (batch, height, width, channels), RGB or grey, pixels
            0..255, which it normalises itself, to probabilities (batch, classes); or to a dictionary with
            `probabilities` or `logits`, and further outputs, which serving_default has too. It ships in deploy form; a
            model that `deploy_copy` made is written as it is.
        path: folder to write; it is made if it is not there.
        labels: class names (str) in the order of the outputs.
        size: pixels of the images' sides, or (height, width); needed where the model's input shape leaves them open.
        resize: pixels of the shorter side before `serve_bytes` crops the square (default: 8/7 of the size, 256 for
            224); of images that are not square see images.py.
        top: how many classes an answer names, at most all.
        image_dtype: dtype of the `images` that serving_default takes, "float32" or "uint8"; the latter is a quarter of
            the bytes on the wire.
        exif_orientation: whether `serve_bytes` turns JPEG photographs upright as their Exif tag says.

    Raises:
        ValueError: the model is no such classifier or has no graph (see deploy_copy); another number of labels than
            classes; an argument out of range; the message says what was expected.
    """
    shape, (_, classes) = image_shape(model, size), check_answer(model)
    if isinstance(labels, str) or len(labels) != classes:
        raise ValueError(f"Expected {classes} class names, a list. Received: {len(labels)} labels, {labels!r:.80}")
    images = ImageFormat(*shape, resize, exif_orientation)
    if top < 1:
        raise ValueError(f"top must be at least 1. Received: {top}")
    if image_dtype not in IMAGE_DTYPES:
        raise ValueError(f"image_dtype must be one of {IMAGE_DTYPES}. Received: {image_dtype}")
    classifier = Classifier(in_deploy_form(model, "tensorflow"), labels, images, top)
    archive = keras.export.ExportArchive()  # without track(model), which would write every variable twice
    pixels = tf.TensorSpec((None, *shape), image_dtype, name="images")
    archive.add_endpoint("serving_default", classifier.serving_default, [pixels])
    image_bytes = tf.TensorSpec((None,), tf.string, name="image_bytes")
    archive.add_endpoint("serve_bytes", classifier.serve_bytes, [image_bytes])
    archive.write_out(str(path), verbose=False)
