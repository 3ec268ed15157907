"""Trained weights that a network starts from: where they come from, and how they get into it.

weights = open_weights("torchvision-v2", "ResNet50")        or the path of a file
notes = start(network, weights, head=network.get_layer("predictions"))
"""

from na_keras.pretrained.start import PRESERVED, changed_note, start
from na_keras.pretrained.weights import (
    CLASSIFIER,
    KerasWeights,
    Notes,
    PlacedWeights,
    TorchWeights,
    check_source,
    one_line,
    open_weights,
    refresh,
    weights_of,
)

__all__ = [
    "CLASSIFIER",
    "PRESERVED",
    "KerasWeights",
    "Notes",
    "PlacedWeights",
    "TorchWeights",
    "changed_note",
    "check_source",
    "one_line",
    "open_weights",
    "refresh",
    "start",
    "weights_of",
]
