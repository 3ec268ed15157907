"""grad_cam's messages, whose advice is followed."""

import re

import keras
import numpy as np
import pytest
from keras import layers, ops

from na_keras import grad_cam

IMAGES = np.random.default_rng(0).normal(0, 1, (2, 6, 6, 3)).astype("float32")


def classifier():
    """(image, feature maps, logits)."""
    image = keras.Input((6, 6, 3))
    maps = layers.Conv2D(4, 3, name="maps")(image)
    return image, maps, layers.Dense(3, name="logits")(layers.GlobalAveragePooling2D()(layers.ReLU()(maps)))


@pytest.fixture
def maps():
    """Of the plain classifier."""
    return grad_cam(keras.Model(*classifier()[::2]), IMAGES).shape


def test_one_of_several_outputs_can_be_chosen(maps):
    image, _, logits = classifier()
    model = keras.Model(image, [logits, layers.Softmax()(logits)])
    with pytest.raises(ValueError, match=r"choose one: keras.Model\(model.input, model.outputs\[0\]\)"):
        grad_cam(model, IMAGES)
    assert grad_cam(keras.Model(model.input, model.outputs[0]), IMAGES).shape == maps


def test_one_image_can_be_given_as_a_batch(maps):
    model = keras.Model(*classifier()[::2])
    with pytest.raises(ValueError, match=r"Give one image as a batch, images\[None\]"):
        grad_cam(model, IMAGES[0])
    assert grad_cam(model, IMAGES[0][None]).shape == (1, *maps[1:])


def test_the_layers_that_a_message_lists_can_be_given(maps):
    model = keras.Model(*classifier()[::2])
    with pytest.raises(ValueError, match="Its last layers with feature maps: ") as refused:
        grad_cam(model, IMAGES, layer="sesame")
    listed = re.search("feature maps: (.*)$", str(refused.value))[1].split(", ")
    assert "maps" in listed
    assert {grad_cam(model, IMAGES, layer=name).shape for name in listed} == {maps}


def test_a_network_can_be_given_up_to_its_scores(maps):
    image, _, logits = classifier()
    model = keras.Model(image, ops.flip(layers.Softmax()(logits), axis=1))
    with pytest.raises(ValueError, match=r"up to its scores, keras.Model\(model.input, scores\)"):
        grad_cam(model, IMAGES)
    assert grad_cam(keras.Model(model.input, model.get_layer("logits").output), IMAGES).shape == maps


def test_a_sequential_can_begin_with_an_input(maps):
    stack = [layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(3)]
    with pytest.raises(ValueError, match=r"begin it with keras.Input"):
        grad_cam(keras.Sequential(stack), IMAGES)
    assert grad_cam(keras.Sequential([keras.Input((6, 6, 3)), *stack]), IMAGES).shape == maps
