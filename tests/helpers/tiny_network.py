"""A network that compiles in a second, for tests of the training programs: in this process as `--model=Tiny`, or

python tests/helpers/tiny_network.py ARGUMENTS     # training/train.py with that network
"""

import contextlib
import io
import pathlib
import sys

import keras

from na_keras.layers import get_attention
from na_keras.models import MODELS

ROOT = pathlib.Path(__file__).resolve().parents[2]
FLAGS = ("--model", "Tiny", "--size", 32, "--evaluation-resize", 32)


def tiny(input_shape, classes, classifier_activation, attention, synchronized_batch_norm, filters=8):
    """Whatever a resumed run could get wrong: batch norm, dropout, attention. Arguments as of any builder."""
    image = keras.Input(input_shape)
    x = keras.layers.Conv2D(filters, 3, 4, name="convolution")(keras.layers.Rescaling(1 / 255)(image))
    x = keras.layers.BatchNormalization(synchronized=synchronized_batch_norm)(x)
    if attention is not None:
        x = get_attention(attention, synchronized=synchronized_batch_norm)(name="attention")(x)
    x = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x)))
    predictions = keras.layers.Dense(classes, classifier_activation, dtype="float32", name="predictions")
    return keras.Model(image, predictions(x), name="tiny")


def train_here(directory, *arguments):
    """train.py in this process, for the time that a start of TensorFlow takes: (exit code or message, output)."""
    import train

    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(output):
        try:
            code = train.main([str(argument) for argument in ("--run-dir", directory, *arguments)])
        except SystemExit as error:
            code = error.code
    return code, output.getvalue()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "training"))
    import train

    MODELS["Tiny"] = tiny
    sys.exit(train.main(sys.argv[1:]))
