"""The Gather-Excite (GE) module of Hu et al., arXiv 1810.12348: each position's gate comes from its neighbourhood.

    y = x * sigmoid(up(gather(x)))           up: nearest neighbour, back to the size of x

    gather, parameter-free (section 3.1; "GE-theta-minus"):
        extent e     mean over the (2e - 1) x (2e - 1) positions around every e-th position (those inside the map)
        extent None  mean over all positions (e = global)
    gather, parametrised (section 3.2; "GE-theta"): log2(e) depthwise 3x3 convolutions with stride 2 and no bias,
        each followed by batch norm

Table 1 of the NA paper has no code for its GE rows. INFERRED from its parameter and operation counts: GE-ResNet50 has
no parameters (the extent cannot be told from the counts; we take global), GE-MobileNetV2 the parametrised form with
extent 8, without ReLU between the convolutions. The paper's third form, with 1x1 convolutions ("GE-theta-plus"), and
parametrised gathering over the whole map are not here.
"""

from functools import partial

import keras
from keras import initializers, ops

from na_keras.layers.feature_map import (
    FeatureMapLayer,
    check_positive_integer,
    for_statistics,
    from_channels_last,
    in_dtype_of,
    to_channels_last,
)
from na_keras.layers.initializers import KAIMING_NORMAL_FAN_IN


def neighbourhood_mean(x, extent):
    """(b, h, w, c) -> (b, ceil(h / e), ceil(w / e), c): means of 2e - 1 positions a side, less those outside."""
    window, around = 2 * extent - 1, ((0, 0), (extent - 1, extent - 1), (extent - 1, extent - 1), (0, 0))

    def pool(x):
        return ops.average_pool(ops.pad(x, around), window, extent, padding="valid", data_format="channels_last")

    return pool(x) / pool(ops.ones_like(x[:1, :, :, :1]))


def nearest(x, size, axis):
    """Repeats entries along `axis` to make `size`: entry i comes from floor(i * old size / size), as in PyTorch."""
    return ops.take(x, ops.arange(size, dtype="int32") * ops.shape(x)[axis] // size, axis=axis)


def gather_by_convolutions(x, steps):
    """Depthwise 3x3 convolutions of x (b, h, w, c) with stride 2, each padded on both sides alike and normalised."""
    for kernel, norm in steps:
        x = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        if callable(kernel):
            x = kernel(x)
        else:
            kernel = ops.cast(kernel, x.dtype)
            x = ops.depthwise_conv(x, kernel, strides=2, padding="valid", data_format="channels_last")
        x = norm(x)
    return x


def gather_excite_gate(x, extent=None, steps=()):
    """The gate of the GE module.

    Args:
        x: floating tensor (b, h, w, c); h and w may be unknown.
        extent: None, the mean over the whole map; or the stride between the neighbourhoods' centres.
        steps: of the parametrised form, log2(extent) pairs (kernel, norm): the kernel (3, 3, c, 1) of a depthwise
            convolution, or a callable that convolves the padded map with stride 2; and a callable batch norm.

    Returns:
        Tensor (b, h, w, c), or (b, 1, 1, c) without an extent, float32 (float64 for float64 x on TensorFlow), values
        in (0, 1).
    """
    values = for_statistics(x)
    if extent is None:
        return ops.sigmoid(ops.mean(values, axis=(1, 2), keepdims=True))
    gate = ops.sigmoid(gather_by_convolutions(values, steps) if steps else neighbourhood_mean(values, extent))
    for axis in (1, 2):
        gate = nearest(gate, ops.shape(x)[axis], axis)
    return gate


def gather_excite(x, extent=None, steps=(), data_format="channels_last"):
    """The GE module as a function: x times its gate, in the shape and dtype of x.

    Args:
        x: floating tensor (b, h, w, c), or (b, c, h, w) with `data_format="channels_first"`; h and w may be unknown.
        extent, steps: as in `gather_excite_gate`.
        data_format: `"channels_last"` or `"channels_first"`.
    """
    last = to_channels_last(x, data_format)
    return from_channels_last(last * in_dtype_of(x, gather_excite_gate(last, extent, steps)), data_format)


@keras.saving.register_keras_serializable(package="na_keras")
class GatherExcite(FeatureMapLayer):
    """Scales each channel at each position by a gate from the features around it.

    Source: arXiv 1810.12348, section 3; what Table 1 of the NA paper means is at the head of this file.

    >>> GatherExcite()(keras.ops.ones((2, 7, 7, 64))).shape
    (2, 7, 7, 64)
    >>> layer = GatherExcite(extent=8, parametrized=True)
    >>> layer(keras.ops.ones((2, 7, 7, 64))).shape
    (2, 7, 7, 64)
    >>> layer.count_params()  # 3 * (3 * 3 * 64), batch norms 3 * 4 * 64
    2496

    Args:
        extent: None, the whole map; or an integer above 1, the stride between the neighbourhoods' centres.
        parametrized: gather with depthwise convolutions instead of means; `extent` must then be a power of two. On
            maps smaller than `extent` the last convolutions see one position; MobileNetV2 (8 on 7 x 7) does so.
        synchronized: batch norm's statistics over all replicas of a tf.distribute strategy (TensorFlow only).
        data_format: `"channels_last"` or `"channels_first"`; by default `keras.config.image_data_format()`.
        last_gamma_initializer: of the last batch norm's scale, if parametrised. With "zeros" a fresh layer multiplies
            by 1/2.
        **kwargs: `name`, `dtype`, `trainable`.

    Input and output: (batch, height, width, channels), or (batch, channels, height, width) with
    `"channels_first"`, in the layer's compute dtype. Height and width may be unknown. The gate is computed in
    float32 under any mixed-precision policy.

    Raises:
        ValueError: at construction, an extent that is neither None nor an integer above 1 (parametrised: a power of
            two), an unknown data format. On the first call, a rank other than 4, unknown channels, an extent larger
            than the map if that is known and nothing is parametrised.
    """

    has_batch_norm = True

    constant_gate = {"last_gamma_initializer": "zeros"}  # of the parametrised form; the other one has no weights

    def __init__(
        self,
        extent=None,
        parametrized=False,
        synchronized=False,
        data_format=None,
        *,
        last_gamma_initializer="ones",
        **kwargs,
    ):
        super().__init__(data_format, **kwargs)
        if parametrized and extent is None:
            raise ValueError(
                "parametrized=True gathers with convolutions of stride 2: extent must be a power of two. "
                "Received: extent=None"
            )
        if extent is not None:
            check_positive_integer("extent", extent, "positions between the centres; None is the whole map")
            if extent == 1 or parametrized and extent & (extent - 1):
                raise ValueError(
                    f"extent must be {'a power of two, 2 or more' if parametrized else 'None, or 2 or more'}. "
                    f"Received: extent={extent}"
                )
        self.extent = None if extent is None else int(extent)
        self.parametrized = parametrized
        self.synchronized = synchronized
        self.last_gamma_initializer = initializers.get(last_gamma_initializer)

    def build(self, input_shape):
        """Creates `gather_1_depthwise` (kernel), `gather_1_bn` ... if parametrised, nothing otherwise."""
        channels = self.check_input(input_shape)
        sides = [input_shape[axis] for axis in self.position_axes if input_shape[axis] is not None]
        if self.extent is not None and not self.parametrized and sides and self.extent > min(sides):
            raise ValueError(
                "The extent is larger than the map: use extent=None for the whole map, or a smaller one. "
                f"Received: input_shape={tuple(input_shape)}, data_format={self.data_format!r}, extent={self.extent}"
            )
        self.steps, shape = [], (None, None, None, channels)
        count = self.extent.bit_length() - 1 if self.parametrized else 0
        for order in range(1, count + 1):
            convolution = self.sublayer(
                keras.layers.DepthwiseConv2D,
                f"gather_{order}_depthwise",
                shape,
                kernel_size=3,
                strides=2,
                use_bias=False,
                depthwise_initializer=KAIMING_NORMAL_FAN_IN,
                data_format="channels_last",
            )
            norm = self.sublayer(
                keras.layers.BatchNormalization,
                f"gather_{order}_bn",
                shape,
                momentum=0.9,
                epsilon=1e-5,
                gamma_initializer=self.last_gamma_initializer if order == count else "ones",
                synchronized=self.synchronized,
            )
            self.steps += [convolution, norm]

    def call(self, x, training=None):
        """Returns x times its gate, in the shape and dtype of x."""
        norms = [partial(norm, training=training) for norm in self.steps[1::2]]
        return gather_excite(x, self.extent, list(zip(self.steps[::2], norms, strict=True)), self.data_format)

    def get_config(self):
        """All constructor arguments as plain values."""
        return {
            **super().get_config(),
            "extent": self.extent,
            "parametrized": self.parametrized,
            "synchronized": self.synchronized,
            "last_gamma_initializer": initializers.serialize(self.last_gamma_initializer),
        }
