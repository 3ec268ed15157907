"""Files of networks that are no softmax of RGB squares: logits, sigmoids, further outputs, grey, oblong."""

import io
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from weights_that_matter import make_every_weight_matter, photographs

from na_keras import NormalizationAttention
from na_keras.deploy import convert_tflite, describe, write_onnx, write_saved_model
from na_keras.deploy.outputs import answer_alone
from na_keras.deploy.tflite.metadata import classifier_metadata
from na_keras.deploy.tflite.runner import Runner

HEIGHT, WIDTH, LABELS = 20, 36, ["ash", "elm", "oak"]


@pytest.fixture(scope="module")
def images():
    """Grey, float32 (8, 20, 36, 1)."""
    return photographs(8, WIDTH)[:, :HEIGHT, :, :1]


@pytest.fixture(scope="module")
def network(images):
    """Function of the name of the answer -> model of grey images of any size, with `maps` beside its answer."""
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 1))
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, 2)(layers.Rescaling(1 / 64, -2.0)(image)))
    maps = NormalizationAttention()(layers.ReLU()(x))
    scores = layers.Dense(len(LABELS), kernel_initializer=keras.initializers.RandomNormal(0, 12))(
        layers.GlobalAveragePooling2D()(maps)
    )
    answers = {"logits": scores, "probabilities": keras.ops.sigmoid(scores)}
    make_every_weight_matter(keras.Model(image, scores), images)
    return lambda name: keras.Model(image, {name: answers[name], "maps": maps}, name="trees")


def test_a_saved_model_answers_logits_and_further_outputs_by_name(network, images, tmp_path):
    model = network("logits")
    write_saved_model(model, tmp_path / "1", LABELS, size=(HEIGHT, WIDTH), resize=HEIGHT, top=2)
    signatures = tf.saved_model.load(str(tmp_path / "1")).signatures
    answer, expected = signatures["serving_default"](images=tf.constant(images)), model(images)
    assert set(answer) == {"logits", "maps", "classes", "scores", "labels"}
    for name, values in expected.items():
        np.testing.assert_allclose(answer[name], values, atol=1e-4)
    np.testing.assert_allclose(answer["scores"], -np.sort(-expected["logits"])[:, :2], atol=1e-4)
    files = [tf.io.encode_png(image.astype("uint8")).numpy() for image in images[:2]]
    best = signatures["serve_bytes"](image_bytes=tf.constant(files))
    assert set(best) == {"classes", "scores", "labels"}
    np.testing.assert_allclose(best["scores"], -np.sort(-model(images[:2].astype("uint8"))["logits"])[:, :2], atol=1e-4)
    empty = signatures["serving_default"](images=tf.zeros((0, HEIGHT, WIDTH, 1)))
    assert empty["maps"].shape == (0, 9, 17, 8) and empty["logits"].shape == (0, 3)


def test_not_a_number_spoils_its_own_row_of_every_output(network, images, tmp_path):
    write_saved_model(network("probabilities"), tmp_path / "1", LABELS, size=(HEIGHT, WIDTH))
    spoilt = images.copy()
    spoilt[1, 3, 4] = np.nan
    loaded = tf.saved_model.load(str(tmp_path / "1"))
    answer = loaded.signatures["serving_default"](images=tf.constant(spoilt))
    for name in ("probabilities", "maps"):
        rows = np.isnan(answer[name].numpy().reshape(len(images), -1))
        assert rows[1].all() and not rows[[0, *range(2, 8)]].any()


@pytest.mark.parametrize(("answer", "atol"), [("logits", 0.3), ("probabilities", 0.05)])
@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_tflite_files_of_grey_oblong_images_answer_logits_or_sigmoids(kind, answer, atol, network, images):
    model = answer_alone(network(answer))
    blob = convert_tflite(model, kind, images, size=(HEIGHT, WIDTH), labels=LABELS)
    runner, expected = Runner(blob), model(images)
    expected = expected[answer] if isinstance(expected, dict) else expected
    answers = np.concatenate([runner(image[None]) for image in images])
    assert np.ptp(expected, axis=0).max() > 3 * atol
    np.testing.assert_allclose(answers, expected, atol=1e-4 if kind == "float32" else atol)
    assert describe(blob)["inputs"][0]["shape"] == [1, HEIGHT, WIDTH, 1]
    assert zipfile.ZipFile(io.BytesIO(blob)).read("labels.txt").decode().split() == LABELS
    from ai_edge_litert.interpreter import Interpreter

    signature = Interpreter(model_content=blob).get_signature_list()["serving_default"]
    assert signature == {"inputs": ["images"], "outputs": [answer]}


def test_the_description_says_grey_and_logits():
    about = classifier_metadata("trees", channels=1, answer="logits")
    assert b"grey image" in about and b"logit of each class" in about
    assert b"RGB image" in (usual := classifier_metadata("trees")) and b"probability of each class" in usual


def test_files_of_one_output_refuse_further_ones_and_names_that_are_taken(network, images, tmp_path):
    with pytest.raises(ValueError, match="Expected a classifier with one output, logits. Received: logits, maps"):
        convert_tflite(network("logits"), size=(HEIGHT, WIDTH))
    with pytest.raises(ValueError, match="Expected a classifier with one output, logits"):
        write_onnx(network("logits"), tmp_path / "model.onnx")
    model = network("logits")
    for outputs in ({"tree": model.outputs[0]}, {"logits": model.outputs[0], "scores": model.outputs[0]}):
        with pytest.raises(ValueError, match="a dictionary with one of probabilities, logits and other outputs, not"):
            write_saved_model(keras.Model(model.input, outputs), tmp_path / "1", LABELS, size=(HEIGHT, WIDTH))
