"""The Normalization-Attention (NA) module of "Attention meets Normalization and Beyond" (Ma et al.), section 4.

    C     = mean over positions of x                          (eq. 4)
    Phi_i = -|x_i - C|_1                                      (eq. 5)
    g     = sum over positions of softmax(Phi)_i * x_i        (eq. 6, with the value x_i that the text implies)
    g_hat = gamma * (g - mu) / sigma + beta                   (eqs. 7, 8: mu and sigma over the channels of g)
    y     = x * sigmoid(g_hat)                                (eq. 9: one gate per image and channel)

Where the paper and the authors' released code (13952522076/NANet, models/resnet/resnet_na4.py) differ, the
defaults follow the code, because the published accuracies come from it as far as anyone can see:

                  released code (default)                     paper, taken literally
    similarity    -|mean_c x_i - mean_c C|  "channel_mean"    -sum_c |x_i - C|             "l1"
    sigma         sample, C - 1             unbiased=True     population, C                unbiased=False
    epsilon       std + epsilon                               sqrt(variance + epsilon)     epsilon_inside_sqrt=True

The bare ratio printed in eq. 6 would give more weight to positions far from C; both sources mean a softmax.
The ablations are arguments too: `embedding_kernel_size=3` is Table 2's channel-shared embedding (resnet_na5.py),
`similarity=None` is Table 3's plain spatial mean (resnet_na3.py).

The arithmetic from x to the gate runs in float32 at least: with half-precision scores the softmax of eq. 5 is off
by up to .5 in the gate.
"""

import numbers

import keras
from keras import initializers, ops

from na_keras.layers.feature_map import (
    FeatureMapLayer,
    axes,
    convolve,
    for_all_positions,
    for_statistics,
    in_dtype_of,
    standard_deviation,
)
from na_keras.layers.gradients import by_hand, map_and_context, map_and_mean, softmax_and_gradient
from na_keras.layers.initializers import KAIMING_NORMAL, torch_linear

SIMILARITIES = ("channel_mean", "l1", "squared", "dot", None)


def embed(x, layers):
    """Two convolutions with a ReLU between, on the one-channel map x: (b, h, w, 1) -> (b, h, w, 1)."""
    (kernel_1, bias_1), (kernel_2, bias_2) = layers
    x = ops.relu(convolve(x, kernel_1, padding="same") + ops.cast(bias_1, x.dtype))
    return convolve(x, kernel_2, padding="same") + ops.cast(bias_2, x.dtype)


def embedded_scores(channel_mean, key_embedding, query_embedding):
    """Table 2: compare embedded keys with the mean of an embedded query map. (b, h, w, 1) -> (b, h, w, 1)."""
    key = embed(channel_mean, key_embedding)
    query = ops.mean(embed(channel_mean, query_embedding), axis=(1, 2), keepdims=True)
    return -ops.abs(key - query)


def similarity_scores(x, similarity, channel_axis, position_axes):
    """Equation 5 and its alternatives: how like the global context each position is.

    x: (b, h, w, c) or (b, c, h, w). Returns the same shape with one channel; larger is more alike.
    """
    if similarity == "channel_mean":
        position = ops.mean(x, axis=channel_axis, keepdims=True)
        return -ops.abs(position - ops.mean(position, axis=position_axes, keepdims=True))
    context = ops.mean(x, axis=position_axes, keepdims=True)  # eq. 4
    if similarity == "l1":
        return -ops.sum(ops.abs(x - context), axis=channel_axis, keepdims=True)
    if similarity == "squared":
        return -ops.sum(ops.square(x - context), axis=channel_axis, keepdims=True)
    return ops.sum(x * context, axis=channel_axis, keepdims=True)  # "dot"


def softmax_over_positions(scores):
    """Softmax over both spatial axes of a one-channel map, whichever axis the channel is."""
    shape = ops.shape(scores)
    flat = ops.reshape(scores, (shape[0], shape[1] * shape[2] * shape[3]))  # not -1, which an empty batch leaves open
    return ops.reshape(ops.softmax(flat, axis=-1), shape)


def channel_mean_weights(position):
    """Equation 5 of the released code, and its softmax: of the channel means (b, n) of the n positions.

    Returns the weights (b, n), and the function that makes the channel means' gradient of the weights'.
    """
    deviation = position - ops.mean(position, axis=1, keepdims=True)
    weights, gradient_of_scores = softmax_and_gradient(-ops.abs(deviation))

    def gradient(of_weights):
        of_deviation = -ops.sign(deviation) * gradient_of_scores(of_weights)
        return of_deviation - ops.mean(of_deviation, axis=1, keepdims=True)

    return weights, gradient


def normalized_gate(context, gamma, beta, channel_axis, unbiased, epsilon, epsilon_inside_sqrt):
    """Equations 7 to 9: standardise the context over its channels, then sigmoid. Keeps the shape."""
    channels = context.shape[channel_axis]
    deviation = context - ops.mean(context, axis=channel_axis, keepdims=True)
    total = ops.sum(ops.square(deviation), axis=channel_axis, keepdims=True)
    variance = total / (channels - 1 if unbiased else channels)
    if epsilon_inside_sqrt:
        sigma = ops.sqrt(variance + epsilon)
    else:
        sigma = standard_deviation(variance) + epsilon
    return ops.sigmoid(gamma * deviation / sigma + beta)


def map_and_gate(
    x,
    gamma,
    beta,
    similarity="channel_mean",
    unbiased=True,
    epsilon=1e-5,
    epsilon_inside_sqrt=False,
    data_format="channels_last",
    embedding=None,
):
    """x, from which the product is to be computed (gradients.py says why), and the gate.

    Arguments, and the gate's shape, as in `normalization_attention_gate`.
    """
    channel_axis, position_axes = axes(data_format)
    height, width = (x.shape[axis] for axis in position_axes)
    if similarity is None or height == width == 1:  # one position has all the weight
        x, context = map_and_mean(x, data_format)
        context = for_all_positions(context, data_format)
    elif similarity == "channel_mean" and embedding is None and data_format == "channels_last" and by_hand(x):
        x, context = map_and_context(x, channel_mean_weights)
        context = for_all_positions(context, data_format)
    else:
        features = for_statistics(x)
        if embedding is None:
            scores = similarity_scores(features, similarity, channel_axis, position_axes)
        else:
            # With one channel, moving it is a reshape; convolutions want it last on every device.
            position = ops.expand_dims(ops.mean(features, axis=channel_axis), -1)
            scores = embedded_scores(position, *embedding)
            if data_format == "channels_first":
                scores = ops.moveaxis(scores, 3, 1)
        context = ops.sum(features * softmax_over_positions(scores), axis=position_axes, keepdims=True)
    gamma, beta = ops.cast(gamma, context.dtype), ops.cast(beta, context.dtype)
    return x, normalized_gate(context, gamma, beta, channel_axis, unbiased, epsilon, epsilon_inside_sqrt)


def normalization_attention_gate(x, gamma, beta, **options):
    """The gate of the NA module (equations 4 to 9 without the final product).

    Args:
        x: floating tensor (b, h, w, c), or (b, c, h, w) with `data_format="channels_first"`; h and w may be unknown.
        gamma, beta: tensors of shape (1,).
        similarity, unbiased, epsilon, epsilon_inside_sqrt, data_format: as in `NormalizationAttention`; the default
            of `data_format` is `"channels_last"`.
        embedding: None, or (key, query), each ((kernel, bias), (kernel, bias)) with kernels (k, k, 1, 1) and
            biases (1,); used with `similarity="channel_mean"` only.

    Returns:
        Tensor (b, 1, 1, c) or (b, c, 1, 1), float32 (float64 for float64 x on TensorFlow), values in (0, 1).
    """
    return map_and_gate(x, gamma, beta, **options)[1]


def normalization_attention(x, gamma, beta, **options):
    """The NA module as a function: x times its gate, in the shape and dtype of x.

    Args and options as in `normalization_attention_gate`.
    """
    x, gate = map_and_gate(x, gamma, beta, **options)
    return x * in_dtype_of(x, gate)


@keras.saving.register_keras_serializable(package="na_keras")
class NormalizationAttention(FeatureMapLayer):
    """Scales each channel by a gate computed from its normalised global context, with two parameters.

    Source: "Attention meets Normalization and Beyond", equations 4 to 9, as the authors' code computes them; how
    the two differ is at the head of this file. A fresh layer multiplies by sigmoid(1) = 0.731.

    >>> layer = NormalizationAttention()
    >>> layer(keras.ops.ones((2, 7, 7, 16))).shape
    (2, 7, 7, 16)
    >>> layer.count_params()
    2

    The paper taken literally:
    `NormalizationAttention(similarity="l1", unbiased=False, epsilon_inside_sqrt=True)`.

    Args:
        similarity: what a position's weight in the global context depends on. `"channel_mean"`: the distance of
            its channel mean from the mean of all positions (released code). `"l1"`: equation 5. `"squared"` and
            `"dot"`: the alternatives named below it. `None`: equal weights (Table 3).
        embedding_kernel_size: None, or the odd kernel size of Table 2's embedding (there 3): four convolutions on
            the channel-mean map, 4 * (k * k + 1) more parameters. Needs `similarity="channel_mean"`. On maps of one
            position it has no effect, and its weights no gradient.
        unbiased: divide the channel variance by C - 1 (released code); False: by C (equation 7).
        epsilon: positive float for numerical stability.
        epsilon_inside_sqrt: False: std + epsilon (released code); True: sqrt(variance + epsilon) (equation 7).
        gamma_initializer, beta_initializer: for the scalar weights of equation 8, each of shape (1,).
        gamma_regularizer, beta_regularizer, gamma_constraint, beta_constraint: as in Keras' normalisation layers.
        data_format: `"channels_last"` or `"channels_first"`; by default `keras.config.image_data_format()`.
        **kwargs: `name`, `dtype`, `trainable`.

    Input and output: (batch, height, width, channels), or (batch, channels, height, width) with
    `"channels_first"`, in the layer's compute dtype. Height and width may be unknown; channels may not. The gate
    itself is computed in float32 under any mixed-precision policy.

    Raises:
        ValueError: at construction, an unknown similarity or data format, an epsilon that is not positive, an even
            kernel size, an embedding with another similarity. On the first call, an input whose rank is not 4 or
            whose channel count is unknown, or is 1 with `unbiased=True` (its sample deviation is 0 / 0).
    """

    def __init__(
        self,
        similarity="channel_mean",
        embedding_kernel_size=None,
        unbiased=True,
        epsilon=1e-5,
        epsilon_inside_sqrt=False,
        gamma_initializer="zeros",
        beta_initializer="ones",
        gamma_regularizer=None,
        beta_regularizer=None,
        gamma_constraint=None,
        beta_constraint=None,
        data_format=None,
        **kwargs,
    ):
        super().__init__(data_format, **kwargs)
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity must be one of {SIMILARITIES}. Received: {similarity!r}")
        if embedding_kernel_size is not None:
            size = embedding_kernel_size
            if isinstance(size, bool) or not isinstance(size, numbers.Integral) or size < 1 or size % 2 == 0:
                raise ValueError(
                    "embedding_kernel_size must be None or an odd positive integer, so that the kernel has "
                    f"a centre. Received: {embedding_kernel_size!r}"
                )
            if similarity != "channel_mean":
                raise ValueError(
                    "embedding_kernel_size is defined on the channel-mean map (Table 2): use it with "
                    f'similarity="channel_mean" or leave it None. Received: similarity={similarity!r}'
                )
        if not (isinstance(epsilon, numbers.Real) and 0 < epsilon < float("inf")):
            raise ValueError(
                f"epsilon must be a positive number: a context with equal channels has deviation 0. Received: {epsilon}"
            )
        self.similarity = similarity
        self.embedding_kernel_size = None if embedding_kernel_size is None else int(embedding_kernel_size)
        self.unbiased = unbiased
        self.epsilon = epsilon
        self.epsilon_inside_sqrt = epsilon_inside_sqrt
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_regularizer = keras.regularizers.get(gamma_regularizer)
        self.beta_regularizer = keras.regularizers.get(beta_regularizer)
        self.gamma_constraint = keras.constraints.get(gamma_constraint)
        self.beta_constraint = keras.constraints.get(beta_constraint)

    def build(self, input_shape):
        """Creates gamma and beta, shape (1,), and the embedding's kernels and biases if there is one."""
        channels = self.check_input(input_shape)
        if channels == 1 and self.unbiased:
            raise ValueError(
                "The sample standard deviation over a single channel is undefined: use unbiased=False. "
                f"Received: input_shape={tuple(input_shape)}, data_format={self.data_format!r}"
            )
        self.gamma = self.add_weight(
            shape=(1,),
            name="gamma",
            initializer=self.gamma_initializer,
            regularizer=self.gamma_regularizer,
            constraint=self.gamma_constraint,
            autocast=False,
        )
        self.beta = self.add_weight(
            shape=(1,),
            name="beta",
            initializer=self.beta_initializer,
            regularizer=self.beta_regularizer,
            constraint=self.beta_constraint,
            autocast=False,
        )
        self.embedding = None
        if self.embedding_kernel_size is not None:
            self.embedding = tuple(
                tuple(self._convolution_weights(f"{role}_{order}") for order in (1, 2)) for role in ("key", "query")
            )

    def _convolution_weights(self, name):
        size = self.embedding_kernel_size
        kernel = self.add_weight(
            shape=(size, size, 1, 1),
            name=f"{name}_kernel",
            initializer=KAIMING_NORMAL,  # the authors' initialisation loop reaches these convolutions
        )
        bias = self.add_weight(
            shape=(1,),
            name=f"{name}_bias",
            initializer=torch_linear(size * size),  # and not these: PyTorch's default, by the inputs
        )
        return kernel, bias

    def gate(self, x):
        """The factors that `call` multiplies x by: (b, 1, 1, c) or (b, c, 1, 1), float32, in (0, 1)."""
        return normalization_attention_gate(x, self.gamma, self.beta, **self._options())

    def call(self, x):
        """Returns x times its gate, in the shape and dtype of x."""
        return normalization_attention(x, self.gamma, self.beta, **self._options())

    def _options(self):
        return {
            "similarity": self.similarity,
            "unbiased": self.unbiased,
            "epsilon": self.epsilon,
            "epsilon_inside_sqrt": self.epsilon_inside_sqrt,
            "data_format": self.data_format,
            "embedding": self.embedding,
        }

    def get_config(self):
        """All constructor arguments as plain values."""
        return {
            **super().get_config(),
            "similarity": self.similarity,
            "embedding_kernel_size": self.embedding_kernel_size,
            "unbiased": self.unbiased,
            "epsilon": self.epsilon,
            "epsilon_inside_sqrt": self.epsilon_inside_sqrt,
            "gamma_initializer": initializers.serialize(self.gamma_initializer),
            "beta_initializer": initializers.serialize(self.beta_initializer),
            "gamma_regularizer": keras.regularizers.serialize(self.gamma_regularizer),
            "beta_regularizer": keras.regularizers.serialize(self.beta_regularizer),
            "gamma_constraint": keras.constraints.serialize(self.gamma_constraint),
            "beta_constraint": keras.constraints.serialize(self.beta_constraint),
        }
