"""What the pixels mean is part of the model: families, files, and what looks wrong."""

import keras
import numpy as np
import pytest
from keras import layers
from small_classifiers import FILTERS, SIZE, pictures, small_classifier

import command_line
import recipes
from na_keras.networks import PIXELS, open_classifier, unlikely_range
from na_keras.networks.names import application_builders
from na_keras.networks.pixels import pixels_of_family, preprocessed, shown_pixels, with_pixels

FAMILIES = {
    **dict.fromkeys(["ResNet50", "VGG16", "VGG19"], "caffe"),
    **dict.fromkeys(["MobileNet", "MobileNetV2", "ResNet50V2", "InceptionV3", "InceptionResNetV2"], "tf"),
    **dict.fromkeys(["Xception", "NASNetMobile"], "tf"),
    "DenseNet121": "torch",
    **dict.fromkeys(["EfficientNetB0", "EfficientNetV2B0", "MobileNetV3Small", "ConvNeXtTiny"], "raw"),
}


def test_every_family_of_keras_applications_says_what_its_pixels_mean():
    builders = application_builders()
    assert {name: pixels_of_family(builders[name]) for name in FAMILIES} == FAMILIES
    families = {builder.__module__ for builder in builders.values()}
    assert families == {builders[name].__module__ for name in FAMILIES}


@pytest.mark.parametrize("pixels", PIXELS)
def test_the_first_layers_are_keras_own_preprocessing_also_when_loaded(pixels, tmp_path):
    image = keras.Input((4, 4, 3))
    keras.Model(image, layers.Identity()(preprocessed(image, pixels))).save(tmp_path / "model.keras")
    images = pictures(size=4)
    found = keras.saving.load_model(tmp_path / "model.keras")(images)
    expected = images.astype("float32")
    if pixels != "raw":
        expected = keras.applications.imagenet_utils.preprocess_input(expected, mode=pixels)
    np.testing.assert_allclose(found, expected, atol=2e-5)  # of numbers to 151, in float32


class Halved(layers.Layer):
    """Anything that is not known here."""

    def call(self, x):
        return x / 2


@pytest.mark.parametrize(
    ("first", "shown"),
    [
        ([layers.Rescaling(1 / 255)], "raw"),
        ([layers.RandomFlip(), layers.Rescaling(1 / 127.5, -1)], "raw"),
        ([layers.Normalization(-1, (123, 117, 104), (3400, 3300, 3300))], "raw"),
        ([keras.applications.mobilenet_v2.preprocess_input], "raw"),
        ([keras.applications.resnet.preprocess_input], "raw"),
        ([], None),
        ([layers.Rescaling(2.0, -1)], None),  # of 0..1
        ([layers.Normalization(-1, (0.5, 0.5, 0.5), (0.1, 0.1, 0.1))], None),
        ([Halved(), layers.Rescaling(1 / 255)], None),  # one somewhere inside is no proof
    ],
)
def test_only_the_first_thing_done_to_the_pixels_shows_what_they_mean(first, shown):
    assert shown_pixels(small_classifier(first)) == shown
    nested = keras.Sequential([keras.Input((SIZE, SIZE, 3)), small_classifier(first)])
    assert shown_pixels(keras.Model(nested.inputs[0], nested.outputs[0])) == shown


def test_a_file_that_does_not_show_its_pixels_is_refused_with_the_choice(tmp_path):
    unclear, clear = small_classifier(), small_classifier([layers.Rescaling(1 / 255)])
    unclear.save(tmp_path / "unclear.keras")
    clear.save(tmp_path / "clear.keras")
    with pytest.raises(ValueError, match=r"unclear.keras does not show .*--pixels: raw \(0..255\), tf .*caffe"):
        open_classifier(tmp_path / "unclear.keras")
    images = pictures()
    opened = open_classifier(tmp_path / "unclear.keras", "tf")
    np.testing.assert_allclose(opened(images), unclear(images / np.float32(127.5) - 1), atol=1e-5)
    np.testing.assert_allclose(open_classifier(tmp_path / "clear.keras", "raw")(images), clear(images), atol=1e-6)
    open_classifier(tmp_path / "unclear.keras", "raw").save(tmp_path / "said.keras")
    np.testing.assert_allclose(open_classifier(tmp_path / "said.keras")(images), unclear(images), atol=1e-5)
    with pytest.raises(ValueError, match="--pixels tf contradicts it"):
        open_classifier(tmp_path / "clear.keras", "tf")


def test_images_that_a_trained_network_was_not_trained_on_are_noticed():
    model, images = small_classifier([layers.Rescaling(1 / 255)]), pictures(8)
    norm = model.get_layer("stem_bn")
    seen = keras.ops.convert_to_numpy(keras.Model(model.inputs[0], norm.input)(images))
    norm.moving_mean.assign(seen.mean((0, 1, 2)))
    norm.moving_variance.assign(seen.var((0, 1, 2)))
    assert unlikely_range(model, images) is None
    assert "'stem_bn' varies" in unlikely_range(with_pixels(model, "tf", None), images)
    norm.set_weights([np.ones(FILTERS), np.zeros(FILTERS), np.zeros(FILTERS), np.ones(FILTERS)])
    assert unlikely_range(with_pixels(model, "tf", None), images) is None  # nothing is known of a fresh one


def test_the_flags_choices_are_the_librarys():
    assert recipes.PIXELS == command_line.PIXELS == tuple(PIXELS)
