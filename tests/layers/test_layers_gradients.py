"""Gradients that are written by hand on TensorFlow are the automatic ones, and cost no other derivative."""

import keras
import numpy as np
import pytest

from na_keras.layers import get_attention, global_context, gradients, normalization_attention, squeeze_excite

BACKEND = keras.backend.backend()
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="only there are they written by hand")
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="of JAX")
MODULES = ("na", "na_mean", "se", "eca", "lct", "gc", "srm", "sge")
SHAPE = (2, 5, 4, 32)


def layer_of(name):
    """A built layer whose weights all matter, and its weights' values."""
    options = {"groups": 8} if name in ("lct", "sge") else {"reduction": 8} if name in ("se", "gc") else {}
    layer = get_attention(name)(dtype="float64" if BACKEND == "tensorflow" else "float32", **options)
    layer.build((None, *SHAPE[1:]))
    rng = np.random.default_rng(0)
    values = [rng.normal(0.5, 0.5, weight.shape) for weight in layer.weights]  # a moving variance is positive
    layer.set_weights([v if w.trainable else abs(v) for v, w in zip(values, layer.weights, strict=True)])
    return layer


def features(seed=0):
    return np.random.default_rng(seed).normal(size=SHAPE)


def automatic(monkeypatch):
    """From here on TensorFlow's own gradients."""
    for module in (gradients, normalization_attention, global_context):
        monkeypatch.setattr(module, "by_hand", lambda x: False)


def tensorflow_derivatives(layer):
    """Output, gradients, the Hessian times a vector, and the derivative along a direction."""
    import tensorflow as tf

    x, cotangent, direction = (tf.constant(features(seed)) for seed in range(3))
    sources = [x, *(weight.value for weight in layer.trainable_variables)]

    @tf.function
    def derivatives():
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                output = layer(x)
                total = tf.reduce_sum(output * cotangent)
            first = inner.gradient(total, sources)
            along = tf.reduce_sum(first[0] * direction)
        return output, first, outer.gradient(along, sources, unconnected_gradients="zero")

    output, first, second = derivatives()
    with tf.autodiff.ForwardAccumulator(x, direction) as accumulator:
        along = accumulator.jvp(layer(x))
    return [np.asarray(value) for value in (output, along, *first, *second)]


@on_tensorflow
@pytest.mark.parametrize("name", MODULES)
def test_first_second_and_forward_derivatives_are_the_automatic_ones(name, monkeypatch):
    layer = layer_of(name)
    ours = tensorflow_derivatives(layer)
    automatic(monkeypatch)
    expected = tensorflow_derivatives(layer)
    for value, other in zip(ours, expected, strict=True):
        # float64 has 1e-16; second derivatives of normalised values reach some thousands.
        np.testing.assert_allclose(value, other, rtol=0, atol=1e-12 * max(np.abs(other).max(), 1.0))


@on_tensorflow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", MODULES)
def test_gradients_of_half_precision_maps_are_those_of_float32_rounded(name, dtype):
    import tensorflow as tf

    def gradient(dtype):
        layer = layer_of(name)
        half = type(layer).from_config({**layer.get_config(), "dtype": f"mixed_{dtype}" if dtype else "float32"})
        half.build((None, *SHAPE[1:]))
        half.set_weights(layer.get_weights())
        x = tf.cast(tf.cast(features(), dtype or "float32"), half.compute_dtype)
        with tf.GradientTape() as tape:
            tape.watch(x)
            output = half(x)
        return tf.cast(tape.gradient(output, x, output_gradients=tf.cast(features(1), x.dtype)), tf.float32).numpy()

    ours, expected = gradient(dtype), gradient(None)
    assert np.isfinite(ours).all()
    # The gate, the product, the gradient of either, their sum: each rounds once, of values up to the largest.
    assert (
        np.abs(ours - expected).max() <= 6 * {"float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype] * np.abs(expected).max()
    )


def test_a_function_takes_keras_symbolic_tensors():
    """A model of keras.Input, without a layer around the function."""
    image = keras.Input((6, 6, 8))
    weights = [(np.ones(shape, "float32"), np.zeros(shape[1], "float32")) for shape in ((8, 2), (2, 8))]
    model = keras.Model(image, squeeze_excite.squeeze_excite(image, *weights))
    x = np.ones((2, 6, 6, 8), "float32")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(x)), 1 / (1 + np.exp(-16)), rtol=1e-6)


@on_jax
@pytest.mark.parametrize("name", MODULES)
def test_jax_keeps_forward_mode_and_the_hessian(name):
    import jax

    layer = layer_of(name)
    weights = [weight.value for weight in layer.variables]
    trainable = len(layer.trainable_variables)

    def total(scale):
        x = jax.numpy.asarray(features(), "float32") * scale
        return layer.stateless_call(weights[:trainable], weights[trainable:], x)[0].sum()

    value, along = jax.jit(lambda at: jax.jvp(total, (at,), (1.0,)))(1.5)
    hessian = jax.jit(jax.hessian(total))(1.5)
    assert np.isfinite([value, along, hessian]).all()
    # Central differences of float32: h^2 of truncation, and the rounding of a sum of 1280 numbers over h.
    step = 0.05
    difference = (total(1.5 + step) - total(1.5 - step)) / (2 * step)
    np.testing.assert_allclose(along, difference, rtol=5e-3, atol=0.05)
