"""NormalizationAttention against the authors' numbers and the float64 oracle, on whichever backend Keras runs."""

import itertools
import pathlib

import keras
import numpy as np
import pytest
import reference
from gradients import output_and_gradients

from na_keras import NormalizationAttention
from na_keras.layers.normalization_attention import normalization_attention

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "normalization_attention.npz")
CASES = {entry.split()[0]: entry for entry in GOLDEN["cases"]}
ONE_CHANNEL, EQUAL_CHANNELS = "05", "08"

PAPER = {"unbiased": False, "epsilon_inside_sqrt": True}
VARIANTS = {
    "code_context": {},
    "code_mean": {"similarity": None},
    "code_embedding": {},
    "l1_paper": {"similarity": "l1", **PAPER},
    "squared_paper": {"similarity": "squared", **PAPER},
    "dot_paper": {"similarity": "dot", **PAPER},
}
# Convolutions and their kernels' order in the file: key then query.
EMBEDDING = ("k1", "k2", "q1", "q2")

on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a property of TensorFlow graphs")


def golden_embedding(case):
    return [GOLDEN[f"{case}.embed.{name}.{part}"] for name in EMBEDDING for part in ("kernel", "bias")]


def as_embedding(arrays):
    key_1, key_2, query_1, query_2 = zip(arrays[::2], arrays[1::2], strict=True)
    return (key_1, key_2), (query_1, query_2)


def run(case, variant, function=normalization_attention):
    """Output and gradients (x, gamma, beta, embedding ...) for a case of the golden file."""
    options = VARIANTS[variant]
    x, cotangent, gamma, beta = (GOLDEN[f"{case}.{name}"] for name in ("x", "r", "gamma", "beta"))
    arrays = [x, gamma, beta]
    if variant == "code_embedding":
        arrays += golden_embedding(case)

    def forward(x, gamma, beta, *embedding):
        return function(x, gamma, beta, embedding=as_embedding(embedding) if embedding else None, **options)

    return output_and_gradients(forward, arrays, cotangent)


def expected(case, variant, name):
    return GOLDEN[f"{case}.{variant}.{name}"]


def is_undefined(case, variant):
    return case == ONE_CHANNEL and variant.startswith("code")


DEFINED = [pair for pair in itertools.product(CASES, VARIANTS) if not is_undefined(*pair)]


@pytest.mark.parametrize(("case", "variant"), DEFINED)
def test_output_and_gradients_equal_the_authors(case, variant):
    output, (dx, dgamma, dbeta, *embedding) = run(case, variant)
    # float32 rounding (6e-8) through sums over positions and channels; largest seen on three backends: out 4e-6,
    # dx 6e-6, dgamma 5e-5 of the largest entry. Equal channels divide rounding noise by epsilon: loose.
    out_tolerance, dx_tolerance = (6e-6, 8e-6) if case != EQUAL_CHANNELS else (2e-2, 3e-2)
    scale = max(np.abs(expected(case, variant, "out")).max(), 1e-30)
    assert np.abs(output - expected(case, variant, "out")).max() <= out_tolerance * scale
    dx_scale = np.abs(expected(case, variant, "dx")).max()
    assert np.abs(dx - expected(case, variant, "dx")).max() <= dx_tolerance * dx_scale
    if case == EQUAL_CHANNELS:
        return
    for value, name in ((dgamma, "dgamma"), (dbeta, "dbeta")):
        np.testing.assert_allclose(value, expected(case, variant, name), rtol=5e-5, atol=5e-5)
    if embedding:
        names = [f"d_{name}_{part}" for name in EMBEDDING for part in ("kernel", "bias")]
        # Relative to the largest of all: the gradients of the last biases cancel to nearly nothing.
        largest = max(np.abs(expected(case, variant, name)).max() for name in names)
        for value, name in zip(embedding, names, strict=True):
            assert np.abs(value - expected(case, variant, name)).max() <= 5e-5 * max(largest, 1)


@pytest.mark.parametrize("similarity", ["channel_mean", "l1", "squared", "dot", None])
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_layer_equals_the_float64_oracle(similarity, unbiased, inside, data_format):
    options = {"similarity": similarity, "unbiased": unbiased, "epsilon_inside_sqrt": inside, "epsilon": 1e-3}
    layer = NormalizationAttention(
        gamma_initializer=keras.initializers.Constant(0.7),
        beta_initializer=keras.initializers.Constant(-0.3),
        data_format=data_format,
        **options,
    )
    x = np.random.default_rng(0).normal(0, 0.4, (2, 6, 5, 12)).astype("float32")
    to_layer, back = ((0, 3, 1, 2), (0, 2, 3, 1)) if data_format == "channels_first" else ((0, 1, 2, 3),) * 2
    output = keras.ops.convert_to_numpy(layer(x.transpose(to_layer)))
    oracle = reference.normalization_attention(x, 0.7, -0.3, **options)
    # About 100 roundings of 6e-8 on values of order 1.
    np.testing.assert_allclose(output.transpose(back), oracle, atol=6e-6)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_embedding_equals_the_float64_oracle(data_format, size):
    layer = NormalizationAttention(embedding_kernel_size=size, gamma_initializer="ones", data_format=data_format)
    x = np.random.default_rng(0).normal(0, 1, (2, 7, 6, 8)).astype("float32")
    to_layer, back = ((0, 3, 1, 2), (0, 2, 3, 1)) if data_format == "channels_first" else ((0, 1, 2, 3),) * 2
    output = keras.ops.convert_to_numpy(layer(x.transpose(to_layer)))
    assert layer.count_params() == 2 + 4 * (size * size + 1)
    weights = as_embedding([weight.astype("float64") for weight in layer.get_weights()[2:]])
    oracle = reference.normalization_attention(x, 1.0, 1.0, embedding=weights)
    np.testing.assert_allclose(output.transpose(back), oracle, atol=1e-5)


def test_each_variant_is_a_different_module():
    """Case 02 separates all of them: a mix-up of two names cannot pass the golden test by chance."""
    outputs = [run("02", variant)[0] for variant in VARIANTS]
    for one, other in itertools.combinations(outputs, 2):
        assert np.abs(one - other).max() > 1e-3


def test_a_fresh_layer_multiplies_by_sigmoid_of_one():
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 6)).astype("float32")
    layer = NormalizationAttention()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer(x)), x / (1 + np.exp(-1)), rtol=2e-6)
    assert [(weight.name, tuple(weight.shape)) for weight in layer.weights] == [("gamma", (1,)), ("beta", (1,))]


def test_permuting_positions_permutes_the_output():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 5, 4, 8)).astype("float32")
    order = rng.permutation(20)
    layer = NormalizationAttention(gamma_initializer="ones")
    output = keras.ops.convert_to_numpy(layer(x)).reshape(1, 20, 8)
    shuffled = keras.ops.convert_to_numpy(layer(x.reshape(1, 20, 8)[:, order].reshape(1, 5, 4, 8)))
    np.testing.assert_allclose(shuffled.reshape(1, 20, 8), output[:, order], atol=3e-6)


@pytest.mark.parametrize("similarity", ["channel_mean", "l1", "squared", "dot", None])
def test_zero_input_gives_zero_and_finite_gradients(similarity):
    x = np.zeros((2, 4, 4, 8), "float32")
    one = np.ones((1,), "float32")
    output, gradients = output_and_gradients(
        lambda *arrays: normalization_attention(*arrays, similarity=similarity), [x, one, one], np.ones_like(x)
    )
    assert not output.any()
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@on_tensorflow
@pytest.mark.parametrize("variant", VARIANTS)
def test_xla_gives_the_same_numbers(variant):
    import tensorflow as tf

    compiled = tf.function(normalization_attention, jit_compile=True)
    # What a compiler may spoil by rewriting: an ordinary map, one position, zeros, equal channels.
    for case in ("00", "03", "06", EQUAL_CHANNELS):
        if is_undefined(case, variant):
            continue
        output, (dx, *_) = run(case, variant, compiled)
        assert np.isfinite(output).all() and np.isfinite(dx).all(), case
        if case != EQUAL_CHANNELS:
            scale = np.abs(expected(case, variant, "dx")).max()
            assert np.abs(dx - expected(case, variant, "dx")).max() <= 8e-6 * scale, case


@on_tensorflow
def test_xla_gradient_of_equal_channels_is_finite():
    """Both sqrt(variance) + epsilon and reduce_std give NaN here: 0 * inf, which only XLA evaluates."""
    import tensorflow as tf

    x = tf.constant(np.repeat(np.random.default_rng(0).normal(size=(1, 3, 3, 1)), 4, axis=-1).astype("float32"))
    layer = NormalizationAttention(gamma_initializer="ones")
    layer.build(x.shape)

    @tf.function(jit_compile=True)
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(layer(x))
        return tape.gradient(total, x)

    assert np.isfinite(gradient(x).numpy()).all()
    assert np.isfinite(gradient(tf.zeros_like(x)).numpy()).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("similarity", ["channel_mean", "l1"])
def test_gate_is_computed_in_float32_under_mixed_precision(dtype, similarity):
    """Large sums: in half precision the l1 scores of 1024 channels would leave nothing of the softmax."""
    x = keras.ops.cast(np.random.default_rng(0).normal(1, 2, (2, 8, 8, 1024)), dtype)
    layer = NormalizationAttention(similarity, gamma_initializer="ones", dtype=f"mixed_{dtype}")
    output = layer(x)
    assert keras.backend.standardize_dtype(output.dtype) == dtype
    assert layer.gamma.dtype == "float32"
    gate = layer.gate(x)
    assert keras.backend.standardize_dtype(gate.dtype) == "float32"
    x64 = keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")).astype("float64")
    oracle = reference.normalization_attention(x64, 1.0, 1.0, similarity=similarity)
    # l1 scores are of order 1e3 in float32: the softmax is exact to about 1e3 * 6e-8 * a few.
    ratio = oracle.sum((1, 2)) / x64.sum((1, 2))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(gate)[:, 0, 0], ratio, atol=2e-3 if similarity == "l1" else 2e-5
    )
    # one rounding of the gate and one of the product
    precision = 2.0**-10 if dtype == "float16" else 2.0**-7
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(keras.ops.cast(output, "float32")), oracle, rtol=2 * precision, atol=0.02
    )


def test_gamma_and_beta_are_not_rounded_under_mixed_precision():
    """A gamma of 1.003 is 1.0 in bfloat16, as every gamma's last steps of training would be."""
    x = keras.ops.cast(np.random.default_rng(0).normal(1, 2, (2, 4, 4, 8)), "bfloat16")
    weights = {
        "gamma_initializer": keras.initializers.Constant(1.003),
        "beta_initializer": keras.initializers.Constant(0.7),
    }
    mixed, full = (NormalizationAttention(**weights, dtype=dtype) for dtype in ("mixed_bfloat16", "float32"))
    full.build(x.shape)
    expected = x * keras.ops.cast(full.gate(x), "bfloat16")
    assert bool(keras.ops.all(mixed(x) == expected))


@on_tensorflow  # on JAX and torch Keras itself computes means of float64 in float32
def test_float64_input_is_computed_in_float64():
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 8))
    layer = NormalizationAttention(gamma_initializer="ones", dtype="float64")
    oracle = reference.normalization_attention(x, 1.0, 1.0)
    output = layer(keras.ops.convert_to_tensor(x, "float64"))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(output), oracle, atol=1e-13)


def test_config_round_trip_keeps_every_argument():
    arguments = {
        "similarity": "channel_mean",
        "embedding_kernel_size": 3,
        "unbiased": False,
        "epsilon": 1e-3,
        "epsilon_inside_sqrt": True,
        "gamma_initializer": keras.initializers.Constant(0.5),
        "beta_initializer": "zeros",
        "gamma_regularizer": keras.regularizers.L2(1e-3),
        "beta_regularizer": keras.regularizers.L1(1e-3),
        "gamma_constraint": "non_neg",
        "beta_constraint": keras.constraints.MaxNorm(2.0),
        "data_format": "channels_first",
        "name": "attention",
        "dtype": "mixed_bfloat16",
    }
    layer = NormalizationAttention(**arguments)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert isinstance(copy, NormalizationAttention)
    assert copy.get_config() == layer.get_config()
    defaults = NormalizationAttention().get_config()
    unchanged = [key for key in arguments if layer.get_config()[key] == defaults[key]]
    assert unchanged == ["similarity"]  # the test is worth something for all the others
    registered = keras.saving.get_registered_name(NormalizationAttention)
    assert registered == "na_keras>NormalizationAttention"


def test_regularizers_and_constraints_act():
    layer = NormalizationAttention(
        gamma_initializer="ones",
        gamma_regularizer=keras.regularizers.L1(2.0),
        beta_regularizer=keras.regularizers.L1(3.0),
    )
    layer.build((None, 4, 4, 8))
    assert keras.ops.convert_to_numpy(sum(layer.losses)) == pytest.approx(5.0)
    layer = NormalizationAttention(gamma_constraint="non_neg", beta_constraint="non_neg")
    layer.build((None, 4, 4, 8))
    optimizer = keras.optimizers.SGD(10.0)
    optimizer.build(layer.trainable_variables)
    optimizer.apply([keras.ops.ones((1,))] * 2)  # would take both to below zero
    assert keras.ops.convert_to_numpy(layer.gamma) == 0 and keras.ops.convert_to_numpy(layer.beta) == 0


def test_saved_model_with_every_variant_loads_with_the_same_output(tmp_path):
    image = x = keras.Input((None, None, 6))
    for options in ({}, {"embedding_kernel_size": 3}, {"similarity": "l1", **PAPER}, {"similarity": None}):
        x = NormalizationAttention(gamma_initializer="ones", **options)(x)
    model = keras.Model(image, x)
    assert model.output_shape == (None, None, None, 6)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for shape in ((2, 5, 7, 6), (1, 1, 1, 6)):
        batch = np.random.default_rng(0).normal(size=shape).astype("float32")
        np.testing.assert_array_equal(model.predict(batch, verbose=0), loaded.predict(batch, verbose=0))


@on_tensorflow
def test_unknown_height_width_and_batch_in_a_graph():
    import tensorflow as tf

    layer = NormalizationAttention(gamma_initializer="ones", embedding_kernel_size=3)
    layer.build((None, None, None, 8))
    graph = tf.function(layer, input_signature=[tf.TensorSpec((None, None, None, 8))])
    for shape in ((2, 5, 7, 8), (3, 1, 1, 8)):
        x = np.random.default_rng(0).normal(size=shape).astype("float32")
        np.testing.assert_allclose(graph(x), layer(x), atol=1e-6)
    first = NormalizationAttention(gamma_initializer="ones", data_format="channels_first")
    first.build((None, 8, None, None))
    graph = tf.function(first, input_signature=[tf.TensorSpec((None, 8, None, None))])
    x = np.random.default_rng(0).normal(size=(2, 8, 5, 7)).astype("float32")
    np.testing.assert_allclose(graph(x), first(x), atol=1e-6)


def test_output_shape_is_known_without_a_call():
    layer = NormalizationAttention()
    assert layer.compute_output_shape((None, 7, None, 16)) == (None, 7, None, 16)
    assert layer(keras.Input((None, 7, 16))).shape == (None, None, 7, 16)


def test_training_moves_gamma_and_beta():
    model = keras.Sequential(
        [keras.Input((8, 8, 4)), NormalizationAttention(), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)]
    )
    model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 8, 8, 4)).astype("float32"), rng.normal(size=(16, 2)).astype("float32")
    model.fit(x, y, epochs=1, verbose=0)
    gamma, beta = model.layers[0].get_weights()
    assert gamma != 0 and beta != 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"similarity": "cosine"}, "similarity must be one of .*channel_mean.*Received: 'cosine'"),
        ({"embedding_kernel_size": 2}, "odd positive integer.*Received: 2"),
        ({"embedding_kernel_size": -1}, "odd positive integer.*Received: -1"),
        ({"embedding_kernel_size": 3, "similarity": "l1"}, "Table 2.*Received: similarity='l1'"),
        ({"epsilon": 0.0}, "epsilon must be a positive number.*Received: 0.0"),
        ({"epsilon": float("nan")}, "epsilon must be a positive number"),
        ({"epsilon": float("inf")}, "epsilon must be a positive number"),
        ({"epsilon": None}, "epsilon must be a positive number.*Received: None"),
        ({"embedding_kernel_size": True}, "odd positive integer.*Received: True"),
        ({"data_format": "nhwc"}, "channels_last.*Received: 'nhwc'"),
    ],
)
def test_bad_arguments_are_refused_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        NormalizationAttention(**arguments)


@pytest.mark.parametrize(
    ("arguments", "shape", "message"),
    [
        ({}, (2, 4, 4, 1), "single channel is undefined: use unbiased=False"),
        ({}, (2, 8), "rank 4. Received: input_shape=\\(2, 8\\)"),
        ({}, (2, 4, 4, 4, 8), "rank 4"),
        ({"data_format": "channels_first"}, (2, 1, 4, 4), "single channel"),
    ],
)
def test_bad_inputs_are_refused_on_the_first_call(arguments, shape, message):
    with pytest.raises(ValueError, match=message):
        NormalizationAttention(**arguments)(np.zeros(shape, "float32"))


def test_unknown_channels_are_refused():
    with pytest.raises(ValueError, match="number of channels"):
        NormalizationAttention()(keras.Input((4, 4, None)))


def test_one_channel_without_unbiased_is_defined():
    x = np.ones((1, 2, 2, 1), "float32")
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(NormalizationAttention(unbiased=False)(x)), 1 / (1 + np.exp(-1)), rtol=1e-6
    )
