"""The Convolutional Block Attention Module (CBAM, Woo et al., arXiv 1807.06521): channel gate, then spatial gate.

    s = sigmoid(MLP(mean over positions of x) + MLP(maximum over positions of x))      (eq. 2; one MLP for both)
    u = x * s
    t = sigmoid(BN(conv7x7([maximum over channels of u; mean over channels of u])))    (eq. 3)
    y = u * t

Reference: implus/PytorchInsight, classification/models/imagenet/resnet_cbam.py. We follow it where it differs from
the paper: batch norm after the 7x7 convolution, which has no bias; biases in the MLP; the maximum is the first of the
two maps; that batch norm's scale starts at 0, so that every position first gets the gate 1/2. It lets that batch
norm's statistics move by .01 a step; ours move by .1, as all batch norms here.
"""

from functools import partial

import keras
from keras import initializers, ops

from na_keras.layers.feature_map import (
    FeatureMapLayer,
    axes,
    check_positive_integer,
    check_reduction,
    convolve,
    for_all_positions,
    for_statistics,
    from_channels_last,
    in_dtype_of,
)
from na_keras.layers.initializers import KAIMING_NORMAL
from na_keras.layers.squeeze_excite import SqueezeExcite, bottleneck_layers, excitation


def channel_gate(x, squeeze, excite, data_format):
    """Equation 2: (b, 1, 1, c) or (b, c, 1, 1), values in (0, 1), from x in float32. Weights as in `cbam`."""
    _, positions = axes(data_format)
    mean = excitation(ops.mean(x, axis=positions), squeeze, excite)
    maximum = excitation(ops.max(x, axis=positions), squeeze, excite)
    return for_all_positions(ops.sigmoid(mean + maximum), data_format)


def spatial_gate(x, kernel, norm, data_format):
    """Equation 3: (b, h, w, 1) or (b, 1, h, w), values in (0, 1), from x in float32. Weights as in `cbam`."""
    channels, _ = axes(data_format)
    maps = ops.stack([ops.max(x, axis=channels), ops.mean(x, axis=channels)], axis=-1)
    scores = for_statistics(norm(convolve(maps, kernel, padding="same")))
    return from_channels_last(ops.sigmoid(scores), data_format)


def cbam(x, squeeze, excite, kernel, norm, data_format="channels_last"):
    """CBAM as a function: x times the channel gate, and that times the spatial gate of it.

    Args:
        x: floating tensor (b, h, w, c), or (b, c, h, w) with `data_format="channels_first"`; h and w may be unknown.
        squeeze: the MLP's first (kernel (c, c // r), bias (c // r,)), or a callable (b, c) -> (b, c // r).
        excite: its second (kernel (c // r, c), bias (c,)), or a callable (b, c // r) -> (b, c).
        kernel: of the spatial convolution, (k, k, 2, 1), or a callable (b, h, w, 2) -> (b, h, w, 1).
        norm: batch norm after it, a callable that keeps the shape (b, h, w, 1).
        data_format: `"channels_last"` or `"channels_first"`.

    Returns:
        Tensor in the shape and dtype of x. Both gates are computed in float32.
    """
    refined = for_statistics(x)
    refined = refined * channel_gate(refined, squeeze, excite, data_format)
    return in_dtype_of(x, refined * spatial_gate(refined, kernel, norm, data_format))


@keras.saving.register_keras_serializable(package="na_keras")
class CBAM(FeatureMapLayer):
    """Scales each channel, and then each position, by gates from the means and maxima over the others.

    Source: arXiv 1807.06521, section 3; reference code and deviations are at the head of this file.

    >>> layer = CBAM(reduction=16)
    >>> layer(keras.ops.ones((2, 7, 7, 64))).shape
    (2, 7, 7, 64)
    >>> layer.count_params()  # 580 as in SqueezeExcite, 7 * 7 * 2, batch norm 4
    682

    Args:
        reduction: the MLP's hidden layer has channels // reduction features; the paper's 16.
        kernel_size: odd size of the spatial convolution; the paper's 7.
        synchronized: batch norm's statistics over all replicas of a tf.distribute strategy (TensorFlow only).
        data_format: `"channels_last"` or `"channels_first"`; by default `keras.config.image_data_format()`.
        excite_kernel_initializer, excite_bias_initializer: of the MLP's second layer. None: uniform within
            1 / sqrt(inputs), as torch.nn.Linear. With "zeros" for both a fresh layer multiplies by 1/4.
        **kwargs: `name`, `dtype`, `trainable`.

    Input and output: (batch, height, width, channels), or (batch, channels, height, width) with
    `"channels_first"`, in the layer's compute dtype. Height and width may be unknown. Both gates are computed in
    float32 under any mixed-precision policy.

    Raises:
        ValueError: at construction, a reduction that is not a positive integer, an even kernel size, an unknown
            data format. On the first call, a rank other than 4, unknown channels, fewer channels than `reduction`.
    """

    has_batch_norm = True

    constant_gate = SqueezeExcite.constant_gate  # the spatial gate starts as 1/2 in any case

    def __init__(
        self,
        reduction=16,
        kernel_size=7,
        synchronized=False,
        data_format=None,
        *,
        excite_kernel_initializer=None,
        excite_bias_initializer=None,
        **kwargs,
    ):
        super().__init__(data_format, **kwargs)
        check_positive_integer("reduction", reduction, "channels are divided by it")
        check_positive_integer("kernel_size", kernel_size, "positions a side")
        if kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size must be odd, so that the kernel has a centre. Received: kernel_size={kernel_size!r}"
            )
        self.reduction = int(reduction)
        self.kernel_size = int(kernel_size)
        self.synchronized = synchronized
        self.excite_kernel_initializer = initializers.get(excite_kernel_initializer)
        self.excite_bias_initializer = initializers.get(excite_bias_initializer)

    def build(self, input_shape):
        """Creates `squeeze` and `excite` (kernel and bias), `spatial_conv` (kernel) and `spatial_bn`."""
        channels = self.check_input(input_shape)
        check_reduction("CBAM", channels, self.reduction)
        self.squeeze, self.excite = bottleneck_layers(self, channels)
        self.spatial_conv = self.sublayer(
            keras.layers.Conv2D,
            "spatial_conv",
            (None, None, None, 2),
            filters=1,
            kernel_size=self.kernel_size,
            padding="same",
            data_format="channels_last",
            use_bias=False,
            kernel_initializer=KAIMING_NORMAL,
        )
        self.spatial_bn = self.sublayer(
            keras.layers.BatchNormalization,
            "spatial_bn",
            (None, None, None, 1),
            momentum=0.9,
            epsilon=1e-5,
            gamma_initializer="zeros",
            synchronized=self.synchronized,
        )

    def call(self, x, training=None):
        """Returns x times both gates, in the shape and dtype of x."""
        norm = partial(self.spatial_bn, training=training)
        return cbam(x, self.squeeze, self.excite, self.spatial_conv, norm, self.data_format)

    def get_config(self):
        """All constructor arguments as plain values."""
        return {
            **super().get_config(),
            "reduction": self.reduction,
            "kernel_size": self.kernel_size,
            "synchronized": self.synchronized,
            "excite_kernel_initializer": initializers.serialize(self.excite_kernel_initializer),
            "excite_bias_initializer": initializers.serialize(self.excite_bias_initializer),
        }
