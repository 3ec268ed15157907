"""deploy/tflite/metadata.py: what MediaPipe reads is in the file, and what the interpreter computes is untouched."""

import importlib.util
import io
import json
import subprocess
import sys
import zipfile

import flatbuffers
import numpy as np
import pytest
import tensorflow as tf
from flatbuffers import number_types as types
from small_tflite import SIZE, converted, representative

from na_keras.deploy.tflite import metadata

LABELS = ["Größe", "zwei Wörter", "ring-necked snake, ringneck"]

# Fields of the public schema (mediapipe/tasks/metadata/metadata_schema.fbs), written out again: position and type.
# A tuple is a union: number -> table.
SCHEMA = {
    "ModelMetadata": [
        ("name", str), ("description", str), ("version", str), ("subgraph_metadata", ["SubGraphMetadata"]),
        ("author", str), ("license", str), ("associated_files", ["AssociatedFile"]), ("min_parser_version", str),
    ],
    "SubGraphMetadata": [
        ("name", str), ("description", str),
        ("input_tensor_metadata", ["TensorMetadata"]), ("output_tensor_metadata", ["TensorMetadata"]),
    ],
    "TensorMetadata": [
        ("name", str), ("description", str), ("dimension_names", [str]), ("content", "Content"),
        ("process_units", ["ProcessUnit"]), ("stats", "Stats"), ("associated_files", ["AssociatedFile"]),
    ],
    "Content": [("content_properties", ("FeatureProperties", "ImageProperties", "BoundingBoxProperties"))],
    "ProcessUnit": [("options", ("NormalizationOptions", "ScoreCalibrationOptions", "ScoreThresholdingOptions"))],
    "ImageProperties": [("color_space", int), ("default_size", "ImageSize")],
    "FeatureProperties": [],
    "NormalizationOptions": [("mean", [float]), ("std", [float])],
    "AssociatedFile": [("name", str), ("description", str), ("type", int), ("locale", str), ("version", str)],
}  # fmt: skip


def read(table, kind):
    """A table of the schema, and everything in it, as dictionaries, lists, strings and numbers."""

    def value(field, position):
        if field is int:
            return table.Get(types.Int8Flags, position)
        if field is str:
            return table.String(position).decode()
        if isinstance(field, list):
            start, count = table.Vector(position - table.Pos), table.VectorLen(position - table.Pos)
            if field == [float]:
                return [table.Get(types.Float32Flags, start + 4 * index) for index in range(count)]
            tables = [flatbuffers.table.Table(table.Bytes, table.Indirect(start + 4 * i)) for i in range(count)]
            return [read(entry, field[0]) for entry in tables]
        return read(flatbuffers.table.Table(table.Bytes, table.Indirect(position)), field)

    found, slot = {}, 0
    for name, field in SCHEMA[kind]:
        if isinstance(field, tuple):
            if offset := table.Offset(4 + 2 * slot):
                field = field[table.Get(types.Uint8Flags, table.Pos + offset) - 1]
                found[f"{name}_type"] = field
            slot += 1
        if offset := table.Offset(4 + 2 * slot):
            found[name] = value(field, table.Pos + offset)
        slot += 1
    return found


def read_metadata(blob):
    """The metadata of a TFLite file, found as MediaPipe finds it: by name, then by the number of a buffer."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(blob, 0)
    entries = [model.Metadata(index) for index in range(model.MetadataLength())]
    (number,) = [entry.Buffer() for entry in entries if entry.Name() == b"TFLITE_METADATA"]
    data = model.Buffers(number).DataAsNumpy().tobytes()
    assert data[4:8] == b"M001"
    root = flatbuffers.encode.Get(flatbuffers.packer.uoffset, data, 0)
    return read(flatbuffers.table.Table(bytearray(data), root), "ModelMetadata")


def outputs(blob):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=blob)
    run = interpreter.get_signature_runner("serving_default")
    dtype = interpreter.get_input_details()[0]["dtype"]
    return np.concatenate([run(images=image.astype(dtype))["probabilities"] for (image,) in representative()])


def attached(kind="float32"):
    return metadata.attach(converted(kind, False), LABELS, "NA-small", "a test", "3")


def test_the_description_is_what_mediapipe_documents():
    image = {
        "name": "image",
        "description": "RGB image, pixels 0 to 255",
        "content": {"content_properties_type": "ImageProperties", "content_properties": {"color_space": 1}},
        "process_units": [
            {"options_type": "NormalizationOptions", "options": {"mean": [0.0], "std": [1.0]}},
        ],
    }
    probability = {
        "name": "probability",
        "description": "probability of each class",
        "content": {"content_properties_type": "FeatureProperties", "content_properties": {}},
        "associated_files": [{"name": "labels.txt", "description": "class names", "type": 2}],
    }
    assert read_metadata(attached()) == {
        "name": "NA-small",
        "description": "a test",
        "version": "3",
        "subgraph_metadata": [{"input_tensor_metadata": [image], "output_tensor_metadata": [probability]}],
        "min_parser_version": "1.0.0",
    }
    plain = read_metadata(metadata.attach(converted("float32", False), LABELS, "NA-small"))
    assert "description" not in plain and "version" not in plain


def test_labels_are_readable_by_any_zip_program_and_stored_uncompressed():
    with zipfile.ZipFile(io.BytesIO(attached())) as archive:
        assert archive.namelist() == ["labels.txt"]
        assert archive.read("labels.txt").decode().splitlines() == LABELS
        assert archive.getinfo("labels.txt").compress_type == zipfile.ZIP_STORED


@pytest.mark.parametrize("kind", ["float32", "float16", "dynamic", "int8"])
def test_the_network_computes_what_it_did(kind):
    before, after = outputs(converted(kind, False)), outputs(attached(kind))
    np.testing.assert_array_equal(after, before)
    assert np.ptp(before, axis=0).max() > 0


def test_constants_stay_aligned():
    """TFLite's schema asks for 16 bytes; the generated Python classes write them wherever they fall."""
    from ai_edge_litert import schema_py_generated as schema

    for kind in ("float32", "int8"):
        blob = attached(kind)
        model, base = schema.Model.GetRootAs(blob, 0), np.frombuffer(blob, np.uint8).ctypes.data
        arrays = [model.Buffers(index).DataAsNumpy() for index in range(model.BuffersLength())]
        places = [array.ctypes.data - base for array in arrays if isinstance(array, np.ndarray) and array.size]
        assert len(places) > 5 and not any(place % 16 for place in places), places


def test_the_same_arguments_give_the_same_bytes():
    """A manifest holds digests."""
    assert attached() == attached()


def test_what_cannot_be_read_back_is_refused():
    blob = converted("float32", False)
    for labels, message in (
        (LABELS[:2], "3 classes. Received: 2 labels"),
        (["a", "b\nc", "d"], "one line of labels.txt.*'b.nc'"),
        (["a", "", "d"], "not empty"),
    ):
        with pytest.raises(ValueError, match=message):
            metadata.attach(blob, labels, "name")
    with pytest.raises(ValueError, match="has metadata already"):
        metadata.attach(attached(), LABELS, "name")
    with pytest.raises(ValueError, match="Received a file with int8 input"):
        metadata.attach(converted("int8", False, tf.int8), LABELS, "name")
    with pytest.raises(ValueError, match="Expected a TFLite file"):
        metadata.attach(b"hello, world", LABELS, "name")


# In a process of its own: MediaPipe brings its own copies of the runtime's libraries.
CLASSIFY = """
import json, sys
import numpy as np
import mediapipe as mp
from mediapipe.tasks.python import BaseOptions, vision

answers = []
options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=sys.argv[1]))
with vision.ImageClassifier.create_from_options(options) as classifier:
    for image in np.load(sys.argv[2]):
        result = classifier.classify(mp.Image(image_format=mp.ImageFormat.SRGB, data=image))
        answers.append({c.category_name: c.score for c in result.classifications[0].categories})
print(json.dumps(answers))
"""


@pytest.mark.skipif(importlib.util.find_spec("mediapipe") is None, reason="mediapipe is not installed")
@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_mediapipe_names_the_classes(kind, tmp_path):
    images = np.concatenate([image for (image,) in representative()]).astype(np.uint8)
    assert images.shape[1:] == (SIZE, SIZE, 3)
    (tmp_path / "model.tflite").write_bytes(attached(kind))
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", CLASSIFY, tmp_path / "model.tflite", tmp_path / "images.npy"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    answers = json.loads(result.stdout.splitlines()[-1])
    expected = outputs(converted(kind, False)) / (255.0 if kind == "int8" else 1.0)
    assert len(answers) == len(images)
    for answer, row in zip(answers, expected, strict=True):
        ours = dict(zip(LABELS, row, strict=True))
        assert answer.keys() == ours.keys()
        assert [answer[label] for label in LABELS] == pytest.approx(list(row), abs=0.01)
