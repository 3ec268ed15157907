"""insert_attention with every module, preserving; and its messages, whose advice is followed."""

import functools
import re

import attention_layers
import keras
import numpy as np
import pytest
from keras import layers

import na_keras
from na_keras import insert_attention
from na_keras.graph.insertion import make_module
from na_keras.graph.insertion_points import find_insertion_points

ATTENTION = {
    **na_keras.ATTENTION,
    **{name: functools.partial(row.layer, **row.arguments) for name, row in attention_layers.ROWS.items()},
}
WITHOUT_A_CONSTANT = {
    "ge": "This GatherExcite has no weights",
    "ge_pooled": "This GatherExcite has no weights",
    "simam": "This SimAM has no weights",
    "sk": "SelectiveKernel is a convolution of its own with a ReLU at its end",
    "sk_dilated": "SelectiveKernel is a convolution of its own with a ReLU at its end",
}


@pytest.fixture(scope="module")
def residual():
    """One residual block of 128 channels, which every module's default settings divide."""
    image = keras.Input((4, 5, 3))
    x = layers.Conv2D(128, 1)(image)
    branch = layers.BatchNormalization(name="last", beta_initializer="random_normal")(layers.Conv2D(128, 1)(x))
    return keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(layers.Add()([x, branch]))))


IMAGES = np.random.default_rng(0).normal(0, 1, (3, 4, 5, 3)).astype("float32")


def answers(model):
    return [keras.ops.convert_to_numpy(model(IMAGES, training=training)) for training in (False, True)]


@pytest.mark.parametrize("name", sorted(set(ATTENTION) - set(WITHOUT_A_CONSTANT) - {"sk_strided"}))
def test_every_module_with_weights_for_it_preserves_the_network(residual, name):
    new = insert_attention(residual, ATTENTION[name], preserve=True)
    module = new.get_layer("last_attention")
    for ours, theirs in zip(answers(new), answers(residual), strict=True):
        # A gate of 1/2 or 1/4 changes no bit; with another one three roundings are added, here to numbers of order 1.
        exact = not name.startswith(("na", "sge", "lct"))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=0 if exact else 2e-6)
    attention_layers.randomize(module)  # and it is no constant for good
    assert np.abs(answers(new)[0] - answers(residual)[0]).max() > 1e-3


@pytest.mark.parametrize("name", WITHOUT_A_CONSTANT)
def test_modules_that_no_weights_make_constant_are_refused_by_name(residual, name):
    with pytest.raises(ValueError, match=f"{WITHOUT_A_CONSTANT[name]}.*use preserve=False"):
        insert_attention(residual, ATTENTION[name], preserve=True)
    assert insert_attention(residual, ATTENTION[name]).get_layer("last_attention").built


@pytest.mark.parametrize("name", ["se", "cbam", "eca", "ge_parametrized"])
def test_a_function_of_a_module_is_told_how_to_make_it_constant(residual, name):
    """It may do anything, so that nothing is set for it."""
    plain = ATTENTION[name]
    with pytest.raises(ValueError, match="starts as one.*preserve=False") as refused:
        insert_attention(residual, lambda name: plain(name=name), preserve=True)
    advice = re.search(r"(functools.partial[(].*?[)]) starts as one", str(refused.value))[1]
    factory = eval(advice, {"functools": functools, **vars(na_keras)})
    if name == "ge_parametrized":
        factory = functools.partial(factory, extent=4, parametrized=True)
    new = insert_attention(residual, lambda name: factory(name=name), preserve=True)
    np.testing.assert_array_equal(answers(new)[0], answers(residual)[0])


def test_initial_weights_that_are_given_stay(residual):
    factory = functools.partial(na_keras.SqueezeExcite, excite_bias_initializer=keras.initializers.Constant(3.0))
    new = insert_attention(residual, factory, preserve=True)
    bias = keras.ops.convert_to_numpy(new.get_layer("last_attention").excite.bias)
    assert (bias == 3).all()
    np.testing.assert_allclose(answers(new)[0], answers(residual)[0], atol=2e-6)
    with pytest.raises(ValueError, match="starts as one"):
        insert_attention(residual, functools.partial(factory, excite_kernel_initializer="ones"), preserve=True)


def test_layers_that_can_take_up_a_constant_are_named():
    image = keras.Input((4, 5, 3))
    x = layers.Conv2D(4, 1, activation="relu", name="active")(image)
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 1, name="linear")(x))
    model = keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    with pytest.raises(ValueError, match="'active'.*with feature maps, here: linear, norm.; or use") as refused:
        insert_attention(model, where="active", preserve=True)
    for name in re.search("here: (.*)[)]; or", str(refused.value))[1].split(", "):
        new = insert_attention(model, where=name, preserve=True)
        np.testing.assert_allclose(answers(new)[0], answers(model)[0], atol=2e-6)


# Networks without a normalisation before an addition, and where a module goes then: the last maps of several positions.
NETWORKS = {
    "VGG16": "block5_pool",
    "DenseNet121": "relu",
    "InceptionV3": "mixed10",
    "MobileNet": "conv_pw_13_relu",
    "InceptionResNetV2": "block8_10_conv",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_advice_on_where_is_followed_in_networks_of_keras_applications(name):
    side = 128 if name.startswith("Inception") else 64
    model = getattr(keras.applications, name)(weights=None, input_shape=(side, side, 3), classes=2)
    with pytest.raises(ValueError, match="no normalisation of feature maps stands before") as refused:
        insert_attention(model)
    inside = "Additions may be inside of CustomScaleLayer" in str(refused.value)
    assert inside == (name == "InceptionResNetV2")
    (where,) = re.findall(r'where="([^"]*)"', str(refused.value))
    # What insert_attention does before it copies the network, which takes longer than all the rest.
    (layer,) = find_insertion_points(model, where)
    assert layer.name == NETWORKS[name]
    assert make_module(na_keras.NormalizationAttention, layer, "module", layer.output, "channels_last").built


@keras.saving.register_keras_serializable(package="test_insertion")
class AddsInside(layers.Layer):
    """As keras.applications.InceptionResNetV2's: the addition is in no graph."""

    def call(self, tensors):
        return tensors[0] + 0.2 * tensors[1]


def like_mobilenet(x):
    x = layers.GlobalAveragePooling2D(keepdims=True)(layers.ReLU(name="relu.1")(layers.Conv2D(4, 3)(x)))
    return layers.Softmax(name="predictions")(layers.Flatten()(layers.Conv2D(5, 1, name="conv_preds")(x)))


def like_inception_resnet(x):
    x = AddsInside(name="sum")([x, layers.Conv2D(3, 3, padding="same", name="branch")(x)])
    return layers.Dense(5, name="predictions")(layers.GlobalAveragePooling2D()(x))


@pytest.mark.parametrize(("network", "advised"), [(like_mobilenet, "relu.1"), (like_inception_resnet, "branch")])
def test_a_module_goes_where_the_advice_says(network, advised):
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, network(image))
    with pytest.raises(ValueError, match="say where the modules go") as refused:
        insert_attention(model)
    (where,) = re.findall(r'where="([^"]*)"', str(refused.value))
    new = insert_attention(model, where=where)
    assert {layer.name for layer in new.layers} - {layer.name for layer in model.layers} == {f"{advised}_attention"}
