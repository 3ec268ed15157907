"""na_keras/model_files.py: which networks the programs take for classifiers of raw images, and class names' files."""

import keras
import pytest
from keras import layers, ops

from na_keras.deploy import deploy_copy
from na_keras.model_files import check_classifier, read_labels

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
    model = check_classifier(TAKEN[name]())
    assert (model.input_shape, model.output_shape) == ((None, 16, 16, 3), (None, 3))
    deploy_copy(model)


RAW = "the pixels reach 'first', a Conv2D, as they are"
REFUSED = {
    "raw pixels": (lambda: network(lambda x: x), RAW),
    "augmented raw pixels": (lambda: network(lambda x: layers.RandomRotation(0.2)(x)), RAW),
    "another channel order": (lambda: network(lambda x: x[..., ::-1]), RAW),
    "scores": (lambda: network(end=lambda x: x), "ends in a softmax. Received: linear; .* in scores"),
    "sigmoids": (lambda: network(end=layers.Activation("sigmoid", name="s")), "Received: sigmoid in s"),
    "per cent": (lambda: network(end=lambda x: 100 * ops.softmax(x)), "sum up to 100 and 100"),
    "two outputs": (lambda: network(end=lambda x: [ops.softmax(x), x]), "with one output. 'network' has 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_classifier_of_raw_images_is_refused_with_the_true_reason(name):
    build, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        check_classifier(build())


def test_the_advice_for_raw_pixels_can_be_followed():
    check_classifier(network(layers.Rescaling(1.0)))


@pytest.mark.parametrize("content", [b"cat\ndog\n", b"\xef\xbb\xbfcat\r\ndog\r\n", b"cat\ndog"])
def test_class_names_are_read_as_any_editor_writes_them(content, tmp_path):
    (tmp_path / "labels.txt").write_bytes(content)
    assert read_labels(tmp_path / "labels.txt") == ["cat", "dog"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"cat\n\ndog\n", "Line 2 of 3 is empty"), (b"cat\n \n", "Line 2 of 2"), (b"\xff\xfe", "labels.txt is not UTF-8")],
)
def test_empty_and_undecodable_class_names_are_refused_with_the_line(content, message, tmp_path):
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path / "labels.txt")
