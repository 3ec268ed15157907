"""tflite_file.py: what a converted file holds is read right, and broken promises are named."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf
from programs import run
from small_tflite import converted, representative

import tflite_file
from na_keras.deploy.tflite import graph as tflite_graph


@pytest.fixture(scope="module")
def float32():
    return converted("float32")


@pytest.fixture(scope="module")
def int8():
    return converted("int8")


def test_operations_come_in_order_with_their_tensors(float32):
    read = tflite_graph.operations(float32)
    assert [operation.name for operation in read] == [
        "CONV_2D", "MEAN", "MEAN", "SUB", "ABS", "NEG", "LOGISTIC", "MUL", "MEAN", "FULLY_CONNECTED", "SOFTMAX"
    ]  # fmt: skip
    convolution = read[0]
    assert convolution.inputs[0].name.startswith("serving_default_images")
    assert [(tensor.shape, tensor.constant) for tensor in convolution.inputs] == [
        ((1, 16, 16, 3), False), ((4, 3, 3, 3), True), ((4,), True)
    ]  # fmt: skip
    assert [tensor.shape for tensor in convolution.outputs] == [(1, 14, 14, 4)]
    assert {tensor.dtype for operation in read for tensor in operation.outputs} == {"float32"}
    assert read[-1].outputs == tflite_graph.read_graphs(float32)[0].outputs
    tflite_graph.check_builtins_only(float32)


def test_description_agrees_with_the_interpreter(int8):
    from ai_edge_litert.interpreter import Interpreter

    described = tflite_graph.describe(int8)
    assert json.loads(json.dumps(described)) == described  # goes into manifest.json
    assert described["bytes"] == len(int8)
    assert described["operations"]["MEAN"] == 3
    interpreter = Interpreter(model_content=int8)
    for ours, theirs in (
        (described["inputs"], interpreter.get_input_details()),
        (described["outputs"], interpreter.get_output_details()),
    ):
        assert len(ours) == len(theirs) == 1
        assert ours[0]["dtype"] == "uint8" == np.dtype(theirs[0]["dtype"]).name
        assert ours[0]["shape"] == theirs[0]["shape"].tolist()
        assert (*ours[0]["scale"], *ours[0]["zero_point"]) == theirs[0]["quantization"]
    # Convolution kernels have a scale per filter.
    kernel = tflite_graph.operations(int8)[1].inputs[1]
    assert kernel.constant and kernel.dtype == "int8" and len(kernel.scale) == len(kernel.zero_point) == 4


def test_an_operation_left_in_float_is_named_with_its_tensor(int8):
    """The converter has no integer NEG, and says nothing."""
    with pytest.raises(ValueError, match="Expected an integer-only file. 3 operations touch floating") as error:
        tflite_graph.check_integer_only(int8)
    lines = str(error.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["DEQUANTIZE", "NEG", "QUANTIZE"]
    assert re.search(r"float32 \S*negative\S*/Neg", lines[1])


def test_an_integer_only_file_passes():
    tflite_graph.check_integer_only(converted("int8", negative=False))


def test_plain_na_in_int8_is_found_out():
    import keras

    from na_keras import NormalizationAttention

    image = keras.Input((16, 16, 4))
    layer = NormalizationAttention()
    network = keras.Model(image, layer(image))
    layer.set_weights([np.ones(1), np.ones(1)])
    with pytest.raises(ValueError, match=r"NEG: float32 \S*normalization_attention\S*/Neg"):
        tflite_graph.check_integer_only(converted("int8", network=network))


def test_floating_constants_and_inputs_count(float32):
    """A file with integer weights that computes in float is not an integer file; nor is one with float in and out."""
    with pytest.raises(ValueError, match="CONV_2D: float32"):
        tflite_graph.check_integer_only(converted("dynamic"))
    with pytest.raises(ValueError, match="DEQUANTIZE: float32"):
        tflite_graph.check_integer_only(converted("float16"))
    with pytest.raises(ValueError, match="QUANTIZE: float32 serving_default_images"):
        tflite_graph.check_integer_only(converted("int8", negative=False, io=tf.float32))


def test_flex_operations_are_named():
    @tf.function(input_signature=[tf.TensorSpec((2, 3, 3))])
    def determinants(x):
        return tf.linalg.det(x)

    converter = tf.lite.TFLiteConverter.from_concrete_functions([determinants.get_concrete_function()], determinants)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    blob = converter.convert()
    with pytest.raises(ValueError, match="Received: CUSTOM FlexMatrixDeterminant. Interpreters"):
        tflite_graph.check_builtins_only(blob)


@pytest.mark.parametrize("blob", [b"", b"TFL3", b"PK\x03\x04 some archive"])
def test_other_bytes_are_refused(blob):
    with pytest.raises(ValueError, match="Expected a TFLite file"):
        tflite_graph.operations(blob)


def test_a_file_cut_short_is_an_error_and_never_a_crash(float32):
    """Small fields stand before the weights or behind them, so that some cuts leave a readable graph."""
    refused = 0
    for length in range(8, len(float32), 7):
        try:
            assert tflite_graph.operations(float32[:length])
        except ValueError as error:
            assert "damaged or cut short" in str(error) or "no graph" in str(error)
            refused += 1
    assert refused > 100


def test_the_program_prints_what_an_engineer_asks(int8, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(int8)
    result = run("export/tflite_file.py", path)
    assert result.stderr == "", result.stderr  # nothing of TensorFlow's start-up
    printed = result.stdout
    assert "uint8 [1, 16, 16, 3], scale [" in printed
    assert "outside TFLite's builtin set: none" in printed
    assert "on floating-point tensors: DEQUANTIZE, NEG, QUANTIZE" in printed
    path.write_bytes(b"hello")
    with pytest.raises(SystemExit, match="tflite_file.py: .*model.tflite: Expected a TFLite file"):
        tflite_file.main([str(path)])
    with pytest.raises(SystemExit, match="tflite_file.py: .*No such file"):
        tflite_file.main([str(tmp_path / "missing.tflite")])


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"tflite_file.py: ai-edge-litert is not installed. Run: pip install -e"):
        tflite_file.main([str(tmp_path / "any.tflite")])


def test_representative_images_reach_the_converter():
    """The fixture's own check: the int8 input covers 0..255."""
    scale = tflite_graph.describe(converted("int8"))["inputs"][0]["scale"][0]
    assert scale == pytest.approx(1, abs=0.02) and len(list(representative())) > 4
