"""na_keras.deploy as a user of the wheel has it: a model of their own becomes files, and LiteRT runs them."""

import io
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from PIL import Image
from weights_that_matter import make_every_weight_matter, photographs

from na_keras import NormalizationAttention
from na_keras.data.preprocessing import evaluation_image
from na_keras.deploy import (
    TFLITE_KINDS,
    compare_tensors,
    convert_tflite,
    deploy_copy,
    describe,
    write_csv,
    write_onnx,
    write_saved_model,
)
from na_keras.deploy.tflite.conversion import convert_network, representative_function
from na_keras.deploy.tflite.runner import Runner

SIZE, LABELS = 24, ["ash", "elm", "oak", "yew", "fir"]


class Scale(layers.Layer):
    """A user's own layer, with a weight; registered nowhere."""

    def build(self, shape):
        self.factor = self.add_weight((), "ones", name="factor")

    def call(self, x):
        return x * self.factor


def classifier(size=SIZE, attention=NormalizationAttention):
    """A functional classifier with a layer of the user's."""
    keras.utils.set_random_seed(0)
    image = keras.Input((size, size, 3), name="photograph")
    x = layers.Conv2D(8, 3, 2)(layers.Rescaling(1 / 64, -2.0)(image))
    x = layers.BatchNormalization()(x)
    if attention is not None:
        x = attention(name="attention")(x)
    scale = Scale(name="own")
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(scale(x)))
    scale.factor.assign(1.5)
    return keras.Model(
        image,
        layers.Dense(len(LABELS), "softmax", kernel_initializer=keras.initializers.RandomNormal(0, 3))(x),
        name="trees",
    )


@pytest.fixture(scope="module")
def images():
    return photographs(12, SIZE)


@pytest.fixture(scope="module")
def model(images):
    return make_every_weight_matter(classifier(), images)


# Of a probability: a step of the 8-bit output is 1/256, and some come together in three layers.
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "int16x8": 0.02}


@pytest.mark.parametrize("kind", TFLITE_KINDS)
def test_every_kind_runs_and_gives_the_models_answers(kind, model, images):
    """All that is needed: the model, the kind, and for integers some images."""
    labels = LABELS if TFLITE_KINDS[kind].has_metadata else None
    blob = convert_tflite(model, kind, images, labels=labels, description="five trees")
    runner = Runner(blob)
    answers = np.concatenate([runner(image[None]) for image in images])
    expected = model.predict(images, verbose=0)
    assert np.ptp(expected, axis=0).max() > 0.1  # not the same answer to every image
    np.testing.assert_allclose(answers, expected, rtol=0, atol=TOLERANCE.get(kind, 0.05))
    described = describe(blob)
    assert described["inputs"][0]["shape"] == [1, SIZE, SIZE, 3] and described["inputs"][0]["name"].count("images")
    assert described["inputs"][0]["dtype"] == described["outputs"][0]["dtype"] == TFLITE_KINDS[kind].pixels
    assert zipfile.is_zipfile(io.BytesIO(blob)) == (labels is not None)


def test_images_may_be_an_array_or_the_converters_function(images):
    from_array = [image for (image,) in representative_function(images.astype("uint8"), (SIZE, SIZE, 3))()]
    assert [(image.shape, image.dtype) for image in from_array] == [((1, SIZE, SIZE, 3), np.float32)] * len(images)
    np.testing.assert_array_equal(np.concatenate(from_array), images.astype("uint8"))
    function = lambda: ([image[None]] for image in images)  # noqa: E731
    assert representative_function(function, (SIZE, SIZE, 3)) is function


def test_a_network_of_open_size(images):
    open_sized = make_every_weight_matter(classifier(size=None), images)
    answer = Runner(convert_tflite(open_sized, size=SIZE))(images[:1])
    np.testing.assert_allclose(answer, open_sized(images[:1]), atol=1e-5)


def test_the_float_twin_of_a_quantized_file_shares_its_tensors(model, images, tmp_path):
    copy, counts = deploy_copy(model, "integer_safe")
    assert counts == {"batch_norm_folded": 1, "attention": 1, "attention_projected": 0}
    reports = compare_tensors(convert_tflite(copy, "int8", images), convert_tflite(copy), images[:2])
    (gate,) = [report for report in reports if report.is_gate]
    assert gate.shape[0] == 1 and gate.correlation > 0.9
    write_csv(reports, tmp_path / "tensors.csv")
    lines = (tmp_path / "tensors.csv").read_text().splitlines()
    assert lines[0].startswith("name,operation,shape") and len(lines) == 1 + len(reports)
    assert [path.name for path in tmp_path.iterdir()] == ["tensors.csv"]


def test_only_gates_of_na_are_called_gates(images):
    """Squeeze-and-excitation has sigmoids too; and NA may have any name."""
    from na_keras import SqueezeExcite

    model = make_every_weight_matter(
        classifier(attention=lambda name: SqueezeExcite(2, name="normalization_gate")), images
    )
    copy, _ = deploy_copy(model, "integer_safe")
    reports = compare_tensors(convert_tflite(copy, "int8", images), convert_tflite(copy), images[:1])
    assert "LOGISTIC" in {report.operation for report in reports}
    assert not any(report.is_gate for report in reports)


def test_a_saved_model_answers_images_and_files(model, images, tmp_path):
    write_saved_model(model, tmp_path / "1", LABELS, top=2, image_dtype="uint8")
    signatures = tf.saved_model.load(str(tmp_path / "1")).signatures
    pixels = images[:2].astype("uint8")
    answer = signatures["serving_default"](images=tf.constant(pixels))
    expected = model.predict(pixels.astype("float32"), verbose=0)
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
    best = signatures["serve_bytes"](image_bytes=tf.stack([tf.io.encode_png(image) for image in pixels]))
    assert best["labels"].shape == (2, 2) and best["labels"][0, 0].numpy().decode() in LABELS


@pytest.mark.parametrize("upright", [True, False])
def test_a_saved_model_turns_photographs_as_it_was_told(model, tmp_path, upright):
    """A photograph that lies on its side, with the Exif tag that says so, is the upright one or as it is stored."""
    picture = Image.fromarray(photographs(1, 2 * SIZE)[0].astype("uint8")).crop((0, 0, 2 * SIZE, SIZE))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif, quality=95)
    write_saved_model(model, tmp_path, LABELS, top=3, exif_orientation=upright)
    signature = tf.saved_model.load(str(tmp_path)).signatures["serve_bytes"]
    answer = signature(image_bytes=tf.constant([file.getvalue()]))["scores"].numpy()
    resize = round(SIZE * 256 / 224)
    crops = [evaluation_image(file.getvalue(), resize, SIZE, turned)[None] for turned in (upright, not upright)]
    expected, other = (np.sort(model(tf.cast(crop, "float32")).numpy())[:, ::-1][:, :3] for crop in crops)
    np.testing.assert_allclose(answer, expected, atol=1e-5)
    assert np.abs(answer - other).max() > 1e-3


def test_a_model_that_is_python_code_is_refused_and_so_is_a_copy_of_a_copy(model, images, tmp_path):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = classifier()

        def call(self, x):
            return self.inner(x)

    class Sharper(keras.Model):
        """Functional, and yet more than its graph."""

        def call(self, x, training=None, mask=None):
            return super().call(x) ** 2

    subclassed = Subclassed()
    subclassed(images)
    image = keras.Input((SIZE, SIZE, 3))
    sharper = Sharper(image, model(image))
    for write in (deploy_copy, convert_tflite, lambda m: write_saved_model(m, tmp_path / "1", LABELS)):
        with pytest.raises(ValueError, match=r"functional|Expected a classifier with one input"):
            write(subclassed)
        with pytest.raises(ValueError, match="whose class has a call.. of its own"):
            write(sharper)
    with pytest.raises(ValueError, match="whose class has a call.. of its own"):
        deploy_copy(keras.Model(image, sharper(image)))
    copy, _ = deploy_copy(model)
    for again in (lambda: deploy_copy(copy, "tflite"), lambda: write_onnx(copy, tmp_path / "x.onnx")):
        with pytest.raises(ValueError, match="trees, which is a deploy copy already"):
            again()
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments_are_refused_before_any_work(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(tf.lite.TFLiteConverter, "from_saved_model", None)
    for arguments, message in (
        ((model, "int4"), r"Expected a kind of TFLite file: float32, .*Received: 'int4'"),
        ((model, "int8"), "The kind int8 needs representative images"),
        ((model, "int8_float_gate"), "The kind int8_float_gate needs representative images"),
        ((model, "int16x8"), "The kind int16x8 needs representative images"),
        ((model, "int8", images[:, :8]), r"representative images \('count', 24, 24, 3\). Received: \(12, 8, 24, 3\)"),
        ((model, "int8", images[:0]), "Expected representative images"),
        ((model, "int8", images / 255), "Expected pixels 0..255. Received: at most"),
        ((model, "int8", lambda: iter(())), "a function that yields none"),
        ((model, "int8", lambda: iter([images[0]])), "Received: it yields ndarray"),
        ((model, "int8", lambda: iter([[images[0]]])), r"yields \[array \(1, 24, 24, 3\)\]. Received: it yields"),
        ((classifier(size=None),), "Expected one size of images"),
        (
            (keras.Model(model.input, model.layers[1].output),),
            r"answers \(batch, classes\). Received: \(None, 24, 24, 3\) to \(None, 24, 24, 3\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            convert_tflite(*arguments)
    for options, message in (
        ({"labels": LABELS[1:]}, "output has 5 classes. Received: 4 labels"),
        ({"labels": ["a\nb", *LABELS[1:]]}, "A label is one line"),
        ({"size": 32}, "Received: images of 24 x 24, size=32"),
        ({"kind": "int16x8", "representative": images, "labels": LABELS}, "The kind int16x8 carries no labels"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_tflite(model, **options)
    for options, message in (
        ({"labels": LABELS[1:]}, "Expected 5 class names"),
        ({"resize": 20}, "resize must be at least the image size 24. Received: 20"),
        ({"top": 0}, "top must be at least 1. Received: 0"),
        ({"image_dtype": "int8"}, r"one of \('float32', 'uint8'\). Received: int8"),
    ):
        with pytest.raises(ValueError, match=message):
            write_saved_model(model, tmp_path / "1", **{"labels": LABELS, **options})
    with pytest.raises(ValueError, match="form must be one of tensorflow, tflite, integer_safe. Received: 'int8'"):
        deploy_copy(model, "int8")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_converted_is_named(images):
    image = keras.Input((8, 8, 3))
    odd = keras.Model(image, layers.Lambda(lambda x: tf.math.bessel_i0e(x))(image))
    with pytest.raises(Exception, match="BesselI0e"):
        convert_network(odd, "float32")
    plain = classifier(attention=None)
    with pytest.raises(ValueError, match="No attention gate in this file"):
        convert_tflite(plain, "int8_float_gate", images)


def test_missing_packages_are_named(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.schema_py_generated", None)
    with pytest.raises(ImportError, match=r"TFLite files need ai-edge-litert. Run: pip install 'na-keras\[export\]'"):
        convert_tflite(model)
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(ImportError, match=r"ONNX files need tf2onnx. Run: pip install 'na-keras\[onnx\]'"):
        write_onnx(model, tmp_path / "model.onnx")
