"""A small network as TFLite files of every kind, converted by TensorFlow alone: material for the readers of files."""

import functools
import tempfile

import keras
import numpy as np
import tensorflow as tf

SIZE, CLASSES = 16, 3


def representative(shape=(1, SIZE, SIZE, 3)):
    """Images 0..255, structured and noisy."""
    rng = np.random.default_rng(0)
    for _ in range(8):
        coarse = tf.image.resize(rng.uniform(0, 255, (1, 4, 4, shape[-1])), shape[1:3], "bilinear").numpy()
        yield [np.clip(coarse + rng.normal(0, 40, shape), 0, 255).astype("float32")]


def small_network(negative):
    """Convolution, a gate (with a negation, which has no int8 form, or without), and a classifier."""
    keras.utils.set_random_seed(0)
    image = keras.Input((SIZE, SIZE, 3), name="images")
    scaled = keras.initializers.RandomNormal(stddev=0.01)  # for pixels 0..255
    x = keras.layers.Conv2D(4, 3, activation="relu", kernel_initializer=scaled, name="convolution")(image)
    centred = keras.layers.Lambda(
        lambda x: keras.ops.mean(x, -1, keepdims=True) - keras.ops.mean(x, keepdims=True), name="centred"
    )(x)
    if negative:
        centred = keras.layers.Lambda(lambda x: keras.ops.negative(keras.ops.abs(x)), name="negative")(centred)
    gate = keras.layers.Activation("sigmoid", name="gate")(centred)
    x = keras.layers.GlobalAveragePooling2D(name="pooled")(keras.layers.Multiply(name="gated")([x, gate]))
    return keras.Model(image, keras.layers.Dense(CLASSES, "softmax", name="probabilities")(x), name="small")


def convert(network, kind, io):
    images = tf.TensorSpec((1, *network.input_shape[1:]), tf.float32, name="images")
    archive = keras.export.ExportArchive()
    archive.add_endpoint("serving_default", lambda images: {"probabilities": network(images)}, [images])
    with tempfile.TemporaryDirectory() as folder:
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["serving_default"])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if kind != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if kind == "int8":
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: representative(tuple(images.shape))
            converter.inference_input_type = converter.inference_output_type = io
        return converter.convert()


@functools.cache
def converted(kind, negative=True, io=tf.uint8, network=None):
    """A TFLite file (bytes) of the small network, or of another: float32, float16, dynamic, int8."""
    return convert(network or small_network(negative), kind, io)
