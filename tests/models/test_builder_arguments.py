"""The builders' arguments: keras.applications' names, what an editor shows, clear errors."""

import ast
import functools
import inspect
import pydoc
import re

import keras
import numpy as np
import pytest

import na_keras
from na_keras import MobileNetV2, NAMobileNetV2, NAResNet50, NormalizationAttention, ResNet18, ResNet34, ResNet50


@pytest.mark.parametrize("builder", [ResNet50, NAResNet50])
def test_argument_names_and_order_are_those_of_keras_applications_resnet(builder):
    theirs = list(inspect.signature(keras.applications.ResNet50).parameters)
    ours = inspect.signature(builder).parameters
    assert list(ours)[: len(theirs)] == theirs
    assert ours["name"].default == ("na_resnet50" if builder is NAResNet50 else "resnet50")
    with pytest.raises(TypeError, match="depth"):
        builder(depth=18)


@pytest.mark.parametrize("builder", [MobileNetV2, NAMobileNetV2])
def test_argument_names_and_order_are_those_of_keras_applications_mobilenet_v2(builder):
    theirs = list(inspect.signature(keras.applications.MobileNetV2).parameters)
    assert list(inspect.signature(builder).parameters)[: len(theirs)] == theirs


BUILDERS = [*na_keras.models.MODELS.values(), NAResNet50, NAMobileNetV2]


@pytest.mark.parametrize("builder", BUILDERS, ids=lambda builder: builder.__name__)
def test_an_editor_and_help_show_the_arguments_that_a_builder_has(builder):
    names = list(inspect.signature(builder).parameters)
    written = ast.parse(inspect.getsource(builder)).body[0]  # what an editor sees without running anything
    assert isinstance(written, ast.FunctionDef) and written.name == builder.__name__
    assert not written.args.vararg and not written.args.kwarg
    assert [argument.arg for argument in written.args.args] == names
    assert len(written.args.defaults) == len(names)
    text = pydoc.plain(pydoc.render_doc(builder))
    section = text.split("Args:")[1].split("Returns:")[0]
    assert re.findall(r"^ {8}(\w+): ", section, re.MULTILINE) == names
    assert "Raises:" in text and all(line.strip() in text for line in ast.get_docstring(written).splitlines())


@pytest.mark.parametrize("attention", ["sk", na_keras.SelectiveKernel, functools.partial(na_keras.SelectiveKernel)])
def test_networks_without_bottlenecks_refuse_what_replaces_their_convolution(attention):
    for builder, message in (
        (ResNet18, "ResNet18 has none: use ResNet50"),
        (ResNet34, "ResNet34"),
        (MobileNetV2, "dep"),
    ):
        with pytest.raises(ValueError, match=f"replaces the 3x3 convolution of.*{message}.*Received: attention="):
            builder(attention=attention)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": "sesame"}, "attention must be None, one of .*'na'.*Received: 'sesame'"),
        ({"attention": NormalizationAttention()}, "a class or a function, not a layer"),
        ({"weights": "imagenet"}, "authors published no weights"),
        ({"weights": "missing.weights.h5"}, "No file at: missing.weights.h5"),
        ({"input_shape": (16, 16, 3)}, "at least 32"),
        ({"input_shape": (32, 32)}, "one image's shape"),
        ({"input_shape": (32, 32, 1)}, "include_preprocessing=False"),
        ({"input_shape": (32, 32, None)}, "channels must be known"),
        ({"classes": 0}, "positive integer. Received: classes=0"),
        ({"include_top": False, "pooling": "mean"}, "Received: pooling='mean'"),
        ({"input_tensor": np.zeros((1, 32, 32, 3))}, "output of keras.Input"),
        ({"input_tensor": keras.Input((32, 32, 3)), "input_shape": (64, 64, 3)}, "disagree"),
    ],
)
@pytest.mark.parametrize("builder", [ResNet18, MobileNetV2])
def test_bad_arguments_are_refused_before_any_work(builder, arguments, message):
    with pytest.raises(ValueError, match=message):
        builder(**arguments)


def test_alpha_must_be_positive():
    with pytest.raises(ValueError, match="alpha must be positive. Received: alpha=0"):
        MobileNetV2(alpha=0)


def test_width_multiplier_rounds_to_multiples_of_eight():
    from na_keras.models.mobilenet_v2 import scaled

    assert [scaled(c, 0.35) for c in (16, 24, 32, 64, 96, 160, 320)] == [8, 8, 16, 24, 32, 56, 112]
    assert scaled(1280, 1.4) == 1792
