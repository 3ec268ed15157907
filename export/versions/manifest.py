"""manifest.json: what a version of an exported model is, and what was checked before it was published."""

import importlib.metadata
import json
import math

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import na_keras
from na_keras.files import sha256_of

PACKAGES = ("keras", "tensorflow", "numpy", "ai-edge-litert")
FOR_DETECTION = ("tf_keras", "tf-models-official")  # of a detector's manifest too


def tensor(info):
    """dtype and shape of a TensorInfo message; None where a dimension is free."""
    shape = [None if axis.size < 0 else axis.size for axis in info.tensor_shape.dim]
    return {"dtype": tf.as_dtype(info.dtype).name, "shape": shape}


def signatures(folder):
    """The signatures of the SavedModel in `folder`, as the file declares them to a server."""
    message = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    return {
        name: {
            "method": signature.method_name,
            "inputs": {key: tensor(info) for key, info in sorted(signature.inputs.items())},
            "outputs": {key: tensor(info) for key, info in sorted(signature.outputs.items())},
        }
        for name, signature in sorted(message.meta_graphs[0].signature_def.items())
        if signature.method_name  # not __saved_model_init_op, which is for the loader
    }


def fingerprint(folder):
    """TensorFlow's fingerprint of the SavedModel in `folder`; strings, since JSON has no 64-bit integers."""
    read = tf.saved_model.experimental.read_fingerprint(str(folder))
    names = ("graph_def_program_hash", "signature_def_hash", "saved_object_graph_hash", "checkpoint_hash")
    return {name: str(getattr(read, name)) for name in names}


def strict(value):
    """A value for JSON, which has no NaN and no infinity: they become None, at any depth."""
    if isinstance(value, dict):
        return {key: strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [strict(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def packages(names):
    """{package: version}, of this library and of those named."""
    return {"na-keras": na_keras.__version__, **{name: importlib.metadata.version(name) for name in names}}


def write_manifest(folder, **entries):
    """Writes manifest.json into the finished version `folder`: `entries`, and what the folder itself tells.

    It is strict JSON: a number that is none, such as the correlation of a gate that is constant, is null.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = {
        "packages": packages(PACKAGES),
        **entries,
        "signatures": signatures(folder),
        "fingerprint": fingerprint(folder),
        "files": {path.relative_to(folder).as_posix(): sha256_of(path) for path in files},
    }
    (folder / "manifest.json").write_text(json.dumps(strict(content), indent=2, allow_nan=False) + "\n", "utf-8")
