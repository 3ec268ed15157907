"""verify.py and its consumers: each catches a broken artifact, and what cannot run is skipped, not passed.

The model server is a stand-in (stand_in_server.py).
"""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from programs import ROOT
from small_run import INT8_LIMITS, LABELS
from tensorflow.core.protobuf import saved_model_pb2

import verify
from consumers import answer_rules, litert_runtime, protocol, python_loaders, verification

SIGNATURES = ("serving_default", "serve_bytes")
INSTALLED = {name: importlib.util.find_spec(name) is not None for name in ("openvino", "tensorflow_serving")}


def run_verify(version, reference_file):
    """(exit status, JSON report, stderr) of verify.py as a program."""
    command = [sys.executable, str(ROOT / "export" / "verify.py"), str(version), str(reference_file)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout, result.stderr
    return result.returncode, json.loads(result.stdout.splitlines()[-1]), result.stderr


def expected_answers():
    """Names of what must have answered, by what is installed."""
    grpc = ("grpc:",) if INSTALLED["tensorflow_serving"] else ()
    prefixes = {"c_api": ("",), "python": ("tf2:", "tf1:"), "server": ("rest:", *grpc)}
    names = {f"{name}/{way}{signature}" for name, ways in prefixes.items() for way in ways for signature in SIGNATURES}
    return names | ({"openvino/serving_default"} if INSTALLED["openvino"] else set())


def test_every_consumer_gives_the_keras_models_answers(version, reference_file, stand_in):
    status, report, errors = run_verify(version, reference_file)
    assert (status, errors) == (0, "")
    differences = report["largest_difference"]
    assert set(differences) == expected_answers() | {"model_float32.tflite"}
    assert max(differences.values()) < report["tolerance"] == answer_rules.TOLERANCE
    assert report["spread"] > 0.05
    consumers = {"c_api", "python", "server", "model_float32.tflite"} | (
        {"openvino"} if INSTALLED["openvino"] else set()
    )
    assert set(report["consumers"]) == consumers
    assert report["consumers"]["c_api"]["runtime"].startswith(f"TensorFlow {tf.__version__}, C API")
    assert report["consumers"]["server"] == {"runtime": "stand-in for TensorFlow ModelServer"}
    skipped = {} if INSTALLED["openvino"] else {"openvino": "openvino is not installed"}
    if not INSTALLED["tensorflow_serving"]:
        skipped["server/grpc"] = "tensorflow-serving-api is not installed"
    assert report["skipped"] == skipped


def replace_bytes(path, old, new):
    assert len(old) == len(new) and old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))


def replace_softmax(version):
    """The class scores are sigmoids of the logits, which do not sum to one."""
    content = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    nodes = [node for f in content.meta_graphs[0].graph_def.library.function for node in f.node_def]
    changed = {node.name for node in nodes if node.op == "Softmax" and "predictions" in node.name}
    for node in nodes:
        if node.name in changed:
            node.op = "Sigmoid"
        for index, name in enumerate(node.input):
            if name.split(":")[0] in changed:
                node.input[index] = name.replace(":softmax:", ":y:")
    assert changed
    (version / "saved_model.pb").write_bytes(content.SerializeToString())


def swap_labels(version):
    """The names of two classes, both of four letters, change places."""
    for old, new in ((b"zero", b"----"), (b"five", b"zero"), (b"----", b"five")):
        replace_bytes(version / "saved_model.pb", old, new)


def change_weights(version):
    """One weight of the last layer, checksums in order: the first class of all gets more likely."""
    prefix = str(version / "variables" / "variables")
    reader = tf.train.load_checkpoint(prefix)
    names = sorted(reader.get_variable_to_shape_map())
    values = {name: reader.get_tensor(name) for name in names}
    (bias,) = (name for name in names if getattr(values[name], "shape", None) == (len(LABELS),))
    values[bias] = values[bias] + np.eye(len(LABELS), dtype="float32")[0]
    tensors = [tf.constant(values[name]) for name in names]
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)


def test_every_consumer_catches_a_broken_savedmodel(version, reference_file, stand_in, tmp_path):
    broken = shutil.copytree(version, tmp_path / "broken")
    change_weights(broken)
    swap_labels(broken)
    status, _, errors = run_verify(broken, reference_file)
    assert status == 1
    for name in expected_answers():
        consumer, group = name.split("/")
        lines = [line for line in errors.splitlines() if line.startswith(f"{consumer}: {group}")]
        for sentence in ("differs by", "is called"):
            assert any(sentence in line for line in lines), (name, sentence)
    assert "tflite" not in errors  # the file beside it is sound


def test_another_last_operation_is_caught(version, reference_file, tmp_path):
    """In this process, by the one consumer that does not mind: all hold answers to the same rule."""
    broken = shutil.copytree(version, tmp_path / "broken")
    replace_softmax(broken)
    reference = dict(np.load(reference_file))
    answers = protocol.answer_calls(python_loaders.load_functions(broken), reference)
    _, sentences = answer_rules.check_calls(answers, reference, SIGNATURES)
    assert [sentence.split()[:2] for sentence in sentences] == [[name, "differs"] for name in SIGNATURES]


def convert(function, size=48, representative=None, flex=False):
    """A TFLite file of a function of `images` (1, size, size, 3), with uint8 input and output if calibrated."""
    specification = tf.TensorSpec((1, size, size, 3), tf.float32, name="images")
    module = tf.Module()
    module.function = tf.function(lambda images: {"probabilities": function(images)}, input_signature=[specification])
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, {"serving_default": module.function})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["serving_default"])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if flex:
            converter.target_spec.supported_ops.append(tf.lite.OpsSet.SELECT_TF_OPS)
        if representative is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: ([image[None]] for image in representative)
            converter.inference_input_type = converter.inference_output_type = tf.uint8
        return converter.convert()


def divides_by_brightness(images):
    """Seven numbers; with integers, a division by zero where an image is black."""
    mean = tf.reduce_mean(images, (1, 2, 3))[:, None]
    return tf.range(1.0, 8.0)[None] * mean / tf.maximum(mean, 0.0)


# The converter says so of every file with integer input, calibrated or not.
INTEGER_INPUT = "ignore:Statistics for quantized inputs were expected:UserWarning"


@pytest.mark.filterwarnings(INTEGER_INPUT)
def test_broken_tflite_files_are_each_reported_and_an_absent_server_is_not_a_pass(
    version, model_file, reference_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(verification, "CONSUMERS", {"server": verification.CONSUMERS["server"]})
    monkeypatch.setenv("PATH", str(tmp_path))
    broken = shutil.copytree(version, tmp_path / "broken")
    reference = dict(np.load(reference_file))
    reference["images"][3] = 0
    bright = np.random.default_rng(0).uniform(100, 255, (8, 48, 48, 3)).astype("float32")
    good = broken / "tflite" / "model_float32.tflite"
    shutil.copy(good, good.with_name("model_float16.tflite"))
    shutil.copy(good, good.with_name("model_final.tflite"))
    good.with_name("model_int8.tflite").write_bytes(convert(divides_by_brightness, representative=bright))
    good.with_name("model_dynamic.tflite").write_bytes(
        convert(lambda images: tf.math.tan(images[:, 0, :7, 0]), flex=True)
    )
    constant = tf.constant([[0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]])
    good.with_name("model_int16x8.tflite").write_bytes(convert(lambda images: constant + 0 * images[:, 0, :7, 0]))
    good.write_bytes(b"not a flatbuffer")
    model = keras.saving.load_model(model_file)
    reference["probabilities"] = model.predict(reference["images"], verbose=0)
    np.savez(tmp_path / "reference.npz", **reference)
    report, sentences = verification.verify(broken, tmp_path / "reference.npz")
    errors = "\n".join(sentences)
    lines = {name: text for name, _, text in (line.partition(": ") for line in errors.splitlines())}
    assert "model_float32.tflite" in lines and "model_float16.tflite" not in lines
    assert "KIND one of float32, float16" in lines["model_final.tflite"]
    assert "says the same of every image" in errors.split("model_int16x8.tflite: ")[-1].splitlines()[0]
    assert "DIV" in errors.split("model_int8.tflite: ")[1]
    assert "model_dynamic.tflite needs operations outside TFLite's builtin set: FlexTan" in errors
    assert report["reduced_precision"]["model_float16.tflite"]["top1_agreement"] == 1
    assert report["skipped"]["server"].startswith("no tensorflow_model_server on PATH")
    assert not any(name.startswith("server") for name in report["largest_difference"])


@pytest.mark.filterwarnings(INTEGER_INPUT)
def test_integer_files_are_asked_with_raw_bytes_and_their_output_is_scaled(reference_file, tmp_path):
    rng = np.random.default_rng(0)
    kernel, weights = rng.normal(0, 0.3, (3, 3, 3, 8)).astype("float32"), rng.normal(0, 3, (8, 7)).astype("float32")

    def classify(images):
        features = tf.nn.relu(tf.nn.conv2d(images / 255, kernel, 2, "VALID"))
        return tf.nn.softmax(tf.reduce_max(features, (1, 2)) @ weights)

    path = tmp_path / "model_int8.tflite"
    images = np.load(reference_file)["images"] * np.float32([0.1, 0.4, 0.7, 1])[:, None, None, None]
    images[-1, 0, 0], images[-1, -1, -1] = 0, 255
    path.write_bytes(convert(classify, representative=images))
    answers, _ = litert_runtime.consume(path, {"images": images})
    expected = classify(images).numpy()
    assert answers["probabilities"].dtype == "float32"
    numbers, sentences = answer_rules.check_reduced(INT8_LIMITS, answers["probabilities"], expected)
    assert sentences == [] and numbers["largest_difference"] < 0.1 and numbers["top1_agreement"] == 1
    rolled = np.roll(answers["probabilities"], 1, axis=1)
    assert answer_rules.check_reduced(INT8_LIMITS, rolled, expected)[1]
    details = {"dtype": np.uint8, "quantization": (0.5, 10)}
    pixels = np.array([-9.0, 0.0, 1.3, 500.0])
    assert litert_runtime.stored_pixels(pixels, np.uint8).tolist() == [0, 0, 1, 255]
    assert litert_runtime.stored_pixels(pixels, np.int8).tolist() == [-128, -128, -127, 127]
    assert litert_runtime.dequantize(np.array([13], "uint8"), details) == 1.5


def test_the_rules_refuse_nan_wrong_shapes_and_silence():
    expected = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], "float32")
    reference = {"labels": np.array(["a", "b", "c"]), "file_probabilities": expected}
    rows = {(0, 1): expected[:1], (0, 2): expected, (1, 2): expected[1:]}

    def check(**changes):
        answers = {}
        for (first, last), values in rows.items():
            order = np.argsort(-values, 1)[:, :2]
            top = {"classes": order, "scores": np.take_along_axis(values, order, 1)}
            top["labels"] = np.char.encode(reference["labels"][order])
            top |= {name: change(top[name]) for name, change in changes.items()}
            answers |= {f"serve_bytes/{first}:{last}/{name}": value for name, value in top.items() if value is not None}
        return answer_rules.check_calls(answers, reference, ["serve_bytes"])

    assert check() == ({"serve_bytes": 0.0}, [])
    assert "differs by nan" in str(check(scores=lambda scores: scores * np.nan)[1])
    assert "differs by" in str(check(scores=lambda scores: scores + 1e-3)[1])
    assert "differs by" in str(check(classes=lambda classes: classes[:, ::-1])[1])
    assert "lacks labels" in str(check(labels=lambda labels: None)[1])
    assert "have the shapes" in str(check(scores=lambda scores: scores[:, :1])[1])
    assert "classes are int64s from" in str(check(classes=lambda classes: classes + 3)[1])
    assert "is called 'x', expected 'a'" in str(check(labels=lambda labels: np.full_like(labels, b"x"))[1])
    differences, sentences = answer_rules.check_calls({}, reference, ["serve_bytes"])  # a consumer that answers nothing
    assert differences == {"serve_bytes": np.inf} and len(sentences) == 4
    for value in (np.nan, np.inf):
        assert answer_rules.check_reduced(INT8_LIMITS, expected * value, expected)[1] == ["answers are not finite"]
    once = tf.nn.softmax(4 * np.eye(7, dtype="float32")).numpy()
    twice = tf.nn.softmax(once).numpy()  # which a correlation does not see
    assert "differs by" in str(answer_rules.check_reduced(INT8_LIMITS, twice, once)[1])


def test_differences_are_relative_to_the_largest_probability_and_logit():
    undecided = np.full((2, 1000), 0.001)
    assert answer_rules.difference(undecided * 1.2, undecided, answer_rules.float32_scale(undecided)) == pytest.approx(
        0.2
    )
    logits = np.array([[9.0, -9.0, 0.0], [3.0, -3.0, 0.0]])
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert answer_rules.float32_scale(probabilities) == pytest.approx(9 * probabilities.max())
    assert np.isfinite(answer_rules.float32_scale(np.eye(3)))
    assert answer_rules.difference(undecided[:1], undecided, 1.0) == np.inf


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(SystemExit, match=f"verify.py: there is no {tmp_path}/saved_model.pb"):
        verify.main([str(tmp_path), "reference.npz"])


def test_batches_are_one_two_and_all():
    assert [protocol.batches(n) for n in (1, 2, 4)] == [
        [(0, 1)],
        [(0, 1), (0, 2), (1, 2)],
        [(0, 1), (0, 4), (1, 3)],
    ]


def test_a_network_that_says_nothing_is_refused(version, reference_file, tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "CONSUMERS", {})
    monkeypatch.setattr(verification, "FILE_CONSUMERS", {})
    reference = dict(np.load(reference_file))
    reference["origin"] = np.array("sample images")
    same = "to the 4 sample images .* so that agreement on them says nothing"
    for value, gate, expected in ((1 / 7, "equal-answers", same), (np.nan, None, "answers are not finite")):
        np.savez(tmp_path / "same.npz", **{**reference, "probabilities": np.full((4, 7), value)})
        _, (finding,) = verification.verify(version, tmp_path / "same.npz")
        assert re.search(expected, finding) and finding.gate == gate and "trained" not in finding
    assert verification.verify(version, reference_file)[1] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import os; os.abort()", "crashed with SIGABRT"),
        ("raise ValueError('no such thing')", "ValueError: no such thing"),
        ("import time; time.sleep(60)", "no answer in 0.5 seconds"),
    ],
)
def test_consumers_that_crash_fail_or_hang_are_reported(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr(verification, "TIMEOUT", 0.5 if "sleep" in text else 60)
    (tmp_path / "a_consumer.py").write_text(text)
    monkeypatch.setattr(verification, "FOLDER", tmp_path)
    with pytest.raises(verification.ConsumerError, match=message):
        verification.consume("a_consumer", "artifact", "reference_file")
