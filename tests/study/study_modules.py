"""For `--import study_modules`: the tiny network as `--model Tiny`, in whatever process imports this; and a module of
somebody's own that fails when it is put into a network.
"""

import keras
from tiny_network import tiny

from na_keras.models import MODELS

MODELS["Tiny"] = tiny


class Broken(keras.layers.Layer):
    def build(self, input_shape):
        raise RuntimeError("this module is broken on purpose")
