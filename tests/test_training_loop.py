"""The loop's promises, in process: replicas equal one device, steps per call change nothing, the loss is exact."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import loop
import recipes
import strategies
from na_keras import NormalizationAttention, TorchSGD
from na_keras.data import pipeline
from na_keras.data.digits import digits

DEMO = recipes.RECIPES["digits-demo"]
BATCH = 16


@pytest.fixture(scope="module")
def two_replicas():
    return strategies.make_strategy("mirrored")  # conftest made two CPU devices


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
    return keras.Model(image, keras.layers.Dense(10, "softmax")(x))


def weights_after(strategy, steps, steps_per_call, sync_bn=True):
    """All variables of the network after `steps` steps, and the sums over their examples."""
    with strategy.scope():
        model = small_network(sync_bn)
        optimizer = TorchSGD(0.1, 0.9, l2=1e-4)
        optimizer.build(model.trainable_variables)
    train = loop.make_train_steps(strategy, model, optimizer, BATCH)
    batches = pipeline.training_batches(
        digits("train"), seed=0, epoch=0, first_step=0, batch_size=BATCH, size=32, flip=False, area=(0.7, 1.0)
    )
    iterator = iter(strategy.experimental_distribute_dataset(batches))
    sums = tf.constant(loop.NO_SUMS)
    for _ in range(steps // steps_per_call):
        sums = train(iterator, tf.constant(steps_per_call), sums)
    return [np.array(variable) for variable in model.variables], sums.numpy()


@pytest.fixture(scope="module")
def one_device():
    return weights_after(tf.distribute.get_strategy(), 20, 1)


def largest_difference(one, other):
    return max(np.abs(a - b).max() for a, b in zip(one, other, strict=True))


def test_two_replicas_equal_one_device(two_replicas, one_device):
    weights, sums = weights_after(two_replicas, 20, 1)
    # Summation order only: 1e-7 a step, growing through momentum. A gradient scaled per replica is off by 1e-2.
    assert largest_difference(weights, one_device[0]) < 1e-5
    np.testing.assert_allclose(sums, one_device[1], rtol=1e-5)
    assert sums[-1] == 20 * BATCH


def test_several_steps_per_call_change_nothing(one_device):
    weights, sums = weights_after(tf.distribute.get_strategy(), 20, 5)
    assert largest_difference(weights, one_device[0]) == 0
    np.testing.assert_array_equal(sums, one_device[1])


def test_plain_batch_norm_keeps_statistics_per_replica(two_replicas, one_device):
    """The default, as in the paper; if this agreed with one device, --sync-bn would be doing nothing."""
    weights, _ = weights_after(two_replicas, 20, 1, sync_bn=False)
    assert largest_difference(weights, one_device[0]) > 1e-3


def test_loss_comes_from_the_logits():
    """A probability that rounds to zero still has its gradient: 1e-7 clipping would stop at a loss of 16."""
    image = keras.Input((2,))
    layer = keras.layers.Dense(2, "softmax", use_bias=False, kernel_initializer="identity")
    model = keras.Model(image, layer(image))
    with tf.GradientTape() as tape:
        losses = loop.example_losses(tf.constant([1]), model(tf.constant([[100.0, 0.0]])))
    assert losses.numpy() == pytest.approx([100.0])
    assert np.abs(tape.gradient(losses, model.trainable_variables[0].value).numpy()).max() == pytest.approx(100.0)


def test_example_sums_count_top_1_and_top_5():
    probabilities = tf.constant([[0.3, 0.2, 0.2, 0.15, 0.1, 0.05]] * 4)
    labels, weights = tf.constant([0, 1, 5, 0], tf.int64), tf.constant([1.0, 1.0, 1.0, 0.0])
    sums = loop.example_sums(tf.constant([1.0, 2.0, 3.0, 9.0]), labels, probabilities, weights)
    np.testing.assert_allclose(sums, [6.0, 1.0, 2.0, 3.0])
    few = loop.example_sums(tf.ones(2), tf.constant([0, 1]), tf.constant([[0.6, 0.4]] * 2), tf.ones(2))
    np.testing.assert_allclose(few, [2.0, 1.0, 2.0, 2.0])


def test_schedule_warms_up_and_ends_at_zero():
    schedule = loop.make_schedule(dataclasses.replace(DEMO, epochs=10, warmup_epochs=2, learning_rate=0.5), 100)
    rates = [float(schedule(step)) for step in (0, 100, 200, 600, 1000)]
    np.testing.assert_allclose(rates, [0.0, 0.25, 0.5, 0.25, 0.0], atol=1e-6)
    no_warmup = loop.make_schedule(dataclasses.replace(DEMO, epochs=10, warmup_epochs=0, learning_rate=0.5), 100)
    assert float(no_warmup(0)) == 0.5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model": "ResNet51"}, "model must be one of .*'ResNet50'.*Received: 'ResNet51'"),
        ({"attention": "sesame"}, "attention must be one of .*'na'.*Received: 'sesame'"),
        ({"batch_size": 0}, "batch_size must be at least 1. Received: 0"),
        ({"epochs": -1}, "epochs must be at least 1. Received: -1"),
    ],
)
def test_bad_overrides_list_what_is_known(overrides, message):
    with pytest.raises(ValueError, match=message):
        recipes.get_recipe("digits-demo", **overrides)


def test_recipe_overrides():
    with pytest.raises(ValueError, match="recipe must be one of .*digits-demo.*Received: 'demo'"):
        recipes.get_recipe("demo")
    recipe = recipes.get_recipe("digits-demo", attention="none", epochs=3, batch_size=None)
    assert (recipe.attention, recipe.epochs, recipe.batch_size) == (None, 3, 64)
    # Another network does not take MobileNetV2's width multiplier.
    assert recipes.get_recipe("digits-demo", model="ResNet18").model_options == {}
    assert recipes.get_recipe("digits-demo", model="MobileNetV2").model_options == {"alpha": 0.35}


def test_strategies_check_their_arguments(two_replicas):
    with pytest.raises(ValueError, match="strategy must be one of .*mirrored.*Received: 'horovod'"):
        strategies.make_strategy("horovod")
    with pytest.raises(ValueError, match="with --strategy=mirrored. Received: 2 with strategy 'none'"):
        strategies.make_strategy("none", 2)
    assert two_replicas.num_replicas_in_sync == 2
    with pytest.raises(ValueError, match="divisible by the 2 replicas. Received: 33; the nearest that is: 32"):
        strategies.check_batch_size(33, two_replicas)
