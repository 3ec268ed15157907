"""The kinds of TFLite files: everything that belongs to a kind stands here, once.

    kind              weights   activations   input and output   for
    float32           float32   float32       float32            CPUs; equal to the Keras model
    float16           float16   float32       float32            half the size; GPUs
    dynamic           int8      float32       float32            a quarter of the size, no sample images needed
    int8              int8      int8          uint8              integer-only accelerators; NA in integer-safe form
    int8_float_gate   int8      int8          uint8              CPUs: as int8, NA's gates in float (float_gates.py)
    int16x8           int8      int16         float32            truer than int8; runs on reference kernels, slowly

A new kind is a row of TFLITE_KINDS; programs, their help, conversion, verification and the benchmark follow it. Only
what the fields cannot say is written elsewhere, in conversion.py; and tests/deploy/test_tflite.py wants to know how
near to the Keras model it comes.

The plain form of NA converts to int8 too, and then fails at run time, depending on the image, or loses the attention
without a word: attention_forms.py says why. Hence the integer-safe form of the quantized kinds.

Standard library only, and no import of the package: the programs in export/ read this file for their flags before they
import anything slow.
"""

import dataclasses

INT16_OPERATIONS = "EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8"


@dataclasses.dataclass(frozen=True)
class Limits:
    """How far a file of reduced precision may be from the Keras model before it counts as broken.

    What is refused is a file that is broken, not one that is less accurate; how it agrees is recorded, for the person
    who publishes it to judge. Random weights are the hardest case: MobileNetV2 at 224 x 224, width 0.35, gave
    (.04, .999) for float16, (.08, .997) dynamic, (.31, .93) int16x8 and (.45, .87) int8.

    Attributes:
        largest_difference: of any probability, relative to the largest probability of the Keras model.
        smallest_correlation: of all probabilities with the Keras model's.
    """

    largest_difference: float
    smallest_correlation: float


HALF_PRECISION, EIGHT_BITS = Limits(0.1, 0.99), Limits(0.6, 0.8)


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a kind of file is converted, and what may be asked of it.

    Attributes:
        description: one line, for help and documentation.
        limits: Limits, or None: the file computes in float32 and must equal the Keras model.
        operations: name of the member of tf.lite.OpsSet that the file is limited to.
        optimize: whether weights are made smaller.
        weights: dtype of the weights, or None: the converter's choice.
        quantized: whether activations are integers. Then representative images are needed.
        pixels: dtype of input and output.
        float_gates_of: for a kind that keeps NA's gates in float, the kind that it is otherwise; None for all others.
    """

    description: str
    limits: Limits | None = None
    operations: str = "TFLITE_BUILTINS"
    optimize: bool = True
    weights: str | None = None
    quantized: bool = False
    pixels: str = "float32"
    float_gates_of: str | None = None

    @property
    def has_metadata(self):
        """Whether MediaPipe takes such a file, so that it can carry class names and a description."""
        return self.operations != INT16_OPERATIONS

    @property
    def form(self):
        """Form of NA in the network to convert, a key of attention_forms.FORMS."""
        return "integer_safe" if self.quantized else "tflite"


INT8 = Kind(
    "int8 weights and activations, uint8 input and output; for integer-only accelerators",
    EIGHT_BITS,
    "TFLITE_BUILTINS_INT8",
    quantized=True,
    pixels="uint8",
)
TFLITE_KINDS = {
    "float32": Kind("equal to the Keras model; for CPUs", optimize=False),
    "float16": Kind("float16 weights, half the size; for GPUs", HALF_PRECISION, weights="float16"),
    "dynamic": Kind("int8 weights, a quarter of the size; needs no sample images", EIGHT_BITS),
    "int8": INT8,
    "int8_float_gate": dataclasses.replace(
        INT8, description="as int8, with NA's gates in float: faster on CPUs, and truer", float_gates_of="int8"
    ),
    "int16x8": Kind(
        "int8 weights, int16 activations: truer than int8, on slow reference kernels",
        EIGHT_BITS,
        INT16_OPERATIONS,
        quantized=True,
    ),
}


def checked_kind(kind):
    """The Kind of a name.

    Raises:
        ValueError: there is no such kind; the message lists those that there are.
    """
    if kind not in TFLITE_KINDS:
        raise ValueError(f"Expected a kind of TFLite file: {', '.join(TFLITE_KINDS)}. Received: {kind!r}")
    return TFLITE_KINDS[kind]
