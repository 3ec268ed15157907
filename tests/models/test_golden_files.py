"""Files that earlier versions wrote: they must load and answer as they did, for good."""

import pathlib

import keras
import numpy as np
import pytest

import na_keras

FILES = sorted((pathlib.Path(__file__).parents[1] / "golden").glob("*.keras"))


def test_there_is_a_file_to_read():
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_of_an_earlier_version_answers_as_it_did(path):
    model = keras.saving.load_model(path)
    golden = np.load(path.with_suffix(".npz"))
    # float32 programs of other versions may order their sums differently.
    np.testing.assert_allclose(model.predict(golden["images"], verbose=0), golden["probabilities"], atol=1e-5)
    layers = [layer for layer in model.layers if isinstance(layer, na_keras.NormalizationAttention)]
    assert len(layers) == 17
    assert {layer.similarity for layer in layers} == {"channel_mean", "l1", None}
    assert {layer.embedding_kernel_size for layer in layers} == {None, 3}
