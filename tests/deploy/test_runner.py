"""deploy/tflite/runner.py: rounding as LiteRT's own, and the same numbers as the consumer that an app would have."""

import flatbuffers
import numpy as np
import pytest
from small_tflite import SIZE, converted, representative

from consumers import litert_runtime
from na_keras.deploy.tflite.runner import Runner, dequantize, litert, quantize

COUNT = 64


def file_that_quantizes(dtype, scale, zero_point):
    """A TFLite file (bytes) of one operation: QUANTIZE from float32 (1, COUNT)."""
    schema = litert("schema_py_generated")

    def tensor(name, type_number):
        made = schema.TensorT()
        made.shape, made.type, made.name, made.buffer = np.array([1, COUNT], np.int32), type_number, name, 0
        return made

    quantized, quantization = (
        tensor(b"stored", getattr(schema.TensorType, dtype.upper())),
        schema.QuantizationParametersT(),
    )
    quantization.scale, quantization.zeroPoint = np.array([scale], np.float32), np.array([zero_point], np.int64)
    quantized.quantization = quantization
    code, operator, graph, model = schema.OperatorCodeT(), schema.OperatorT(), schema.SubGraphT(), schema.ModelT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.QUANTIZE
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0], [1]
    graph.tensors, graph.inputs, graph.outputs = [tensor(b"values", schema.TensorType.FLOAT32), quantized], [0], [1]
    graph.operators = [operator]
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("keep_tensors", [False, True], ids=["with its delegate", "without"])
@pytest.mark.parametrize(("dtype", "scale", "zero_point"), [("int8", 0.5, 3), ("uint8", 1.0, 128), ("int16", 2.0, 0)])
def test_halves_are_rounded_to_even_before_the_zero_point_as_litert_does(dtype, scale, zero_point, keep_tensors):
    values = ((np.arange(COUNT, dtype="float32") - COUNT / 2) * np.float32(scale / 2))[None]  # every other one a half
    values[0, -1], values[0, 0] = 1e6, -1e6  # out of range
    (theirs,) = Runner(file_that_quantizes(dtype, scale, zero_point), keep_tensors=keep_tensors).run_stored(values)
    ours = quantize(values, dtype, scale, zero_point)
    np.testing.assert_array_equal(ours, theirs)
    assert ours.dtype == theirs.dtype == dtype


def test_numbers_by_hand():
    assert quantize(np.array([0.5, 1.5, 2.5, -0.5, -9.0, 500.0]), "uint8", 1.0, 1).tolist() == [1, 3, 3, 1, 0, 255]
    assert dequantize(np.array([13], "uint8"), 0.5, 10).tolist() == [1.5]


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_the_consumers_copy_computes_the_same(kind, tmp_path):
    """consumers/litert_runtime.py imports nothing of the library, as an app would not."""
    images = np.concatenate([image for (image,) in representative()]) + np.float32(0.5)  # many halves
    path = tmp_path / f"model_{kind}.tflite"
    path.write_bytes(converted(kind, negative=False))
    answers, _ = litert_runtime.consume(path, {"images": images})
    runner = Runner(path)
    assert runner.input_shape == (1, SIZE, SIZE, 3)
    ours = np.concatenate([runner(image[None]) for image in images])
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, answers["probabilities"])


def test_what_does_not_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"The file \(11 bytes\) does not run in LiteRT"):
        Runner(b"not a model")
    (tmp_path / "x.tflite").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"x\.tflite does not run in LiteRT"):
        Runner(tmp_path / "x.tflite")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ImportError, match=r"TFLite files need ai-edge-litert. Run: pip install 'na-keras\[export\]'"):
        Runner(converted("float32", negative=False))
