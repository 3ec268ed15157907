"""Which networks the programs take for classifiers of raw images, and what their answers are."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from na_keras.deploy import deploy_copy
from na_keras.networks import ending
from na_keras.networks.endings import random_answers, with_ending
from na_keras.networks.files import image_model

SCALE = lambda x: layers.Rescaling(1 / 255)(x)  # noqa: E731


def trunk(normalise=lambda x: x):
    """A model to be used as a layer, for images of any size."""
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, name="first")(layers.ZeroPadding2D()(normalise(image)))
    return keras.Model(image, layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization()(x))))


def network(normalise=SCALE, inner=lambda x: x, end=layers.Softmax, units=3):
    image = keras.Input((16, 16, 3))
    scores = layers.Dense(units, name="scores")(trunk(inner)(normalise(image)))
    return keras.Model(image, end()(scores) if isinstance(end, type) else end(scores), name="network")


TAKEN = {
    "normalised inside a nested backbone": lambda: network(lambda x: x, SCALE),
    "an outer Rescaling": network,
    "preprocess_input of MobileNetV2": lambda: network(keras.applications.mobilenet_v2.preprocess_input),
    "preprocess_input of ResNet50": lambda: network(keras.applications.resnet50.preprocess_input),
    "augmentation before": lambda: network(lambda x: SCALE(layers.RandomFlip()(x))),
    "an activation layer": lambda: network(end=layers.Activation("softmax")),
    "an operation": lambda: network(end=ops.softmax),
    "softmax inside a Sequential": lambda: network(end=keras.Sequential([layers.Dropout(0.5), layers.Softmax()])),
    "a dictionary": lambda: network(end=lambda x: {"probabilities": ops.softmax(x)}),
    "a Sequential": lambda: keras.Sequential(
        [keras.Input((16, 16, 3)), layers.Rescaling(1 / 255), trunk(), layers.Dense(3, "softmax")]
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_classifiers_are_taken_however_they_are_written(name):
    model, pixels = image_model("file", None, TAKEN[name]())
    assert (model.input_shape, model.output_shape, pixels) == ((None, 16, 16, 3), (None, 3), "raw")
    assert ending(model) == "softmax"
    deploy_copy(model)


RAW = "file does not show what its pixels mean. Say it by --pixels: raw"
REFUSED = {
    "raw pixels": (lambda: network(lambda x: x), RAW),
    "augmented raw pixels": (lambda: network(lambda x: layers.RandomRotation(0.2)(x)), RAW),
    "another channel order": (lambda: network(lambda x: x[..., ::-1]), RAW),
    "per cent": (lambda: network(end=lambda x: 100 * ops.softmax(x)), "sum up to 100 and 100. End it in a softmax"),
    "a sharpened softmax": (lambda: network(end=lambda x: ops.softmax(x) ** 2), "ends in .*, a Power; the answers"),
    "logits": (
        lambda: network(end=lambda x: x),
        "ends in logits. Say by --activation .*: softmax .*, sigmoid .*, or none",
    ),
    "two outputs": (lambda: network(end=lambda x: [ops.softmax(x), x]), "has 2 outputs: .*. Say by --output-name"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_classifier_of_raw_images_is_refused_with_the_true_reason(name):
    build, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        with_ending(image_model("file", None, build())[0], "file", None)


def test_the_advice_for_raw_pixels_can_be_followed():
    assert image_model("file", None, network(layers.Rescaling(1.0)))[1] == "raw"
    assert image_model("file", "tf", network(lambda x: x))[1] == "tf"


ENDINGS = {
    "softmax": [layers.Softmax, ops.softmax, layers.Activation("softmax"), keras.Sequential([layers.Softmax()])],
    "sigmoid": [layers.Activation("sigmoid"), ops.sigmoid, lambda x: layers.Lambda(ops.nn.sigmoid)(x)],
    "logits": [lambda x: x, ops.log_softmax, lambda x: layers.Dropout(0.5)(x), lambda x: x / 3, layers.ReLU],
}


@pytest.mark.parametrize(
    ("expected", "end"),
    [(name, end) for name, ends in ENDINGS.items() for end in ends],
    ids=lambda value: str(value)[:24],
)
def test_endings_are_told_however_they_are_written(expected, end):
    assert ending(network(end=end)) == expected


def test_logits_become_what_is_asked_for_and_the_other_way_round():
    scores = network(end=lambda x: x)
    for activation, function in (("softmax", ops.softmax), ("sigmoid", ops.sigmoid), ("none", lambda x: x)):
        model, found = with_ending(scores, "file", activation)
        assert found == {"none": "logits"}.get(activation, activation)
        np.testing.assert_allclose(random_answers(model), function(random_answers(scores)), atol=1e-6)
        again, found = with_ending(keras.Model(model.inputs[0], model.outputs[0]), "file", "none")
        assert found == "logits"
        if activation == "none":
            np.testing.assert_allclose(random_answers(again), random_answers(scores), atol=1e-5)
    with pytest.raises(ValueError, match="file ends in a softmax, and --activation sigmoid contradicts it"):
        with_ending(network(), "file", "sigmoid")


def test_one_sigmoid_is_an_ending_too():
    assert ending(network(end=ops.sigmoid, units=1)) == "sigmoid"
