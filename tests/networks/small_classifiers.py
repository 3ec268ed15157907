"""Small classifiers that are not of this library, with a residual block, as somebody's files hold them."""

import keras
import numpy as np
from keras import layers

SIZE, FILTERS = 32, 16


def residual_trunk(x):
    """Convolution, batch norm, and a residual branch that ends in a batch norm named "branch_bn"."""
    x = shortcut = layers.ReLU()(layers.BatchNormalization(name="stem_bn")(layers.Conv2D(FILTERS, 3, 4)(x)))
    x = layers.BatchNormalization(name="branch_bn")(layers.Conv2D(FILTERS, 3, padding="same")(x))
    return layers.GlobalAveragePooling2D()(layers.Add()([shortcut, x]))


def small_classifier(first=(), classes=10, last=("softmax",), size=SIZE):
    """`first`: layers on the image. `last`: activation of the Dense layer, then further layers."""
    x = image = keras.Input((size, size, 3))
    for layer in first:
        x = layer(x)
    x = layers.Dense(classes, last[0], name="head")(residual_trunk(x))
    for layer in last[1:]:
        x = layer(x)
    return with_statistics(keras.Model(image, x, name="small"))


def with_statistics(model):
    """The same model, its batch norms with statistics as if it had been trained, its scales not 1."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.weights])
    return model


def pictures(count=2, size=SIZE):
    """uint8 (count, size, size, 3)."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype("uint8")
