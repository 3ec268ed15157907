"""The layer, network and optimizer tests once more on Keras' other backends, each in a process of its own.

JAX runs wherever the test extra is installed. torch runs where it is installed: the extra does not bring it, because
what pip installs by default is the CUDA build with its libraries. CONTRIBUTING.md has the command.
"""

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
    "layers/test_layers_gradients.py",
    "layers/test_layers_normalization_attention.py",
    "layers/test_layers_peers.py",
    "models/test_models.py",
    "models/test_optimizers.py",
    "models/test_optimizers_beside_torch.py",
    "torch_weights/test_published_networks.py",
    "training/test_step_cost.py",
]
# What another backend cannot get wrong by itself is left out: shapes, names, counts and messages; what one half
# precision shows as well as the other; reading and writing weights of whole networks, which the contract shows layer by
# layer; preprocessing outside the graph; that a layer's file, and its function alone, are the layer, but of one layer.
LEFT_OUT = {
    "test_grad_cam": "integer_images or refused",
    "test_insertion": "not (half or entered or adapted)",
    "test_layers_contract": (
        "output_shape or overflow or bfloat16 or integers or ((pure_function or saved_model_file) and not gc)"
        " or (pure_function and channels_first)"
    ),
    "test_layers_normalization_attention": (
        "refused or output_shape or (gradients_equal_the_authors and not (00 or code_context))"
    ),
    "test_layers_peers": "refused or kernel_size_of or own_form or would_do or advised or too_few",
    "test_models": (
        "names or NAResNet50 or mixed or stage_outputs or initial_weights or decode or heads or selective"
        " or stages_that or leave_blocks or smallest or blocks or saved_network or weights_takes or users"
        " or papers_parameters or builder1"
        " or uint8 or preprocess_input or (training_expects and not (ResNet18 or MobileNetV2))"
    ),
    "test_optimizers": "refused or round_trip",
    "test_step_cost": "not on_jax",
}
BACKENDS = ("jax", "torch")


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_and_networks_pass_on(backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    left_out = " or ".join(f"{name} and ({expression})" for name, expression in LEFT_OUT.items())
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", f"not ({left_out})", *(f"tests/{name}" for name in PORTABLE)],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
