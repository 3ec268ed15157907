"""Trained weights for this library's networks: what fits is loaded, what is fresh is said, the rest is refused."""

import hashlib
import logging
import shutil

import keras
import numpy as np
import pytest

from na_keras import MobileNetV2, ResNet18, to_torch_state_dict
from na_keras.pretrained import torchvision
from na_keras.torch_weights import files

SMALL = {"input_shape": (32, 32, 3)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A ResNet18 of 5 classes whose batch norms are not fresh, and its weights as files of all kinds."""
    folder, network = tmp_path_factory.mktemp("trained"), ResNet18(**SMALL, classes=5)
    rng = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.weights])
    np.savez(folder / "trained.npz", **to_torch_state_dict(network))
    network.save(folder / "trained.keras")
    network.save_weights(folder / "trained.weights.h5")
    network.save(folder / "trained.h5")
    return folder, network


def answers(network):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3))
    return keras.ops.convert_to_numpy(network(images))


@pytest.mark.parametrize(
    ("ending", "attention"), [(".npz", "se"), (".keras", "na"), (".weights.h5", "cbam"), (".h5", "na")]
)
def test_fresh_modules_keep_what_the_weights_compute_and_it_is_said(trained, ending, attention, caplog):
    folder, network = trained
    with caplog.at_level(logging.WARNING, "na_keras"):
        loaded = ResNet18(**SMALL, classes=5, weights=folder / f"trained{ending}", attention=attention)
    assert "attention modules are fresh; what they multiply by is divided out" in caplog.text
    assert "classifier" not in caplog.text
    # Each of 8 branches is rounded once more, of a softmax's numbers below 1.
    np.testing.assert_allclose(answers(loaded), answers(network), atol=1e-5)


@pytest.mark.parametrize("ending", [".npz", ".weights.h5"])
def test_a_classifier_of_other_classes_is_fresh_and_it_is_said(trained, ending, caplog):
    folder, network = trained
    with caplog.at_level(logging.WARNING, "na_keras"):
        loaded = ResNet18(**SMALL, classes=3, weights=folder / f"trained{ending}", attention="simam")
    assert "the weights are of 5 classes, the network has 3" in caplog.text
    assert "a fresh SimAM multiplies by" in caplog.text  # and is no constant
    name = "conv5_block2_2_bn"
    for ours, theirs in zip(loaded.get_layer(name).get_weights(), network.get_layer(name).get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("ending", [".npz", ".keras", ".weights.h5", ".h5"])
def test_a_network_without_a_top_takes_the_weights_of_one_with_it(trained, ending):
    folder, network = trained
    loaded = ResNet18(**SMALL, include_top=False, pooling="avg", weights=folder / f"trained{ending}")
    ours, theirs = loaded.get_weights(), network.get_weights()[:-2]
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_with_modules_go_into_modules_and_nowhere_else(tmp_path):
    small = {**SMALL, "alpha": 0.35, "classes": 3}
    network = MobileNetV2(**small, attention="na")
    for layer in network.layers:
        if layer.name.endswith("attention"):
            layer.set_weights([np.full((1,), 0.5), np.full((1,), 0.25)])
    network.save(tmp_path / "na.keras")
    network.save_weights(tmp_path / "na.weights.h5")
    loaded = MobileNetV2(**small, attention="na", weights=tmp_path / "na.weights.h5")
    np.testing.assert_array_equal(answers(loaded), answers(network))
    with pytest.raises(ValueError, match="does not fit 'mobilenetv2'; nothing was loaded"):
        MobileNetV2(**small, weights=tmp_path / "na.weights.h5")
    with pytest.raises(ValueError, match="weights missing: .*attention/squeeze"):
        MobileNetV2(**small, weights=tmp_path / "na.keras", attention="se")


def test_another_network_with_the_same_names_is_refused(tmp_path):
    """keras.applications' MobileNetV2 has the names and shapes of ours, and pads and divides otherwise."""
    theirs = keras.applications.MobileNetV2((32, 32, 3), 0.35, weights=None, classes=3)
    theirs.save(tmp_path / "theirs.keras")
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    for file, message in (("theirs.keras", "another network with the same names"), ("theirs.weights.h5", "not fit")):
        with pytest.raises(ValueError, match=message):
            MobileNetV2(**SMALL, alpha=0.35, classes=3, weights=tmp_path / file)


@pytest.fixture
def cache(tmp_path, monkeypatch, trained):
    """Keras' cache with a file that stands for torchvision's of ResNet18, an .npz file under its name."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(torchvision, "check_torch", lambda: None)
    monkeypatch.setitem(files.READERS, ".pth", files.read_npz)
    content = (trained[0] / "trained.npz").read_bytes()
    file = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setitem(torchvision.FILES["torchvision-v1"], "ResNet18", file)
    (tmp_path / "models").mkdir()
    shutil.copy(trained[0] / "trained.npz", tmp_path / "models" / file)
    return tmp_path / "models" / file


def test_torchvisions_file_in_the_cache_is_checked_and_needs_no_network(cache, trained, monkeypatch):
    np.testing.assert_array_equal(answers(ResNet18(**SMALL, classes=5, weights="torchvision-v1")), answers(trained[1]))
    cache.write_bytes(cache.read_bytes() + b" ")
    for weights in ("torchvision-v1", cache):
        with pytest.raises(ValueError, match="its name promises a SHA-256 that begins with"):
            ResNet18(**SMALL, classes=5, weights=weights)


def test_a_download_that_fails_or_has_another_hash_leaves_nothing(cache, monkeypatch):
    cache.unlink()

    def fails(*args, **kwargs):
        raise Exception("URL fetch failure on ORIGIN\nNone")

    monkeypatch.setattr(keras.utils, "get_file", fails)
    with pytest.raises(ValueError, match=r"cannot be downloaded \(URL fetch failure on ORIGIN None\)"):
        ResNet18(**SMALL, weights="torchvision-v1")

    def damaged(*args, **kwargs):
        cache.write_bytes(b"half")
        return str(cache)

    monkeypatch.setattr(keras.utils, "get_file", damaged)
    with pytest.raises(ValueError, match="its name promises"):
        ResNet18(**SMALL, weights="torchvision-v1")
    assert not cache.exists()


def test_without_torch_nothing_is_downloaded(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    monkeypatch.setattr(keras.utils, "get_file", lambda *args, **kwargs: pytest.fail("downloaded"))
    with pytest.raises(ValueError, match="need PyTorch to be read: pip install torch"):
        ResNet18(**SMALL, weights="torchvision-v1")
    with pytest.raises(ValueError, match='no weights="torchvision-v2" for ResNet18. ResNet18 has torchvision-v1'):
        ResNet18(**SMALL, weights="torchvision-v2")
