"""The layer, network and optimizer tests once more on Keras' other backends, each in a process of its own."""

import importlib.util
import os
import subprocess
import sys

import pytest
from programs import ROOT

PORTABLE = [
    "graph/test_grad_cam.py",
    "graph/test_insertion.py",
    "layers/test_layers_contract.py",
    "layers/test_layers_normalization_attention.py",
    "layers/test_layers_peers.py",
    "models/test_models.py",
    "models/test_optimizers.py",
]
# Of the networks' and layers' tests, those that compute: the others look at shapes and messages, the same on every
# backend, at what one half precision shows as well as the other, or at what the contract shows on smaller layers. JAX
# has no float64 as Keras sets it up, and compiles for a second per new shape what is not in one function.
LEFT_OUT = (
    "test_models and (trainable_parameters or names or stage_outputs or refuse or initial_weights or decode or heads"
    " or selective or smallest or blocks)"
    " or test_layers_contract and (output_shape or overflow or bfloat16)"
    " or test_insertion and not (half or entered or adapted) or test_grad_cam and (integer_images or refused)"
)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_layers_and_networks_pass_on(backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", f"not ({LEFT_OUT})", *(f"tests/{name}" for name in PORTABLE)],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
