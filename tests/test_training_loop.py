"""The loop's promises, in process: replicas equal one device, steps per call change nothing, the loss is exact."""

import dataclasses
import functools
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import checkpoints
import evaluation
import loop
import optimization
import recipes
import steps as compiled
import strategies
from na_keras import NormalizationAttention
from na_keras.data import pipeline
from na_keras.data.digits import digits
from programs import ROOT

DEMO = recipes.RECIPES["digits-demo"]
BATCH = 16
GO_ON = tf.constant(0.0)


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


@pytest.mark.parametrize("fields", [{"clip_norm": 0.05}, {"label_smoothing": 0.1}], ids=str)
def test_options_give_the_same_weights_on_replicas(two_replicas, one_device, fields):
    one, _ = weights_after(tf.distribute.get_strategy(), 20, 1, **fields)
    two, _ = weights_after(two_replicas, 20, 1, **fields)
    assert largest_difference(one, two) < 1e-5
    assert largest_difference(one, one_device[0]) > 1e-3  # the option does something


def test_clipping_bounds_the_first_step():
    """The first step moves the weights by learning rate * norm: no further than .1 * .05, plus nothing for momentum."""
    before, _ = weights_after(tf.distribute.get_strategy(), 0, 1)
    after, _ = weights_after(tf.distribute.get_strategy(), 1, 1, clip_norm=0.05, weight_decay=0.0)
    free, _ = weights_after(tf.distribute.get_strategy(), 1, 1, weight_decay=0.0)
    trainable = [index for index, v in enumerate(small_network(False).variables) if v.trainable]
    moved = lambda weights: np.sqrt(sum(np.sum((weights[i] - before[i]) ** 2) for i in trainable))  # noqa: E731
    assert moved(after) == pytest.approx(0.1 * 0.05, rel=1e-3)
    assert moved(free) > 2 * moved(after)


def test_accumulated_slices_are_one_batch_but_for_the_batch_norm():
    """Each slice is normalised by itself, as on a replica: 2 slices on one device equal 2 replicas with plain BN."""
    slices, sums = weights_after(tf.distribute.get_strategy(), 5, 1, sync_bn=False, accumulate=2)
    assert sums[-1] == 5 * BATCH
    one, _ = weights_after(tf.distribute.get_strategy(), 5, 1, sync_bn=False)
    assert 1e-4 < largest_difference(slices, one)


def trainable(weights):
    return [weights[index] for index, variable in enumerate(small_network(False).variables) if variable.trainable]


def test_slices_and_replicas_are_alike(two_replicas):
    """Four slices on one device are the same four groups of images as two slices on each of two replicas."""
    # Few steps: batch norm over 4 images amplifies rounding.
    one, _ = weights_after(tf.distribute.get_strategy(), 5, 1, sync_bn=False, accumulate=4)
    two, _ = weights_after(two_replicas, 5, 1, sync_bn=False, accumulate=2)
    assert largest_difference(trainable(one), trainable(two)) < 1e-5


def test_xla_gives_the_same_weights_on_replicas(two_replicas):
    plain, _ = weights_after(two_replicas, 5, 1, sync_bn=False)
    xla, _ = weights_after(two_replicas, 5, 1, sync_bn=False, xla=True)
    assert 0 < largest_difference(trainable(plain), trainable(xla)) < 1e-5  # other roundings, so XLA did run


def test_eight_replicas_equal_one_device(tmp_path, one_device):
    """In a process of its own, because a process decides once how many devices its CPU is."""
    script = ROOT / "tests" / "train_on_replicas.py"
    subprocess.run([sys.executable, str(script), "8", str(tmp_path / "eight.npz")], check=True, cwd=ROOT)
    with np.load(tmp_path / "eight.npz") as eight:
        assert largest_difference(list(eight.values()), one_device[0]) < 1e-5


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
    train = compiled.make_train_steps(two_replicas, model, optimizer, recipe, scale)
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
    train = compiled.make_train_steps(two_replicas, model, optimizer, recipe, scale)
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


def test_a_checkpoint_holds_the_average_and_the_scale(tmp_path):
    recipe = dataclasses.replace(DEMO, ema_decay=0.9, model_options={"alpha": 0.1}, size=32)
    run = loop.Run(recipe, tf.distribute.get_strategy(), 10, 22, "float16")
    run.averaged.trainable_variables[0].assign_add(np.ones(run.averaged.trainable_variables[0].shape))
    run.loss_scale.value.assign(8.0)
    checkpoints.save(run.checkpoint, tmp_path, 3)
    again = loop.Run(dataclasses.replace(recipe, seed=5), tf.distribute.get_strategy(), 10, 22, "float16")
    checkpoints.restore(again.checkpoint, tmp_path)
    assert float(again.loss_scale.value) == 8.0
    for one, other in zip(again.averaged.variables, run.averaged.variables, strict=True):
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


def test_regularizers_of_layers_take_part(two_replicas):
    def run_on(strategy):
        with strategy.scope():
            keras.utils.set_random_seed(0)
            image = keras.Input((32, 32, 3))
            x = keras.layers.Rescaling(1 / 255)(image)
            x = NormalizationAttention(beta_regularizer=keras.regularizers.L1(1.0))(x)
            x = keras.layers.GlobalAveragePooling2D()(x)
            model = keras.Model(image, keras.layers.Dense(10, kernel_initializer="zeros")(x))
            recipe = dataclasses.replace(DEMO, batch_size=BATCH)
            optimizer = optimization.make_optimizer(recipe, 0.1, model.trainable_variables)
        train = compiled.make_train_steps(strategy, model, optimizer, recipe)
        data = tf.data.Dataset.from_tensors((tf.ones((BATCH, 32, 32, 3)), tf.zeros(BATCH, tf.int64), tf.ones(BATCH)))
        train(iter(strategy.experimental_distribute_dataset(data)), tf.constant(1), compiled.NO_SUMS, GO_ON)
        return float(keras.ops.convert_to_numpy(model.layers[2].beta)[0])

    # The classifier is all zeros, so beta moves by the regularizer and the decay alone: .1 * (1 + 1e-4).
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        assert run_on(strategy) == pytest.approx(1 - 0.1 * 1.0001, rel=1e-5)


def test_a_run_that_dies_in_its_evaluation_loses_no_step_and_doubles_no_row(tmp_path, monkeypatch):
    """The epoch is checkpointed before it is evaluated; a resumed run evaluates first."""
    tiny = {"size": 32, "evaluation_resize": 32, "model_options": {"alpha": 0.1}, "epochs": 1, "warmup_epochs": 0}
    recipe = dataclasses.replace(DEMO, batch_size=256, **tiny)
    sources, device = (digits("train"), digits("validation")), tf.distribute.get_strategy()

    def go(folder):
        folder.mkdir(exist_ok=True)
        run = loop.Run(recipe, device, 10, 5)
        options = {"xla": False, "checkpoint_every": 100, "steps_per_call": 5, "stop_after": None}
        return loop.train(run, recipe, folder, device, sources, **options)

    whole = go(tmp_path / "whole")
    evaluate, calls = evaluation.evaluate, []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise InterruptedError("the machine is gone")
        return evaluate(*arguments)

    monkeypatch.setattr(evaluation, "evaluate", dying)
    with pytest.raises(InterruptedError):
        go(tmp_path / "other")
    folder, aside = tmp_path / "other" / "checkpoints", tmp_path / "aside"
    assert [path.name for path in checkpoints.newest_first(folder)] == ["step-00000005"]
    shutil.copytree(folder, aside)
    again = go(tmp_path / "other")
    assert whole[1:] == again[1:] == (5, None, True)
    histories = [(tmp_path / name / "history.csv").read_text() for name in ("whole", "other")]
    assert histories[0] == histories[1] and len(histories[0].splitlines()) == 2
    # Once more, as if killed between writing the row and the checkpoint that knows of it.
    (tmp_path / "other" / "model.keras").unlink()
    shutil.rmtree(folder)
    aside.rename(folder)
    assert go(tmp_path / "other")[3] and (tmp_path / "other" / "history.csv").read_text() == histories[0]


def test_a_loss_that_is_not_finite_names_its_step(tmp_path):
    model = small_network(False)
    optimizer = optimization.make_optimizer(DEMO, 1e30, model.trainable_variables)
    train = compiled.make_train_steps(tf.distribute.get_strategy(), model, optimizer, DEMO)
    batch = tf.random.uniform((8, 32, 32, 3), 0, 255), tf.zeros(8, tf.int64), tf.ones(8)
    batches = tf.data.Dataset.from_tensors(batch).repeat()
    failed = train(iter(batches), tf.constant(5), compiled.NO_SUMS, GO_ON)["failed"]
    assert 1 <= failed <= 4  # the first step is taken from sound weights
    with pytest.raises(loop.NotFiniteError, match=f"loss of step {100 + int(failed) + 1} is not finite.*the start"):
        loop.check_finite(int(failed), 100, model, tmp_path)
    with pytest.raises(loop.NotFiniteError, match="A weight after step 105"):
        loop.check_finite(-1, 105, model, tmp_path)
    loop.check_finite(-1, 105, small_network(False), tmp_path)


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
        losses = compiled.example_losses(tf.constant([1]), model(tf.constant([[100.0, 0.0]])), from_logits=False)
    assert losses.numpy() == pytest.approx([100.0])
    assert np.abs(tape.gradient(losses, model.trainable_variables[0].value).numpy()).max() == pytest.approx(100.0)


def test_label_smoothing_spreads_a_share_over_all_classes():
    probabilities = np.array([[0.7, 0.2, 0.1]])
    (loss,) = compiled.example_losses(tf.constant([0]), tf.math.log(probabilities), label_smoothing=0.3).numpy()
    assert loss == pytest.approx(-np.sum([0.8, 0.1, 0.1] * np.log(probabilities)), rel=1e-5)


def test_example_sums_count_top_1_and_top_5():
    probabilities = tf.constant([[0.3, 0.2, 0.2, 0.15, 0.1, 0.05]] * 4)
    labels, weights = tf.constant([0, 1, 5, 0], tf.int64), tf.constant([1.0, 1.0, 1.0, 0.0])
    sums = compiled.example_sums(tf.constant([1.0, 2.0, 3.0, 9.0]), labels, probabilities, weights)
    np.testing.assert_allclose(sums, [6.0, 1.0, 2.0, 3.0])
    # A collapsed network is as good as guessing the first classes, not perfect.
    constant = compiled.example_sums(tf.ones(10), tf.range(10, dtype=tf.int64), tf.fill((10, 10), 0.1), tf.ones(10))
    np.testing.assert_allclose(constant, [10.0, 1.0, 5.0, 10.0])
    few = compiled.example_sums(tf.ones(2), tf.constant([0, 1]), tf.constant([[0.6, 0.4]] * 2), tf.ones(2))
    np.testing.assert_allclose(few, [2.0, 1.0, 2.0, 2.0])


def test_schedule_warms_up_and_ends_at_zero():
    schedule = optimization.make_schedule(dataclasses.replace(DEMO, epochs=10, warmup_epochs=2, learning_rate=0.5), 100)
    rates = [float(schedule(step)) for step in (0, 100, 200, 600, 1000)]
    np.testing.assert_allclose(rates, [0.0, 0.25, 0.5, 0.25, 0.0], atol=1e-6)
    no_warmup = optimization.make_schedule(
        dataclasses.replace(DEMO, epochs=10, warmup_epochs=0, learning_rate=0.5), 100
    )
    assert float(no_warmup(0)) == 0.5


def test_strategies_check_their_arguments(two_replicas, monkeypatch):
    with pytest.raises(ValueError, match="strategy must be one of .*mirrored.*Received: 'horovod'"):
        strategies.make_strategy("horovod")
    with pytest.raises(ValueError, match="found no TPU named 'local'. Run on a TPU machine"):
        strategies.make_strategy("tpu")
    for text in (None, "two machines", '{"cluster": {}}', '{"cluster": {"worker": ["a"]}, "task": {"index": 1}}'):
        monkeypatch.setenv("TF_CONFIG", text) if text else monkeypatch.delenv("TF_CONFIG", raising=False)
        with pytest.raises(ValueError, match="needs TF_CONFIG in the environment.*for example\n  TF_CONFIG='{"):
            strategies.make_strategy("multi_worker_mirrored")
    with pytest.raises(ValueError, match="with --strategy=mirrored. Received: 2 with strategy 'none'"):
        strategies.make_strategy("none", 2)
    assert two_replicas.num_replicas_in_sync == 2
    with pytest.raises(ValueError, match="divisible by the 2 replicas. Received: 33; the nearest that is: 32"):
        strategies.check_batch_size(33, two_replicas)
    with pytest.raises(ValueError, match="2 replicas times 4 accumulated slices. Received: 12"):
        strategies.check_batch_size(12, two_replicas, 4)
