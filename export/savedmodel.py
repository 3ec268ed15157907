"""The SavedModel: two signatures, plain TensorFlow, nothing of Keras needed to run it.

    serving_default   images: float32 (batch, size, size, 3), RGB, 0..255
                      -> probabilities float32 (batch, classes), and the top k as below
    serve_bytes       image_bytes: string (batch,), encoded JPEG, PNG, GIF, BMP or still WebP files, any size
                      -> classes int32, scores float32, labels string, each (batch, k), best first

`serve_bytes` decodes, resizes and crops in the graph as evaluation does (na_keras.preprocessing). It leaves the full
probabilities out: answers travel as JSON. Names are public: clients and server configurations hold them.
"""

import keras
import tensorflow as tf

from na_keras import preprocessing


class Classifier(tf.Module):
    """A network with its class names and preprocessing, as functions to export.

    Args:
        model: Keras model from float32 (batch, size, size, 3) in 0..255 to probabilities (batch, classes).
        labels: class names, in the order of the outputs.
        resize, size: see preprocessing.evaluation_image.
        top: how many classes an answer names (at most all).
    """

    def __init__(self, model, labels, resize, size, top=5):
        super().__init__()
        self.model, self.labels = model, tf.constant(labels)
        self.resize, self.size, self.top = resize, size, min(top, len(labels))

    def answer(self, probabilities):
        """The best classes of each row, best first."""
        scores, classes = tf.math.top_k(probabilities, self.top)
        return {"classes": classes, "scores": scores, "labels": tf.gather(self.labels, classes)}

    def serving_default(self, images):
        """float32 (batch, size, size, 3) -> probabilities and best classes."""
        probabilities = self.model(images, training=False)
        return {"probabilities": probabilities, **self.answer(probabilities)}

    def serve_bytes(self, image_bytes):
        """string (batch,) -> best classes."""
        pixels = tf.TensorSpec((self.size, self.size, 3), tf.uint8)
        crop = lambda data: preprocessing.evaluation_image(data, self.resize, self.size)  # noqa: E731
        images = tf.map_fn(crop, image_bytes, fn_output_signature=pixels)
        return self.answer(self.model(tf.cast(images, tf.float32), training=False))

    def probabilities(self, images):
        """float32 (batch, size, size, 3) -> probabilities alone, for TFLite."""
        return {"probabilities": self.model(images, training=False)}

    def images_spec(self, batch=None):
        """The TensorSpec of `images`."""
        return tf.TensorSpec((batch, self.size, self.size, 3), tf.float32, name="images")


def write_savedmodel(classifier, path):
    """Writes the SavedModel with both signatures to the folder `path`."""
    archive = keras.export.ExportArchive()  # without track(model), which would write every variable twice
    archive.add_endpoint("serving_default", classifier.serving_default, [classifier.images_spec()])
    image_bytes = tf.TensorSpec((None,), tf.string, name="image_bytes")
    archive.add_endpoint("serve_bytes", classifier.serve_bytes, [image_bytes])
    archive.write_out(str(path), verbose=False)
