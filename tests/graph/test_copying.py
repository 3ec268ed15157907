"""Copies of other people's layers: of the same function as the original, or refused with the layer's name."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from na_keras import SqueezeExcite, count_macs, grad_cam, insert_attention
from na_keras.graph.copying import copy_model

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(2, 3, (2, 8, 8, 3)).astype("float32")
WORDS = np.array([["a", "b c"], ["c", "q"]])


def adapted(layer, data):
    layer.adapt(data)
    return layer


def double(x):
    return x * 2


def relu(x):
    """Keras has another one of this name."""
    return x * 3


class Scale(layers.Layer):
    """Not registered with Keras."""

    def __init__(self, factor=3, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def compute_output_shape(self, shape):
        return shape


class Words(layers.Layer):
    """A vocabulary one level down."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.lookup = layers.StringLookup()

    def call(self, x):
        return self.lookup(x)


def with_words():
    layer = Words()
    layer.lookup.adapt(WORDS)
    return layer


class Shifted(layers.Layer):
    """Computes with a constant made of its weight, as an adapted Normalization does."""

    def build(self, shape):
        self.shift = self.add_weight(shape=(), initializer="zeros", name="shift")
        self.constant = 0.0

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self.constant = ops.convert_to_numpy(self.shift)

    def call(self, x):
        return x + self.constant


def shifted():
    layer = Shifted()
    layer.build((None, 8, 8, 3))
    layer.load_own_variables({"0": np.float32(5)})
    return layer


class Scaled(keras.Model):
    """A functional model whose class does more than its graph says."""

    def call(self, x, training=None):
        return 10 * super().call(x, training=training)


class ScaledSequential(keras.Sequential):
    def call(self, x, training=None):
        return 10 * super().call(x, training=training)


def nested(kind=Scaled):
    image = keras.Input((8, 8, 3))
    return kind([image, layers.Conv2D(3, 1)]) if kind is ScaledSequential else kind(image, layers.Conv2D(3, 1)(image))


# layer -> input for it; state beside configuration and weights, or functions that Keras has no name for
CASES = {
    "StringLookup": (lambda: adapted(layers.StringLookup(), WORDS), WORDS),
    "one-hot StringLookup": (lambda: adapted(layers.StringLookup(output_mode="multi_hot"), WORDS), WORDS),
    "tf-idf StringLookup": (lambda: adapted(layers.StringLookup(output_mode="tf_idf"), WORDS), WORDS),
    "StringLookup with a given vocabulary": (lambda: layers.StringLookup(vocabulary=["a", "c"]), WORDS),
    "IntegerLookup": (lambda: adapted(layers.IntegerLookup(), [[3, 5]]), np.array([[3, 4], [5, 3]])),
    "TextVectorization": (lambda: adapted(layers.TextVectorization(), WORDS[:, 1]), WORDS[:, :1]),
    "Discretization": (lambda: adapted(layers.Discretization(num_bins=3), IMAGES), IMAGES),
    "Normalization": (lambda: adapted(layers.Normalization(), IMAGES), IMAGES),
    "Normalization with given moments": (lambda: layers.Normalization(mean=1.0, variance=4.0), IMAGES),
    "Normalization in a wrapper": (lambda: layers.TimeDistributed(adapted(layers.Normalization(), IMAGES)), IMAGES),
    "Hashing": (lambda: layers.Hashing(num_bins=5, salt=7), WORDS),
    "CategoryEncoding": (lambda: layers.CategoryEncoding(6, "multi_hot"), np.array([[3, 4], [5, 3]])),
    "a vocabulary one level down": (with_words, WORDS),
    "adapted state of one's own": (shifted, IMAGES),
    "a layer that is not registered": (lambda: Scale(4), IMAGES),
    "such a layer in a wrapper": (lambda: layers.TimeDistributed(Scale(4)), IMAGES),
    "a Lambda": (lambda: layers.Lambda(lambda x: ops.square(x) + IMAGES.mean()), IMAGES),
    "a Lambda of a function": (lambda: layers.Lambda(double, output_shape=(8, 8, 3)), IMAGES),
    "a Lambda with arguments": (lambda: layers.Lambda(lambda x, k: x * k, arguments={"k": 3.0}), IMAGES),
    "a function as activation": (lambda: layers.Dense(3, activation=double), IMAGES),
    "a function by the name of one of Keras": (lambda: layers.Activation(relu), IMAGES),
    "TensorFlow's softmax": (lambda: layers.Dense(3, activation=tf.nn.softmax), IMAGES),
    "TensorFlow's swish": (lambda: layers.Activation(tf.nn.silu), IMAGES),
    "a function in a wrapper": (lambda: layers.TimeDistributed(layers.Dense(3, activation=relu)), IMAGES),
    "a model with code of its own": (nested, IMAGES),
    "a Sequential with code of its own": (lambda: nested(ScaledSequential), IMAGES),
}


def model_of(layer, data):
    value = keras.Input(data.shape[1:], dtype="string" if data.dtype.kind == "U" else data.dtype.name)
    return keras.Model(value, layer(value))


def answer(model, data):
    return ops.convert_to_numpy(model(tf.constant(data)))


@pytest.mark.parametrize("name", CASES)
def test_a_copy_answers_as_the_original_and_shares_no_weight(name):
    make, data = CASES[name]
    model = model_of(make(), data)
    expected = answer(model, data)
    copied = copy_model(model)
    np.testing.assert_array_equal(answer(copied, data), expected)
    for weight in copied.weights:
        weight.assign(ops.zeros_like(weight))
    np.testing.assert_array_equal(answer(model, data), expected)


def test_insertion_keeps_a_vocabulary_beside_the_images():
    image, word = keras.Input((8, 8, 3)), keras.Input((1,), dtype="string")
    x = layers.Add()([image, layers.BatchNormalization()(layers.Conv2D(3, 3, padding="same")(image))])
    index = ops.cast(adapted(layers.StringLookup(), ["a", "b"])(word), "float32")
    model = keras.Model([image, word], layers.Concatenate()([layers.GlobalAveragePooling2D()(x), index]))
    given = [IMAGES, tf.constant([["a"], ["b"]])]
    new = insert_attention(model, "na", preserve=True)
    # Two roundings of the constant on numbers of order 10.
    np.testing.assert_allclose(new.predict(given, verbose=0), model.predict(given, verbose=0), atol=1e-5)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
def test_a_module_that_is_inserted_may_be_quantized_saved_and_copied(tmp_path):
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, layers.GlobalAveragePooling2D()(layers.Conv2D(3, 3, name="convolution")(image)))
    model = insert_attention(model, functools.partial(SqueezeExcite, 2), "convolution")
    expected = answer(model, IMAGES)
    model.quantize("int8")
    quantized = answer(model, IMAGES)
    assert 0 < np.abs(quantized - expected).max() < 0.05 * np.abs(expected).max()
    model.save(tmp_path / "model.keras")
    for same in (keras.saving.load_model(tmp_path / "model.keras"), copy_model(model)):
        np.testing.assert_array_equal(answer(same, IMAGES), quantized)


class NoConfiguration(layers.Layer):
    def __init__(self, function):
        super().__init__(name="mine")
        self.function = function

    def call(self, x):
        return self.function(x)


class Forgetful(layers.Layer):
    """Another number of weights, unless it is told."""

    def __init__(self, count=1, **kwargs):
        super().__init__(**kwargs)
        self.count = count

    def build(self, shape):
        self.kernels = [self.add_weight(shape=(3,), name=f"kernel{index}") for index in range(self.count)]

    def call(self, x):
        return x + sum(self.kernels)

    def get_config(self):
        return {"name": self.name}


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: NoConfiguration(double), "'mine', a NoConfiguration: its get_config.. fails with NotImplementedError"),
        (lambda: Forgetful(2, name="mine"), "'mine', a Forgetful: its state does not fit the copy"),
        (lambda: layers.Dense(3, activation=eval("lambda x: x"), name="mine"), "'mine', a Dense: its get_config"),
    ],
)
def test_what_cannot_be_copied_is_refused_by_name(layer, message):
    model = model_of(layer(), IMAGES)
    with pytest.raises(ValueError, match=f"Cannot copy {message}.*Give its class a get_config"):
        copy_model(model)


def classifier(kind):
    image = keras.Input((8, 8, 3))
    x = layers.Add()([image, layers.BatchNormalization()(layers.Conv2D(3, 3, padding="same")(image))])
    stack = [layers.Conv2D(3, 3), layers.GlobalAveragePooling2D(), layers.Dense(2)]
    if kind is ScaledSequential:
        return kind([image, *stack])
    for layer in stack:
        x = layer(x)
    return kind(image, x)


@pytest.mark.parametrize("kind", [Scaled, ScaledSequential])
@pytest.mark.parametrize(
    "function",
    [
        lambda model: insert_attention(model, where="^conv"),
        lambda model: grad_cam(model, IMAGES),
        count_macs,
        copy_model,
    ],
    ids=["insert_attention", "grad_cam", "count_macs", "copy_model"],
)
def test_a_functional_subclass_with_a_call_of_its_own_is_refused(function, kind):
    model = classifier(kind)
    with pytest.raises(ValueError, match="functional model.*Scaled.*has a call.. of its own.*keras.Model.model"):
        function(model)
    function(keras.Model(model.inputs, model.outputs))  # as the message says


def test_one_inside_a_model_is_called_as_it_is():
    image = keras.Input((8, 8, 3))
    inner = nested()
    x = layers.Conv2D(3, 3, padding="same")(image)
    x = layers.Add(name="sum")([x, layers.BatchNormalization()(layers.Conv2D(3, 1)(x))])
    model = keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(inner(x))))
    new = insert_attention(model, "na", preserve=True)
    np.testing.assert_allclose(answer(new, IMAGES), answer(model, IMAGES), rtol=1e-4, atol=1e-4)
    maps = grad_cam(model, IMAGES, 1, "sum")
    same = keras.Model(inner.inputs, layers.Rescaling(10.0)(inner.outputs[0]))
    x = same(model.get_layer("sum").output)
    same = keras.Model(image, model.layers[-1](model.layers[-2](x)))
    np.testing.assert_allclose(maps, grad_cam(same, IMAGES, 1, "sum"), rtol=1e-5)
    with pytest.raises(ValueError, match="Cannot count the operations of 'scaled.*a Scaled"):
        count_macs(model)


def test_the_configuration_may_change_on_the_way():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = classifier(keras.Model)
    finally:
        keras.config.set_dtype_policy("float32")

    def in_float32(config):
        return {**config, "dtype": "float32"}

    copied = copy_model(model, in_float32)
    assert {layer.compute_dtype for layer in copied.layers} == {"float32"}
    for ours, theirs in zip(copied.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs))
