"""Single consumers: a server that fails, the C API, warm-up records, a start without Keras."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from programs import ROOT

from consumers import protocol, wire_format

SIGNATURES = ("serving_default", "serve_bytes")


def run_server_consumer(version, reference_file, tmp_path):
    command = [sys.executable, "-m", "consumers.model_server", version, reference_file, tmp_path / "answers.npz"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "export")


def test_a_server_that_ends_or_refuses_the_model_is_a_failure(version, reference_file, tmp_path, stand_in, monkeypatch):
    monkeypatch.setenv("TENSORFLOW_MODEL_SERVER", f"sh -c 'echo no memory; exit 3' {{base}}")  # noqa: F541
    result = run_server_consumer(version, reference_file, tmp_path)
    assert "The server ended with status 3" in result.stderr and "no memory" in result.stderr and result.returncode == 1
    monkeypatch.setenv("TENSORFLOW_MODEL_SERVER", f"{stand_in} --state=END")
    result = run_server_consumer(version, reference_file, tmp_path)
    assert "The server could not load the model: is at END" in result.stderr and result.returncode == 1


C_API = """
import pathlib, sys, numpy as np
from consumers import c_api as c
version, files = pathlib.Path(sys.argv[1]), np.load(sys.argv[2])["files"].astype(object)
api = c.load_library()
def message(call, *arguments):
    try:
        call(*arguments)
    except (c.TensorFlowError, ValueError) as error:
        print(getattr(error, "code", "ValueError"), str(error).replace(chr(10), " "))
with c.SavedModel(api, version) as model:
    message(model.predict, "serve_bytes", {"image_bytes": np.array([files[0], b"no image"], object)})
    message(model.predict, "serve_bytes", {"image_bytes": np.array([files[0], b""], object)})
    message(model.predict, "serve_byte", {"image_bytes": files})
    message(model.predict, "serve_bytes", {"images": files})
    message(model.predict, "serving_default", {"images": np.zeros((1, 9, 9, 3), "float32")})
    message(model.predict, "serving_default", {"images": files})
    print("alive", model.predict("serve_bytes", {"image_bytes": files[:1]})["scores"].shape)
    try:
        print("records", c.replay_warmup(model, version))
    except c.TensorFlowError as error:
        print("record", error.code)
message(c.SavedModel, api, version / "nowhere")
"""


def c_api_lines(version, reference_file):
    command = [sys.executable, "-c", C_API, str(version), str(reference_file)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "export")
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def field(number, data):
    """A protocol buffer field of bytes."""
    size, length = b"", len(data)
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + data


def warmup_record(signature, **inputs):
    """PredictionLog{predict_log{request{model_spec, inputs}}}."""
    specification = field(1, b"demo") + field(3, signature.encode())
    entries = (field(1, k.encode()) + field(2, tf.make_tensor_proto(v).SerializeToString()) for k, v in inputs.items())
    return field(6, field(1, field(1, specification) + b"".join(field(2, entry) for entry in entries)))


def write_warmup(version, records):
    path = version / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def test_the_c_api_reports_errors_and_lives_on_and_replays_warm_up_records(version, reference_file, tmp_path):
    copy = shutil.copytree(version, tmp_path / "copy")
    reference = np.load(reference_file)
    files, images = reference["files"].tolist(), reference["images"]
    write_warmup(
        copy, [warmup_record("serve_bytes", image_bytes=files), warmup_record("serving_default", images=images[:2])]
    )
    lines = c_api_lines(copy, reference_file)
    assert lines[0].startswith("3 ") and lines[1].startswith("3 ")  # INVALID_ARGUMENT
    assert lines[2].startswith("ValueError Expected one of the signatures ['serve_bytes', 'serving_default']")
    assert lines[3] == "ValueError serve_bytes takes ['image_bytes']. Received: ['images']"
    assert lines[4].startswith("3 ") and lines[5].startswith("3 ")
    assert lines[6:8] == ["alive (1, 3)", "records 2"]
    assert "nowhere" in lines[8] and lines[8].startswith("5 ")  # NOT_FOUND
    write_warmup(copy, [warmup_record("serve_bytes", image_bytes=[b"no image"])])
    assert "record 3" in c_api_lines(copy, reference_file)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint8", "int8", "int64", "bool"])
def test_tensors_are_read_as_tensorflow_writes_them(dtype):
    values = np.array([[-3, 0, 100], [5, -128, 5]]).astype(dtype)
    packed = tf.make_tensor_proto(values)
    assert bool(packed.tensor_content) == (dtype != "bool")
    listed = tf.make_tensor_proto(values[0, 0])
    listed.tensor_shape.CopyFrom(packed.tensor_shape)  # one value for all
    for proto in (packed, listed):
        ours = wire_format.tensor(proto.SerializeToString())
        np.testing.assert_array_equal(ours, tf.make_ndarray(proto))
        assert ours.dtype == dtype
    strings = tf.make_tensor_proto([[b"a", "ä".encode()], [b"\x00\x01", b""]])
    np.testing.assert_array_equal(wire_format.tensor(strings.SerializeToString()), tf.make_ndarray(strings))


def test_damaged_records_and_other_files_are_refused(tmp_path):
    path = tmp_path / "records"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in (b"", b"one", bytes(range(256)) * 9):
            writer.write(record)
    data = path.read_bytes()
    assert list(wire_format.records(data)) == [b"", b"one", bytes(range(256)) * 9]
    for damaged in (data[:-1], data[:-5] + b"x" + data[-4:], b"hello" * 9, data[:5]):
        with pytest.raises(ValueError, match="TFRecord"):
            list(wire_format.records(damaged))
    with pytest.raises(ValueError, match="Expected a PredictionLog with a predict_log"):
        wire_format.warmup_request(field(1, b""))
    for nothing in (b"\xff", b"\x0a\x05ab", b"\x0b"):
        with pytest.raises(ValueError):
            wire_format.message(nothing)
    half = tf.make_tensor_proto(np.zeros(2, "float16")).SerializeToString()
    with pytest.raises(ValueError, match="Expected a tensor of one of"):
        wire_format.tensor(half)


def test_consumers_run_where_keras_cannot_be_imported():
    program = (
        "from consumers import protocol as c; c.forbid_keras()\n"
        "import tensorflow as tf, importlib.util\n"
        "try:\n    import keras\nexcept ImportError:\n    print('no keras', tf.constant(1).numpy())\n"
        "print(importlib.util.find_spec('keras')); c.check_without_keras()\n"
        "del __import__('sys').modules['keras']; import keras\n"
        "try:\n    c.check_without_keras()\nexcept RuntimeError as error:\n    print(error)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "export", capture_output=True, text=True)
    lines = result.stdout.splitlines()
    assert lines[:2] == ["no keras 1", "None"], result.stderr
    assert lines[2].startswith("This consumer must run without Keras. Found: ['keras")
    with pytest.raises(RuntimeError, match="Keras is loaded already"):
        protocol.forbid_keras()
