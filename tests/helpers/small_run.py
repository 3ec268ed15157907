"""A run directory with a small trained-like network, and pictures for it: what the export programs begin with."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import export_model
from na_keras import NormalizationAttention

LABELS = ["zero", "one", "two", "three", "four", "five", "six"]
INT8_LIMITS = (0.6, 0.8)  # of verification: largest relative difference, smallest correlation


def small_network(size, activation="softmax", include_top=True, similarity="channel_mean"):
    """Convolution, batch norm and NA twice, and a classifier: all kinds of layers that the networks have."""
    image = keras.Input((size, size, 3), name="images")
    x = keras.layers.Normalization(-1, (124, 116, 104), (3400, 3300, 3300), dtype="float32")(image)
    for filters in (8, 16):
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Conv2D(filters, 3, 2)(x)))
        x = NormalizationAttention(similarity)(x)
    if include_top:
        x = keras.layers.GlobalAveragePooling2D()(x)
        x = keras.layers.Dense(len(LABELS), activation, dtype="float32", name="predictions")(x)
    return keras.Model(image, x, name="small")


def make_run(folder, size=48, resize=56, policy="float32", build=small_network, **options):
    """A run directory with a network in which every weight matters and no answer is certain."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        model = build(size, **options)
    finally:
        keras.config.set_dtype_policy("float32")
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, NormalizationAttention):
            layer.set_weights([rng.normal(0, 1, (1,)), rng.normal(0, 1, (1,))])
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # one pass sets the statistics, so that activations keep their scale at any depth
        if layer.name == "predictions":
            layer.kernel.assign(rng.normal(0, 3 * layer.kernel.shape[0] ** -0.5, layer.kernel.shape))
    coarse = tf.image.resize(rng.uniform(0, 255, (8, 5, 5, 3)), (size, size), "bicubic")
    model(tf.clip_by_value(coarse, 0, 255), training=True)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9
    folder.mkdir()
    model.save(folder / "model.keras")
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    (folder / "recipe.json").write_text(json.dumps({"size": size, "evaluation_resize": resize, "dataset": "digits"}))
    return folder / "model.keras"


def picture(shape=(60, 90), seed=0):
    coarse = np.random.default_rng(seed).uniform(0, 255, (1, 5, 5, 3))
    return tf.cast(tf.clip_by_value(tf.image.resize(coarse, shape, "bicubic")[0], 0, 255), tf.uint8)


def refuse(model, output, *arguments):
    with pytest.raises(SystemExit) as error:
        export_model.main(["--model", str(model), "--output", str(output), *map(str, arguments)])
    return str(error.value.code)
