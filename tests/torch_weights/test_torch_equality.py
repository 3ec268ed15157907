"""The networks beside PyTorch's, with the same weights: equal logits; real .pth files. Where PyTorch is installed."""

import argparse
import functools
import pathlib

import numpy as np
import pytest

import na_keras
from na_keras import load_torch_weights, to_torch_state_dict

torch = pytest.importorskip("torch", reason="compares with PyTorch")
torch_networks = pytest.importorskip("torch_networks")

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of pixels in 0..1, as PyTorch's programs have them
NETWORKS = [("ResNet50", name) for name in (None, "se", "eca", "ge", "sk", "cbam", "na", "gc", "sge", "na_embedding")]
NETWORKS += [("MobileNetV2", name) for name in (None, "se", "eca", "ge", "cbam", "na")]


@functools.cache
def pytorch(name, attention):
    return torch_networks.stand_in(getattr(torch_networks, name)(attention, classes=10))


def logits_of(network, images):
    """From images (b, h, w, 3) in 0..255. In float32: PyTorch's depthwise convolutions are very slow in float64."""
    normalized = ((images.astype("float64") / 255 - MEAN) / DEVIATION).astype("float32")
    with torch.no_grad():
        return network(torch.from_numpy(np.ascontiguousarray(normalized.transpose(0, 3, 1, 2)))).numpy()


def assert_equal_logits(network, model, shape):
    images = np.random.default_rng(1).uniform(0, 255, (2, *shape)).astype("float32")
    expected = logits_of(network, images)
    # Two float32 programs: some 1e-5 of the spread each, in networks of 50 layers; the smallest mistakes of geometry
    # or placement that can be seen make 1e-2.
    assert np.abs(model.predict(images, verbose=0) - expected).max() < 2e-4 * expected.std()


def keras_network(name, attention, shape):
    return getattr(na_keras, name)(input_shape=shape, classes=10, classifier_activation=None, attention=attention)


@pytest.mark.parametrize(("name", "attention"), NETWORKS)
def test_logits_equal_pytorchs(name, attention):
    """Even sides, where padding shows; not square."""
    network, model = pytorch(name, attention), keras_network(name, attention, (96, 128, 3))
    load_torch_weights(model, network.state_dict())
    assert_equal_logits(network, model, (96, 128, 3))


@pytest.mark.parametrize(("name", "attention", "side"), [("ResNet50", "na", 224), ("MobileNetV2", "ge", 97)])
def test_logits_equal_pytorchs_at_other_sizes(name, attention, side):
    network, model = pytorch(name, attention), keras_network(name, attention, (side, side, 3))
    load_torch_weights(model, network.state_dict())
    assert_equal_logits(network, model, (side, side, 3))


@pytest.mark.parametrize(("name", "attention"), [("ResNet50", "cbam"), ("MobileNetV2", "na")])
def test_pytorch_loads_what_we_export(name, attention):
    network, shape = getattr(torch_networks, name)(attention, classes=10).eval(), (64, 64, 3)
    model = keras_network(name, attention, shape)
    load_torch_weights(model, pytorch(name, attention).state_dict())
    state = to_torch_state_dict(model)
    network.load_state_dict({key: torch.from_numpy(array) for key, array in state.items()})  # strict
    assert_equal_logits(network, model, shape)


@pytest.fixture(scope="module")
def small():
    network = pytorch("MobileNetV2", "na")
    return network, keras_network("MobileNetV2", "na", (32, 32, 3))


def weights_equal(model, network):
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return all(np.array_equal(state[name], array) for name, array in to_torch_state_dict(model).items())


def test_pth_files_of_state_dicts_and_checkpoints_are_read(small, tmp_path):
    network, model = small
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    load_torch_weights(model, tmp_path / "weights.pth")
    assert weights_equal(model, network)
    parallel = {f"module.{name}": torch.zeros_like(tensor) for name, tensor in network.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": parallel}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    load_torch_weights(model, tmp_path / "old.pth")
    assert not any(array.any() for array in to_torch_state_dict(model).values())
    load_torch_weights(model, {name: tensor.bfloat16() for name, tensor in network.state_dict().items()})
    name = "features.3.conv.0.0.weight"
    expected = network.state_dict()[name].bfloat16().float().numpy()
    np.testing.assert_array_equal(to_torch_state_dict(model)[name], expected)


def test_torchvisions_checkpoints_with_their_arguments_and_pth_tar_are_read(small, tmp_path):
    network, model = small
    checkpoint = {"model": network.state_dict(), "args": argparse.Namespace(lr=0.1, model="x"), "epoch": 3}
    torch.save(checkpoint, tmp_path / "model_3.pth.tar")
    load_torch_weights(model, tmp_path / "model_3.pth.tar")
    assert weights_equal(model, network)
    averaged = torch.optim.swa_utils.AveragedModel(network)
    load_torch_weights(model, averaged.state_dict())
    assert weights_equal(model, network)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_pickles_are_never_executed(small, tmp_path):
    network, model = small
    before = to_torch_state_dict(model)
    trap = tmp_path / "sprung"
    torch.save({**network.state_dict(), "trap": Trap(trap)}, tmp_path / "trap.pth")
    torch.save(network, tmp_path / "module.pth")
    torch.save({"state_dict": network.state_dict(), "args": pathlib.PurePosixPath("x")}, tmp_path / "arguments.pth")
    (tmp_path / "text.pth").write_text("no pickle")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save(network.state_dict(), tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:5000])
    for name in ("trap.pth", "module.pth", "arguments.pth", "text.pth", "empty.pt", "cut.pth"):
        with pytest.raises(ValueError, match=f"Cannot read .*{name}: .*nothing in it was executed.*model.state_dict"):
            load_torch_weights(model, tmp_path / name)
    assert not trap.exists()
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="list.pth to hold a state dict.*Received: list"):
        load_torch_weights(model, tmp_path / "list.pth")
    assert all(np.array_equal(array, before[name]) for name, array in to_torch_state_dict(model).items())
