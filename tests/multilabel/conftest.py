"""A table of multi-label images, and a run on it, once for all tests of this folder."""

import numpy as np
import pytest
from multilabel_data import BEST, write_images
from tiny_network import tiny, train_here

from na_keras.models import MODELS


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """14 training images, of which three steps of four are an epoch, and 10 held-out ones."""
    folder = tmp_path_factory.mktemp("multilabel")
    rng = np.random.default_rng(0)
    write_images(folder, "train", 14, rng)
    write_images(folder, "validation", 10, rng)
    return folder


@pytest.fixture(autouse=True)
def tiny_is_a_name(monkeypatch):
    monkeypatch.setitem(MODELS, "Tiny", tiny)


@pytest.fixture(scope="session")
def finished(data, tmp_path_factory):
    """(The directory of a finished run of two epochs, what it printed.) Its checkpoints are of steps 4 and 6."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "Tiny", tiny)
        code, output = train_here(run, *BEST, "--data-dir", data)
    assert code == 0, (code, output)
    return run, output
