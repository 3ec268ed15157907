"""What a run trains, and how fast: freezing, unfreezing, the trunk's learning rate, and the optimizers they go with."""

import dataclasses
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tiny_network import tiny, train_here

import recipes
from engine import evaluation, loop, optimization, steps
from engine.training_state import TrainingState
from na_keras.data.digits import digits
from na_keras.model_files import load_model
from na_keras.models import MODELS
from run_files import checkpoints, run_directory

BATCH, ONE = 8, tf.constant(1)
TINY = {"model": "Tiny", "size": 32, "evaluation_resize": 32, "batch_size": BATCH, "warmup_epochs": 0, "epochs": 3}
HERE = tf.distribute.get_strategy()


@pytest.fixture(autouse=True)
def tiny_is_a_name(monkeypatch):
    monkeypatch.setitem(MODELS, "Tiny", tiny)


def trained_file(path):
    """Rescaling, a nested trunk of two convolutions and batch norms with a residual branch, a classifier "head"."""
    keras.utils.set_random_seed(3)
    image = keras.Input((32, 32, 3))
    x = shortcut = layers.BatchNormalization(name="stem_bn")(layers.Conv2D(8, 3, 4, use_bias=False, name="stem")(image))
    # Without biases: a batch norm takes them away, and what is left of their gradient is rounding.
    x = layers.BatchNormalization(name="branch_bn")(
        layers.Conv2D(8, 3, padding="same", use_bias=False, name="branch")(x)
    )
    trunk = keras.Model(image, layers.GlobalAveragePooling2D()(layers.Add()([shortcut, x])), name="trunk")
    rng = np.random.default_rng(0)
    for name in ("stem_bn", "branch_bn"):
        layer = trunk.get_layer(name)
        layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.weights])
    outer = keras.Input((32, 32, 3), name="images")
    x = layers.Dropout(0.2)(trunk(layers.Rescaling(1 / 255)(outer)))
    keras.Model(outer, layers.Dense(7, "softmax", name="head")(x)).save(path)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Of 7 classes: under 10 its classifier is a fresh one."""
    return trained_file(tmp_path_factory.mktemp("trained") / "mine.keras")


def recipe_of(**fields):
    return recipes.get_recipe("digits-demo", **{**TINY, **fields})


def from_file(file, **fields):
    return recipe_of(**{"model": str(file), "attention": "na", "where": "branch_bn$", **fields})


def state_of(recipe, strategy=HERE, **options):
    return TrainingState(recipe, strategy, 10, 5, **options)


def values(variables):
    return {variable.path: np.array(variable) for variable in variables}


def moved(before, model):
    """Paths of the floating-point variables that are not the same bits any more; layers that Keras names have other
    names in another model, and the same place.
    """
    pairs = zip(before.items(), model.variables, strict=True)
    return {path for (path, old), new in pairs if old.dtype.kind == "f" and np.any(old != np.array(new))}


def batch():
    images = np.random.default_rng(0).uniform(0, 255, (BATCH, 32, 32, 3)).astype("float32")
    return images, np.arange(BATCH), np.ones(BATCH, "float32")


def without_dropout(model):
    """The same model, whose steps depend on nothing but the images."""
    next(layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)).rate = 0.0
    return model


def do_steps(state, recipe, count=1, strategy=HERE, **options):
    """So many steps on the same batch; the compiled function."""
    options = {"loss_scale": state.loss_scale, "averaged": state.averaged, **options}
    train = steps.make_train_steps(strategy, state.model, state.optimizer, recipe, **options)
    batches = tf.data.Dataset.from_tensors(batch()).repeat()
    result = train(
        iter(strategy.experimental_distribute_dataset(batches)), tf.constant(count), steps.NO_SUMS, tf.constant(0.0)
    )
    assert result["failed"] == -1
    return train


@pytest.mark.parametrize(
    ("fields", "trained"),
    [
        ({"freeze": "convolution/"}, "batch_normalization attention predictions"),
        ({"freeze": "batch_normalization"}, "convolution attention predictions"),
        # Of a batch norm that is frozen in part the statistics stay.
        ({"freeze": "gamma$"}, "convolution batch_normalization/beta attention/beta predictions"),
        ({"train_only": "beta$"}, "batch_normalization/beta attention/beta"),
        # Its statistics alone; and with all of its weights trained they move, whatever the pattern says of them.
        ({"freeze": "moving_"}, "convolution batch_normalization/beta batch_normalization/gamma attention predictions"),
        ({"train_only": "batch_norm.*/(gamma|beta)$"}, "batch_normalization"),
        ({"freeze": "^(?!predictions)", "ema_decay": 0.5, "clip_norm": 1.0, "accumulate": 2}, "predictions"),
    ],
    ids=str,
)
def test_what_is_frozen_keeps_its_bits_statistics_included_and_all_else_is_trained(fields, trained):
    recipe = recipe_of(**fields, weight_decay=0.1)
    state = state_of(recipe)
    before = values(state.model.variables)
    averages = values(state.averaged.variables) if state.averaged else {}
    do_steps(state, recipe, 3)
    numbered = {path.partition("/")[0] for path in before if path.startswith("batch_norm")}.pop()
    parts = [part.replace("batch_normalization", numbered) for part in trained.split()]
    expected = {path for path in before if any(path.startswith(part) for part in parts)}
    assert moved(before, state.model) == {path for path in expected if before[path].dtype.kind == "f"}
    if averages:
        changed = moved(averages, state.averaged)
        assert changed == {path for path in averages if path.startswith("predictions")}


def test_a_step_is_that_of_keras_own_fit_with_the_layers_frozen():
    recipe = recipe_of(freeze="convolution|batch_norm", learning_rate=0.1, optimizer="rmsprop", weight_decay=0.01)
    state, own = state_of(recipe), state_of(recipe).model
    own.trainable = True
    for layer in own.layers:
        layer.trainable = not layer.name.startswith(("convolution", "batch_norm", "dropout"))
    without_dropout(own)
    without_dropout(state.model)
    optimizer = keras.optimizers.RMSprop(0.1, momentum=0.9, weight_decay=0.01)
    own.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images, labels, _ = batch()
    own.fit(images, labels, batch_size=BATCH, verbose=0)
    do_steps(state, recipe)
    for ours, theirs in zip(state.model.weights, own.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=ours.path)


def operations(train):
    """Types of all operations in the compiled step, called functions included."""
    batches = iter(HERE.experimental_distribute_dataset(tf.data.Dataset.from_tensors(batch()).repeat()))
    graph = train.get_concrete_function(batches, ONE, tf.constant(steps.NO_SUMS), tf.constant(0.0)).graph
    return {node.op for function in graph.as_graph_def().library.function for node in function.node_def}


def test_a_frozen_trunk_has_no_gradient(file):
    """As built, not as optimised: nothing is left to be pruned, neither towards kernels nor towards the images."""
    found = {}
    for name, fields in {"frozen": {"freeze_trunk": True}, "trained": {}}.items():
        recipe = from_file(file, attention="none", where=None, **fields)
        state = state_of(recipe)
        found[name] = operations(steps.make_train_steps(HERE, state.model, state.optimizer, recipe))
    backward = {"Conv2DBackpropFilter", "Conv2DBackpropInput"}
    assert "Conv2D" in found["frozen"] & found["trained"]
    assert backward & found["trained"] == backward and not backward & found["frozen"]


def test_the_trunk_is_all_but_the_classifier_and_fresh_attention(file):
    recipe = from_file(file, freeze_trunk=True)
    state = state_of(recipe)
    trained = {"/".join(v.path.split("/")[-2:]) for v in state.model.trainable_variables}
    assert trained == {"branch_bn_attention/gamma", "branch_bn_attention/beta", "head/kernel", "head/bias"}
    frozen, kept, fresh = state.notes[-2], state.notes[-1], state.notes[0]
    assert frozen == "Frozen, statistics included: 824 parameters; layers (4): stem ... branch_bn"
    assert kept == "Trained: 92 parameters; layers (2): branch_bn_attention, head" and "classifier is new" in fresh


def test_a_file_that_froze_its_trunk_goes_on_so_until_a_recipe_says_what_is_trained(tmp_path, file):
    model = load_model(file)
    model.get_layer("trunk").trainable = False
    model.save(tmp_path / "frozen.keras")
    left = state_of(from_file(tmp_path / "frozen.keras"))
    assert "10 weights are frozen as the file has it; --train-only . trains them too." in left.notes
    assert not left.model.get_layer("trunk").get_layer("stem").trainable_variables
    for fields in ({"train_only": "."}, {"trunk_learning_rate": 0.5}):
        recipe = from_file(tmp_path / "frozen.keras", **fields)
        state = state_of(recipe)
        before = values(state.model.variables)
        do_steps(state, recipe)
        assert moved(before, state.model) == {path for path in before if before[path].dtype.kind == "f"}, fields


def two_optimizers_by_hand(recipe, count):
    """So many steps by two of Keras' own, the trunk's with a tenth of the other's cosine."""
    model = without_dropout(state_of(dataclasses.replace(recipe, trunk_learning_rate=1.0), sync_bn=True).model)
    images, labels, _ = batch()
    start, parts = values(model.weights), []
    for factor in (0.1, 1.0):
        rate = keras.optimizers.schedules.CosineDecay(factor * recipe.learning_rate, 5 * recipe.epochs)
        optimizer = keras.optimizers.AdamW(rate, weight_decay=recipe.weight_decay)
        in_head = lambda v: "attention" in v.path or v.path.startswith("head")  # noqa: E731
        variables = [v for v in model.trainable_variables if in_head(v) == (factor == 1)]
        optimizer.exclude_from_weight_decay(var_list=[v for v in variables if v.path.endswith("bias")])
        parts.append((optimizer, variables))
    for _ in range(count):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(steps.recipe_losses(recipe, tf.constant(labels), model(images, training=True)))
        gradients = tape.gradient(loss, [[v.value for v in variables] for _, variables in parts])
        for (optimizer, variables), gradient in zip(parts, gradients, strict=True):
            optimizer.apply(gradient, variables)
    return start, model


def test_the_trunks_rate_is_that_of_an_optimizer_of_its_own_on_replicas_too(file, two_replicas):
    """Adam divides by the gradient's size: a gradient times .1 would move the trunk as far as any."""
    fields = {"optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.1, "no_weight_decay": ("bias$",)}
    recipe, count = from_file(file, trunk_learning_rate=0.1, **fields), 3
    start, expected = two_optimizers_by_hand(recipe, count)
    for strategy in (HERE, two_replicas):
        state = state_of(recipe, strategy, sync_bn=True)
        with strategy.scope():
            without_dropout(state.model)
        do_steps(state, recipe, count, strategy)
        for ours, theirs in zip(state.model.weights, expected.weights, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5, err_msg=ours.path)
    far = {path: np.abs(value - start[path]).max() for path, value in values(expected.weights).items()}
    assert far["head/kernel"] > 0.01 and 1e-3 < far["stem/kernel"] < 0.0035


def test_what_is_trained_later_begins_with_a_whole_step():
    """Adam's averages are corrected for their own age, not for the run's, by which the step would be too long."""
    now, later = keras.Variable([1.0]), keras.Variable([1.0])
    recipe = recipe_of(optimizer="adamw", weight_decay=0.0)
    groups = [optimization.Group([now]), optimization.Group([later], 0.5, late=True)]
    optimizer = optimization.make_optimizers(recipe, lambda step: 0.1 / (1 + tf.cast(step, tf.float32)), groups)
    for _ in range(9):
        optimizer.apply([tf.constant([2.0])], [now])
    assert later.numpy() == 1.0
    optimizer.apply([tf.constant([2.0])] * 2, [now, later])
    assert 1 - float(later.numpy()[0]) == pytest.approx(0.5 * 0.1 / 10, rel=1e-4)  # the rate is the run's tenth step's
    assert int(optimizer.iterations.numpy()) == 10


def tensors(folder, step):
    """{name: array} of a checkpoint."""
    reader = tf.train.load_checkpoint(str(folder / "checkpoints" / f"step-{step:08d}" / "state"))
    names = [name for name in reader.get_variable_to_shape_map() if name.endswith("VARIABLE_VALUE")]
    return {name: reader.get_tensor(name) for name in names}


@pytest.fixture
def bare_loop(monkeypatch):
    """The loop without what takes its time: pipeline, evaluation, pictures. It keeps all checkpoints."""

    def noise(strategy, source, recipe, epoch, first_step):
        images = np.random.default_rng(epoch).uniform(0, 255, (5, BATCH, 32, 32, 3)).astype("float32")
        batches = tf.data.Dataset.from_tensor_slices((images, *(np.stack([part] * 5) for part in batch()[1:])))
        return iter(strategy.experimental_distribute_dataset(batches.skip(first_step)))

    records = np.tile(np.float32([1, 0.5, 1, 1, 0, 0, 0.5]), (360, 1))  # weight and multiclass.record, all right
    answers = evaluation.make_answers(records, digits("validation"))
    monkeypatch.setattr(checkpoints, "KEEP", 9)
    monkeypatch.setattr(loop, "epoch_iterator", noise)
    monkeypatch.setattr(loop.evaluation, "evaluate", lambda *arguments, **options: answers)
    monkeypatch.setattr(loop.plots, "save", lambda *arguments: None)


def test_a_run_unfreezes_at_its_epoch_and_resumes_to_the_same_bits_before_and_after(tmp_path, bare_loop):
    fields = {"freeze": "convolution", "unfreeze_epoch": 1, "optimizer": "adamw", "ema_decay": 0.5}
    recipe = recipe_of(**fields, epochs=2, learning_rate=0.01)
    sources = digits("train"), digits("validation")
    whole = tmp_path / "whole"

    def go(folder, stop=None):
        state = state_of(recipe)
        loop.train(recipe, state, folder, HERE, sources, loop.Execution(checkpoint_every=3, stop_after=stop))
        return state

    def killed_after(step):
        """The whole run's folder as it was then."""
        folder = tmp_path / str(step)
        shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("model.keras"))
        for later in checkpoints.newest_first(folder / "checkpoints"):
            if checkpoints.step_of(later) > step:
                shutil.rmtree(later)
        return folder

    def assert_same(folder, step):
        one, other = tensors(whole, step), tensors(folder, step)
        assert set(one) == set(other) and all(np.array_equal(one[name], other[name]) for name in one)

    whole.mkdir()
    start = go(whole).freezing.trainable[0].path
    assert start == "convolution/kernel"
    kernels = [tensors(whole, step)["model/0/.ATTRIBUTES/VARIABLE_VALUE"] for step in (3, 5, 6)]
    np.testing.assert_array_equal(kernels[0], state_of(recipe).model.variables[0])
    assert np.array_equal(kernels[0], kernels[1]) and np.any(kernels[1] != kernels[2])
    before, after = killed_after(3), killed_after(6)
    go(before, stop=6)
    assert_same(before, 6)
    go(after)
    assert_same(after, 10)
    assert (after / run_directory.HISTORY).read_text() == (whole / run_directory.HISTORY).read_text()


def test_a_checkpoint_of_before_there_were_groups_is_read(tmp_path):
    recipe = recipe_of()
    older, newer = state_of(recipe), state_of(recipe)
    do_steps(older, recipe, 2)
    optimizer = optimization.make_optimizer(recipe, older.schedule, older.model.trainable_variables)
    for variable, own in zip(optimizer.variables, older.optimizer.variables, strict=True):
        variable.assign(own)
    lists = {"model": older.model.variables, "optimizer": optimizer.variables}
    lists = {name: [variable.value for variable in variables] for name, variables in lists.items()}
    checkpoint = tf.train.Checkpoint(partial_sums=older.partial_sums, **lists)
    checkpoints.save(checkpoint, tmp_path / "checkpoints", 2)
    checkpoints.restore(newer.checkpoint, tmp_path / "checkpoints")
    assert newer.step == 2 and moved(values(older.model.variables), newer.model) == set()
    new = {"freeze": None, "train_only": None, "freeze_trunk": False, "unfreeze_epoch": None}
    new |= {"trunk_learning_rate": 1, "min_learning_rate": 0}
    assert {name: run_directory.BEFORE[name] for name in new} == new


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"freeze": "convolutoin"}, "--freeze: 'convolutoin' is found in none of .* such as convolution/kernel"),
        ({"train_only": "moving_"}, "--train-only: 'moving_' is found in none of the"),
        ({"freeze": "."}, r"all 8 variables are frozen. Leave some out, as by --train-only '\^predictions/'"),
        ({"train_only": ".", "unfreeze_epoch": 1}, "--unfreeze-epoch has no effect: nothing is frozen before"),
    ],
    ids=str,
)
def test_patterns_that_find_nothing_or_leave_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        state_of(recipe_of(**fields))


def test_the_advice_on_a_frozen_everything_can_be_followed():
    recipe = recipe_of(train_only="^predictions/")
    assert {v.path for v in state_of(recipe).model.trainable_variables} == {"predictions/kernel", "predictions/bias"}


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("digits-demo", {"freeze": "a", "train_only": "b"}, "--freeze and --train-only each say .* give one of them"),
        ("finetune-head", {"train_only": "b"}, "--freeze-trunk and --train-only .* give --no-freeze-trunk"),
        ("digits-demo", {"freeze_trunk": True}, "MobileNetV2 has none: give --weights, or --no-freeze-trunk"),
        ("finetune", {"model": "ResNet50"}, "ResNet50 has none: give --weights, or --trunk-learning-rate 1"),
        ("finetune", {"trunk_learning_rate": 0.0}, "must be a factor above 0; what stays is for --freeze-trunk"),
        ("digits-demo", {"freeze": "("}, r"freeze: expected regular expressions. Received: '\('"),
        ("finetune-head", {"unfreeze_epoch": 20}, "unfreeze_epoch must be between 1 and 19"),
        ("finetune", {"min_learning_rate": 0.03}, "min_learning_rate must be between 0 and 0.025"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(name, fields, message):
    with pytest.raises(ValueError, match=message):
        recipes.get_recipe(name, **fields)


def test_following_the_advice_on_contradictions():
    assert recipes.get_recipe("finetune-head", train_only="head", freeze_trunk=False).train_only == "head"
    assert recipes.get_recipe("finetune", model="ResNet50", trunk_learning_rate=1.0).weights is None
    assert recipes.get_recipe("finetune", model="ResNet50", weights="torchvision-v2").trunk_learning_rate == 0.1


def test_a_recipes_weights_and_attention_are_of_its_own_network(file):
    """Those of ImageNet are there for all of keras.applications; a file has its own."""
    own = recipes.RECIPES["finetune"]
    assert (own.weights, own.attention, own.dataset) == ("imagenet", None, "folder")
    assert recipes.get_recipe("finetune", model="keras.applications.VGG16").weights == "imagenet"
    assert recipes.get_recipe("finetune-head", model=str(file)).weights is None
    assert recipes.get_recipe("finetune", attention="na").attention == "na"


def test_a_trunk_rate_over_a_frozen_trunk_is_refused_where_it_is_given(file):
    freezing = state_of(from_file(file, freeze_trunk=True, trunk_learning_rate=0.1)).freezing
    freezing.check_effects(())
    with pytest.raises(ValueError, match="--trunk-learning-rate has no effect: the trunk is frozen, always"):
        freezing.check_effects(("trunk_learning_rate",))


def test_the_cosine_ends_at_the_floor_with_and_without_warm_up():
    for warmup in (0, 1):
        recipe = recipe_of(learning_rate=0.5, min_learning_rate=0.1, warmup_epochs=warmup)
        schedule = optimization.make_schedule(recipe, 10)
        assert float(schedule(10 * warmup)) == pytest.approx(0.5) and float(schedule(30)) == pytest.approx(0.1)


def test_finetune_runs_on_a_file(tmp_path, file):
    flags = ("--recipe", "finetune", "--model", file, "--dataset", "digits", "--size", 32, "--evaluation-resize", 32)
    code, output = train_here(tmp_path / "run", *flags, "--steps", 1)
    assert code == 0, (code, output)
    assert "The learning rate of what came trained is 0.1 times the schedule's." in output
