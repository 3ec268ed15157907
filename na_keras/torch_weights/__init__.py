"""Weights from PyTorch into this library's networks, and back: names, layouts, files."""

from na_keras.torch_weights.load import load_torch_weights, to_torch_state_dict

__all__ = ["load_torch_weights", "to_torch_state_dict"]
