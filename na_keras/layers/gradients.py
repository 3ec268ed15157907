"""Statistics of a feature map whose gradients pass over the map as few times as they can, on TensorFlow.

A gate uses its map twice, for a statistic and in the product. TensorFlow's automatic gradient writes a whole map for
each use (of a mean: the gradient repeated over all positions, then divided) and adds them up. The functions here give
back the map beside its statistic. What is computed from that map brings its gradient in here, where the statistic's is
added to it in one pass.

On JAX and PyTorch they are plain operations: XLA makes one pass of them by itself, and a hand-written gradient would
cost jax.jvp and jax.hessian.

Sums over positions with weights are matrix products on TensorFlow, which write no map. Accelerators may round the
operands of those (TensorFloat-32: to 10 bits), as they do in every convolution of the network. Of NA's gate, on random
maps from 112 x 112 x 16 to 7 x 7 x 2048 in NumPy, that is 1e-6 to 6e-5; the same rounding in the 1x1 convolution before
it moves the gate by 1e-4 to 1.7e-4.
"""

import keras
from keras import ops

from na_keras.layers.feature_map import (
    axes,
    flatten_positions,
    for_all_positions,
    for_statistics,
    in_dtype_of,
    mean_of_positions,
    sample_variance,
    softmax,
)


def by_hand(x):
    """Whether gradients of x, a tensor or Keras' symbolic one, are written by hand."""
    return keras.backend.backend() == "tensorflow" and not isinstance(x, keras.KerasTensor)


def map_and_mean(x, data_format):
    """x, and the mean over its positions (b, c) in float32 at least."""
    if not by_hand(x):
        return x, mean_of_positions(x, data_format)

    @ops.custom_gradient
    def forward(x):
        def gradient(of_map, of_mean):
            height, width = (ops.shape(x)[axis] for axis in axes(data_format)[1])
            share = of_mean / ops.cast(height * width, of_mean.dtype)
            return of_map + in_dtype_of(x, for_all_positions(share, data_format))

        return (x, mean_of_positions(x, data_format)), gradient

    return forward(ops.convert_to_tensor(x))


def map_and_moments(x, data_format):
    """x, and the mean and the sample variance over its positions, each (b, c) in float32 at least."""

    def moments(x):
        mean, (_, positions) = mean_of_positions(x, data_format), axes(data_format)
        variance = sample_variance(for_statistics(x), positions, for_all_positions(mean, data_format))
        return mean, ops.squeeze(variance, positions)

    if not by_hand(x):
        return x, *moments(x)

    @ops.custom_gradient
    def forward(x):
        mean, variance = moments(x)

        def gradient(of_map, of_mean, of_variance):
            height, width = (ops.shape(x)[axis] for axis in axes(data_format)[1])
            count = ops.cast(height * width, of_mean.dtype)
            slope = 2 * of_variance / ops.maximum(count - 1, 1)
            share = of_mean / count - slope * mean
            slope, share = (for_all_positions(values, data_format) for values in (slope, share))
            return of_map + in_dtype_of(x, for_statistics(x) * slope + share)

        return (x, mean, variance), gradient

    return forward(ops.convert_to_tensor(x))


def map_and_likeness(x):
    """x, and the scalar product of each position with the mean of all, within each group of channels.

    Args:
        x: floating tensor (b, positions, groups, channels of a group).

    Returns:
        x, and the products (b, positions, groups) in float32 at least.
    """

    def likeness(x):
        mean = ops.mean(for_statistics(x), axis=1, keepdims=True)
        return mean, ops.sum(for_statistics(x) * mean, axis=3)

    if not by_hand(x):
        return x, likeness(x)[1]

    @ops.custom_gradient
    def forward(x):
        mean, products = likeness(x)

        def gradient(of_map, of_products):
            of_products = ops.expand_dims(of_products, 3)
            of_mean = ops.mean(for_statistics(x) * of_products, axis=1, keepdims=True)
            return of_map + in_dtype_of(x, of_products * mean + of_mean)

        return (x, products), gradient

    return forward(ops.convert_to_tensor(x))


def weighted_sum(positions, weights):
    """sum_i weights_i positions_i: of (b, n, c) and (b, n), (b, c)."""
    return ops.squeeze(ops.matmul(ops.expand_dims(weights, 1), positions), 1)


def products_with(positions, vector):
    """positions_i . vector: of (b, n, c) and (b, c), (b, n)."""
    return ops.squeeze(ops.matmul(ops.expand_dims(vector, 1), ops.transpose(positions, (0, 2, 1))), 1)


def softmax_and_gradient(scores):
    """Softmax of (b, n) over the positions, and the function that makes the scores' gradient of the weights'."""
    weights = softmax(scores, axis=1)

    def gradient(of_weights):
        product = weights * of_weights
        return product - weights * ops.sum(product, axis=1, keepdims=True)

    return weights, gradient


def map_and_context(x, weigh, scoring=None):
    """x, and the weighted mean of its positions, whose weights depend on one score of each position.

    Args:
        x: floating tensor (b, h, w, c) for which `by_hand` is true.
        weigh: function of the scores (b, n) of the n = h * w positions. Returns the weights (b, n), and the function
            that makes the scores' gradient of the weights'.
        scoring: (kernel (c,), bias (1,)) of the score x_i . kernel + bias; None: it is the mean of the channels.

    Returns:
        x, and the weighted mean (b, c) in float32 at least.
    """

    @ops.custom_gradient
    def forward(x, *scoring):
        positions = flatten_positions(for_statistics(x))
        if scoring:
            scores = ops.matmul(positions, scoring[0]) + scoring[1]
        else:
            scores = ops.mean(positions, axis=2)
        weights, gradient_of_scores = weigh(scores)

        def gradient(of_map, of_context):
            positions = flatten_positions(for_statistics(x))  # again: a float32 copy need not live until here
            of_scores = gradient_of_scores(products_with(positions, of_context))
            kernel = ops.broadcast_to(scoring[0] if scoring else 1 / x.shape[3], ops.shape(of_context))
            # One product of rank 2 instead of two maps: weights times of_context, of_scores times kernel.
            added = ops.matmul(ops.stack([weights, of_scores], 2), ops.stack([of_context, kernel], 1))
            of_map = of_map + in_dtype_of(x, ops.reshape(added, ops.shape(x)))
            if not scoring:
                return of_map
            return of_map, ops.sum(weighted_sum(positions, of_scores), axis=0), ops.sum(of_scores)[None]

        return (x, weighted_sum(positions, weights)), gradient

    return forward(ops.convert_to_tensor(x), *(scoring or ()))
