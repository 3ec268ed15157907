"""The TFLite files: one image at a time, raw pixels in and probabilities out, builtin operations only.

    kind              weights   activations   input and output   for
    float32           float32   float32       float32            CPUs; equal to the Keras model
    float16           float16   float32       float32            half the size; GPUs
    dynamic           int8      float32       float32            a quarter of the size, no sample images needed
    int8              int8      int8          uint8              integer-only accelerators; NA in integer-safe form
    int8_float_gate   int8      int8          uint8              CPUs: as int8, NA's gates in float (float_gates.py)
    int16x8           int8      int16         float32            truer than int8; runs on reference kernels, slowly

The plain form of NA converts to int8 too, and then fails at run time, depending on the image, or loses the attention
without a word: attention_forms.py says why. Hence the integer-safe form in the last three.
"""

import pathlib
import tempfile
from typing import NamedTuple

import keras
import tensorflow as tf

from na_keras.deploy.tflite import float_gates, graph

INT8_OPERATIONS = tf.lite.OpsSet.TFLITE_BUILTINS_INT8
INT16_OPERATIONS = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8


class Kind(NamedTuple):
    """How a kind of file is converted.

    Attributes:
        operations: the set that the file is limited to.
        optimize: whether weights are made smaller.
        weights: their type, where that is not the converter's choice.
        quantized: whether activations are integers: then representative images are needed.
        pixels: type of input and output, where that is not float32.
    """

    operations: tf.lite.OpsSet = tf.lite.OpsSet.TFLITE_BUILTINS
    optimize: bool = True
    weights: tf.DType | None = None
    quantized: bool = False
    pixels: tf.DType | None = None

    @property
    def has_metadata(self):
        """Whether MediaPipe takes such a file, so that it carries metadata."""
        return self.operations is not INT16_OPERATIONS

    @property
    def form(self):
        """Of NA in the network to convert, see attention_forms.FORMS."""
        return "integer_safe" if self.quantized else "tflite"


INT8 = Kind(INT8_OPERATIONS, quantized=True, pixels=tf.uint8)
KINDS = {
    "float32": Kind(optimize=False),
    "float16": Kind(weights=tf.float16),
    "dynamic": Kind(),
    "int8": INT8,
    "int8_float_gate": INT8,
    "int16x8": Kind(INT16_OPERATIONS, quantized=True),
}


def convert(classifier, kind="float32", representative=None):
    """The network as a TFLite flatbuffer (bytes): `images` (1, size, size, 3) -> `probabilities` (1, classes).

    Args:
        classifier: savedmodel.Classifier of a deploy copy in the form that the kind asks for (Kind.form).
        kind: a key of KINDS.
        representative: for quantized kinds, a function without arguments that yields [images], float32
            (1, size, size, 3) in 0..255, as the network will see them; their ranges become the integers' scales.

    Raises:
        ValueError: representative images are missing; the network needs an operation that is not builtin, or, for
            int8, one without an integer form (named).
    """
    settings = KINDS[kind]
    if settings.quantized and representative is None:
        raise ValueError(f"The kind {kind} needs representative images. Received: representative=None")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "saved"
        archive = keras.export.ExportArchive()
        archive.add_endpoint("serving_default", classifier.probabilities, [classifier.images_spec(batch=1)])
        archive.write_out(str(path), verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(path), signature_keys=["serving_default"])
        converter.target_spec.supported_ops = [settings.operations]
        if settings.optimize:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if settings.weights is not None:
            converter.target_spec.supported_types = [settings.weights]
        if settings.quantized:
            converter.representative_dataset = representative
        if settings.pixels is not None:
            converter.inference_input_type = converter.inference_output_type = settings.pixels
        flatbuffer = converter.convert()
    graph.check_builtins_only(flatbuffer)
    if kind in ("int8", "int8_float_gate"):
        graph.check_integer_only(flatbuffer)
    return float_gates.with_float_gates(flatbuffer) if kind == "int8_float_gate" else flatbuffer
