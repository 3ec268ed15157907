"""What is opened to be evaluated: answers of every kind, and what is refused by name."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from engine.trained import open_trained


def network(activation, size=(8, 8, 3)):
    x = keras.layers.Rescaling(1 / 255)(image := keras.Input(size))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(x))
    return keras.Model(image, keras.layers.Dense(3, activation=activation)(x))


def export(folder, output, shape=(None, 8, 8, 3), ending=None):
    """A SavedModel as far as its signature, and a manifest."""
    module = tf.Module()
    signature = tf.TensorSpec(shape, tf.float32, "images")
    answer = tf.function(lambda images: {output: tf.reduce_mean(images, (1, 2))[:, :3]}, input_signature=[signature])
    tf.saved_model.save(module, str(folder), {"serving_default": answer})
    manifest = {"preprocessing": {"resize": 8, "size": 8}}
    (folder / "manifest.json").write_text(json.dumps(manifest | ({"answer": {"ending": ending}} if ending else {})))


@pytest.mark.parametrize(
    ("output", "ending", "multi_label"),
    [("logits", "logits", None), ("probabilities", None, False), ("probabilities", "sigmoid", True)],
)
def test_an_export_answers_logits_or_probabilities(output, ending, multi_label, tmp_path):
    export(tmp_path / "1", output, ending=ending)
    opened = open_trained(tmp_path / "1")
    assert opened.from_logits == (output == "logits") and opened.multi_label is multi_label
    assert (opened.classes, opened.size) == (3, 8)
    answers = opened.predict(tf.constant(np.full((2, 8, 8, 3), 7, "uint8")))
    assert np.asarray(answers).tolist() == [[7.0, 7.0, 7.0]] * 2


@pytest.mark.parametrize(
    ("shape", "ending", "message"),
    [
        ((None, 8, 12, 3), "softmax", "square RGB images"),
        ((None, 8, 8, 1), "softmax", "square RGB images"),
    ],
)
def test_an_export_that_is_not_evaluated_here_is_refused_by_name(shape, ending, message, tmp_path):
    export(tmp_path / "1", "probabilities", shape, ending)
    with pytest.raises(ValueError, match=message):
        open_trained(tmp_path / "1")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: network("softmax", (8, 12, 3)), "square RGB images"),
        (lambda: network("softmax", (8, 8, 1)), "square RGB images"),
    ],
)
def test_a_file_that_is_not_evaluated_here_is_refused_by_name(model, message, tmp_path):
    model().save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=message):
        open_trained(tmp_path / "model.keras")
