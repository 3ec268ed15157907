"""Runs as each Python of a test starts (conftest.py puts this folder on PYTHONPATH): a start of TensorFlow takes half.

While they are imported, Keras and TensorFlow import matplotlib, scikit-learn and JAX where they are installed, two
seconds of CPU for what no program of ours uses of them. Here they do not find them, as on a machine without; whoever
imports them afterwards does. A pytest without workers sees the import as it is, and so does the torch backend: torch
asks what is installed and takes no exception for an answer.
"""

import os
import sys

IMPORTERS = ("keras", "tensorflow")
HIDDEN = {"matplotlib", "sklearn", "jax"}


def is_on_its_way_in(package):
    return getattr(getattr(sys.modules.get(package), "__spec__", None), "_initializing", False)


class Hidden:
    """A finder that finds nothing, and ends the search for what is hidden now."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in HIDDEN - {os.environ.get("KERAS_BACKEND")} and any(map(is_on_its_way_in, IMPORTERS)):
            raise ModuleNotFoundError(f"{name} is hidden while Keras or TensorFlow is imported", name=name)
        return None


if os.environ.get("KERAS_BACKEND") != "torch":
    sys.meta_path.insert(0, Hidden)
