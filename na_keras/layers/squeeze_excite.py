"""The Squeeze-and-Excitation (SE) module of "Squeeze-and-Excitation Networks" (Hu et al., arXiv 1709.01507).

    z = mean over positions of x                                  (eq. 2, squeeze)
    s = sigmoid(W2 relu(W1 z + b1) + b2)                          (eq. 3, excitation; W1: C -> C // r)
    y = x * s                                                     (eq. 4: one gate per image and channel)

Reference: implus/PytorchInsight, classification/models/imagenet/resnet_se.py, which has the biases that eq. 3 leaves
out; Table 1's parameter count needs them. Initial weights are torch.nn.Linear's, as there.

timm's SEModule (timm/layers/squeeze_excite.py) rounds C / r to a multiple of 8, and to 8 at least; ours is C // r, cut
off: 24 channels at r = 16 have 8 hidden features there and 1 here.
"""

import keras
from keras import initializers, ops

from na_keras.layers.feature_map import (
    FeatureMapLayer,
    check_positive_integer,
    check_reduction,
    for_all_positions,
    for_statistics,
    in_dtype_of,
    linear,
    mean_of_positions,
)
from na_keras.layers.gradients import map_and_mean
from na_keras.layers.initializers import torch_linear


def excitation(z, squeeze, excite):
    """W2 relu(W1 z + b1) + b2, of z (b, c): (b, c) in float32. The weights as in `squeeze_excite_gate`."""
    return for_statistics(linear(ops.relu(linear(z, squeeze)), excite))


def gate_of_mean(z, squeeze, excite, data_format):
    """Equation 3, of z (b, c): the gate of `squeeze_excite_gate`."""
    return for_all_positions(ops.sigmoid(excitation(z, squeeze, excite)), data_format)


def squeeze_excite_gate(x, squeeze, excite, data_format="channels_last"):
    """The gate of the SE module, equations 2 and 3.

    Args:
        x: floating tensor (b, h, w, c), or (b, c, h, w) with `data_format="channels_first"`; h and w may be unknown.
        squeeze: W1 and b1, (kernel (c, c // r), bias (c // r,)), or a callable (b, c) -> (b, c // r).
        excite: W2 and b2, (kernel (c // r, c), bias (c,)), or a callable (b, c // r) -> (b, c).
        data_format: `"channels_last"` or `"channels_first"`.

    Returns:
        Tensor (b, 1, 1, c) or (b, c, 1, 1), float32 (float64 for float64 x on TensorFlow), values in (0, 1).
    """
    return gate_of_mean(mean_of_positions(x, data_format), squeeze, excite, data_format)


def squeeze_excite(x, squeeze, excite, data_format="channels_last"):
    """The SE module as a function: x times `squeeze_excite_gate`, in the shape and dtype of x; arguments as there."""
    x, z = map_and_mean(x, data_format)
    return x * in_dtype_of(x, gate_of_mean(z, squeeze, excite, data_format))


def bottleneck_layers(layer, channels):
    """The two fully connected layers of SE and CBAM, built: C -> C // r, and back; `excitation` has the ReLU.

    Args:
        layer: whose sublayers they are, with `reduction`, `excite_kernel_initializer` and `excite_bias_initializer`.
        channels: C.
    """
    features, made = channels // layer.reduction, []
    excite = layer.excite_kernel_initializer, layer.excite_bias_initializer
    for name, inputs, units, (kernel, bias) in (
        ("squeeze", channels, features, (None, None)),
        ("excite", features, channels, excite),
    ):
        initial = {
            "kernel_initializer": torch_linear(inputs) if kernel is None else kernel,
            "bias_initializer": torch_linear(inputs) if bias is None else bias,
        }
        made.append(layer.sublayer(keras.layers.Dense, name, (None, inputs), units=units, **initial))
    return made


@keras.saving.register_keras_serializable(package="na_keras")
class SqueezeExcite(FeatureMapLayer):
    """Scales each channel by a gate that two small fully connected layers compute from all channels' means.

    Source: arXiv 1709.01507, equations 2 to 4; reference code and deviations are at the head of this file.

    >>> layer = SqueezeExcite(reduction=16)
    >>> layer(keras.ops.ones((2, 7, 7, 64))).shape
    (2, 7, 7, 64)
    >>> layer.count_params()  # 2 * 64 * 4 + 4 + 64
    580

    Args:
        reduction: the hidden layer has channels // reduction features; the paper's r = 16. timm rounds that to a
            multiple of 8, at least 8.
        data_format: `"channels_last"` or `"channels_first"`; by default `keras.config.image_data_format()`.
        excite_kernel_initializer, excite_bias_initializer: of the second fully connected layer. None: uniform within
            1 / sqrt(inputs), as torch.nn.Linear. With "zeros" for both a fresh layer multiplies by 1/2.
        **kwargs: `name`, `dtype`, `trainable`.

    Input and output: (batch, height, width, channels), or (batch, channels, height, width) with
    `"channels_first"`, in the layer's compute dtype. Height and width may be unknown. The gate is computed in
    float32 under any mixed-precision policy.

    Raises:
        ValueError: at construction, a reduction that is not a positive integer, an unknown data format. On the
            first call, a rank other than 4, unknown channels, fewer channels than `reduction`.
    """

    constant_gate = {"excite_kernel_initializer": "zeros", "excite_bias_initializer": "zeros"}

    def __init__(
        self,
        reduction=16,
        data_format=None,
        *,
        excite_kernel_initializer=None,
        excite_bias_initializer=None,
        **kwargs,
    ):
        super().__init__(data_format, **kwargs)
        check_positive_integer("reduction", reduction, "channels are divided by it")
        self.reduction = int(reduction)
        self.excite_kernel_initializer = initializers.get(excite_kernel_initializer)
        self.excite_bias_initializer = initializers.get(excite_bias_initializer)

    def build(self, input_shape):
        """Creates `squeeze` and `excite`, each with kernel and bias."""
        channels = self.check_input(input_shape)
        check_reduction("SqueezeExcite", channels, self.reduction)
        self.squeeze, self.excite = bottleneck_layers(self, channels)

    def call(self, x):
        """Returns x times its gate, in the shape and dtype of x."""
        return squeeze_excite(x, self.squeeze, self.excite, self.data_format)

    def get_config(self):
        """All constructor arguments as plain values."""
        return {
            **super().get_config(),
            "reduction": self.reduction,
            "excite_kernel_initializer": initializers.serialize(self.excite_kernel_initializer),
            "excite_bias_initializer": initializers.serialize(self.excite_bias_initializer),
        }
