"""The Selective Kernel (SK) convolution of "Selective Kernel Networks" (Li et al., arXiv 1903.06586).

It takes the place of a 3x3 convolution with its batch norm and ReLU. With branches k = 1, 2, ...:

    u_k = relu(BN(conv3x3_k(x)))                                   (split)
    s   = mean over positions of sum over k of u_k                 (eqs. 1, 2: fuse)
    z   = relu(BN(W s))                                            (eqs. 3, 4; d = max(C // r, L) features)
    a   = softmax over the branches of A z                         (eq. 5: per image, branch and channel)
    y   = sum over k of a_k * u_k                                  (eq. 6: select)

Reference: implus/PytorchInsight, classification/models/imagenet/resnet_sk.py, whose branches are Table 1's and our
default: one dense and one with 32 groups, neither dilated, and no lower bound L. The SK paper's are
`groups=(32, 32), dilation_rates=(1, 2), minimum_features=32`.
"""

import math
from functools import partial

import keras
from keras import ops

from na_keras.layers.feature_map import (
    FeatureMapLayer,
    check_positive_integer,
    convolve,
    for_statistics,
    from_channels_last,
    in_dtype_of,
    largest_divisor,
    linear,
    softmax,
    to_channels_last,
)
from na_keras.layers.initializers import KAIMING_NORMAL


def kernel_branch(x, kernel, norm, strides=1, dilation_rate=1):
    """u_k, one branch: a 3x3 convolution padded on both sides alike, batch norm, ReLU.

    Args:
        x: floating tensor (b, h, w, c); h and w may be unknown.
        kernel: (3, 3, c / groups, filters), or a callable that convolves the padded map with its own stride and
            dilation.
        norm: batch norm, a callable that keeps the shape.
        strides, dilation_rate: of the convolution.

    Returns:
        Tensor (b, ceil(h / strides), ceil(w / strides), filters) in the dtype of x.
    """
    around = dilation_rate, dilation_rate
    padded = ops.pad(x, ((0, 0), around, around, (0, 0)))
    return ops.relu(norm(convolve(padded, kernel, strides, dilation_rate=dilation_rate)))


def branch_weights(branches, squeeze, norm, excite):
    """a of equation 5: what each image and channel takes of each branch.

    Args:
        branches: tensors (b, h, w, filters), one a branch.
        squeeze: W, (kernel (filters, d), bias or None), or a callable (b, filters) -> (b, d).
        norm: batch norm, a callable that keeps the shape (b, d).
        excite: A, (kernel (d, number of branches * filters), bias or None), or a callable.

    Returns:
        Tensor (b, branches, filters), float32 (float64 for float64 features), that sums to 1 over the branches.
    """
    summed = sum(ops.mean(for_statistics(branch), axis=(1, 2)) for branch in branches)
    hidden = ops.relu(norm(linear(summed, squeeze)))
    batch, filters = ops.shape(summed)  # not -1, which an empty batch leaves open
    return softmax(ops.reshape(linear(hidden, excite), (batch, len(branches), filters)), axis=1)


def select_kernel(branches, squeeze, norm, excite):
    """y of equation 6: the branches' mixture by `branch_weights`, in their shape and dtype; arguments as there."""
    weights = in_dtype_of(branches[0], branch_weights(branches, squeeze, norm, excite))[:, :, None, None, :]
    return sum(branch * weights[:, k] for k, branch in enumerate(branches))


@keras.saving.register_keras_serializable(package="na_keras")
class SelectiveKernel(FeatureMapLayer):
    """A 3x3 convolution in several forms at once, of which each image and channel selects a mixture.

    Source: arXiv 1903.06586, section 3.1; reference code and deviations are at the head of this file. In a network
    it replaces the bottleneck's 3x3 convolution, batch norm and ReLU.

    >>> layer = SelectiveKernel(filters=64, strides=2, groups=(1, 4))
    >>> layer(keras.ops.ones((2, 8, 8, 32))).shape
    (2, 4, 4, 64)

    Args:
        filters: output channels; None: as many as come in.
        strides: of every branch.
        groups: for each branch, the groups of its convolution.
        dilation_rates: for each branch, the dilation of its convolution.
        reduction: z has filters // reduction features.
        minimum_features: but at least this many; the paper's L.
        synchronized: batch norm's statistics over all replicas of a tf.distribute strategy (TensorFlow only).
        data_format: `"channels_last"` or `"channels_first"`; by default `keras.config.image_data_format()`.
        **kwargs: `name`, `dtype`, `trainable`.

    Input: (batch, height, width, channels), or (batch, channels, height, width) with `"channels_first"`; height and
    width may be unknown. Output: the same with sides ceil(side / strides) and `filters` channels, in the layer's
    compute dtype. The branches are convolutions in that dtype, the selection is computed in float32.

    Raises:
        ValueError: at construction, numbers that are not positive integers, fewer than two branches, groups and
            dilation rates of different number, strides together with dilation, an unknown data format. On the first
            call, a rank other than 4, unknown channels, channels or filters that a branch's groups do not divide,
            fewer filters than `reduction` with `minimum_features` 1.
    """

    replaces_convolution = True
    has_batch_norm = True
    constant_gate = None  # a convolution of its own, with a ReLU at its end

    def __init__(
        self,
        filters=None,
        strides=1,
        groups=(1, 32),
        dilation_rates=(1, 1),
        reduction=16,
        minimum_features=1,
        synchronized=False,
        data_format=None,
        **kwargs,
    ):
        super().__init__(data_format, **kwargs)
        sequences = all(isinstance(entries, list | tuple) for entries in (groups, dilation_rates))
        if not sequences or not 2 <= len(groups) == len(dilation_rates):
            raise ValueError(
                "groups and dilation_rates must each have one entry for each of at least 2 branches. "
                f"Received: groups={groups!r}, dilation_rates={dilation_rates!r}"
            )
        for name, values, reason in (
            ("filters", () if filters is None else (filters,), "output channels; None for as many as come in"),
            ("strides", (strides,), "positions between the outputs"),
            ("groups", groups, "in each of its entries"),
            ("dilation_rates", dilation_rates, "in each of its entries"),
            ("reduction", (reduction,), "filters are divided by it"),
            ("minimum_features", (minimum_features,), "features of the hidden layer"),
        ):
            for value in values:
                check_positive_integer(name, value, reason)
        if strides > 1 and max(dilation_rates) > 1:
            raise ValueError(
                "Keras' convolutions take either strides or dilation above 1: reduce the map before or after. "
                f"Received: strides={strides}, dilation_rates={tuple(dilation_rates)}"
            )
        self.filters = None if filters is None else int(filters)
        self.strides = int(strides)
        self.groups = tuple(int(number) for number in groups)
        self.dilation_rates = tuple(int(number) for number in dilation_rates)
        self.reduction = int(reduction)
        self.minimum_features = int(minimum_features)
        self.synchronized = synchronized

    def build(self, input_shape):
        """Creates `branch_1_conv`, `branch_1_bn`, ..., `squeeze`, `squeeze_bn` and `excite`; no biases."""
        channels = self.check_input(input_shape)
        filters = self.filters or channels
        self._check_arguments(channels, filters)
        features = max(filters // self.reduction, self.minimum_features)
        self.convolutions, self.norms = [], []
        for order, (groups, dilation) in enumerate(zip(self.groups, self.dilation_rates, strict=True), start=1):
            convolution = self.sublayer(
                keras.layers.Conv2D,
                f"branch_{order}_conv",
                (None, None, None, channels),
                of_features=True,
                filters=filters,
                kernel_size=3,
                strides=self.strides,
                dilation_rate=dilation,
                groups=groups,
                use_bias=False,
                kernel_initializer=KAIMING_NORMAL,
                data_format="channels_last",
            )
            self.convolutions.append(convolution)
            self.norms.append(self._batch_norm(f"branch_{order}_bn", (None, None, None, filters), of_features=True))
        self.squeeze = self._dense("squeeze", filters, features)
        self.squeeze_bn = self._batch_norm("squeeze_bn", (None, features))
        self.excite = self._dense("excite", features, len(self.groups) * filters)

    def _check_arguments(self, channels, filters):
        """Raises ValueError if a branch's groups or the reduction do not fit; what fits is one advice."""
        common = math.gcd(channels, filters)
        fitting = {"groups": tuple(largest_divisor(common, number) for number in self.groups)}
        fitting["reduction"] = self.reduction if self.minimum_features > 1 else min(self.reduction, filters)
        wrong = [f"{name}={value}" for name, value in fitting.items() if value != getattr(self, name)]
        if wrong:
            raise ValueError(
                "SelectiveKernel needs groups that each divide channels and filters, and filters // reduction above 0. "
                f"Received: {channels} channels, {filters} filters, groups={self.groups}, reduction={self.reduction}; "
                f"{', '.join(wrong)} would do"
            )

    def _dense(self, name, inputs, units):
        options = {"units": units, "use_bias": False, "kernel_initializer": KAIMING_NORMAL}
        return self.sublayer(keras.layers.Dense, name, (None, inputs), **options)

    def _batch_norm(self, name, shape, of_features=False):
        options = {"momentum": 0.9, "epsilon": 1e-5, "synchronized": self.synchronized}
        return self.sublayer(keras.layers.BatchNormalization, name, shape, of_features, **options)

    def call(self, x, training=None):
        """Returns the selected mixture of the branches."""
        last = to_channels_last(x, self.data_format)
        branches = [
            kernel_branch(last, convolution, partial(norm, training=training), self.strides, dilation)
            for convolution, norm, dilation in zip(self.convolutions, self.norms, self.dilation_rates, strict=True)
        ]
        selected = select_kernel(branches, self.squeeze, partial(self.squeeze_bn, training=training), self.excite)
        return from_channels_last(selected, self.data_format)

    def compute_output_shape(self, input_shape):
        """The input shape with the sides divided by `strides`, rounded up, and `filters` channels."""
        shape = list(input_shape)
        for axis in self.position_axes:
            shape[axis] = None if shape[axis] is None else -(-shape[axis] // self.strides)
        shape[self.channel_axis] = self.filters or shape[self.channel_axis]
        return tuple(shape)

    def get_config(self):
        """All constructor arguments as plain values."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "strides": self.strides,
            "groups": self.groups,
            "dilation_rates": self.dilation_rates,
            "reduction": self.reduction,
            "minimum_features": self.minimum_features,
            "synchronized": self.synchronized,
        }
