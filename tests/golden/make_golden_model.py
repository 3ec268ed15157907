"""Writes tests/golden/na_mobilenetv2_VERSION.keras and .npz: a network of today for later versions to read.

    python tests/golden/make_golden_model.py

Run once per released file format; existing files are refused. Every option of NormalizationAttention that is not the
default occurs in one of the blocks.
"""

import pathlib
import sys

import keras
import numpy as np

import na_keras

OPTIONS = (
    {},
    {"similarity": "l1", "unbiased": False, "epsilon_inside_sqrt": True},
    {"embedding_kernel_size": 3, "epsilon": 1e-3},
    {"similarity": None, "gamma_regularizer": "l2", "beta_constraint": "non_neg"},
)


def main():
    path = pathlib.Path(__file__).parent / f"na_mobilenetv2_{na_keras.__version__}.keras"
    if path.exists():
        sys.exit(f"{path} exists; it is kept: files of a released version do not change.")
    keras.utils.set_random_seed(0)
    options = iter(OPTIONS * 5)
    model = na_keras.MobileNetV2(
        (32, 32, 3), 0.1, classes=4, attention=lambda name: na_keras.NormalizationAttention(name=name, **next(options))
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, na_keras.NormalizationAttention):
            layer.gamma.assign(rng.normal(0, 1, (1,)))
    images = rng.integers(0, 256, (2, 32, 32, 3), "uint8")
    model.save(path)
    np.savez_compressed(path.with_suffix(".npz"), images=images, probabilities=model.predict(images, verbose=0))


if __name__ == "__main__":
    main()
