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

IMAGE_DTYPES = ("float32", "uint8")  # a signature has one; uint8 is a quarter of the bytes on the wire


class Classifier(tf.Module):
    """A network with its class names and preprocessing, as functions to export.

    Args:
        model: Keras model from float32 (batch, size, size, 3) in 0..255 to probabilities (batch, classes).
        labels: class names, in the order of the outputs.
        resize, size: see preprocessing.evaluation_image.
        top: how many classes an answer names (at most all).
        image_dtype: of the `images` that serving_default takes, one of IMAGE_DTYPES.
    """

    def __init__(self, model, labels, resize, size, top=5, image_dtype="float32"):
        super().__init__()
        if image_dtype not in IMAGE_DTYPES:
            raise ValueError(f"image_dtype must be one of {IMAGE_DTYPES}. Received: {image_dtype}")
        self.model, self.labels = model, tf.constant(labels)
        self.resize, self.size, self.top, self.image_dtype = resize, size, min(top, len(labels)), image_dtype

    def predict(self, images):
        """uint8 or float32 (batch, size, size, 3) -> probabilities; of an empty batch too."""
        # TensorFlow's convolutions fail on no images at all: these become one, whose row is cut off again. With any
        # other number, the padding is zero wide and copies nothing.
        count = tf.shape(images)[0]
        images = tf.pad(images, [[tf.cast(count == 0, tf.int32), 0], [0, 0], [0, 0], [0, 0]])
        return self.model(tf.cast(images, tf.float32), training=False)[:count]

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
        pixels = tf.TensorSpec((self.size, self.size, 3), tf.uint8)
        crop = lambda data: preprocessing.evaluation_image(data, self.resize, self.size)  # noqa: E731
        return self.answer(self.predict(tf.map_fn(crop, image_bytes, fn_output_signature=pixels)))

    def probabilities(self, images):
        """float32 (batch, size, size, 3) -> probabilities alone, for TFLite."""
        return {"probabilities": self.model(images, training=False)}

    def images_spec(self, batch=None, dtype="float32"):
        """The TensorSpec of `images`."""
        return tf.TensorSpec((batch, self.size, self.size, 3), dtype, name="images")


def write_savedmodel(classifier, path):
    """Writes the SavedModel with both signatures to the folder `path`."""
    archive = keras.export.ExportArchive()  # without track(model), which would write every variable twice
    images = classifier.images_spec(dtype=classifier.image_dtype)
    archive.add_endpoint("serving_default", classifier.serving_default, [images])
    image_bytes = tf.TensorSpec((None,), tf.string, name="image_bytes")
    archive.add_endpoint("serve_bytes", classifier.serve_bytes, [image_bytes])
    archive.write_out(str(path), verbose=False)
