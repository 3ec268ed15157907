"""TorchSGD and TimmLamb beside torch.optim.SGD and timm.optim.Lamb themselves. Where both are installed."""

import keras
import numpy as np
import pytest

from na_keras import TimmLamb, TorchSGD

if keras.backend.backend() != "torch":  # timm brings torchvision, which beside TensorFlow ends the process
    pytest.skip("timm's optimizer is compared on the torch backend", allow_module_level=True)
torch = pytest.importorskip("torch", reason="compares with PyTorch's optimizers")
timm_optim = pytest.importorskip("timm.optim", reason="compares with timm's optimizer")

START = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
GRADIENTS = np.random.default_rng(1).normal(size=(40, 5, 4)).astype("float32")
PAIRS = {
    "sgd": (
        lambda: TorchSGD(0.1, momentum=0.9, weight_decay=1e-2),
        lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=1e-2),
    ),
    "nesterov": (
        lambda: TorchSGD(0.1, momentum=0.9, weight_decay=1e-2, nesterov=True),
        lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=True),
    ),
    "lamb": (
        lambda: TimmLamb(0.01, weight_decay=2e-2),
        lambda weights: timm_optim.Lamb(weights, lr=0.01, weight_decay=2e-2, max_grad_norm=None),
    ),
    "lamb without decay": (
        lambda: TimmLamb(0.01, weight_decay=0.0),
        lambda weights: timm_optim.Lamb(weights, lr=0.01, weight_decay=0.0, max_grad_norm=None),
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_forty_updates_equal_the_optimizers_of_pytorch(pair):
    make_ours, make_theirs = PAIRS[pair]
    variable, optimizer = keras.Variable(START, name="kernel"), make_ours()
    optimizer.build([variable])
    weight = torch.nn.Parameter(torch.from_numpy(START.copy()))
    theirs = make_theirs([weight])
    for gradient in GRADIENTS:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)])
        weight.grad = torch.from_numpy(gradient.copy())
        theirs.step()
    # Both in float32, 40 steps of up to .4 each: a few roundings of 1e-7.
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), weight.detach().numpy(), atol=1e-5)
