"""deploy/onnx_file.py and its consumer; they need tf2onnx and onnxruntime, which few have installed."""

import sys

import keras
import numpy as np
import pytest
from small_run import make_run, picture

from consumers import answer_rules
from na_keras.deploy import onnx_file

WARNINGS = ("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",)


@pytest.mark.filterwarnings(*WARNINGS)
def test_an_onnx_file_gives_the_keras_models_answers(tmp_path):
    pytest.importorskip("tf2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from consumers import onnx_runtime

    model = keras.saving.load_model(make_run(tmp_path / "run"))
    path = tmp_path / "model.onnx"
    onnx_file.write_onnx(model, path)
    images = np.stack([picture((48, 48), seed) for seed in range(3)]).astype("float32")
    answers, description = onnx_runtime.consume(path, {"images": images})
    expected = model.predict(images, verbose=0)
    difference = answer_rules.difference(answers["probabilities"], expected, answer_rules.float32_scale(expected))
    assert difference <= answer_rules.TOLERANCE
    assert answer_rules.spread(expected) > answer_rules.SMALLEST_SPREAD
    assert description == {"runtime": f"ONNX Runtime {onnxruntime.__version__}"}


def begin(kind):
    """How a network begins: with a Normalization of some kind, or with what does nothing at inference."""
    images = np.random.default_rng(1).uniform(0, 255, (4, 12, 12, 3)).astype("float32")
    if kind == "one number":
        return keras.layers.Normalization(axis=None, mean=3.0, variance=4.0)
    if kind == "inverse":
        return keras.layers.Normalization(mean=[0.5, 0.4, 0.3], variance=[4, 5, 6], invert=True)
    adapted = keras.layers.Normalization()
    adapted.adapt(images)
    if kind == "nested":
        image = keras.Input((12, 12, 3))
        return keras.Model(image, adapted(image))
    augmentation = [keras.layers.RandomFlip(), keras.layers.RandomRotation(0.2), keras.layers.RandomContrast(0.1)]
    return keras.Sequential([*augmentation, adapted])


@pytest.mark.filterwarnings(*WARNINGS)
@pytest.mark.parametrize("kind", ["one number", "inverse", "nested", "augmentation"])
def test_normalization_and_augmentation_of_any_kind_are_written_and_nan_spoils_its_row(kind, tmp_path):
    pytest.importorskip("tf2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    image = keras.Input((12, 12, 3))
    x = keras.layers.ReLU(6.0)(keras.layers.Conv2D(4, 3)(begin(kind)(image)))
    model = keras.Model(image, keras.layers.Dense(3, "softmax")(keras.layers.GlobalAveragePooling2D()(x)))
    onnx_file.write_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [value.name for value in session.get_inputs()] == ["images"]
    images = np.random.default_rng(0).uniform(0, 255, (3, 12, 12, 3)).astype("float32")
    expected = model.predict(images, verbose=0)
    images[1, 0, 0, 0] = np.nan
    (answers,) = session.run(None, {"images": images})
    np.testing.assert_allclose(answers[[0, 2]], expected[[0, 2]], atol=1e-5)
    assert np.isnan(answers[1]).all()


def test_normalization_becomes_the_rescaling_that_computes_the_same():
    images = np.random.default_rng(0).uniform(0, 255, (2, 4, 4, 3)).astype("float32")
    layer = keras.layers.Normalization(-1, (124, 116, 104), (3400, 1, 3300))
    expected = layer(images)
    rescaling = onnx_file.without_captured_tensors(layer)
    assert isinstance(rescaling, keras.layers.Rescaling)
    np.testing.assert_allclose(rescaling(images), expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_become_a_rescaling_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", type(keras)("tf2onnx"))
    image = keras.Input((8, 8, 3))
    x = keras.layers.Normalization(1, np.zeros(8), np.ones(8))(image)
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(x))
    with pytest.raises(ValueError, match="Normalization over the last axis. Received: axis="):
        onnx_file.write_onnx(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
