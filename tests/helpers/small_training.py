"""A small network and its training, for the tests that compare one way of training with another."""

import dataclasses
import functools

import keras
import numpy as np
import tensorflow as tf

import recipes
from engine import optimization
from engine import steps as compiled
from na_keras import NormalizationAttention
from na_keras.data import pipeline
from na_keras.data.digits import digits

DEMO = recipes.RECIPES["digits-demo"]
BATCH = 16
GO_ON = tf.constant(0.0)


def small_network(synchronized):
    """Shallow and smooth, so that rounding stays rounding: a deep network on 16 images amplifies it a million times,
    and a ReLU takes a whole black background over its kink at once.
    """
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(1 / 255)(image)
    for filters in (8, 16):
        x = keras.layers.Conv2D(filters, 3, 2, use_bias=False)(x)
        x = keras.layers.BatchNormalization(synchronized=synchronized)(x)
        x = keras.layers.Activation("silu")(NormalizationAttention()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(10)(x))


def weights_after(strategy, steps, steps_per_call, sync_bn=True, xla=False, **fields):
    """All variables of the network after `steps` steps, and the sums over their examples."""
    with strategy.scope():
        model = small_network(sync_bn)
        recipe = dataclasses.replace(DEMO, batch_size=BATCH, **fields)
        optimizer = optimization.make_optimizer(recipe, 0.1, model.trainable_variables)
    train = compiled.make_train_steps(strategy, model, optimizer, recipe, xla=xla)
    options = {"seed": 0, "epoch": 0, "first_step": 0, "size": 32, "flip": False, "area": (0.7, 1.0)}
    batches = functools.partial(pipeline.training_batches, digits("train"), batch_size=BATCH, **options)
    iterator = iter(strategy.distribute_datasets_from_function(lambda context: batches(context=context)))
    sums = tf.constant(compiled.NO_SUMS)
    for _ in range(steps // steps_per_call):
        result = train(iterator, tf.constant(steps_per_call), sums, GO_ON)
        sums = result["sums"]
        assert result["failed"] == -1
    return [np.array(variable) for variable in model.variables], sums.numpy()


def largest_difference(one, other):
    return max(np.abs(a - b).max() for a, b in zip(one, other, strict=True))
