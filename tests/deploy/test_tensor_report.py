"""tensor_report.py: its numbers against NumPy's, its matching against files whose tensors must not be mixed up."""

import csv
import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_tflite import SIZE, converted, representative

import tensor_report as program
from na_keras.deploy.tflite import graph as tflite_graph
from na_keras.deploy.tflite import tensor_report
from na_keras.deploy.tflite.agreement import Agreement


@pytest.fixture(scope="module")
def images():
    return np.concatenate([image for (image,) in representative()])


@pytest.fixture(scope="module")
def files():
    return converted("int8", negative=False), converted("float32", negative=False)


@pytest.fixture(scope="module")
def reports(files, images):
    return tensor_report.compare_tensors(*files, images)


def test_running_sums_are_numpys():
    rng = np.random.default_rng(0)
    for mean, noise in ((0.0, 0.1), (1e4, 0.01)):  # far from 0 the variance is a small difference of large sums
        r = (mean + rng.normal(0, 1, (5, 3, 4))).astype("float32")
        q = (r + rng.normal(0, noise, r.shape)).astype("float32")
        sums = Agreement()
        for one, other in zip(q, r, strict=True):
            sums.add(one, other)
        assert sums.correlation() == pytest.approx(np.corrcoef(q.ravel(), r.ravel())[0, 1], abs=1e-9)
        q, r = q.astype("float64"), r.astype("float64")
        assert sums.sqnr() == pytest.approx(10 * np.log10((r**2).sum() / ((q - r) ** 2).sum()))
        assert (sums.low, sums.high) == (r.min(), r.max())


def test_tensors_that_say_nothing():
    sums = Agreement()
    sums.add(np.zeros(4), np.arange(4.0))  # rounded away
    assert sums.sqnr() == pytest.approx(0) and math.isnan(sums.correlation())
    sums = Agreement()
    sums.add(np.ones(4), np.zeros(4))
    assert sums.sqnr() == -math.inf
    sums = Agreement()
    sums.add(np.arange(4.0), np.arange(4.0))
    assert sums.sqnr() == math.inf and sums.correlation() == pytest.approx(1)


def test_the_gate_is_found_and_close(reports, files):
    """The number that an export records."""
    (gate,) = [report for report in reports if report.operation == "LOGISTIC"]
    assert gate.shape == (1, 14, 14, 1) and gate.dtype == "int8"
    assert (gate.scale, gate.zero_point) == (1 / 256, -128)  # the runtime's fixed choice for a sigmoid
    assert 0 < gate.low < 0.5 < gate.high < 1 and gate.levels == pytest.approx((gate.high - gate.low) * 256, abs=3)
    assert gate.correlation > 0.99 and 30 < gate.sqnr < 60
    for report in reports:
        assert report.sqnr > 15 and report.correlation > 0.98, report
    assert len(reports) == 9


def test_values_are_those_of_an_undisturbed_run(reports, files, images):
    """Keeping all tensors changes none: the output's numbers follow from the signature's outputs."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = {"experimental_op_resolver_type": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}
    ours, theirs = [Interpreter(model_content=blob, **plain).get_signature_runner("serving_default") for blob in files]
    scale = tflite_graph.describe(files[0])["inputs"][0]["scale"][0]
    stored = np.clip(np.round(images / scale), 0, 255).astype("uint8")
    q = np.concatenate([ours(images=image[None])["probabilities"] for image in stored]) / 256.0
    r = np.concatenate([theirs(images=image[None])["probabilities"] for image in images])
    (output,) = [report for report in reports if report.operation == "SOFTMAX"]
    assert output.dtype == "uint8" and output.correlation == pytest.approx(np.corrcoef(q.ravel(), r.ravel())[0, 1])
    assert output.sqnr == pytest.approx(
        10 * np.log10((r.astype("float64") ** 2).sum() / ((q - r) ** 2).sum()), abs=0.01
    )


def test_a_tensor_that_loses_its_range_is_the_worst(images):
    """Half the range is lost behind one large value that calibration saw: the report names the tensor."""
    image = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Conv2D(2, 1, use_bias=False, name="before")(image)
    wide = keras.layers.Lambda(lambda x: x**5, name="wide")(x)
    network = keras.Model(image, keras.layers.GlobalAveragePooling2D()(wide))
    network.get_layer("before").kernel.assign(np.array([[0.004, 0.0], [0, 0.001], [0, 0]]).reshape(1, 1, 3, 2))
    reports = tensor_report.compare_tensors(
        converted("int8", network=network), converted("float32", network=network), images
    )
    worst = tensor_report.worst_first(reports)
    assert worst[0].sqnr < worst[-1].sqnr - 5 and worst[0].operation != "CONV_2D"
    assert [report.sqnr for report in worst] == sorted(report.sqnr for report in reports)


def test_only_tensors_of_one_computation_are_matched(files):
    matched, whole = tensor_report.match_tensors(*files)
    assert (len(matched), whole) == (9, 11)  # not: the input as int8, and the output before it is uint8
    everything, whole = tensor_report.match_tensors(files[1], files[1])
    assert len(everything) == whole == 9
    for kind in ("float16", "dynamic"):  # float16's unpacked weights are computed tensors, with a constant's name
        names = {name for name, _ in tensor_report.match_tensors(converted(kind, negative=False), files[1])[0]}
        assert names <= {name for name, _ in everything}
    # The same names mean something else in another network: shape or operation tells.
    image = keras.Input((SIZE, SIZE, 3), name="images")
    other = keras.Model(image, keras.layers.Conv2D(4, 5, activation="relu", name="convolution")(image), name="small")
    with pytest.raises(ValueError, match="share no tensor"):
        tensor_report.compare_tensors(files[0], converted("float32", network=other), [])


def test_one_name_for_two_operations_is_no_match():
    """The converter numbers equal names, and its numbers may shift from file to file."""

    def network(operation):
        image = keras.Input((SIZE, SIZE, 3), name="images")
        x = keras.layers.Lambda(lambda x: operation(x=x / 255.0, name="same"), name="layer")(image)
        return keras.Model(image, keras.layers.GlobalAveragePooling2D(name="pooled")(x), name="small")

    tanh, sigmoid = network(tf.raw_ops.Tanh), network(tf.raw_ops.Sigmoid)
    quantized = converted("int8", network=tanh)
    names = lambda reference: [n for n, _ in tensor_report.match_tensors(quantized, reference)[0] if "same" in n]  # noqa: E731
    assert len(names(converted("float32", network=tanh))) == 1
    assert names(converted("float32", network=sigmoid)) == []


def test_a_file_that_fails_names_the_image(images):
    """Plain NA in int8: the weights of many positions round to 0, and so does what is divided by."""
    from na_keras import NormalizationAttention

    image = keras.Input((56, 56, 4))
    layer = NormalizationAttention()
    network = keras.Model(image, layer(image))
    layer.set_weights([np.ones(1), np.ones(1)])
    quantized, reference = converted("int8", network=network), converted("float32", network=network)
    pictures = [image for (image,) in representative((1, 56, 56, 4))]
    with pytest.raises(RuntimeError, match=r"quantized file fails on image 1: .*DIV"):
        tensor_report.compare_tensors(quantized, reference, [np.zeros_like(pictures[0]), *pictures])


def test_no_images_are_refused(files):
    with pytest.raises(ValueError, match="at least one image"):
        tensor_report.compare_tensors(*files, [])


def test_the_program_writes_all_and_prints_the_worst(files, images, tmp_path, capsys):
    for name, blob in zip(("int8", "float32"), files, strict=True):
        (tmp_path / f"{name}.tflite").write_bytes(blob)
    np.savez(tmp_path / "images.npz", images=images)
    output = tmp_path / "tensors.csv"

    def printed(*more):
        arguments = ["--quantized", tmp_path / "int8.tflite", "--float", tmp_path / "float32.tflite", *more]
        program.main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    text = printed("--images", tmp_path / "images.npz", "--output", output, "--worst", 3)
    first, _, *lines = text.splitlines()
    assert first.startswith("9 of 11 tensors have a counterpart") and first.endswith("; 8 images")
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert len(rows) == 9 and len(lines) == 3
    assert rows[0]["shape"] == "1x14x14x4" and rows[0]["operation"] == "CONV_2D"
    worst = min(rows, key=lambda row: float(row["sqnr"]))
    assert lines[0].split()[0] == f"{float(worst['sqnr']):.1f}" and worst["operation"] in lines[0]

    folder = tmp_path / "photographs"
    folder.mkdir()
    for index, image in enumerate(images[:2]):
        data = tf.io.encode_png(image.astype("uint8")).numpy()
        (folder / f"{index}.PNG").write_bytes(data)
    assert "; 2 images" in printed("--images", folder, "--resize", SIZE)

    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "other.npz", images=images[:, :4])
    np.savez(tmp_path / "unnamed.npz", images[0])
    for path, message in (
        ("empty", "No images in"),
        ("missing", "No images at"),
        ("other.npz", r"Expected images (count, 16, 16, 3). Received: (8, 4, 16, 3)"),
        ("unnamed.npz", "has no array `images`"),
    ):
        with pytest.raises(SystemExit, match=f"tensor_report.py: .*{re.escape(message)}"):
            printed("--images", tmp_path / path)
