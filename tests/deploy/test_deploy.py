"""deploy/rewrite.py: the deploy copy computes what the trained network computes, however the network was built."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from weights_that_matter import make_every_weight_matter, photographs

from na_keras import EfficientChannelAttention, MobileNetV2, NormalizationAttention, ResNet50, SqueezeExcite
from na_keras.deploy import attention_forms, rewrite

FLOAT_TOLERANCE = 1e-4  # of the largest logit: float32 programs of 50 layers that add up in another order
INTEGER_SAFE_TOLERANCE = 1e-3  # of the largest logit: epsilon 1e-5 beside std becomes sqrt(1e-10) beside std / s


def assert_equal(copy, model, images, tolerance):
    expected = model(images, training=False).numpy()
    assert np.ptp(expected, axis=0).max() > 0.05 * np.abs(expected).max()  # not the same answer to every image
    np.testing.assert_allclose(copy(images, training=False), expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(
    "build, folded, attention, projected",
    # The last two stages' maps, 8 x 8 and 4 x 4, are smaller than the kernels before them.
    [(ResNet50, 53, 16, 7), (MobileNetV2, 52, 17, 0)],
    ids=["resnet", "mobilenet"],
)
def test_the_networks_in_deploy_form_give_the_same_logits(build, folded, attention, projected):
    images = photographs(8, 128)
    model = build(input_shape=(128, 128, 3), classes=10, classifier_activation=None, attention="na")
    make_every_weight_matter(model, images)
    for form in attention_forms.FORMS:
        copy, counts = rewrite.deploy_copy(model, form)
        assert counts.pop("attention_projected") == projected
        assert counts == {"batch_norm_folded": folded, "attention": attention}
        assert not any(isinstance(layer, layers.BatchNormalization | NormalizationAttention) for layer in copy.layers)
        assert_equal(copy, model, images, INTEGER_SAFE_TOLERANCE if form == "integer_safe" else FLOAT_TOLERANCE)


def block(filters, name, **settings):
    """Two 1x1 convolutions with batch norm and NA: the first narrows, the second widens (and is projected)."""

    def apply(x):
        for order, width in enumerate((filters // 4, filters), start=1):
            x = layers.Conv2D(width, 1, use_bias=False, name=f"{name}_{order}")(x)
            x = layers.BatchNormalization(name=f"{name}_{order}_bn")(x)
            x = NormalizationAttention(name=f"{name}_{order}_attention", **settings)(x)
            x = layers.ReLU()(x)
        return x

    return apply


def classifier(*parts, size=24, channels=16):
    """A small network of functions of a feature map."""
    image = keras.Input((size, size, 3))
    x = layers.Conv2D(channels, 3, 2)(layers.Rescaling(1 / 64, -2.0)(image))
    for part in parts:
        x = part(x)
    return keras.Model(image, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))


OPTIONS = [
    {},
    {"similarity": None},
    {"embedding_kernel_size": 3},
    {"unbiased": False},
    {"unbiased": False, "embedding_kernel_size": 1},
    {"unbiased": False, "epsilon_inside_sqrt": True},
    {"epsilon": 0.3},
    {"epsilon": 0.3, "epsilon_inside_sqrt": True},
]


@pytest.mark.parametrize("settings", OPTIONS, ids=str)
def test_every_option_of_na_that_has_a_form(settings):
    images = photographs(8, 24)
    model = make_every_weight_matter(classifier(block(32, "a", **settings)), images)
    for form in ("tensorflow", "tflite"):
        copy, counts = rewrite.deploy_copy(model, form)
        assert counts == {"batch_norm_folded": 2, "attention": 2, "attention_projected": 1}
        assert_equal(copy, model, images, 1e-5)  # four layers
    if settings.get("epsilon") is None or settings.get("epsilon_inside_sqrt"):  # else epsilon is not small, and moves
        copy, _ = rewrite.deploy_copy(model, "integer_safe")
        assert_equal(copy, model, images, INTEGER_SAFE_TOLERANCE)


@pytest.mark.parametrize("kind", [SqueezeExcite, EfficientChannelAttention])
@pytest.mark.parametrize("size", [None, 12], ids=["open", "12"])
def test_se_and_eca_behind_a_widening_convolution_read_its_input(kind, size):
    """In float; the integer form is the layer as it is, and so is one whose convolution makes fewer channels."""
    image = keras.Input((size, size, 16))
    x = layers.ReLU()(kind(name="wide")(layers.BatchNormalization()(layers.Conv2D(64, 1)(image))))
    x = kind(name="narrow")(layers.BatchNormalization()(layers.Conv2D(32, 1, use_bias=False)(x)))
    model = keras.Model(image, x)
    images = np.random.default_rng(0).normal(1, 1, (4, 12, 12, 16)).astype("float32")
    make_every_weight_matter(model, images)
    for form in attention_forms.FORMS:
        copy, counts = rewrite.deploy_copy(model, form)
        projected = int(form != "integer_safe")
        assert counts == {"batch_norm_folded": 2, "attention": projected, "attention_projected": projected}
        assert [type(layer) is kind for layer in copy.layers if "wide" in layer.name] == [not projected]
        assert type(copy.get_layer("narrow")) is kind
        assert_equal(copy, model, images, 1e-5)


def test_a_quantized_se_keeps_its_weights():
    image = keras.Input((6, 6, 16))
    model = keras.Model(image, SqueezeExcite()(layers.BatchNormalization()(layers.Conv2D(64, 1)(image))))
    for layer in (model.layers[-1].squeeze, model.layers[-1].excite):
        layer.quantize("int8")
    copy, counts = rewrite.deploy_copy(model)
    assert counts == {"batch_norm_folded": 1, "attention": 0, "attention_projected": 0}
    images = np.random.default_rng(0).normal(1, 1, (2, 6, 6, 16)).astype("float32")
    np.testing.assert_allclose(copy(images), model(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("similarity", ["l1", "squared", "dot"])
def test_other_similarities_stay_as_they_are_in_float_and_are_refused_for_integers(similarity):
    images = photographs(8, 24)
    model = make_every_weight_matter(classifier(block(32, "a", similarity=similarity)), images)
    copy, counts = rewrite.deploy_copy(model)
    assert counts == {"batch_norm_folded": 2, "attention": 0, "attention_projected": 0}
    assert_equal(copy, model, images, 1e-5)
    with pytest.raises(ValueError, match=f"Received: a_1_attention with similarity='{similarity}'"):
        rewrite.deploy_copy(model, "integer_safe")


@pytest.mark.parametrize("shape", [(112, 112, 16), (14, 14, 96), (7, 7, 320), (1, 1, 32), (5, 6, 1)], ids=str)
def test_gates_of_all_forms_follow_the_layers(shape):
    layer = NormalizationAttention(unbiased=shape[2] > 1)
    layer.build((None, *shape))
    layer.gamma.assign([1.0])
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(0, 1, (4, *shape)) * rng.lognormal(0, 0.7, (4, 1, 1, 1)), tf.float32)
    expected = layer.gate(x).numpy()
    for form in (attention_forms.DeployAttention, attention_forms.LiteAttention):
        np.testing.assert_allclose(form(layer).gate(x), expected, rtol=0, atol=1e-5)
    integer_safe = attention_forms.IntegerSafeAttention(layer).gate(x).numpy()[:, :, :1]
    assert shape[2] == 1 or np.corrcoef(integer_safe.ravel(), expected.ravel())[0, 1] > 0.9999
    np.testing.assert_allclose(integer_safe, expected, rtol=0, atol=1e-3)


def test_positions_that_are_all_far_from_the_mean_do_not_underflow():
    layer = NormalizationAttention()
    layer.build((None, 8, 8, 4))
    layer.gamma.assign([1.0])
    x = tf.constant(np.where(np.indices((1, 8, 8, 4)).sum(0) % 2, 500.0, -500.0) * [1, 2, 3, 4], tf.float32)
    x = x + tf.constant(np.where(np.arange(8) < 4, 900.0, -900.0)[:, None, None], tf.float32)
    for form in (attention_forms.DeployAttention, attention_forms.LiteAttention):
        np.testing.assert_allclose(form(layer)(x), layer(x), rtol=1e-5)
    assert np.isfinite(attention_forms.IntegerSafeAttention(layer)(x)).all()


CONVOLUTION_AND_NORM = {
    "bias": (lambda: layers.Conv2D(8, 3), lambda: layers.BatchNormalization(), 1),
    "stride, same": (lambda: layers.Conv2D(8, 3, 2, "same"), lambda: layers.BatchNormalization(), 1),
    "groups": (lambda: layers.Conv2D(8, 3, groups=4), lambda: layers.BatchNormalization(), 1),
    "no scale": (lambda: layers.Conv2D(8, 1), lambda: layers.BatchNormalization(scale=False), 1),
    "no centre": (lambda: layers.Conv2D(8, 1), lambda: layers.BatchNormalization(center=False), 1),
    "depthwise": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), lambda: layers.BatchNormalization(), 1),
    "activation": (lambda: layers.Conv2D(8, 3, activation="relu"), lambda: layers.BatchNormalization(), 0),
    "separable": (lambda: layers.SeparableConv2D(8, 3), lambda: layers.BatchNormalization(), 0),
    "other axis": (lambda: layers.Conv2D(8, 3), lambda: layers.BatchNormalization(axis=1), 0),
}


@pytest.mark.parametrize("convolution, norm, folded", CONVOLUTION_AND_NORM.values(), ids=CONVOLUTION_AND_NORM)
def test_batch_norm_is_folded_where_that_is_the_same_function(convolution, norm, folded):
    images = photographs(8, 24)
    model = classifier(convolution(), norm(), layers.Activation("tanh"), NormalizationAttention())
    make_every_weight_matter(model, images)
    copy, counts = rewrite.deploy_copy(model)
    assert counts["batch_norm_folded"] == folded
    assert_equal(copy, model, images, 1e-5)


def test_what_several_layers_need_is_not_folded_away():
    images = photographs(8, 24)
    image = keras.Input((24, 24, 3))
    shared, norm = layers.Conv2D(3, 1), layers.BatchNormalization()
    x = norm(shared(layers.Rescaling(1 / 64, -2.0)(image)))
    twice = norm(shared(x))  # both are called again
    tapped = layers.Conv2D(8, 1)(twice)  # is needed before its batch norm too
    x = layers.Concatenate()([tapped, layers.BatchNormalization()(tapped)])
    normed = layers.BatchNormalization()(layers.Conv2D(16, 1)(x))  # is needed before NA too
    x = layers.Add()([normed, NormalizationAttention()(normed)])
    model = keras.Model(image, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))
    make_every_weight_matter(model, images)
    copy, counts = rewrite.deploy_copy(model)
    assert counts == {"batch_norm_folded": 1, "attention": 1, "attention_projected": 0}
    assert_equal(copy, model, images, 1e-5)


def test_nested_models_sequentials_and_open_sizes():
    images = photographs(8, 24)
    inner = classifier(block(32, "inner"))
    image = keras.Input((None, None, 3))
    body = keras.Model(
        image, block(32, "open")(layers.Conv2D(8, 3, padding="same")(layers.Rescaling(1 / 64, -2.0)(image)))
    )
    outer = keras.Sequential(
        [
            keras.Input((24, 24, 3)),
            body,
            layers.Conv2D(3, 1),
            layers.BatchNormalization(),
            layers.Rescaling(64.0),
            inner,
        ]
    )
    make_every_weight_matter(body, images)
    make_every_weight_matter(inner, images)
    make_every_weight_matter(outer, images)
    copy, counts = rewrite.deploy_copy(outer)
    assert counts == {"batch_norm_folded": 5, "attention": 4, "attention_projected": 2}
    assert_equal(copy, outer, images, 1e-5)
    open_copy, _ = rewrite.deploy_copy(body)
    for size in (24, 31):
        x = photographs(2, size)
        np.testing.assert_allclose(open_copy(x), body(x), rtol=0, atol=1e-5 * np.abs(body(x)).max())


def test_normalization_layers_keep_their_statistics():
    image = keras.Input((24, 24, 3))
    x = layers.Normalization(-1, (124, 116, 104), (3400, 3300, 3300))(image)
    adapted = layers.Normalization(-1)
    adapted.adapt(photographs(4, 24))
    model = keras.Model(image, layers.Concatenate()([x, adapted(image)]))
    copy, _ = rewrite.deploy_copy(model)
    images = photographs(2, 24, seed=1)
    np.testing.assert_array_equal(copy(images), model(images))


def test_the_trained_model_is_left_alone():
    model = classifier(block(32, "a"))
    before = [weight.copy() for weight in model.get_weights()]
    rewrite.deploy_copy(model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


class Doubled(layers.Layer):
    """Not registered with Keras, which cannot load it from a file."""

    def call(self, x):
        return x * 2


def tripled(x):
    return x * 3


def adapted():
    layer = layers.Normalization()
    layer.adapt(photographs(4, 8) / 2)
    return layer


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(
    "layer",
    [
        adapted,
        Doubled,
        lambda: layers.Lambda(lambda x: x * 2, output_shape=(8, 8, 3)),
        lambda: layers.Conv2D(3, 1, activation=tripled),
        lambda: layers.Conv2D(3, 1, activation=tf.nn.softmax),
        lambda: layers.Activation(tf.nn.silu),
    ],
    ids=["Normalization", "class", "Lambda", "function", "tf.nn.softmax", "tf.nn.silu"],
)
def test_layers_of_others_are_copied_with_their_functions_and_state(layer, policy):
    images = photographs(4, 8)
    keras.config.set_dtype_policy(policy)
    try:
        image = keras.Input((8, 8, 3))
        x = layer()(layers.Rescaling(1 / 64)(image) if layer is not adapted else image)
        model = keras.Model(image, layers.Dense(5, dtype="float32")(layers.GlobalAveragePooling2D()(x)))
    finally:
        keras.config.set_dtype_policy("float32")
    copy, _ = rewrite.deploy_copy(model)
    assert {inner.compute_dtype for inner in copy.layers} == {"float32"}
    assert_equal(copy, model, images, FLOAT_TOLERANCE if policy == "float32" else 2.0**-5)  # some roundings of 2**-8


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_layer_without_a_configuration_is_refused_by_name(policy):
    class NoConfiguration(layers.Layer):
        def __init__(self, function, name):
            super().__init__(name=name, dtype=policy)

        def call(self, x):
            return x

    image = keras.Input((8, 8, 3))
    model = keras.Model(image, NoConfiguration(tripled, "mine")(image))
    with pytest.raises(ValueError, match="Cannot copy 'mine', a NoConfiguration: its get_config"):
        rewrite.deploy_copy(model)
