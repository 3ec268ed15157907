"""Small multi-label data: images of bands of colour, in a table with a column for each colour and one for nothing."""

import numpy as np
import pytest
import tensorflow as tf
from tiny_network import FLAGS, tiny, train_here

from na_keras.models import MODELS

COLOURS = {"red": (230, 20, 20), "green": (20, 230, 20), "blue": (20, 20, 230)}
CLASSES = (*COLOURS, "violet")  # which no held-out image has
RUN = (*FLAGS, "--dataset", "csv", "--loss", "binary_cross_entropy", "--batch-size", 4, "--warmup-epochs", 0)
# Keras' Adam learns colours in some steps.
RUN = (*RUN, "--no-flip", "--optimizer", "adamw", "--learning-rate", 0.03, "--weight-decay", 0, "--epochs", 2)


def write_images(folder, split, count, rng):
    """So many images, and SPLIT.csv with a line each: every colour with a chance of a half, so that some have none."""
    lines = [f"image,{','.join(CLASSES)}"]
    for index in range(count):
        has = rng.random(len(COLOURS)) < 0.5
        violet = split == "train" and index == 0
        pixels = rng.integers(90, 150, (36, 36, 3))
        for band, (present, colour) in enumerate(zip(has, COLOURS.values(), strict=True)):
            if present:
                pixels[12 * band : 12 * band + 12] = colour
        (folder / f"{split}{index}.png").write_bytes(tf.io.encode_png(pixels.astype(np.uint8)).numpy())
        lines.append(f"{split}{index}.png,{','.join(str(int(value)) for value in (*has, violet))}")
    (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")


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
    """(The directory of a finished run of two epochs, what it printed.)"""
    run = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "Tiny", tiny)
        code, output = train_here(run, *RUN, "--data-dir", data, "--keep-best", "mean_average_precision")
    assert code == 0, (code, output)
    return run, output
