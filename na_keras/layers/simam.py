"""The parameter-free module SimAM (Yang et al., "SimAM: A Simple, Parameter-Free Attention Module", ICML 2021).

For each image and channel, with mu and s2 the mean and the variance over the positions:

    1 / e_i = ((x_i - mu)**2 + 2 s2 + 2 lambda) / (4 (s2 + lambda))        (eq. 5: e_i, the energy)
            = (x_i - mu)**2 / (4 (s2 + lambda)) + 1/2
    y_i     = x_i * sigmoid(1 / e_i)                                       (eq. 6)

Reference: ZjjConan/SimAM, networks/attentions/simam_module.py, which divides the variance by n - 1 where the paper
divides by n; we follow the code. A map of one position, where the code divides 0 by 0, has variance 0 here.
"""

import keras
from keras import ops

from na_keras.layers.feature_map import (
    FeatureMapLayer,
    axes,
    check_positive_number,
    for_statistics,
    in_dtype_of,
    sample_variance,
)


def simam_gate(x, regularization=1e-4, data_format="channels_last"):
    """The gate of SimAM, sigmoid(1 / e).

    Args:
        x: floating tensor (b, h, w, c), or (b, c, h, w) with `data_format="channels_first"`; h and w may be unknown.
        regularization, data_format: as in `SimAM`.

    Returns:
        Tensor in the shape of x, float32 (float64 for float64 x on TensorFlow), values in (1/2, 1).
    """
    values, (_, positions) = for_statistics(x), axes(data_format)
    squared = ops.square(values - ops.mean(values, axis=positions, keepdims=True))
    variance = sample_variance(values, positions)
    return ops.sigmoid(squared / (4 * (variance + regularization)) + 0.5)


def simam(x, regularization=1e-4, data_format="channels_last"):
    """SimAM as a function: x times `simam_gate`, in the shape and dtype of x; arguments as there."""
    return x * in_dtype_of(x, simam_gate(x, regularization, data_format))


@keras.saving.register_keras_serializable(package="na_keras")
class SimAM(FeatureMapLayer):
    """Scales each value by how far it stands out of its channel; has no weights.

    Source: the SimAM paper, equations 5 and 6; reference code and deviations are at the head of this file.

    >>> SimAM()(keras.ops.ones((2, 7, 7, 64))).shape
    (2, 7, 7, 64)

    Args:
        regularization: the paper's lambda, a positive number.
        data_format: `"channels_last"` or `"channels_first"`; by default `keras.config.image_data_format()`.
        **kwargs: `name`, `dtype`, `trainable`.

    Input and output: (batch, height, width, channels), or (batch, channels, height, width) with
    `"channels_first"`, in the layer's compute dtype. Height and width may be unknown. The gate is computed in
    float32 under any mixed-precision policy.

    Raises:
        ValueError: at construction, a regularization that is not positive, an unknown data format. On the first
            call, a rank other than 4, unknown channels.
    """

    constant_gate = None  # it has no weights

    def __init__(self, regularization=1e-4, data_format=None, **kwargs):
        super().__init__(data_format, **kwargs)
        check_positive_number("regularization", regularization, "equal values have variance 0")
        self.regularization = regularization

    def build(self, input_shape):
        """Checks the input; there is nothing to create."""
        self.check_input(input_shape)

    def call(self, x):
        """Returns x times its gate, in the shape and dtype of x."""
        return simam(x, self.regularization, self.data_format)

    def get_config(self):
        """All constructor arguments as plain values."""
        return {**super().get_config(), "regularization": self.regularization}
