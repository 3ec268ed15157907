"""One run and one verified export of it, for all tests of this folder that only read them."""

import json
import os

import keras
import numpy as np
import pytest
import stand_in_server
import tensorflow as tf
from small_run import INT8_LIMITS, LABELS, make_run, picture

import export_model
from consumers import verification
from na_keras.data import preprocessing


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    """model.keras in its run directory. To be left as it is."""
    return make_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="session")
def exported(model_file, tmp_path_factory):
    """The base folder of an export with one version, verified by every consumer. To be left as it is."""
    output = tmp_path_factory.mktemp("export") / "model"
    export_model.main(["--model", str(model_file), "--output", str(output), "--top", "3"])
    return output


@pytest.fixture
def c_api_alone(monkeypatch):
    """Verification asks one consumer about the SavedModel: for exports that are about something else."""
    monkeypatch.setattr(verification, "CONSUMERS", {"c_api": verification.CONSUMERS["c_api"]})


@pytest.fixture(scope="session")
def version(exported):
    """A verified version with the float32 TFLite file alone."""
    return exported / "1"


@pytest.fixture(scope="session")
def reference_file(model_file, tmp_path_factory):
    """REFERENCE.npz for it."""
    path = tmp_path_factory.mktemp("reference") / "reference.npz"
    model = keras.saving.load_model(model_file)
    images = np.stack([picture((48, 48), seed) for seed in range(4)]).astype("float32")
    encode = [tf.io.encode_jpeg, tf.io.encode_png]
    files = [encode[seed % 2](picture((60 + seed, 90), seed)).numpy() for seed in range(4)]
    crops = np.stack([preprocessing.evaluation_image(data, 56, 48) for data in files]).astype("float32")
    np.savez(
        path,
        images=images,
        files=np.array(files),
        labels=np.array(LABELS),
        limits=json.dumps({"float16": (0.1, 0.99), **dict.fromkeys(("dynamic", "int8", "int16x8"), INT8_LIMITS)}),
        probabilities=model.predict(images, verbose=0),
        file_probabilities=model.predict(crops, verbose=0),
    )
    return path


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A `tensorflow_model_server` on PATH that is the stand-in."""
    program = stand_in_server.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return program
