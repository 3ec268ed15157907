"""Networks for benchmark.py whose every operation has to be computed.

Weights are random, as they are in speed. But nothing may be zero, constant or denormal, which some runtimes compute
faster or fold away: batch norm gets random scales and offsets and statistics from a pass over images, NA random gammas.
"""

import numpy as np

CALIBRATION = 8  # images, for batch norm's statistics and for the ranges of quantized files


def synthetic_images(count, size):
    """float32 (count, height, width, channels), 0..255: blurred colours with noise; the same ones every time.

    Args:
        count: how many.
        size: pixels of the sides of RGB images, or (height, width, channels).
    """
    import tensorflow as tf

    height, width, channels = (size, size, 3) if isinstance(size, int) else size
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (count, 6, 6, channels))
    images = tf.image.resize(coarse, (height, width), "bicubic").numpy()
    images += rng.normal(0, 12, (count, height, width, channels))
    return np.clip(images, 0, 255).astype(np.float32)


def given_network(path, attention, size, pixels):
    """The classifier of a file, as it is, with fresh modules if there is `attention`."""
    from na_keras import insert_attention
    from na_keras.networks import open_classifier

    network = open_classifier(path, pixels, size)
    return network if attention is None else insert_attention(network, attention)


def make_network(name, attention, size, pixels=None):
    """A network in a state like a trained one's; the same one every time.

    Args:
        name: as in na_keras.networks.network_name: ours and those of keras.applications get 1000 classes and random
            weights, a file keeps its own.
        attention: a name in na_keras.layers.ATTENTION, or "none".
        size: pixels of the images' sides, where a file leaves them open.
        pixels: what they mean to a file that does not show it.
    """
    import keras

    from na_keras.layers import NormalizationAttention
    from na_keras.networks import Network, build, network_name

    attention = None if attention == "none" else attention
    keras.utils.set_random_seed(0)
    named = network_name(name)
    if named.kind == "file":
        return given_network(named.path, attention, size, pixels)
    network = build(Network(name, attention), size=size, classes=1000, activation="softmax")
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
