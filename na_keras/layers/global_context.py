"""The Global Context (GC) block of "GCNet" (Cao et al., arXiv 1904.11492); eq. 3 of the NA paper speaks of it.

    a_j = softmax over positions of (w_k . x_j + b_k)
    c   = sum over positions of a_j * x_j                          (global attention pooling)
    d   = W2 relu(LN(W1 c + b1)) + b2                              (bottleneck transform; W1: C -> C // r)
    y_i = x_i + d                                                  (GCNet's eq. 4: one vector for all positions)

Reference: 13952522076/NANet and xvjiarui/GCNet (the `channel_add` form with attention pooling). W2 and b2 start at
zero, so a fresh block is the identity; the other initial weights are GCNet's and PyTorch's, as is layer norm's
epsilon of 1e-5. The NA paper's eq. 3 prints a sum without exponential in its denominator; both references mean a
softmax.

timm's GlobalContext (timm/layers/global_context.py) has a layer norm with epsilon 1e-6 and r = 8; by default it
multiplies by sigmoid(d) where ours, GCNet's and its `fuse_add=True` add d.
"""

import keras
from keras import ops

from na_keras.layers.feature_map import (
    FeatureMapLayer,
    check_positive_integer,
    check_reduction,
    flatten_positions,
    for_all_positions,
    for_statistics,
    in_dtype_of,
    linear,
    softmax,
    statistics_dtype_of,
    to_channels_last,
)
from na_keras.layers.gradients import by_hand, map_and_context, softmax_and_gradient
from na_keras.layers.initializers import KAIMING_NORMAL_FAN_IN, torch_linear

EPSILON = 1e-5  # of the layer norm


def attention_pooling(x, kernel, bias):
    """Mean of x (b, n, c) over its positions, weighted by softmax(x . kernel + bias): (b, c)."""
    scores = ops.sum(x * kernel, axis=-1, keepdims=True) + bias  # (b, n, 1)
    return ops.sum(x * softmax(scores, axis=1), axis=1)


def layer_norm(x, weights):
    """Layer norm of x (b, features). `weights` is (gamma (features,), beta (features,)), or a callable."""
    return weights(x) if callable(weights) else ops.layer_normalization(x, *weights, epsilon=EPSILON)


def map_and_vector(x, mask, squeeze, norm, excite, data_format="channels_last"):
    """x, to which the vector is to be added (gradients.py says why), and the vector; see `global_context_vector`."""
    if data_format == "channels_last" and by_hand(x):
        scoring = [ops.cast(weight, statistics_dtype_of(x)) for weight in mask]
        x, context = map_and_context(x, softmax_and_gradient, scoring)
    else:
        positions = flatten_positions(to_channels_last(for_statistics(x), data_format))
        context = attention_pooling(positions, *(ops.cast(weight, positions.dtype) for weight in mask))
    added = linear(ops.relu(layer_norm(linear(context, squeeze), norm)), excite)  # (b, c)
    return x, for_all_positions(added, data_format)


def global_context_vector(x, mask, squeeze, norm, excite, data_format="channels_last"):
    """What the GC block adds to every position: d of the equations above.

    Args:
        x: floating tensor (b, h, w, c), or (b, c, h, w) with `data_format="channels_first"`; h and w may be unknown.
        mask: w_k and b_k, (kernel (c,), bias (1,)).
        squeeze: W1 and b1, (kernel (c, c // r), bias (c // r,)), or a callable (b, c) -> (b, c // r).
        norm: layer norm's (gamma, beta), each (c // r,), or a callable (b, c // r) -> (b, c // r).
        excite: W2 and b2, (kernel (c // r, c), bias (c,)), or a callable (b, c // r) -> (b, c).
        data_format: `"channels_last"` or `"channels_first"`.

    Returns:
        Tensor (b, 1, 1, c) or (b, c, 1, 1), float32 (float64 for float64 x on TensorFlow).
    """
    return map_and_vector(x, mask, squeeze, norm, excite, data_format)[1]


def global_context(x, mask, squeeze, norm, excite, data_format="channels_last"):
    """The GC block as a function: x plus `global_context_vector`, in the shape and dtype of x; arguments as there."""
    x, added = map_and_vector(x, mask, squeeze, norm, excite, data_format)
    return x + in_dtype_of(x, added)


@keras.saving.register_keras_serializable(package="na_keras")
class GlobalContext(FeatureMapLayer):
    """Adds to every position one vector, transformed from an attention-weighted mean of all positions.

    Source: arXiv 1904.11492, section 3; reference code and deviations are at the head of this file. Layer norm's
    epsilon is 1e-5 (timm: 1e-6). A fresh layer is the identity.

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
        features, dense = channels // self.reduction, keras.layers.Dense
        self.mask_kernel = self.add_weight(
            shape=(channels,),
            name="mask_kernel",
            initializer=KAIMING_NORMAL_FAN_IN,
            autocast=False,
        )
        self.mask_bias = self.add_weight(shape=(1,), name="mask_bias", initializer="zeros", autocast=False)
        self.squeeze = self.sublayer(
            dense,
            "squeeze",
            (None, channels),
            units=features,
            kernel_initializer=torch_linear(channels),
            bias_initializer=torch_linear(channels),
        )
        self.norm = self.sublayer(keras.layers.LayerNormalization, "norm", (None, features), epsilon=EPSILON)
        self.excite = self.sublayer(dense, "excite", (None, features), units=channels, kernel_initializer="zeros")

    def call(self, x):
        """Returns x plus the transformed context, in the shape and dtype of x."""
        mask = self.mask_kernel, self.mask_bias
        return global_context(x, mask, self.squeeze, self.norm, self.excite, self.data_format)

    def get_config(self):
        """All constructor arguments as plain values."""
        return {**super().get_config(), "reduction": self.reduction}
