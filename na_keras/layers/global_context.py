"""The Global Context (GC) block of "GCNet" (Cao et al., arXiv 1904.11492); eq. 3 of the NA paper speaks of it.

    a_j = softmax over positions of (w_k . x_j + b_k)
    c   = sum over positions of a_j * x_j                          (global attention pooling)
    d   = W2 relu(LN(W1 c + b1)) + b2                              (bottleneck transform; W1: C -> C // r)
    y_i = x_i + d                                                  (GCNet's eq. 4: one vector for all positions)

Reference: 13952522076/NANet and xvjiarui/GCNet (the `channel_add` form with attention pooling). W2 and b2 start at
zero, so a fresh block is the identity; the other initial weights are GCNet's and PyTorch's, as is layer norm's
epsilon of 1e-5. The NA paper's eq. 3 prints a sum
without exponential in its denominator; both references mean a softmax.
"""

import keras
from keras import initializers, ops

from na_keras.layers.feature_map import (
    FeatureMapLayer,
    as_channels_last,
    as_statistics,
    check_positive_integer,
    check_reduction,
    flatten_positions,
    for_all_positions,
    softmax,
    torch_linear,
)


def attention_pooling(x, kernel, bias):
    """Mean of x (b, n, c) over its positions, weighted by softmax(x . kernel + bias): (b, c)."""
    # Products and sums, not matrix products: accelerators may round the operands of the latter to fewer bits
    # than float32 has (TensorFloat-32, bfloat16 passes).
    scores = ops.sum(x * kernel, axis=-1, keepdims=True) + bias  # (b, n, 1)
    return ops.sum(x * softmax(scores, axis=1), axis=1)


def global_context(x, mask_kernel, mask_bias, squeeze, norm, excite, data_format="channels_last"):
    """The block: x plus one transformed context for all positions.

    Args:
        x: floating tensor (b, h, w, c), or (b, c, h, w) with `data_format="channels_first"`; h and w may be unknown.
        mask_kernel, mask_bias: w_k (c,) and b_k (1,).
        squeeze, norm, excite: functions of tensors (b, features): W1 and b1 (c -> c // r), the layer norm, W2 and b2
            (c // r -> c); for example `linear(kernel, bias)`.
        data_format: `"channels_last"` or `"channels_first"`.

    Returns:
        Tensor in the shape and dtype of x; the added vector is computed in float32 at least.
    """
    positions = flatten_positions(as_channels_last(as_statistics(x), data_format))
    context = attention_pooling(positions, as_statistics(mask_kernel), as_statistics(mask_bias))
    added = excite(ops.relu(norm(squeeze(context))))  # (b, c)
    return x + for_all_positions(added, x, data_format)


@keras.saving.register_keras_serializable(package="na_keras")
class GlobalContext(FeatureMapLayer):
    """Adds to every position one vector, transformed from an attention-weighted mean of all positions.

    Source: arXiv 1904.11492, section 3; reference code and deviations are at the head of this file. A fresh layer is
    the identity.

    >>> layer = GlobalContext(reduction=16)
    >>> layer(keras.ops.ones((2, 7, 7, 64))).shape
    (2, 7, 7, 64)
    >>> layer.count_params()  # 64 + 1, 2 * 64 * 4 + 4 + 64, layer norm 8
    653

    Args:
        reduction: the transform's hidden layer has channels // reduction features, at least 2; the paper's 16.
        data_format: `"channels_last"` or `"channels_first"`; by default `keras.config.image_data_format()`.
        **kwargs: `name`, `dtype`, `trainable`.

    Input and output: (batch, height, width, channels), or (batch, channels, height, width) with
    `"channels_first"`, in the layer's compute dtype. Height and width may be unknown. The added vector is computed
    in float32 under any mixed-precision policy.

    Raises:
        ValueError: at construction, a reduction that is not a positive integer, an unknown data format. On the
            first call, a rank other than 4, unknown channels, channels // reduction below 2: the layer norm of a
            single feature is a constant.
    """

    def __init__(self, reduction=16, data_format=None, **kwargs):
        super().__init__(data_format, **kwargs)
        check_positive_integer("reduction", reduction, "channels are divided by it")
        self.reduction = int(reduction)

    def build(self, input_shape):
        """Creates `mask_kernel` (c,), `mask_bias` (1,), and the layers `squeeze`, `norm` and `excite`."""
        channels = self.check_input(input_shape)
        check_reduction("GlobalContext", channels, self.reduction, features=2)
        features, dtype = channels // self.reduction, self.statistics_dtype
        self.mask_kernel = self.add_weight(
            shape=(channels,),
            name="mask_kernel",
            initializer=initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal"),
            autocast=False,
        )
        self.mask_bias = self.add_weight(shape=(1,), name="mask_bias", initializer="zeros", autocast=False)
        dense = keras.layers.Dense
        self.squeeze = dense(
            features,
            kernel_initializer=torch_linear(channels),
            bias_initializer=torch_linear(channels),
            dtype=dtype,
            name="squeeze",
        )
        self.norm = keras.layers.LayerNormalization(epsilon=1e-5, dtype=dtype, name="norm")
        self.excite = dense(channels, kernel_initializer="zeros", dtype=dtype, name="excite")
        self.squeeze.build((None, channels))
        self.norm.build((None, features))
        self.excite.build((None, features))

    def call(self, x):
        """Returns x plus the transformed context, in the shape and dtype of x."""
        weights = self.mask_kernel, self.mask_bias, self.squeeze, self.norm, self.excite
        return global_context(x, *weights, self.data_format)

    def get_config(self):
        """All constructor arguments as plain values."""
        return {**super().get_config(), "reduction": self.reduction}
