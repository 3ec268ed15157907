"""The loop's promises, in process: replicas equal one device, steps per call change nothing, the loss is exact."""

import dataclasses
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from programs import ROOT
from small_training import BATCH, DEMO, GO_ON, largest_difference, small_network, weights_after
from tiny_network import tiny

import recipes
from engine import evaluation, loop, optimization, strategies
from engine import steps as compiled
from engine.training_state import TrainingState
from na_keras import NormalizationAttention
from na_keras.data.digits import digits
from na_keras.models import MODELS
from run_files import checkpoints


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
    script = ROOT / "tests" / "helpers" / "train_on_replicas.py"
    subprocess.run([sys.executable, str(script), "8", str(tmp_path / "eight.npz")], check=True, cwd=ROOT)
    with np.load(tmp_path / "eight.npz") as eight:
        assert largest_difference(list(eight.values()), one_device[0]) < 1e-5


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
    monkeypatch.setitem(MODELS, "Tiny", tiny)
    fields = {"model": "Tiny", "model_options": {}, "size": 32, "evaluation_resize": 32, "epochs": 1}
    recipe = dataclasses.replace(DEMO, batch_size=256, warmup_epochs=0, **fields)
    sources, device = (digits("train"), digits("validation")), tf.distribute.get_strategy()

    def go(folder):
        folder.mkdir(exist_ok=True)
        state = TrainingState(recipe, device, 10, 5)
        return loop.train(recipe, state, folder, device, sources, loop.Execution(steps_per_call=5))

    whole = go(tmp_path / "whole")
    evaluate, calls = evaluation.evaluate, []

    def dying(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 1:
            raise InterruptedError("the machine is gone")
        return evaluate(*arguments, **options)

    monkeypatch.setattr(evaluation, "evaluate", dying)
    with pytest.raises(InterruptedError):
        go(tmp_path / "other")
    folder, aside = tmp_path / "other" / "checkpoints", tmp_path / "aside"
    assert [path.name for path in checkpoints.newest_first(folder)] == ["step-00000005"]
    shutil.copytree(folder, aside)
    again = go(tmp_path / "other")
    for outcome in (whole, again):
        assert (outcome.step, outcome.signal, outcome.finished) == (5, None, True)
    histories = [(tmp_path / name / "history.csv").read_text() for name in ("whole", "other")]
    assert histories[0] == histories[1] and len(histories[0].splitlines()) == 2
    # Once more, as if killed between writing the row and the checkpoint that knows of it.
    (tmp_path / "other" / "model.keras").unlink()
    shutil.rmtree(folder)
    aside.rename(folder)
    assert go(tmp_path / "other").finished and (tmp_path / "other" / "history.csv").read_text() == histories[0]


def test_a_loss_that_is_not_finite_names_its_step(tmp_path):
    model = small_network(False)
    optimizer = optimization.make_optimizer(DEMO, 1e30, model.trainable_variables)
    train = compiled.make_train_steps(tf.distribute.get_strategy(), model, optimizer, DEMO)
    batch = tf.random.uniform((8, 32, 32, 3), 0, 255), tf.zeros(8, tf.int64), tf.ones(8)
    batches = tf.data.Dataset.from_tensors(batch).repeat()
    failed = train(iter(batches), tf.constant(5), compiled.NO_SUMS, GO_ON)["failed"]
    assert 1 <= failed <= 4  # the first step is taken from sound weights
    with pytest.raises(
        loop.NotFiniteError, match=f"loss or the gradient of step {100 + int(failed) + 1} is not finite.*the start"
    ):
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


def test_smoothing_of_binary_cross_entropy_is_timms_and_comes_before_the_threshold():
    """timm's BinaryCrossEntropy: a class that is not there gets smoothing / classes."""
    logits = np.array([[3.0, -1.0, 0.5, -6.0]])

    def loss_of(targets, **options):
        outputs = tf.constant(logits, tf.float32)
        (loss,) = compiled.example_losses(tf.constant(targets), outputs, "binary_cross_entropy", **options).numpy()
        return loss

    def expected(targets):  # -t log sigmoid(z) - (1 - t) log (1 - sigmoid(z)) = log(1 + exp(z)) - t z
        return np.mean(np.log1p(np.exp(logits)) - np.array(targets) * logits)

    assert loss_of([0], label_smoothing=0.2) == pytest.approx(expected([0.85, 0.05, 0.05, 0.05]), rel=1e-5)
    # The threshold makes whole what smoothing left of a hard label; shares of mixed images are smoothed first, too.
    assert loss_of([0], label_smoothing=0.2, target_threshold=0.2) == pytest.approx(expected([1, 0, 0, 0]), rel=1e-5)
    more, less, smoothing = [[0.74, 0.26, 0.0, 0.0]], [[0.76, 0.24, 0.0, 0.0]], {"label_smoothing": 0.2}
    assert loss_of(more, target_threshold=0.25) == pytest.approx(expected([1, 1, 0, 0]), rel=1e-5)
    assert loss_of(less, target_threshold=0.25) == pytest.approx(expected([1, 0, 0, 0]), rel=1e-5)
    # .26 * .8 + .2 / 4 = .258, .24 * .8 + .05 = .242
    assert loss_of(more, target_threshold=0.257, **smoothing) == pytest.approx(expected([1, 1, 0, 0]), rel=1e-5)
    assert loss_of(less, target_threshold=0.241, **smoothing) == pytest.approx(expected([1, 1, 0, 0]), rel=1e-5)
    assert loss_of(less, target_threshold=0.243, **smoothing) == pytest.approx(expected([1, 0, 0, 0]), rel=1e-5)


def test_a_recipe_without_smoothing_has_the_loss_of_its_shares():
    """A3: thresholds at .2 what mixing left, and nothing else."""
    logits, shares = np.array([[2.0, -1.0, 0.5]], "float32"), np.array([[0.7, 0.3, 0.0]], "float32")
    (a3,) = compiled.recipe_losses(recipes.RECIPES["resnet50-a3"], tf.constant(shares), tf.constant(logits)).numpy()
    assert a3 == pytest.approx(np.mean(np.log1p(np.exp(logits)) - np.array([1, 1, 0]) * logits), rel=1e-5)
    (demo,) = compiled.recipe_losses(DEMO, tf.constant(shares), tf.constant(logits)).numpy()
    assert demo == pytest.approx(-np.sum(shares * (logits - np.log(np.exp(logits).sum()))), rel=1e-5)


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
    # Of five classes, all of them are among the best five.
    assert compiled.means(few, 2) == {"loss": 1.0, "top1": 0.5} == compiled.means(few, 5)
    assert compiled.means(sums, 6) == {"loss": 2.0, "top1": pytest.approx(1 / 3), "top5": pytest.approx(2 / 3)}


def test_class_weights_are_those_of_kerass_fit():
    """One step of plain gradient descent; and an example of two classes weighs what both do, by their shares."""
    weights, rate = np.random.default_rng(0).uniform(0.2, 3, 10).astype("float32"), 0.5
    images = np.random.default_rng(1).uniform(0, 255, (BATCH, 32, 32, 3)).astype("float32")
    labels = np.arange(BATCH) % 10
    trained, fitted = small_network(False), small_network(False)
    recipe = dataclasses.replace(DEMO, batch_size=BATCH, momentum=0.0, weight_decay=0.0)
    optimizer = optimization.make_optimizer(recipe, rate, trained.trainable_variables)
    options = {"class_weights": tf.constant(weights)}
    train = compiled.make_train_steps(tf.distribute.get_strategy(), trained, optimizer, recipe, **options)
    batch = tf.constant(images), tf.constant(labels, tf.int64), tf.ones(BATCH)
    sums = train(iter(tf.data.Dataset.from_tensors(batch)), tf.constant(1), compiled.NO_SUMS, GO_ON)["sums"].numpy()
    fitted.compile(keras.optimizers.SGD(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    loss = fitted.train_on_batch(images, labels, class_weight=dict(enumerate(weights)))
    assert sums[0] / BATCH == pytest.approx(float(loss), rel=1e-5) and sums[-1] == BATCH
    assert largest_difference(trained.get_weights(), fitted.get_weights()) < 1e-6
    mixed = compiled.class_weights_of(tf.constant([[0.25, 0.0, 0.75], [0.0, 1.0, 0.0]]), tf.constant([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(mixed, [2.5, 2.0])


def test_schedule_warms_up_and_ends_at_zero():
    schedule = optimization.make_schedule(dataclasses.replace(DEMO, epochs=10, warmup_epochs=2, learning_rate=0.5), 100)
    rates = [float(schedule(step)) for step in (0, 100, 200, 600, 1000)]
    np.testing.assert_allclose(rates, [0.0, 0.25, 0.5, 0.25, 0.0], atol=1e-6)
    no_warmup = optimization.make_schedule(
        dataclasses.replace(DEMO, epochs=10, warmup_epochs=0, learning_rate=0.5), 100
    )
    assert float(no_warmup(0)) == 0.5


def test_a_step_schedule_warms_up_and_drops_where_it_would_have_without():
    fields = {"schedule": "step", "epochs": 6, "decay_epochs": 2, "learning_rate": 0.5}
    cold, warm = (
        optimization.make_schedule(dataclasses.replace(DEMO, warmup_epochs=warmup, **fields), 10) for warmup in (0, 1)
    )
    assert isinstance(cold, keras.optimizers.schedules.PiecewiseConstantDecay)  # as without the option
    np.testing.assert_allclose([float(warm(step)) for step in (0, 5, 9)], [0.0, 0.25, 0.45], rtol=1e-6)
    assert all(float(warm(step)) == float(cold(step)) for step in range(10, 60))
    np.testing.assert_allclose([float(warm(step)) for step in (10, 19, 20, 40)], [0.5, 0.5, 0.05, 0.005], rtol=1e-6)


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
    monkeypatch.setattr(strategies, "machines", lambda strategy: 2)
    strategies.check_same_data(two_replicas, 2**40 - 1)
    monkeypatch.setattr(strategies, "total", lambda strategy, value: value + 3.0)  # one machine's own, and another's
    with pytest.raises(strategies.DisagreementError, match="do not see the same data"):
        strategies.check_same_data(two_replicas, 5)
    with pytest.raises(ValueError, match="divisible by the 2 replicas. Received: 33; the nearest that is: 32"):
        strategies.check_batch_size(33, two_replicas)
    with pytest.raises(ValueError, match="2 replicas times 4 accumulated slices. Received: 12"):
        strategies.check_batch_size(12, two_replicas, 4)
