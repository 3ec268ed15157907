"""A trained classifier's file with a model inside the model, for runs that freeze parts of it."""

import keras
import numpy as np
from keras import layers


def trained_file(path, classes=7):
    """Rescaling, a nested trunk of two convolutions and batch norms with a residual branch, a classifier "head"."""
    keras.utils.set_random_seed(3)
    image = keras.Input((32, 32, 3))
    x = shortcut = layers.BatchNormalization(name="stem_bn")(layers.Conv2D(8, 3, 4, use_bias=False, name="stem")(image))
    # Without biases: a batch norm takes them away, and what is left of their gradient is rounding.
    x = layers.BatchNormalization(name="branch_bn")(
        layers.Conv2D(8, 3, padding="same", use_bias=False, name="branch")(x)
    )
    trunk = keras.Model(image, layers.GlobalAveragePooling2D()(layers.Add()([shortcut, x])), name="trunk")
    rng = np.random.default_rng(0)
    for name in ("stem_bn", "branch_bn"):
        layer = trunk.get_layer(name)
        layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.weights])
    outer = keras.Input((32, 32, 3), name="images")
    x = layers.Dropout(0.2)(trunk(layers.Rescaling(1 / 255)(outer)))
    keras.Model(outer, layers.Dense(classes, "softmax", name="head")(x)).save(path)
    return path
