"""After the same `set_random_seed` networks with any attention begin as the one without."""

import keras
import numpy as np
import pytest

from na_keras import ATTENTION, MobileNetV2, ResNet50
from na_keras.models import resnet
from na_keras.networks import Network, build
from na_keras.pretrained import weights_of

WITH_CONVOLUTIONS = sorted(set(ATTENTION) - {"sk"})


def mobilenet(attention):
    return MobileNetV2((32, 32, 3), alpha=0.35, classes=7, attention=attention)


def bottlenecks(attention):
    return ResNet50(input_shape=(32, 32, 3), classes=7, attention=attention)


def applications(attention):
    where = attention and "conv_pw_13_bn"
    network = Network("keras.applications.MobileNet", attention, where=where, options={"alpha": 0.25})
    return build(network, size=32, classes=7)


@pytest.fixture(scope="module")
def from_file(tmp_path_factory):
    """A builder of a trained network with a fresh classifier."""
    path = tmp_path_factory.mktemp("trained") / "trained.keras"
    keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=5).save(path)

    def build_it(attention):
        where = {"where": "block_16_project_BN", "preserve": False} if attention else {}
        network = Network(str(path), attention, pixels="tf", **where)
        return build(network, size=32, classes=7)

    return build_it


def test_a_fresh_classifier_of_a_trained_network_is_the_same_with_any_module(from_file):
    expected, found = (initial_weights(from_file, attention) for attention in (None, "se"))
    assert set(expected) < set(found)
    assert_equal(found, expected, expected)


def initial_weights(builder, attention, seed=7):
    """{path: array} of a network that is built after `set_random_seed`."""
    keras.utils.set_random_seed(seed)
    return {path: keras.ops.convert_to_numpy(value) for path, value in weights_of(builder(attention)).items()}


@pytest.fixture(scope="module")
def plain():
    return {builder: initial_weights(builder, None) for builder in (mobilenet, applications)}


def assert_equal(found, expected, paths):
    different = [path for path in paths if not np.array_equal(found[path], expected[path])]
    assert not different


@pytest.mark.parametrize(
    ("builder", "attention"), [*((mobilenet, name) for name in WITH_CONVOLUTIONS), (applications, "se")]
)
def test_a_seed_means_the_same_trunk_and_classifier(plain, builder, attention):
    expected = plain[builder]
    found = initial_weights(builder, attention)
    assert set(expected) < set(found) or not set(found) - set(expected)  # simam has no weights
    assert_equal(found, expected, expected)


def test_a_module_in_place_of_convolutions_moves_no_other(monkeypatch):
    monkeypatch.setitem(resnet.RESNET, 50, ((1, 1, 1, 1), True))
    expected, found = initial_weights(bottlenecks, None), initial_weights(bottlenecks, "sk")
    shared = set(expected) & set(found)
    assert {path.split("/")[0] for path in set(expected) - shared} == {
        f"conv{stage}_block1_2_{layer}" for stage in range(2, 6) for layer in ("conv", "bn")
    }
    assert_equal(found, expected, shared)


def test_another_seed_is_another_network_and_a_second_one_too(plain):
    kernel = "block_1_expand/kernel"
    (kernel,) = [path for path in plain[mobilenet] if kernel in path]
    assert not np.array_equal(initial_weights(mobilenet, None, seed=8)[kernel], plain[mobilenet][kernel])
    keras.utils.set_random_seed(7)
    first, second = (keras.ops.convert_to_numpy(weights_of(mobilenet(None))[kernel]) for _ in range(2))
    np.testing.assert_array_equal(first, plain[mobilenet][kernel])
    assert not np.array_equal(first, second)


def test_equal_shapes_have_other_weights():
    weights = initial_weights(mobilenet, None)
    kernels = [value for path, value in weights.items() if value.ndim == 4]
    shapes = [value.shape for value in kernels]
    assert len({*shapes}) < len(shapes)
    assert len({value.tobytes() for value in kernels}) == len(kernels)
