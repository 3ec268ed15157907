"""Every network keeps the protocol that na_keras/models/__init__.py writes down, and shows its real signature."""

import ast
import inspect
import pathlib
import re

import keras
import numpy as np
import pytest

import na_keras
from na_keras.models import MODELS

BUILDERS = [*MODELS, "NAResNet50", "NAMobileNetV2"]


@pytest.fixture(scope="module", params=MODELS)
def network(request):
    """Of the smallest size; without the protocol's `name=`, which the other fixture gives."""
    builder = MODELS[request.param]
    options = {"alpha": 0.35} if request.param == "MobileNetV2" else {}
    protocol = {"input_shape": (32, 32, 3), "classes": 3, "attention": "na", "synchronized_batch_norm": True}
    return builder(**protocol, classifier_activation=None, name="mine", **options)


def test_it_is_functional_and_named(network):
    assert isinstance(network, keras.Model) and isinstance(network, keras.Function) and network.name == "mine"


def test_it_takes_raw_pixels_of_either_dtype_and_gives_float32_logits(network):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), "uint8")
    logits = keras.ops.convert_to_numpy(network(pixels))
    assert logits.shape == (2, 3) and logits.dtype == "float32"
    assert not np.allclose(logits.sum(-1), 1)
    same = keras.ops.convert_to_numpy(network(pixels.astype("float32")))
    np.testing.assert_array_equal(logits, same)


def test_its_stages_and_classifier_have_the_protocols_names(network):
    sides = [network.get_layer(name).output.shape[1] for name in ("C2", "C3", "C4", "C5")]
    assert sides == [8, 4, 2, 1]
    assert network.get_layer("predictions").units == 3


def test_all_its_batch_norms_are_synchronized_if_asked(network):
    norms = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert norms and all(norm.synchronized for norm in norms)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_signature_is_written_out_in_the_source(name):
    """Editors read the source and run nothing: no *args, no signature made at run time."""
    builder = getattr(na_keras, name)
    tree = ast.parse(pathlib.Path(inspect.getsourcefile(builder)).read_text())
    (function,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
    written = [argument.arg for argument in function.args.args]
    assert written == list(inspect.signature(builder).parameters)
    assert function.args.vararg is None and function.args.kwarg is None and len(function.args.defaults) == len(written)
    assert ast.get_docstring(function)


@pytest.mark.parametrize("name", BUILDERS)
def test_help_speaks_of_every_argument_and_of_no_other(name):
    builder = getattr(na_keras, name)
    arguments = inspect.getdoc(builder).partition("Args:\n")[2].partition("Returns:")[0]
    assert set(re.findall(r"^    (\w+):", arguments, re.M)) == set(inspect.signature(builder).parameters)


@pytest.mark.parametrize("name", ["NAResNet50", "NAMobileNetV2"])
def test_the_named_forms_differ_from_their_networks_in_name_and_attention_alone(name):
    ours = inspect.signature(getattr(na_keras, name)).parameters
    plain = inspect.signature(getattr(na_keras, name.removeprefix("NA"))).parameters
    assert list(ours) == list(plain)
    assert {key for key in ours if ours[key].default != plain[key].default} == {"name", "attention"}
    assert ours["attention"].default == "na"


def test_all_depths_have_one_signature_but_for_the_name():
    builders = [getattr(na_keras, name) for name in MODELS if name.startswith("ResNet")]
    signatures = [inspect.signature(builder).parameters for builder in builders]
    for parameters in signatures:
        assert {**parameters, "name": None} == {**signatures[0], "name": None}
    names = [parameters["name"].default for parameters in signatures]
    assert names == [builder.__name__.lower() for builder in builders]
