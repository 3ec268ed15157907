"""The non-local block of "Non-local Neural Networks" (Wang et al., arXiv 1711.07971); eqs. 1 and 2 of the NA paper.

    y_i = 1 / C(x) * sum over positions j of f(x_i, x_j) g(x_j)    (eq. 1 there)
    z_i = x_i + BN(W_z y_i)                                        (eq. 6 there)

    pairwise               f(x_i, x_j)                             C(x)
    "embedded_gaussian"    exp(theta(x_i) . phi(x_j))              sum over j of f      (eq. 3: a softmax)
    "gaussian"             exp(x_i . x_j)                          sum over j of f      (eq. 2)
    "dot_product"          theta(x_i) . phi(x_j)                   number of positions  (eq. 4)
    "concatenation"        relu(w . [theta(x_i); phi(x_j)])        number of positions  (eq. 5)

theta, phi (`query`, `key`), g (`value`) and W_z (`project`) are 1x1 convolutions; the first three have C // 2
features. The batch norm's scale starts at zero, so a fresh block is the identity (section 4.1 there). There is no
reference code in the NA paper's repositories. The NA paper's eq. 2 writes g(x_j) with j for the query and sums over
i, the key: that would sum nothing but the weights; the original's g of the key is meant. The paper does not say
whether the 1x1 convolutions have biases: ours do, W_z (whose batch norm shifts) does not.
"""

import typing
from functools import partial

import keras
from keras import ops

from na_keras.layers.feature_map import (
    FeatureMapLayer,
    check_positive_integer,
    check_reduction,
    flatten_positions,
    for_statistics,
    from_channels_last,
    in_dtype_of,
    linear,
    softmax,
    to_channels_last,
)
from na_keras.layers.initializers import KAIMING_NORMAL

PAIRWISE = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")


class Weights(typing.NamedTuple):
    """The weights of a non-local block with c channels and f features.

    Each 1x1 convolution is (kernel (inputs, outputs), bias or None), or a callable (..., inputs) -> (..., outputs);
    batch norm is a callable that keeps the shape (b, h, w, c).
    """

    value: typing.Any  # g: c -> f
    project: typing.Any  # W_z: f -> c
    norm: typing.Callable  # after W_z
    query: typing.Any = None  # theta: c -> f; None with "gaussian"
    key: typing.Any = None  # phi: c -> f; None with "gaussian"
    pair_kernel: typing.Any = None  # w, for the query and for the key: (2, f); only with "concatenation"


def positions_of(x, subsample=False):
    """(b, h, w, f) -> (b, n, f), of the maxima of 2 x 2 positions if `subsample`."""
    if subsample:
        x = ops.max_pool(x, 2, 2, padding="same", data_format="channels_last")
    return flatten_positions(x)


def pair_weights(query, key, pairwise="embedded_gaussian", pair_kernel=None):
    """f(x_i, x_j) / C(x) of all pairs.

    Args:
        query, key: theta and phi, or x itself for `"gaussian"`: (b, queries, f) and (b, keys, f).
        pairwise: one of `PAIRWISE`.
        pair_kernel: w of `"concatenation"`, (2, f).

    Returns:
        Tensor (b, queries, keys), float32 (float64 for float64 features).
    """
    query, key = for_statistics(query), for_statistics(key)
    if pairwise == "concatenation":  # the scalar product with [theta; phi] is a sum of two
        of_query, of_key = (
            ops.sum(values * kernel, axis=2)
            for values, kernel in zip((query, key), ops.unstack(ops.cast(pair_kernel, query.dtype)), strict=True)
        )
        scores = ops.relu(of_query[:, :, None] + of_key[:, None, :])
    else:
        scores = ops.matmul(query, ops.transpose(key, (0, 2, 1)))
    if pairwise in ("gaussian", "embedded_gaussian"):
        return softmax(scores, axis=2)
    return scores / ops.cast(ops.shape(scores)[2], scores.dtype)


def non_local(x, weights, pairwise="embedded_gaussian", subsample=False, data_format="channels_last"):
    """The non-local block as a function: x plus what its positions tell each other.

    Args:
        x: floating tensor (b, h, w, c), or (b, c, h, w) with `data_format="channels_first"`; h and w may be unknown.
        weights: a `Weights`.
        pairwise, subsample, data_format: as in `NonLocal`.

    Returns:
        Tensor in the shape and dtype of x; the pairwise scores and their softmax are computed in float32.
    """
    last = to_channels_last(x, data_format)
    query, key = (last, last) if pairwise == "gaussian" else (linear(last, weights.query), linear(last, weights.key))
    pairs = pair_weights(positions_of(query), positions_of(key, subsample), pairwise, weights.pair_kernel)
    values = positions_of(linear(last, weights.value), subsample)
    gathered = ops.matmul(in_dtype_of(x, pairs), values)  # (b, n, f)
    shape = ops.shape(last)
    added = ops.reshape(linear(gathered, weights.project), (shape[0], shape[1], shape[2], last.shape[3]))
    return from_channels_last(last + in_dtype_of(x, weights.norm(added)), data_format)


@keras.saving.register_keras_serializable(package="na_keras")
class NonLocal(FeatureMapLayer):
    """Adds to each position a projection of all positions' values, weighted by their likeness to it.

    Source: arXiv 1711.07971, section 3; deviations are at the head of this file. A fresh layer is the identity.
    Memory grows with the square of the number of positions: 4 * (h * w)**2 bytes an image, 39 MB for 56 x 56.

    >>> layer = NonLocal()
    >>> layer(keras.ops.ones((2, 7, 7, 64))).shape
    (2, 7, 7, 64)

    Args:
        pairwise: `"embedded_gaussian"`, `"gaussian"`, `"dot_product"` or `"concatenation"`; see the head of this file.
        reduction: query, key and value have channels // reduction features; the paper's 2.
        subsample: take the maximum of 2 x 2 positions of keys and values (section 3.3 there): a quarter of the
            memory. Sides are rounded up.
        synchronized: batch norm's statistics over all replicas of a tf.distribute strategy (TensorFlow only).
        data_format: `"channels_last"` or `"channels_first"`; by default `keras.config.image_data_format()`.
        **kwargs: `name`, `dtype`, `trainable`.

    Input and output: (batch, height, width, channels), or (batch, channels, height, width) with
    `"channels_first"`, in the layer's compute dtype. Height and width may be unknown. Projections are in that dtype,
    the pairwise scores and their softmax in float32.

    Raises:
        ValueError: at construction, an unknown pairwise function, a reduction that is not a positive integer, an
            unknown data format. On the first call, a rank other than 4, unknown channels, fewer channels than
            `reduction`.
    """

    has_batch_norm = True

    def __init__(
        self,
        pairwise="embedded_gaussian",
        reduction=2,
        subsample=False,
        synchronized=False,
        data_format=None,
        **kwargs,
    ):
        super().__init__(data_format, **kwargs)
        if pairwise not in PAIRWISE:
            raise ValueError(f"pairwise must be one of {PAIRWISE}. Received: {pairwise!r}")
        check_positive_integer("reduction", reduction, "channels are divided by it")
        self.pairwise = pairwise
        self.reduction = int(reduction)
        self.subsample = subsample
        self.synchronized = synchronized

    def build(self, input_shape):
        """Creates `query`, `key` (not for "gaussian"), `value`, `project`, `project_bn`, `pair_kernel` if needed."""
        channels = self.check_input(input_shape)
        check_reduction("NonLocal", channels, self.reduction)
        features = channels // self.reduction
        if self.pairwise != "gaussian":
            self.query = self._projection("query", channels, features)
            self.key = self._projection("key", channels, features)
        self.value = self._projection("value", channels, features)
        if self.pairwise == "concatenation":
            self.pair_kernel = self.add_weight(
                shape=(2, features), name="pair_kernel", initializer=KAIMING_NORMAL, autocast=False
            )
        self.project = self._projection("project", features, channels, use_bias=False)
        self.project_bn = self.sublayer(
            keras.layers.BatchNormalization,
            "project_bn",
            (None, None, None, channels),
            of_features=True,
            momentum=0.9,
            epsilon=1e-5,
            gamma_initializer="zeros",
            synchronized=self.synchronized,
        )

    def _projection(self, name, inputs, units, use_bias=True):
        options = {"units": units, "use_bias": use_bias, "kernel_initializer": KAIMING_NORMAL}
        return self.sublayer(keras.layers.Dense, name, (None, None, None, inputs), True, **options)

    def call(self, x, training=None):
        """Returns x plus what its positions tell each other, in the shape and dtype of x."""
        norm = partial(self.project_bn, training=training)
        optional = (getattr(self, name, None) for name in ("query", "key", "pair_kernel"))
        weights = Weights(self.value, self.project, norm, *optional)
        return non_local(x, weights, self.pairwise, self.subsample, self.data_format)

    def get_config(self):
        """All constructor arguments as plain values."""
        return {
            **super().get_config(),
            "pairwise": self.pairwise,
            "reduction": self.reduction,
            "subsample": self.subsample,
            "synchronized": self.synchronized,
        }
