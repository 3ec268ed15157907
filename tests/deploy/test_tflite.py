"""deploy/tflite and deploy/calibration.py: every kind of file, on a trained network and on single NA layers."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from weights_that_matter import make_every_weight_matter, photographs

import evaluate
from na_keras import ATTENTION, NAMobileNetV2, NormalizationAttention
from na_keras.data import digits, pipeline
from na_keras.deploy import TFLITE_KINDS, attention_forms, calibration, convert_tflite, deploy_copy
from na_keras.deploy.images import ImageFormat
from na_keras.deploy.tflite import conversion, float_gates, summing
from na_keras.deploy.tflite import graph as tflite_graph
from na_keras.deploy.tflite.editing import EditedFile
from na_keras.deploy.tflite.runner import Runner

SIZE, RESIZE = 32, 36


def images_of(split):
    """The digits of a split through the preprocessing of evaluation: float32 (n, 32, 32, 3), labels (n,)."""
    source = digits(split)
    (batch,) = pipeline.evaluation_batches(source, batch_size=source.count, resize=RESIZE, size=SIZE)
    return batch[0].numpy().astype("float32"), batch[1].numpy()


@pytest.fixture(scope="module")
def held_out():
    return images_of("validation")


@pytest.fixture(scope="module")
def trained():
    """A network with every layer that the library's networks have, trained on the digits until it is mostly right."""
    keras.utils.set_random_seed(0)
    image = keras.Input((SIZE, SIZE, 3), name="images")
    x = layers.Normalization(-1, (124, 116, 104), (3400, 3300, 3300))(image)
    norm = lambda x: layers.BatchNormalization(momentum=0.9)(x)  # noqa: E731
    x = layers.ReLU(6.0)(norm(layers.Conv2D(16, 3, 2, "same", use_bias=False)(x)))
    for width, stride in ((24, 1), (32, 2)):
        x = layers.ReLU(6.0)(norm(layers.DepthwiseConv2D(3, stride, "same", use_bias=False)(x)))
        x = layers.ReLU(6.0)(NormalizationAttention()(norm(layers.Conv2D(width, 1, use_bias=False)(x))))
    x = layers.ReLU(6.0)(norm(layers.Conv2D(48, 3, 2, "same", use_bias=False)(x)))
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(10, "softmax", name="predictions")(x))
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", steps_per_execution=45)
    model.fit(*images_of("train"), batch_size=16, epochs=7, verbose=0)
    return model


@pytest.fixture(scope="module")
def sample():
    return calibration.representative_images(
        calibration.from_dataset("digits"), ImageFormat(SIZE, SIZE, 3, RESIZE), 100
    )


@pytest.fixture(scope="module")
def files(trained, sample):
    """{kind: flatbuffer} of the trained network."""
    copies = {form: deploy_copy(trained, form)[0] for form in ("tflite", "integer_safe")}
    return {kind: convert_tflite(copies[row.form], kind, sample) for kind, row in TFLITE_KINDS.items()}


def answers(flatbuffer, images):
    """The file's outputs for float images: float32 (n, ...)."""
    runner = Runner(flatbuffer, threads=1)
    return np.concatenate([runner(image[None]) for image in images])


# Of 360 held-out digits, how many get the network's own answer at least, and how far a probability may be off. The
# float32 file adds up in another order; float16 rounds weights by 2**-11; a step of the int8 output is 1/256, and some
# steps come together in 11 layers. An answer changes where two classes were that close.
AGREEMENT = {
    "float32": (1.0, 1e-5),
    "float16": (0.99, 0.02),
    "dynamic": (0.98, 0.1),
    "int8": (0.96, 0.5),
    "int8_float_gate": (0.96, 0.5),
    "int16x8": (0.98, 0.2),
}


@pytest.mark.parametrize("kind", TFLITE_KINDS)
def test_a_file_gives_the_networks_answers_to_held_out_digits(kind, files, trained, held_out):
    images, labels = held_out
    expected = trained.predict(images, verbose=0)
    assert (expected.argmax(1) == labels).mean() > 0.9
    ours = answers(files[kind], images)
    agreement, tolerance = AGREEMENT[kind]
    assert (ours.argmax(1) == expected.argmax(1)).mean() >= agreement
    assert np.abs(ours - expected).max() <= tolerance


def test_types_of_inputs_and_sizes_are_what_the_table_says(files):
    types = {}
    for kind, flatbuffer in files.items():
        described = tflite_graph.describe(flatbuffer)
        (source,), (target,) = described["inputs"], described["outputs"]
        assert source["shape"] == [1, SIZE, SIZE, 3] and target["shape"] == [1, 10]
        types[kind] = (source["dtype"], target["dtype"])
        if kind == "int8":
            assert (source["scale"], source["zero_point"]) == ([1.0], [0])
    assert types == {kind: (row.pixels, row.pixels) for kind, row in TFLITE_KINDS.items()}
    assert [kind for kind, row in TFLITE_KINDS.items() if row.pixels == "uint8"] == ["int8", "int8_float_gate"]


def test_only_the_gates_of_the_second_int8_file_are_float(files):
    tflite_graph.check_integer_only(files["int8"])
    floats = tflite_graph.float_operations(files["int8_float_gate"])
    names = {operation.name for operation, _ in floats}
    assert {"EXP", "RSQRT", "LOGISTIC", "DEQUANTIZE", "QUANTIZE"} <= names
    assert not names & {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "SOFTMAX"}
    for operation, _ in floats:
        for tensor in operation.outputs:
            assert float_gates.is_small(tensor.shape), (operation.name, tensor)


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_evaluate_takes_tflite_files(kind, files, held_out, tmp_path):
    path = tmp_path / "1" / "tflite" / f"model_{kind}.tflite"
    path.parent.mkdir(parents=True)
    path.write_bytes(files[kind])
    (tmp_path / "1" / "manifest.json").write_text(json.dumps({"preprocessing": {"resize": RESIZE, "size": SIZE}}))
    result = evaluate.main(["--model", str(path), "--dataset", "digits"])
    images, labels = held_out
    assert result["top1"] == pytest.approx((answers(files[kind], images).argmax(1) == labels).mean(), abs=1e-6)
    path.write_bytes(b"not a model")
    with pytest.raises(SystemExit, match="does not run in LiteRT"):
        evaluate.main(["--model", str(path), "--dataset", "digits"])


def partitions(flatbuffer):
    """Into how many pieces LiteRT's CPU delegate and the other operations divide a file."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=flatbuffer, num_threads=1)
    interpreter.allocate_tensors()
    operations = [operation["op_name"] for operation in interpreter._get_ops_details()]
    return operations.count("DELEGATE")


def test_float_gates_keep_the_graph_in_one_piece(files):
    assert partitions(files["int8_float_gate"]) == partitions(files["float32"]) == 1
    assert partitions(files["int8"]) > 3


def test_na_mobilenetv2_at_224_runs_on_any_image_in_one_piece():
    images = photographs(4, 224)
    model = make_every_weight_matter(NAMobileNetV2(alpha=0.35, classes=10), images)
    # Of maps that are the same everywhere, LiteRT's sums over all positions at once are off by 1e-4 of themselves.
    flats = np.stack([np.full((224, 224, 3), value, "float32") for value in (0, 255)])
    in_float = answers(convert_tflite(model), np.concatenate([images, flats]))
    np.testing.assert_allclose(in_float, model.predict(np.concatenate([images, flats]), verbose=0), atol=1e-5)
    flatbuffer = convert_tflite(model, "int8_float_gate", images)
    assert partitions(flatbuffer) == 1
    ours = answers(flatbuffer, np.concatenate([images, flats]))
    assert np.corrcoef(ours.ravel(), in_float.ravel())[0, 1] > 0.7  # random weights are the hardest case
    np.testing.assert_allclose(ours.sum(1), 1, atol=10 / 256)


@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize("reduction", [keras.ops.sum, keras.ops.mean])
def test_litert_reduces_a_map_of_equal_numbers_by_rows(reduction, keepdims):
    """Relative error: 112 + 112 roundings of 6e-8 at most each; in one go 12,544 are, of one sign."""
    image = keras.Input((112, 112, 16))
    network = keras.Model(image, reduction(image, axis=(1, 2), keepdims=keepdims))
    value = np.float32(0.1234567)
    exact = np.float64(value) * (112 * 112 if reduction is keras.ops.sum else 1)
    in_one_go = conversion.converted(network, TFLITE_KINDS["float32"])
    for flatbuffer, bound in ((conversion.convert_network(network, "float32"), 224), (in_one_go, 112 * 112)):
        found = answers(flatbuffer, np.full((2, 112, 112, 16), value))
        assert found.shape == (2, *network.output_shape[1:])
        relative = np.abs(found / exact - 1).max()
        assert (relative <= 224 * 2.0**-24) == (bound == 224)


@pytest.mark.parametrize(
    ("kind", "side", "changed"), [("float32", 17, True), ("float32", 16, False), ("int8", 17, False)]
)
def test_small_maps_and_integers_are_reduced_in_one_go(kind, side, changed):
    image = keras.Input((side, side, 4))
    network = keras.Model(image, keras.ops.mean(image, axis=(1, 2)))
    images = np.random.default_rng(0).uniform(0, 255, (4, side, side, 4)).astype("float32")
    representative = conversion.representative_function(images, (side, side, 4))
    flatbuffer = conversion.converted(network, TFLITE_KINDS[kind], representative)
    assert summing.sum_by_rows(EditedFile(flatbuffer)) is changed


# Those that a sum in one go makes wrong by more than the tolerance. Not SGE: it divides rounding by its deviation.
@pytest.mark.parametrize("name", ["ge", "lct", "na", "na_paper", "simam", "srm"])
def test_modules_of_a_flat_map_are_what_they_are_in_keras(name):
    """112 x 112 equal positions, as a black image makes them in a network's first block."""
    image = keras.Input((112, 112, 16))
    model = keras.Model(image, ATTENTION[name](**({"groups": 4} if name == "lct" else {}))(image))
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.2, 1, weight.shape) for weight in model.weights])
    flat = np.broadcast_to(np.linspace(-2, 2, 16, dtype="float32"), (1, 112, 112, 16))
    found = answers(conversion.convert_network(deploy_copy(model, "tflite")[0], "float32"), flat)
    expected = model.predict(flat, verbose=0)
    # 224 roundings of a mean are 1.3e-5 of it; LCT divides by the deviation within a group. In one go LCT is off by
    # 1.1e-4 and NA by 3e-5.
    np.testing.assert_allclose(found, expected, atol=2.5e-5 * np.abs(expected).max())


class Gate(layers.Layer):
    """The gate of a NA layer or its deploy form, alone, in one row."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def build(self, shape):
        self.built = True

    def call(self, x):
        return self.attention.gate(x)[:, :, :1]


def gate_model(shape, form):
    """(Keras model of the gate alone, in a form; the NA layer)."""
    attention = NormalizationAttention(gamma_initializer=keras.initializers.Constant(0.9))
    attention.build((None, *shape))
    image = keras.Input(shape)
    return keras.Model(image, Gate(form(attention))(image)), attention


MAPS = [(112, 112, 16), (56, 56, 24), (56, 56, 256), (28, 28, 32), (14, 14, 96), (7, 7, 320), (7, 7, 2048)]


def feature_maps(shape, count, seed):
    """Maps as a network has them: noise whose channels have means of their own."""
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 1, (count, *shape)) + rng.normal(0, 0.3, (count, 1, 1, shape[2]))).astype("float32")


@pytest.mark.parametrize("shape", MAPS, ids=str)
def test_int8_gates_follow_the_float_ones(shape):
    model, attention = gate_model(shape, attention_forms.IntegerSafeAttention)
    sample = lambda: ([x[None]] for x in feature_maps(shape, 16, seed=0))  # noqa: E731
    flatbuffer = conversion.convert_network(model, "int8", sample)
    x = feature_maps(shape, 8, seed=1)
    expected = attention.gate(tf.constant(x)).numpy()
    assert expected.std() > 0.1
    for file in (flatbuffer, float_gates.with_float_gates(flatbuffer)):
        assert np.corrcoef(answers(file, x).ravel(), expected.ravel())[0, 1] > 0.99


def test_the_plain_form_of_na_is_refused_for_integers():
    model, _ = gate_model((14, 14, 16), lambda attention: attention)
    sample = lambda: ([x[None]] for x in feature_maps((14, 14, 16), 4, seed=0))  # noqa: E731
    with pytest.raises(ValueError, match="(?s)Expected an integer-only file.*(NEG|SQRT)"):
        conversion.convert_network(model, "int8", sample)


def test_operations_outside_the_builtin_set_are_an_error():
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, layers.Lambda(lambda x: tf.math.bessel_i0e(x))(image))
    with pytest.raises(Exception, match="BesselI0e"):
        conversion.convert_network(model, "float32")


def test_sample_images_come_from_folders_and_name_what_does_not_decode(tmp_path):
    (tmp_path / "class").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), dtype="uint8")
    for index, picture in enumerate(pixels):
        (tmp_path / "class" / f"{index}.png").write_bytes(tf.io.encode_png(picture).numpy())
    (tmp_path / "notes.txt").write_text("not an image, and not read")
    generate = calibration.representative_images(calibration.from_folder(tmp_path), ImageFormat(32, 32, 3, 36), 10)
    first, second = ([image for (image,) in generate()] for _ in range(2))
    assert [image.shape for image in first] == [(1, 32, 32, 3)] * 3 and first[0].dtype == np.float32
    np.testing.assert_array_equal(first, second)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(ValueError, match="broken.jpg does not decode"):
        calibration.representative_images(calibration.from_folder(tmp_path), ImageFormat(32, 32, 3, 36), 10)
    with pytest.raises(FileNotFoundError, match="No images in"):
        calibration.from_folder(tmp_path / "missing")
