"""The Spatial Group-wise Enhance (SGE) module of Li et al., arXiv 1905.09646 (reference 7 of the NA paper).

For each image and each of G groups of neighbouring channels, with x_i the group's features at position i:

    g   = mean over positions of x                                 (eq. 1)
    c_i = g . x_i                                                  (eq. 2)
    c   = (c - mean of c) / (std of c + epsilon)                   (eq. 3: over the positions)
    y_i = x_i * sigmoid(gamma * c_i + beta)                        (eqs. 4, 5: gamma, beta per group)

Reference: implus/PytorchInsight, classification/models/imagenet/resnet_sge.py. We follow it where it differs from the
paper: sample standard deviation (n - 1) and epsilon added to it. gamma starts at 0 and beta at 1, as there. A map of
one position, where the reference gives NaN, has deviation 0 here.
"""

import keras
from keras import initializers, ops

from na_keras.layers.feature_map import (
    FeatureMapLayer,
    check_groups,
    check_positive_integer,
    check_positive_number,
    from_channels_last,
    in_dtype_of,
    sample_variance,
    standard_deviation,
    to_channels_last,
)
from na_keras.layers.gradients import map_and_likeness


def spatial_group_gate(scores, gamma, beta, epsilon=1e-5):
    """The gate of the SGE module, equations 3 and 4.

    Args:
        scores: float32 tensor (b, positions, groups), of equations 1 and 2.
        gamma, beta: tensors of shape (groups,).
        epsilon: as in `SpatialGroupEnhance`.

    Returns:
        Tensor of the shape and dtype of the scores, values in (0, 1).
    """
    gamma, beta = ops.cast(gamma, scores.dtype), ops.cast(beta, scores.dtype)
    deviation = scores - ops.mean(scores, axis=1, keepdims=True)
    normalized = deviation / (standard_deviation(sample_variance(scores, (1,))) + epsilon)
    return ops.sigmoid(gamma * normalized + beta)


def spatial_group_enhance(x, gamma, beta, epsilon=1e-5, data_format="channels_last"):
    """The SGE module as a function: each group of channels times its gate, in the shape and dtype of x.

    Args:
        x: floating tensor (b, h, w, c), or (b, c, h, w) with `data_format="channels_first"`; h and w may be unknown.
        gamma, beta: tensors of shape (groups,); c is a multiple of the number of groups.
        epsilon, data_format: as in `SpatialGroupEnhance`.
    """
    last, groups = to_channels_last(x, data_format), gamma.shape[0]
    batch, height, width, channels = ops.shape(last)
    grouped = ops.reshape(last, (batch, height * width, groups, channels // groups))
    grouped, scores = map_and_likeness(grouped)  # eqs. 1, 2
    gate = spatial_group_gate(scores, gamma, beta, epsilon)
    scaled = grouped * in_dtype_of(x, ops.expand_dims(gate, 3))
    return from_channels_last(ops.reshape(scaled, ops.shape(last)), data_format)


@keras.saving.register_keras_serializable(package="na_keras")
class SpatialGroupEnhance(FeatureMapLayer):
    """Scales each group of channels, position by position, by its normalised likeness to the group's mean.

    Source: arXiv 1905.09646, section 3; reference code and deviations are at the head of this file. A fresh layer
    multiplies by sigmoid(1) = 0.731.

    >>> layer = SpatialGroupEnhance(groups=8)
    >>> layer(keras.ops.ones((2, 7, 7, 64))).shape
    (2, 7, 7, 64)
    >>> layer.count_params()
    16

    Args:
        groups: number of groups, a divisor of the channels; the paper's 64.
        epsilon: positive number added to the standard deviation.
        data_format: `"channels_last"` or `"channels_first"`; by default `keras.config.image_data_format()`.
        gamma_initializer, beta_initializer: of the two numbers of each group.
        **kwargs: `name`, `dtype`, `trainable`.

    Input and output: (batch, height, width, channels), or (batch, channels, height, width) with
    `"channels_first"`, in the layer's compute dtype. Height and width may be unknown. The gate is computed in
    float32 under any mixed-precision policy.

    Raises:
        ValueError: at construction, groups that are not a positive integer, an epsilon that is not positive, an
            unknown data format. On the first call, a rank other than 4, unknown channels, channels that `groups`
            does not divide.
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
        check_positive_number("epsilon", epsilon, "equal scores have deviation 0")
        self.groups = int(groups)
        self.epsilon = epsilon
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.beta_initializer = initializers.get(beta_initializer)

    def build(self, input_shape):
        """Creates `gamma` and `beta`, one number a group."""
        check_groups("SpatialGroupEnhance", self.check_input(input_shape), self.groups)
        for name, initializer in (("gamma", self.gamma_initializer), ("beta", self.beta_initializer)):
            weight = self.add_weight(shape=(self.groups,), name=name, initializer=initializer, autocast=False)
            setattr(self, name, weight)

    def call(self, x):
        """Returns x times its gate, in the shape and dtype of x."""
        return spatial_group_enhance(x, self.gamma, self.beta, self.epsilon, self.data_format)

    def get_config(self):
        """All constructor arguments as plain values."""
        return {
            **super().get_config(),
            "groups": self.groups,
            "epsilon": self.epsilon,
            "gamma_initializer": initializers.serialize(self.gamma_initializer),
            "beta_initializer": initializers.serialize(self.beta_initializer),
        }
