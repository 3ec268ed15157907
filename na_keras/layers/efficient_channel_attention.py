"""The Efficient Channel Attention (ECA) module of "ECA-Net" (Wang et al., arXiv 1910.03151).

    z = mean over positions of x
    s = sigmoid(convolution of z along the channels with one kernel of k weights, no bias)     (eq. 9)
    k = the odd one of t, t + 1, with t = floor(log2(C) / 2 + 1 / 2)                           (eq. 12; gamma 2, b 1)
    y = x * s

Reference: BangguWu/ECANet, models/eca_module.py. Its networks fix k by hand, stage by stage; ours take it from the
number of channels, as the paper's equation does. Below 8 channels that is k = 1, each channel by itself, where timm's
EcaModule(channels) (timm/layers/eca.py) has 3 at least; from 8 channels on the two agree.
"""

import math

import keras
from keras import initializers, ops

from na_keras.layers.feature_map import (
    FeatureMapLayer,
    check_positive_integer,
    for_all_positions,
    in_dtype_of,
    mean_of_positions,
)
from na_keras.layers.gradients import map_and_mean
from na_keras.layers.initializers import torch_linear


def adaptive_kernel_size(channels):
    """Equation 12: the kernel size for a number of channels."""
    size = int(math.log2(channels) / 2 + 1 / 2)
    return size if size % 2 else size + 1


def gate_of_mean(z, kernel, data_format):
    """Equation 9, of z (b, c): the gate of `efficient_channel_attention_gate`."""
    mean = ops.expand_dims(z, 2)  # (b, c, 1): the channels are the positions
    scores = ops.conv(mean, ops.cast(kernel, mean.dtype), padding="same", data_format="channels_last")
    return for_all_positions(ops.sigmoid(ops.squeeze(scores, 2)), data_format)


def efficient_channel_attention_gate(x, kernel, data_format="channels_last"):
    """The gate of the ECA module, equation 9.

    Args:
        x: floating tensor (b, h, w, c), or (b, c, h, w) with `data_format="channels_first"`; h and w may be unknown.
        kernel: tensor (k, 1, 1), with k odd and at most c.
        data_format: `"channels_last"` or `"channels_first"`.

    Returns:
        Tensor (b, 1, 1, c) or (b, c, 1, 1), float32 (float64 for float64 x on TensorFlow), values in (0, 1).
    """
    return gate_of_mean(mean_of_positions(x, data_format), kernel, data_format)


def efficient_channel_attention(x, kernel, data_format="channels_last"):
    """The ECA module as a function: x times its gate, in the shape and dtype of x.

    Arguments as in `efficient_channel_attention_gate`.
    """
    x, z = map_and_mean(x, data_format)
    return x * in_dtype_of(x, gate_of_mean(z, kernel, data_format))


@keras.saving.register_keras_serializable(package="na_keras")
class EfficientChannelAttention(FeatureMapLayer):
    """Scales each channel by a gate from the means of the k channels around it, in order.

    Source: arXiv 1910.03151, section 3; reference code and deviations are at the head of this file.

    >>> layer = EfficientChannelAttention()
    >>> layer(keras.ops.ones((2, 7, 7, 256))).shape
    (2, 7, 7, 256)
    >>> layer.count_params()
    5

    Args:
        kernel_size: None, the paper's choice for the number of channels, 1 below 8 channels where timm has 3; or an
            odd number.
        data_format: `"channels_last"` or `"channels_first"`; by default `keras.config.image_data_format()`.
        kernel_initializer: None: uniform within 1 / sqrt(k), as torch.nn.Conv1d. With "zeros" a fresh layer multiplies
            by 1/2.
        **kwargs: `name`, `dtype`, `trainable`.

    Input and output: (batch, height, width, channels), or (batch, channels, height, width) with
    `"channels_first"`, in the layer's compute dtype. Height and width may be unknown. The gate is computed in
    float32 under any mixed-precision policy.

    Raises:
        ValueError: at construction, a kernel size that is neither None nor odd and positive, an unknown data format.
            On the first call, a rank other than 4, unknown channels, fewer channels than the kernel size.
    """

    constant_gate = {"kernel_initializer": "zeros"}

    def __init__(self, kernel_size=None, data_format=None, *, kernel_initializer=None, **kwargs):
        super().__init__(data_format, **kwargs)
        if kernel_size is not None:
            check_positive_integer("kernel_size", kernel_size, "channels that a gate depends on; None chooses it")
            if kernel_size % 2 == 0:
                raise ValueError(
                    f"kernel_size must be odd, so that the kernel has a centre. Received: kernel_size={kernel_size!r}"
                )
        self.kernel_size = None if kernel_size is None else int(kernel_size)
        self.kernel_initializer = initializers.get(kernel_initializer)

    def build(self, input_shape):
        """Creates `kernel`, shape (k, 1, 1)."""
        channels = self.check_input(input_shape)
        size = self.kernel_size or adaptive_kernel_size(channels)
        if size > channels:
            raise ValueError(
                "EfficientChannelAttention needs at least as many channels as its kernel has weights. Received: "
                f"{channels} channels, kernel_size={size}; kernel_size={channels - (channels + 1) % 2} would do"
            )
        initial = torch_linear(size) if self.kernel_initializer is None else self.kernel_initializer
        self.kernel = self.add_weight(shape=(size, 1, 1), name="kernel", initializer=initial, autocast=False)

    def call(self, x):
        """Returns x times its gate, in the shape and dtype of x."""
        return efficient_channel_attention(x, self.kernel, self.data_format)

    def get_config(self):
        """All constructor arguments as plain values."""
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "kernel_initializer": initializers.serialize(self.kernel_initializer),
        }
