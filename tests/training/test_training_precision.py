"""Half precision, moving averages, batch-norm statistics and the weights of examples, on one device and on replicas."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_training import BATCH, DEMO, GO_ON, largest_difference, small_network
from tiny_network import tiny

from engine import optimization, strategies
from engine import steps as compiled
from engine.training_state import TrainingState
from na_keras import NormalizationAttention
from na_keras.data import pipeline
from na_keras.data.digits import digits
from na_keras.models import MODELS
from run_files import checkpoints


@tf.custom_gradient
def overflowing(x, where):
    """x, whose gradient becomes infinite where `where` is not 0."""
    return x, lambda gradient: (gradient * tf.where(where > 0, float("inf"), 1.0), None)


class Overflowing(keras.layers.Layer):
    """Passes its input; the gradient overflows on the last replica only, while `active` is 1."""

    def __init__(self):
        super().__init__(dtype="float32")
        self.active = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        context = tf.distribute.get_replica_context()
        if context is None:  # Keras asks for the output's shape
            return x
        last = context.replica_id_in_sync_group == context.num_replicas_in_sync - 1
        return overflowing(x, tf.where(last, self.active.value, 0.0))


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_an_overflow_on_the_last_replica_changes_nothing_on_any(two_replicas, precision):
    keras.config.set_dtype_policy(precision)
    try:
        with two_replicas.scope():
            image = keras.Input((32, 32, 3))
            x = keras.layers.Conv2D(8, 3, 2)(keras.layers.Rescaling(1 / 255)(image))
            poison = Overflowing()
            x = poison(keras.layers.GlobalAveragePooling2D(dtype="float32")(NormalizationAttention()(x)))
            model = keras.Model(image, keras.layers.Dense(10, dtype="float32")(x))
            recipe = dataclasses.replace(DEMO, batch_size=BATCH)
            optimizer = optimization.make_optimizer(recipe, 0.1, model.trainable_variables)
            scale = optimization.LossScale()
    finally:
        keras.config.set_dtype_policy("float32")
    train = compiled.make_train_steps(two_replicas, model, optimizer, recipe, loss_scale=scale)
    images = tf.random.stateless_uniform((BATCH, 32, 32, 3), (1, 2), 0, 255)
    batch = images, tf.range(BATCH, dtype=tf.int64) % 10, tf.ones(BATCH)
    iterator = iter(two_replicas.experimental_distribute_dataset(tf.data.Dataset.from_tensors(batch).repeat()))

    def state():
        variables = [*model.trainable_variables, *optimizer.variables[2:]]  # without iterations and learning rate
        copies = [two_replicas.experimental_local_results(variable.value) for variable in variables]
        return [np.array(copy) for pair in copies for copy in pair]

    def step():
        return train(iterator, tf.constant(1), compiled.NO_SUMS, GO_ON)

    assert step()["failed"] == -1
    before = state()
    poison.active.assign(1.0)
    assert step()["failed"] == -1
    assert largest_difference(before, state()) == 0
    assert (float(scale.value.numpy()), int(scale.overflows.numpy()), int(optimizer.iterations.numpy())) == (
        2.0**14,
        1,
        2,
    )
    poison.active.assign(0.0)
    assert step()["failed"] == -1
    assert largest_difference(before, state()) > 0
    assert all(np.isfinite(value).all() for value in state())
    # Once the smallest scale overflows too, it is no overflow of the scale's making.
    poison.active.assign(1.0)
    scale.value.assign(1.0)
    assert step()["failed"] == 0


def test_the_scale_of_the_loss_cancels_out(two_replicas, one_device):
    """In float32 a power of two changes no bit, so scaled and plain training must agree."""
    with two_replicas.scope():
        model = small_network(True)
        optimizer = optimization.make_optimizer(DEMO, 0.1, model.trainable_variables)
        scale = optimization.LossScale()
    recipe = dataclasses.replace(DEMO, batch_size=BATCH)
    train = compiled.make_train_steps(two_replicas, model, optimizer, recipe, loss_scale=scale)
    options = {"seed": 0, "epoch": 0, "first_step": 0, "size": 32, "flip": False, "area": (0.7, 1.0)}
    batches = pipeline.training_batches(digits("train"), batch_size=BATCH, **options)
    iterator = iter(two_replicas.experimental_distribute_dataset(batches))
    train(iterator, tf.constant(20), compiled.NO_SUMS, GO_ON)
    assert largest_difference([np.array(v) for v in model.variables], one_device[0]) < 1e-5
    assert int(scale.finite_steps.numpy()) == 20


def test_loss_scale_doubles_after_enough_finite_steps(monkeypatch):
    monkeypatch.setattr(optimization.LossScale, "PATIENCE", 3)
    scale = optimization.LossScale()
    for finite in (True, True, False, True, True, True):
        assert scale.update(tf.constant(finite))
    assert (float(scale.value), int(scale.finite_steps), int(scale.overflows)) == (2.0**15, 0, 1)
    for _ in range(15):
        assert scale.update(tf.constant(False))
    assert float(scale.value) == 1.0 and not scale.update(tf.constant(False)) and float(scale.value) == 1.0


def test_moving_average_of_the_weights(two_replicas):
    """Equal to the formula on the weights of each step, on every replica; integers are left alone."""
    with two_replicas.scope():
        average, variable = (tf.Variable(tf.zeros(3), aggregation=tf.VariableAggregation.MEAN) for _ in range(2))
        seeds, other_seeds = tf.Variable(7), tf.Variable(8)
    expected = np.zeros(3)
    for step in range(1, 40):
        variable.assign(np.array([1.0, step, -step]))
        pairs = [average, seeds], [variable, other_seeds]
        optimization.update_averages(two_replicas, *pairs, tf.constant(step), 0.9)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * np.array([1.0, step, -step])
    for copy in two_replicas.experimental_local_results(average):
        np.testing.assert_allclose(copy, expected, rtol=1e-5)
    assert int(seeds.numpy()) == 7


def test_statistics_of_the_first_replica_are_the_networks(two_replicas):
    """Evaluation must see the same after a resume, and only the first replica's are in a checkpoint."""
    with two_replicas.scope():
        statistics = keras.Variable(np.zeros(2, "float32"), trainable=False)
        seeds = keras.Variable(np.zeros(2, "uint32"), trainable=False, dtype="uint32")

    @tf.function
    def differ():
        def assign():
            index = tf.distribute.get_replica_context().replica_id_in_sync_group
            statistics.value.assign(tf.fill([2], tf.cast(index, tf.float32) * 2 - 1.5))

        two_replicas.run(assign)

    differ()
    copies = [copy.numpy().tolist() for copy in two_replicas.experimental_local_results(statistics.value)]
    assert copies == [[-1.5, -1.5], [0.5, 0.5]]
    strategies.copy_from_first(two_replicas, [statistics, seeds])
    copies = [copy.numpy().tolist() for copy in two_replicas.experimental_local_results(statistics.value)]
    assert copies == [[-1.5, -1.5], [-1.5, -1.5]]


def test_a_checkpoint_holds_the_average_and_the_scale(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "Tiny", tiny)
    recipe = dataclasses.replace(DEMO, ema_decay=0.9, model="Tiny", model_options={}, size=32)
    state = TrainingState(recipe, tf.distribute.get_strategy(), 10, 22, "float16")
    state.averaged.trainable_variables[0].assign_add(np.ones(state.averaged.trainable_variables[0].shape))
    state.loss_scale.value.assign(8.0)
    checkpoints.save(state.checkpoint, tmp_path, 3)
    again = TrainingState(dataclasses.replace(recipe, seed=5), tf.distribute.get_strategy(), 10, 22, "float16")
    checkpoints.restore(again.checkpoint, tmp_path)
    assert float(again.loss_scale.value) == 8.0
    for one, other in zip(again.averaged.variables, state.averaged.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (np.array(again.model.trainable_variables[0]) != np.array(again.averaged.trainable_variables[0])).all()


def test_binary_cross_entropy_asks_about_each_class():
    logits, targets = np.array([[2.0, -1.0, 0.5]]), np.array([[1.0, 1.0, 0.0]])
    (loss,) = compiled.example_losses(
        tf.constant(targets, tf.float32), tf.constant(logits, tf.float32), "binary_cross_entropy"
    ).numpy()
    probabilities = 1 / (1 + np.exp(-logits))
    expected = -np.mean(targets * np.log(probabilities) + (1 - targets) * np.log(1 - probabilities))
    assert loss == pytest.approx(expected, rel=1e-5)


def test_an_example_of_weight_0_moves_nothing():
    def gradient_of(weights, images):
        model = small_network(False)
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False  # or the left-out image would be part of the statistics
        optimizer = optimization.make_optimizer(DEMO, 0.1, model.trainable_variables)
        recipe = dataclasses.replace(DEMO, batch_size=4)
        train = compiled.make_train_steps(tf.distribute.get_strategy(), model, optimizer, recipe)
        batch = images, tf.constant([1, 2, 3, 4], tf.int64), tf.constant(weights)
        sums = train(iter(tf.data.Dataset.from_tensors(batch)), tf.constant(1), compiled.NO_SUMS, GO_ON)["sums"]
        return [np.array(v) for v in model.trainable_variables], sums.numpy()

    images = tf.random.stateless_uniform((4, 32, 32, 3), (1, 2), 0, 255)
    other = tf.concat([images[:3], images[:1]], axis=0)
    one, sums = gradient_of([1.0, 1.0, 1.0, 0.0], images)
    two, _ = gradient_of([1.0, 1.0, 1.0, 0.0], other)
    assert largest_difference(one, two) == 0 and sums[-1] == 3
    assert largest_difference(one, gradient_of([1.0, 1.0, 1.0, 1.0], images)[0]) > 1e-4
