"""The Linear Context Transform (LCT) block of Ruan et al., arXiv 1909.03834 (reference 8 of the NA paper).

    z = mean over positions of x
    v = (z - mu) / sqrt(sigma**2 + epsilon)     mu, sigma**2: over each of G groups of neighbouring channels
    s = sigmoid(gamma * v + beta)               gamma, beta: one number a channel
    y = x * s

No reference code is public. What we could not read in a source, and took over from SGE, which the block resembles:
gamma starts at 0, beta at 1, and epsilon is 1e-5. Reimplementations by others disagree on the first two.
"""

import keras
from keras import initializers, ops

from na_keras.layers.feature_map import (
    FeatureMapLayer,
    check_groups,
    check_positive_integer,
    check_positive_number,
    for_all_positions,
    in_dtype_of,
    mean_of_positions,
)
from na_keras.layers.gradients import map_and_mean


def gate_of_mean(mean, gamma, beta, groups, epsilon, data_format):
    """Of the mean (b, c): the gate of `linear_context_transform_gate`."""
    batch, channels = ops.shape(mean)  # not -1, which an empty batch leaves open
    grouped = ops.reshape(mean, (batch, groups, channels // groups))
    deviation = grouped - ops.mean(grouped, axis=2, keepdims=True)
    variance = ops.mean(ops.square(deviation), axis=2, keepdims=True)
    normalized = ops.reshape(deviation / ops.sqrt(variance + epsilon), (batch, channels))
    gamma, beta = ops.cast(gamma, mean.dtype), ops.cast(beta, mean.dtype)
    return for_all_positions(ops.sigmoid(gamma * normalized + beta), data_format)


def linear_context_transform_gate(x, gamma, beta, groups=64, epsilon=1e-5, data_format="channels_last"):
    """The gate of the LCT block.

    Args:
        x: floating tensor (b, h, w, c), or (b, c, h, w) with `data_format="channels_first"`; h and w may be unknown.
        gamma, beta: tensors of shape (c,).
        groups, epsilon, data_format: as in `LinearContextTransform`.

    Returns:
        Tensor (b, 1, 1, c) or (b, c, 1, 1), float32 (float64 for float64 x on TensorFlow), values in (0, 1).
    """
    return gate_of_mean(mean_of_positions(x, data_format), gamma, beta, groups, epsilon, data_format)


def linear_context_transform(x, gamma, beta, groups=64, epsilon=1e-5, data_format="channels_last"):
    """The LCT block as a function: x times its gate, in the shape and dtype of x.

    Arguments as in `linear_context_transform_gate`.
    """
    x, mean = map_and_mean(x, data_format)
    return x * in_dtype_of(x, gate_of_mean(mean, gamma, beta, groups, epsilon, data_format))


@keras.saving.register_keras_serializable(package="na_keras")
class LinearContextTransform(FeatureMapLayer):
    """Scales each channel by a gate from its mean, normalised within a group of channels; no mixing otherwise.

    Source: arXiv 1909.03834, section "Linear Context Transform Block"; our choices are at the head of this file. A
    fresh layer multiplies by sigmoid(1) = 0.731.

    >>> layer = LinearContextTransform(groups=8)
    >>> layer(keras.ops.ones((2, 7, 7, 64))).shape
    (2, 7, 7, 64)
    >>> layer.count_params()
    128

    Args:
        groups: number of groups, a divisor of the channels that leaves at least 2 in each; the paper's 64.
        epsilon: positive number added to the variance.
        data_format: `"channels_last"` or `"channels_first"`; by default `keras.config.image_data_format()`.
        gamma_initializer, beta_initializer: of the two numbers of each channel.
        **kwargs: `name`, `dtype`, `trainable`.

    Input and output: (batch, height, width, channels), or (batch, channels, height, width) with
    `"channels_first"`, in the layer's compute dtype. Height and width may be unknown. The gate is computed in
    float32 under any mixed-precision policy.

    Raises:
        ValueError: at construction, groups that are not a positive integer, an epsilon that is not positive, an
            unknown data format. On the first call, a rank other than 4, unknown channels, channels that `groups`
            does not divide, or groups of a single channel, which normalise to 0.
    """

    def __init__(
        self,
        groups=64,
        epsilon=1e-5,
        data_format=None,
        *,
        gamma_initializer="zeros",
        beta_initializer="ones",
        **kwargs,
    ):
        super().__init__(data_format, **kwargs)
        check_positive_integer("groups", groups, "channels are divided into them")
        check_positive_number("epsilon", epsilon, "equal means have variance 0")
        self.groups = int(groups)
        self.epsilon = epsilon
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.beta_initializer = initializers.get(beta_initializer)

    def build(self, input_shape):
        """Creates `gamma` and `beta`, one number a channel."""
        channels = self.check_input(input_shape)
        check_groups("LinearContextTransform", channels, self.groups, smallest=2)  # a single one normalises to 0
        for name, initializer in (("gamma", self.gamma_initializer), ("beta", self.beta_initializer)):
            weight = self.add_weight(shape=(channels,), name=name, initializer=initializer, autocast=False)
            setattr(self, name, weight)

    def call(self, x):
        """Returns x times its gate, in the shape and dtype of x."""
        return linear_context_transform(x, self.gamma, self.beta, self.groups, self.epsilon, self.data_format)

    def get_config(self):
        """All constructor arguments as plain values."""
        return {
            **super().get_config(),
            "groups": self.groups,
            "epsilon": self.epsilon,
            "gamma_initializer": initializers.serialize(self.gamma_initializer),
            "beta_initializer": initializers.serialize(self.beta_initializer),
        }
