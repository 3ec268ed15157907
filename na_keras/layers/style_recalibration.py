"""The Style-based Recalibration Module (SRM) of Lee et al., arXiv 1903.10829 (reference 9 of the NA paper).

    t = [mean; standard deviation] over the positions, per channel         (eqs. 1 to 3: style pooling)
    z = sum over the two of w * t                                          (eq. 4: channel-wise full connection)
    g = sigmoid(BN(z))                                                     (eqs. 5, 6: style integration)
    y = x * g                                                              (eq. 7)

Reference: hyunjaelee410/style-based-recalibration-module, models/recalibration_modules.py. We follow it where it is
more precise than the paper: the standard deviation is sqrt(sample variance + 1e-5), w starts at 0. A map of one
position, where the reference gives NaN, has variance 0 here.
"""

from functools import partial

import keras
from keras import ops

from na_keras.layers.feature_map import (
    FeatureMapLayer,
    check_positive_number,
    for_all_positions,
    for_statistics,
    in_dtype_of,
)
from na_keras.layers.gradients import map_and_moments


def style_recalibration_gate(mean, variance, mean_weight, deviation_weight, norm, epsilon=1e-5):
    """The gate of SRM, equations 2 to 6.

    Args:
        mean, variance: of the positions of each channel, tensors (b, c) of float32 or float64.
        mean_weight, deviation_weight: w of equation 4, tensors of shape (c,).
        norm: batch norm, a callable that keeps the shape (b, c).
        epsilon: as in `StyleRecalibration`.

    Returns:
        Tensor (b, c), float32 (float64 for a float64 mean), values in (0, 1).
    """
    deviation = ops.sqrt(variance + epsilon)
    style = ops.cast(mean_weight, mean.dtype) * mean + ops.cast(deviation_weight, mean.dtype) * deviation
    return ops.sigmoid(for_statistics(norm(style)))


def style_recalibration(x, mean_weight, deviation_weight, norm, epsilon=1e-5, data_format="channels_last"):
    """SRM as a function: x times its gate, in the shape and dtype of x.

    Args:
        x: floating tensor (b, h, w, c), or (b, c, h, w) with `data_format="channels_first"`; h and w may be unknown.
        mean_weight, deviation_weight, norm: as of `style_recalibration_gate`.
        epsilon, data_format: as in `StyleRecalibration`.
    """
    x, mean, variance = map_and_moments(x, data_format)
    gate = style_recalibration_gate(mean, variance, mean_weight, deviation_weight, norm, epsilon)
    return x * in_dtype_of(x, for_all_positions(gate, data_format))


@keras.saving.register_keras_serializable(package="na_keras")
class StyleRecalibration(FeatureMapLayer):
    """Scales each channel by a gate from its own mean and standard deviation, four parameters a channel.

    Source: arXiv 1903.10829, section 3; reference code and deviations are at the head of this file. A fresh layer
    multiplies by 1/2.

    >>> layer = StyleRecalibration()
    >>> layer(keras.ops.ones((2, 7, 7, 64))).shape
    (2, 7, 7, 64)

    Args:
        epsilon: positive number added to the variance.
        synchronized: batch norm's statistics over all replicas of a tf.distribute strategy (TensorFlow only).
        data_format: `"channels_last"` or `"channels_first"`; by default `keras.config.image_data_format()`.
        **kwargs: `name`, `dtype`, `trainable`.

    Input and output: (batch, height, width, channels), or (batch, channels, height, width) with
    `"channels_first"`, in the layer's compute dtype. Height and width may be unknown. The gate is computed in
    float32 under any mixed-precision policy.

    Raises:
        ValueError: at construction, an epsilon that is not positive, an unknown data format. On the first call, a
            rank other than 4, unknown channels.
    """

    has_batch_norm = True

    def __init__(self, epsilon=1e-5, synchronized=False, data_format=None, **kwargs):
        super().__init__(data_format, **kwargs)
        check_positive_number("epsilon", epsilon, "equal values have variance 0")
        self.epsilon = epsilon
        self.synchronized = synchronized

    def build(self, input_shape):
        """Creates `mean_weight` and `deviation_weight`, one number a channel each, and `bn`."""
        channels = self.check_input(input_shape)
        self.mean_weight = self.add_weight(shape=(channels,), name="mean_weight", initializer="zeros", autocast=False)
        self.deviation_weight = self.add_weight(
            shape=(channels,), name="deviation_weight", initializer="zeros", autocast=False
        )
        norm = {"momentum": 0.9, "epsilon": 1e-5, "synchronized": self.synchronized}
        self.bn = self.sublayer(keras.layers.BatchNormalization, "bn", (None, channels), **norm)

    def call(self, x, training=None):
        """Returns x times its gate, in the shape and dtype of x."""
        norm = partial(self.bn, training=training)
        return style_recalibration(x, self.mean_weight, self.deviation_weight, norm, self.epsilon, self.data_format)

    def get_config(self):
        """All constructor arguments as plain values."""
        return {**super().get_config(), "epsilon": self.epsilon, "synchronized": self.synchronized}
