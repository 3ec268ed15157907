"""Small networks with weights that are all different, and whether two have the same ones."""

import functools

import keras
import numpy as np

from na_keras import MobileNetV2, load_torch_weights

SMALL = {"input_shape": (32, 32, 3), "classes": 4}
thin = functools.partial(MobileNetV2, alpha=0.35, **SMALL)


def randomize(model, seed=0):
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(rng.uniform(0.1, 1, weight.shape))
    return model


def assert_same_weights(model, other):
    assert len(model.weights) == len(other.weights)
    for ours, theirs in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs), ours.path)


def assert_restores(model, given):
    """Whether a state dict or file gives the model back the weights that it has now."""
    before = model.get_weights()
    load_torch_weights(randomize(model, seed=1), given)
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight), old, weight.path)
