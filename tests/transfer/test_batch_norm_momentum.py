"""`--batch-norm-momentum`: how quickly the stored statistics follow what training sees."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import recipes
from engine import steps
from engine.training_state import TrainingState

HERE = tf.distribute.get_strategy()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A trunk inside a classifier, whose batch norm has the momentum of keras.applications' MobileNetV2."""
    image = keras.Input((32, 32, 3))
    x = layers.BatchNormalization(momentum=0.999, name="norm")(layers.Conv2D(4, 3, 4, name="stem")(image))
    trunk = keras.Model(image, layers.GlobalAveragePooling2D()(x), name="trunk")
    outer = keras.Input((32, 32, 3))
    path = tmp_path_factory.mktemp("trained") / "mine.keras"
    keras.Model(outer, layers.Dense(10, "softmax")(trunk(layers.Rescaling(1 / 255)(outer)))).save(path)
    return path


def state_of(file, **fields):
    options = {
        "model": str(file),
        "size": 32,
        "evaluation_resize": 32,
        "batch_size": 8,
        "warmup_epochs": 0,
        "epochs": 3,
    }
    recipe = recipes.get_recipe("digits-demo", **options, **fields)
    return recipe, TrainingState(recipe, HERE, 10, 5)


def moving_mean_after_a_step(file, **fields):
    """(before, of the batch, after) of the batch norm inside the trunk."""
    recipe, state = state_of(file, **fields)
    trunk = next(layer for layer in state.model.layers if isinstance(layer, keras.Model))
    norm, stem = trunk.get_layer("norm"), trunk.get_layer("stem")
    images = np.random.default_rng(0).uniform(0, 255, (8, 32, 32, 3)).astype("float32")
    before, seen = np.array(norm.moving_mean), np.mean(stem(images / 255), (0, 1, 2))
    train = steps.make_train_steps(HERE, state.model, state.optimizer, recipe)
    batches = tf.data.Dataset.from_tensors((images, np.arange(8), np.ones(8, "float32")))
    train(iter(batches), tf.constant(1), steps.NO_SUMS, tf.constant(0.0))
    return before, seen, np.array(norm.moving_mean)


@pytest.mark.parametrize(("fields", "momentum"), [({}, 0.999), ({"batch_norm_momentum": 0.5}, 0.5)])
def test_statistics_move_as_the_file_has_it_or_as_is_asked_for(file, fields, momentum):
    before, seen, after = moving_mean_after_a_step(file, **fields)
    # Means of some hundred float32 numbers below 1, in another order.
    np.testing.assert_allclose(after, momentum * before + (1 - momentum) * seen, atol=1e-6)


def test_a_momentum_that_no_statistics_follow_is_refused(file):
    given = {"batch_norm_momentum": 0.9}
    for fields in ({"freeze": "norm/"}, {"freeze": "moving_"}):
        _, state = state_of(file, **given, **fields)
        with pytest.raises(ValueError, match="--batch-norm-momentum has no effect: no batch norm's statistics move"):
            state.freezing.check_effects(given)
    _, state = state_of(file, **given, freeze="norm/", unfreeze_epoch=1)
    state.freezing.check_effects(given)
    state.freezing.check_effects({})


def test_the_recipe_for_photographs_has_pytorchs():
    assert recipes.RECIPES["finetune"].batch_norm_momentum == 0.9
    assert recipes.RECIPES["resnet50-paper"].batch_norm_momentum is None  # the networks here have .9 already
