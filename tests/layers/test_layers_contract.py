"""What every attention layer promises, each property once for each row of the table in attention_layers.py."""

import functools
import gc
import inspect
import json
import warnings

import attention_layers
import keras
import numpy as np
import pytest
from attention_layers import ROWS, features, make, oracle, randomize
from gradients import output_and_gradients

import na_keras

on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a property of TensorFlow graphs")
every_layer = pytest.mark.parametrize("name", ROWS)

# Their convolutions or projections run in half precision, as any in a mixed-precision network; the others' do not.
HALF_PRECISION_INSIDE = ("sk", "non_local")
TO_FIRST, TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


def as_array(tensor):
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))


def assert_close(output, expected, roundings=64):
    """float32: each rounding is 6e-8 of the largest value; sums over positions and channels make some dozens."""
    assert np.abs(output - expected).max() <= roundings * 6e-8 * max(np.abs(expected).max(), 1.0)


def output_of(layer, x):
    """layer(x). On JAX compiled as a whole: operation by operation takes several times as long."""
    if keras.backend.backend() != "jax":
        return layer(x)
    import jax

    return jax.jit(layer)(x)


def answer(layer, x):
    """layer(x) as a float32 array."""
    return as_array(output_of(layer, x))


def functional_model(name, shape=(None, None)):
    image = keras.Input((*shape, ROWS[name].channels))
    row = ROWS[name]
    model = keras.Model(image, row.layer(**row.arguments)(image))
    randomize(model.layers[1])
    return model


def test_every_exported_layer_has_a_row():
    exported = [getattr(na_keras, name) for name in na_keras.__all__]
    layers = {cls for cls in exported if inspect.isclass(cls) and issubclass(cls, keras.layers.Layer)}
    assert layers == {row.layer for row in ROWS.values()}
    assert {getattr(factory, "func", factory) for factory in na_keras.ATTENTION.values()} == layers


@every_layer
def test_equals_the_float64_oracle_in_both_data_formats(name):
    x = features(name)
    layer = make(name)
    expected = oracle(name, layer, x)
    assert np.abs(expected).max() > 0.5 and np.isfinite(expected).all()
    assert_close(answer(layer, x), expected)
    first = make(name, data_format="channels_first")
    assert [(w.name, w.shape) for w in first.weights] == [(w.name, w.shape) for w in layer.weights]
    assert_close(answer(first, x.transpose(TO_FIRST)).transpose(TO_LAST), expected)


@every_layer
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_the_pure_function_on_the_layers_weights_is_the_layer(name, data_format):
    """With arrays for weights and no Keras layer around it, as a layer of another library calls it."""
    layer, x = make(name, data_format=data_format), features(name)
    x = x if data_format == "channels_last" else x.transpose(TO_FIRST)
    weights = {path: weight.astype("float32") for path, weight in attention_layers.weights_of(layer).items()}
    function = functools.partial(ROWS[name].function, w=weights, data_format=data_format, **ROWS[name].arguments)
    assert_close(answer(function, keras.ops.convert_to_tensor(x)), answer(layer, x))
    half = output_of(function, keras.ops.cast(x, "bfloat16"))
    assert keras.backend.standardize_dtype(half.dtype) == "bfloat16"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """(before, quantized, loaded): {row: (its layer, its answer)} of one model of all rows, which is saved once."""
    inputs = [keras.Input((5, 7, ROWS[name].channels), name=name) for name in ROWS]
    images = [features(name) for name in ROWS]
    rows = [row.layer(**row.arguments, name=f"layer_{name}") for name, row in ROWS.items()]
    model = keras.Model(inputs, [layer(x) for layer, x in zip(rows, inputs, strict=True)])
    for layer in rows:
        randomize(layer)

    def answers(model):
        layers = [model.get_layer(f"layer_{name}") for name in ROWS]
        return dict(zip(ROWS, zip(layers, map(as_array, model(images)), strict=True), strict=True))

    states = [answers(model)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Layer .* does not have a `quantize` method")
        gc.freeze()  # Keras collects garbage at each kernel that it replaces: what is there is none, and stays frozen
        model.quantize("int8")
    path = tmp_path_factory.mktemp("quantized") / "model.keras"
    model.save(path)
    return [*states, answers(model), answers(keras.saving.load_model(path))]


@on_tensorflow
@every_layer
def test_a_layer_quantized_to_int8_loads_with_the_same_bits(name, quantized):
    """Its fully connected sublayers then hold int8 kernels, which as they are would be hundreds of times too large."""
    (_, expected), (layer, answer), (loaded, loaded_answer) = (state[name] for state in quantized)
    dense = any(isinstance(inner, keras.layers.Dense) for inner in layer._flatten_layers())
    assert dense == ("int8" in {keras.backend.standardize_dtype(weight.dtype) for weight in layer.weights})
    assert (0 < np.abs(answer - expected).max() < 0.05 * np.abs(expected).max()) or not dense
    assert [weight.path for weight in loaded.weights] == [weight.path for weight in layer.weights]
    np.testing.assert_array_equal(loaded_answer, answer)


@on_tensorflow
@every_layer
def test_dtype_policies_of_sublayers_are_in_the_configuration(name):
    layer, x = make(name), features(name)
    sublayers = layer._flatten_layers(include_self=False)
    plain = layer.get_config()
    assert "sublayer_dtypes" not in plain  # files of layers as they come hold nothing new
    for sublayer in sublayers:
        sublayer.dtype_policy = "mixed_bfloat16"
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    copy = keras.saving.deserialize_keras_object(config)
    assert copy.get_config() == layer.get_config()  # before it is built, too
    copy(x)
    assert copy.get_config() == layer.get_config()
    copy.set_weights(layer.get_weights())
    layer.dtype_policy = "mixed_bfloat16"  # and of the layer without those in it
    assert type(layer).from_config(layer.get_config())(x).dtype == layer(x).dtype
    layer.dtype_policy = "float32"
    assert {inner.dtype_policy.name for inner in copy._flatten_layers(include_self=False)} <= {"mixed_bfloat16"}
    np.testing.assert_array_equal(as_array(copy(x)), as_array(layer(x)))


@every_layer
def test_maps_of_integers_are_refused(name):
    layer, x = make(name), features(name).astype("int32")
    for dtype in ("int32", "uint8", "bool"):
        expected = f"{type(layer).__name__} expected a floating-point map. Received: dtype {dtype}; cast it: "
        for given in (x.astype(dtype), keras.ops.cast(x, dtype), keras.Input(x.shape[1:], dtype=dtype)):
            with pytest.raises(ValueError, match=expected) as refused:
                layer(given)
    _, _, advice = str(refused.value).partition("cast it: ")
    assert layer(eval(advice, {"keras": keras, "x": x})).shape[0] == 2


@every_layer
def test_height_and_width_may_be_unknown(name):
    model = functional_model(name)
    for shape in ((3, 1, 1), (1, 4, 2)):  # one position has no variance and all of the softmax
        x = features(name, shape)
        assert_close(answer(model, x), oracle(name, model.layers[1], x))


@every_layer
def test_output_shape_is_known_without_a_call(name):
    for data_format in ("channels_last", "channels_first"):
        layer = ROWS[name].layer(**ROWS[name].arguments, data_format=data_format)
        known, unknown = [2, 7, 8, ROWS[name].channels], [None, None, None, ROWS[name].channels]
        if data_format == "channels_first":
            known, unknown = ([shape[axis] for axis in TO_FIRST] for shape in (known, unknown))
        computed = layer.compute_output_shape(tuple(known))
        assert tuple(layer(np.ones(known, "float32")).shape) == computed
        expected = [None if old is None else new for old, new in zip(unknown, computed, strict=True)]
        expected[layer.channel_axis] = computed[layer.channel_axis]
        assert layer.compute_output_shape(tuple(unknown)) == tuple(expected)
        symbolic = ROWS[name].layer(**ROWS[name].arguments, data_format=data_format)(keras.Input(unknown[1:]))
        assert tuple(symbolic.shape) == tuple(expected)


@every_layer
def test_config_round_trip_keeps_every_argument(name):
    row = ROWS[name]
    options = {"data_format": "channels_first", "name": "attention", "dtype": "mixed_bfloat16"}
    layer = row.layer(**row.arguments, **options)
    config = layer.get_config()
    arguments = set(inspect.signature(row.layer.__init__).parameters) - {"self", "kwargs"}
    assert arguments <= set(config)
    assert {key: config[key] for key in row.arguments} == row.arguments
    written = json.dumps(keras.saving.serialize_keras_object(layer))
    copy = keras.saving.deserialize_keras_object(json.loads(written))
    assert type(copy) is row.layer and copy.get_config() == config
    older = {key: value for key, value in config.items() if "initializer" not in key}  # as files of version 0.1.0
    assert row.layer.from_config(older).get_config() == config
    assert keras.saving.get_registered_name(row.layer) == f"na_keras>{row.layer.__name__}"


@every_layer
def test_saved_model_file_loads_with_the_same_output(name, tmp_path):
    model = functional_model(name)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert [w.path for w in loaded.weights] == [w.path for w in model.weights]
    x = features(name)
    np.testing.assert_array_equal(as_array(model(x)), as_array(loaded(x)))


@every_layer
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_keeps_weights_and_statistics_in_float32(name, dtype):
    layer = make(name, dtype=f"mixed_{dtype}")
    x = keras.ops.cast(features(name), dtype)
    output = layer(x)
    assert keras.backend.standardize_dtype(output.dtype) == dtype
    assert {keras.backend.standardize_dtype(weight.dtype) for weight in layer.weights} <= {"float32"}
    expected = oracle(name, layer, as_array(x))
    # One rounding of the gate and one of the product; more where features of half precision are mixed.
    precision = 2.0**-11 if dtype == "float16" else 2.0**-8
    roundings = 8 if name.startswith(HALF_PRECISION_INSIDE) else 2
    assert np.abs(as_array(output) - expected).max() <= roundings * precision * np.abs(expected).max()


# A dot product of features times features is cubic in them: its result itself is beyond float16.
@pytest.mark.parametrize("name", [name for name in ROWS if name != "non_local_dot"])
def test_large_half_precision_features_do_not_overflow(name):
    """Their squares, and their sums over 1024 positions, are beyond float16's 65504."""
    layer = make(name, dtype="mixed_float16")
    x = keras.ops.cast(100 + features(name, (1, 32, 32)), "float16")
    assert np.isfinite(as_array(layer(x))).all()


@every_layer
def test_gradients_of_zeros_are_finite(name):
    layer = make(name)
    x = np.zeros((2, 5, 7, ROWS[name].channels), "float32")
    output, (gradient,) = output_and_gradients(layer, [x], np.ones(layer.compute_output_shape(x.shape), "float32"))
    assert np.isfinite(output).all() and np.isfinite(gradient).all()


@every_layer
def test_batch_norm_learns_its_statistics_in_training_only(name):
    layer = make(name)
    assert ROWS[name].layer.has_batch_norm == ("synchronized" in layer.get_config())
    x = features(name)
    before = [as_array(weight) for weight in layer.non_trainable_weights]
    layer(x)
    for weight, old in zip(layer.non_trainable_weights, before, strict=True):
        np.testing.assert_array_equal(as_array(weight), old)
    layer(x, training=True) if ROWS[name].layer.has_batch_norm else layer(x)
    for weight, old in zip(layer.non_trainable_weights, before, strict=True):
        assert weight.path.endswith("seed_generator_state") or not np.array_equal(as_array(weight), old)


def tensorflow_gradients(layer, x, cotangent, training=None):
    """Output and gradients of sum(output * cotangent) with respect to x and the trainable weights."""
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(x)
        output = layer(x, training=training) if type(layer).has_batch_norm else layer(x)
        total = tf.reduce_sum(output * cotangent)
    sources = [x, *(weight.value for weight in layer.trainable_weights)]
    return output, tape.gradient(total, sources, unconnected_gradients="zero")


@on_tensorflow
@every_layer
def test_xla_gives_the_same_numbers_and_finite_gradients_of_zeros(name):
    import tensorflow as tf

    layer = make(name)
    x = tf.constant(features(name))
    cotangent = tf.random.stateless_normal(layer(x).shape, (1, 2))
    compiled = tf.function(lambda x: tensorflow_gradients(layer, x, cotangent), jit_compile=True)
    output, gradients = compiled(x)
    expected_output, expected_gradients = tensorflow_gradients(layer, x, cotangent)
    assert_close(output.numpy(), expected_output.numpy())
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient.numpy(), expected.numpy(), roundings=256)  # sums of products of such values
    output, gradients = compiled(tf.zeros_like(x))
    assert all(np.isfinite(value).all() for value in (output, *gradients))


@on_tensorflow
@every_layer
def test_graph_with_unknown_sizes_in_both_data_formats(name):
    import tensorflow as tf

    x = features(name)
    last, first = make(name), make(name, data_format="channels_first")
    channels = ROWS[name].channels
    graph = tf.function(last, input_signature=[tf.TensorSpec((None, None, None, channels))])
    np.testing.assert_allclose(graph(x), last(x), atol=1e-5)
    graph = tf.function(first, input_signature=[tf.TensorSpec((None, channels, None, None))])
    x = x.transpose(TO_FIRST)
    np.testing.assert_allclose(graph(x), first(x), atol=1e-5)


@on_tensorflow
@every_layer
def test_exported_saved_model_and_tflite_builtins_give_the_same_output(name, tmp_path):
    import tensorflow as tf

    model = functional_model(name, (6, 5))
    x = features(name, (1, 6, 5))
    expected = as_array(model(x))
    archive = keras.export.ExportArchive()
    archive.track(model)
    for endpoint, batch in (("serve", None), ("one", 1)):
        archive.add_endpoint(endpoint, model.__call__, [tf.TensorSpec((batch, *x.shape[1:]))])
    archive.write_out(str(tmp_path), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_allclose(loaded.serve(x), expected, atol=1e-5)

    interpreter_module = pytest.importorskip("ai_edge_litert.interpreter")
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path), signature_keys=["one"])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    interpreter = interpreter_module.Interpreter(model_content=converter.convert())
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    assert_close(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]), expected, roundings=256)


@on_tensorflow
@every_layer
def test_two_replicas_equal_one(name):
    """Training on the halves of a batch is training on the batch: outputs, gradients and synchronised statistics."""
    import tensorflow as tf

    options = {"synchronized": True} if ROWS[name].layer.has_batch_norm else {}
    x = tf.constant(features(name, (4, 5, 7)))
    alone = make(name, **options)
    cotangent = tf.random.stateless_normal(alone.compute_output_shape(x.shape), (1, 2))
    expected, expected_gradients = tensorflow_gradients(alone, x, cotangent, training=True)

    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice())
    with strategy.scope():
        together = make(name, **options)
    halves = [tf.split(value, 2) for value in (x, cotangent)]
    shares = [
        strategy.experimental_distribute_values_from_function(
            lambda context, parts=parts: parts[context.replica_id_in_sync_group]
        )
        for parts in halves
    ]

    @tf.function
    def step(x, cotangent):
        return strategy.run(lambda *share: tensorflow_gradients(together, *share, training=True), (x, cotangent))

    output, (dx, *gradients) = step(*shares)
    # Synchronised variances are mean squares less squared means, which cancel where a feature hardly varies; replicas
    # that did not know of each other would be off by 1e-1.
    roundings = 4096
    for per_replica, whole in ((output, expected), (dx, expected_gradients[0])):
        assert_close(
            np.concatenate(strategy.experimental_local_results(per_replica)), whole.numpy(), roundings=roundings
        )
    for gradient, whole in zip(gradients, expected_gradients[1:], strict=True):
        assert_close(sum(strategy.experimental_local_results(gradient)).numpy(), whole.numpy(), roundings=roundings)
    for ours, theirs in zip(together.non_trainable_weights, alone.non_trainable_weights, strict=True):
        assert_close(as_array(ours), as_array(theirs))


@on_tensorflow  # on JAX and torch Keras itself computes means of float64 in float32
@every_layer
def test_float64_is_computed_in_float64(name):
    layer = make(name, dtype="float64")
    x = np.random.default_rng(0).normal(size=(2, 5, 7, ROWS[name].channels))
    output = layer(keras.ops.convert_to_tensor(x, "float64"))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(output), oracle(name, layer, x), atol=1e-12)


def test_the_table_leaves_no_weight_at_a_value_that_hides_it():
    for name in ROWS:
        for path, weight in attention_layers.weights_of(make(name)).items():
            assert np.abs(weight).min() > 0 and (weight.size == 1 or weight.std() > 0), (name, path)


@every_layer
def test_an_empty_batch_has_an_empty_answer(name):
    layer = make(name)
    x = features(name)[:0]
    assert answer(layer, x).shape == layer.compute_output_shape(x.shape)
