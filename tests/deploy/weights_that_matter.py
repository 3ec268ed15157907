"""Images, and a network in a state like a trained one's: no weight is at a value that hides its absence."""

import numpy as np
import tensorflow as tf
from keras import layers

from na_keras import NormalizationAttention


def photographs(count, size, seed=0):
    """Smooth random images with noise, float32 (count, size, size, 3) in 0..255."""
    rng = np.random.default_rng(seed)
    coarse = tf.image.resize(rng.uniform(0, 255, (count, 6, 6, 3)), (size, size), "bicubic")
    return np.clip(coarse + rng.normal(0, 12, coarse.shape), 0, 255).astype("float32")


def make_every_weight_matter(model, images):
    """Random gammas, betas and batch norm parameters, and the statistics of these images."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, NormalizationAttention):
            layer.gamma.assign(rng.normal(0, 1, (1,)))
            layer.beta.assign(rng.normal(0, 1, (1,)))
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0
            for weight in (layer.gamma, layer.beta):
                if weight is not None:
                    weight.assign(weight + rng.normal(0, 0.2, weight.shape))
    model(images, training=True)
    return model
