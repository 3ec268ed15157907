"""Networks for benchmark.py whose every operation has to be computed.

Weights are random, as they are in speed. But nothing may be zero, constant or denormal, which some runtimes compute
faster or fold away: batch norm gets random scales and offsets and statistics from a pass over images, NA random gammas.
"""

import numpy as np

CALIBRATION = 8  # images, for batch norm's statistics and for the ranges of quantized files


def synthetic_images(count, size):
    """float32 (count, size, size, 3), 0..255: blurred colours with noise; the same ones every time."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (count, 6, 6, 3))
    images = tf.image.resize(coarse, (size, size), "bicubic").numpy() + rng.normal(0, 12, (count, size, size, 3))
    return np.clip(images, 0, 255).astype(np.float32)


def make_network(name, attention, size):
    """One of na_keras' networks with 1000 classes, in a state like a trained one's; the same one every time.

    Args:
        name: a name in na_keras.models.MODELS, in any case.
        attention: a name in na_keras.layers.ATTENTION, or "none".
        size: of the images.
    """
    import keras

    from na_keras.layers import NormalizationAttention
    from na_keras.models import MODELS

    builder = {key.lower(): builder for key, builder in MODELS.items()}[name.lower()]
    keras.utils.set_random_seed(0)
    network = builder(input_shape=(size, size, 3), attention=None if attention == "none" else attention)
    rng = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(rng.normal(0, 0.1, layer.beta.shape))
            layer.momentum = 0.0  # the pass below sets the statistics
        if isinstance(layer, NormalizationAttention):
            layer.gamma.assign(rng.normal(0, 0.5, layer.gamma.shape))
            layer.beta.assign(rng.normal(1, 0.2, layer.beta.shape))
    network(synthetic_images(CALIBRATION, size), training=True)
    return network
