"""The network as an ONNX file, for ONNX Runtime and what else reads the format: raw pixels in, probabilities out.

Keras converts through tf2onnx. It makes inputs of the file out of a Normalization layer's constants, because they are
tensors of TensorFlow and no variables; so that layer is replaced by Rescaling, which computes the same from plain
numbers.
"""

import keras
import numpy as np

INPUT = "images"


def without_captured_tensors(layer):
    """A copy of the layer; of Normalization, the Rescaling that computes the same."""
    if not isinstance(layer, keras.layers.Normalization):
        return type(layer).from_config(layer.get_config())
    scale = 1 / np.maximum(np.sqrt(np.asarray(layer.variance)), keras.config.epsilon()).ravel()
    offset = -np.asarray(layer.mean).ravel() * scale
    return keras.layers.Rescaling(scale.tolist(), offset.tolist(), dtype=layer.dtype_policy, name=layer.name)


def write_onnx(model, path):
    """Writes a functional Keras model from `images` (batch, size, size, 3) to probabilities as an ONNX file.

    Raises:
        ImportError: tf2onnx is not installed.
        ValueError: a Normalization layer over another axis than the last.
    """
    import tf2onnx  # noqa: F401 - Keras imports it, later and with a message that names no extra

    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.axis not in ((-1,), (3,)):
            raise ValueError(f"Expected a Normalization over the last axis. Received: axis={layer.axis}")
    copy = keras.models.clone_model(model, clone_function=without_captured_tensors)
    for old, new in zip(model.layers, copy.layers, strict=True):
        if new.weights:
            new.set_weights(old.get_weights())
    signature = [keras.InputSpec(shape=(None, *model.input_shape[1:]), dtype="float32", name=INPUT)]
    copy.export(str(path), format="onnx", verbose=False, input_signature=signature)
