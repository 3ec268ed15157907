"""The network as an ONNX file, in deploy form: raw pixels in, probabilities or logits out.

Keras converts through tf2onnx. It makes inputs of the file out of a Normalization layer's constants, because they are
tensors of TensorFlow and no variables; so that layer is replaced by Rescaling, which computes the same from plain
numbers.
"""

import warnings

import keras
import numpy as np

from na_keras.deploy import rewrite
from na_keras.deploy.not_a_number import checked
from na_keras.deploy.outputs import check_answer
from na_keras.files import replace_file
from na_keras.graph.calls import sublayers
from na_keras.graph.copying import copy_layer

INPUT = "images"


def as_rescaling(layer):
    """The Rescaling layer that computes what a Normalization layer does, adapted or not, inverse or not.

    Raises:
        ValueError: a Normalization over another axis than the last.
    """
    if layer.axis not in ((), (-1,), (3,)):
        raise ValueError(
            f"Expected a Normalization over the last axis. Received: axis={layer.axis} in {layer.name!r}. Put a "
            "Normalization over the channels, or a Rescaling layer, in its place; or leave out ONNX."
        )
    mean, deviation = np.asarray(layer.mean), np.sqrt(np.asarray(layer.variance))
    deviation = np.maximum(deviation, keras.config.epsilon())
    scale, offset = (deviation, mean) if layer.invert else (1 / deviation, -mean / deviation)
    plain = [value.ravel().tolist() if layer.axis else float(np.squeeze(value)) for value in (scale, offset)]
    return keras.layers.Rescaling(*plain, dtype=layer.dtype_policy, name=layer.name)


def without_captured_tensors(layer):
    """A copy of a layer for another graph; of Normalization, the Rescaling that computes the same.

    Raises:
        ValueError: a Normalization over another axis than the last, or one inside another layer.
    """
    if isinstance(layer, keras.layers.Normalization):
        return as_rescaling(layer)
    if isinstance(layer, keras.layers.Layer):
        for inner in sublayers(layer):
            if isinstance(inner, keras.layers.Normalization):
                raise ValueError(
                    f"{layer.name!r}, a {type(layer).__name__}, has the Normalization {inner.name!r} in it, whose "
                    "constants an ONNX file cannot hold. Use the Normalization in the model itself, before that layer, "
                    "or Rescaling in it; or leave out ONNX."
                )
    return copy_layer(layer)


def write_onnx(model, path):
    """Writes a classifier as an ONNX file with one input, `images`, and one output, its answer.

    An image with a NaN or an infinity among its pixels has NaN scores.

    Args:
        model: functional Keras model from float32 images (batch, height, width, channels), pixels 0..255, which it
            normalises itself, to probabilities (batch, classes), or to {"logits": ...}. It is written in deploy form;
            give the trained network, not a deploy copy.
        path: the file; one that is there is replaced when the new one is whole.

    Raises:
        ImportError: tf2onnx is not installed.
        ValueError: the model has no graph to rewrite (see deploy_copy), or a Normalization over another axis than the
            last.
    """
    try:
        import tf2onnx  # noqa: F401 - Keras imports it, later and with a message that names no extra
    except ImportError as error:
        raise ImportError(
            "ONNX files need tf2onnx. Run: pip install 'na-keras[onnx]', in a checkout pip install -e '.[onnx]'. "
            f"({error})"
        ) from error
    if not rewrite.is_deploy_copy(model):
        check_answer(model, alone=True)
    network, _ = rewrite.rewritten(model, "tensorflow", without_captured_tensors)
    network = checked(network)
    signature = [keras.InputSpec(shape=(None, *model.input_shape[1:]), dtype="float32", name=INPUT)]

    def write(temporary):
        with warnings.catch_warnings():  # Keras' own patch of tf2onnx looks for this old name
            warnings.filterwarnings("ignore", "In the future `np.object`", FutureWarning)
            network.export(str(temporary), format="onnx", verbose=False, input_signature=signature)

    replace_file(path, write)
