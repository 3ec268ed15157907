"""The detectors in TensorFlow Model Garden (the PyPI package tf-models-official), which brings what a detector needs
around its network: anchors, sampling, losses, suppression, evaluation and a training loop.

Model Garden is built on tf_keras, Keras 2. The networks here are the library's own, na_keras/detection and
na_keras/models, made of tf_keras' layers, and attention is the library's functions in layers of tf_keras. Importing
this needs the extra `detection`, which brings TensorFlow 2.20, and Keras on the TensorFlow backend.
"""

import importlib.util

import keras

NEEDED = ("official", "tf_keras")


def check_environment():
    """Raises ImportError if Model Garden is not installed or Keras runs on another backend; says what to do."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"Detection needs TensorFlow Model Garden; {' and '.join(missing)} not found. In an environment of its "
            "own, because it holds TensorFlow at 2.20: pip install 'na-keras[detection]'"
        )
    if keras.backend.backend() != "tensorflow":
        raise ImportError(
            "Detection runs Keras' functions inside tf_keras, which needs KERAS_BACKEND=tensorflow. "
            f"Received: {keras.backend.backend()}"
        )


check_environment()
