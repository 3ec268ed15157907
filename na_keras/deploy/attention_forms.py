"""NA as it is exported: the same function of the feature map, in the operations that suit what runs it.

    tensorflow     the layer's arithmetic, epsilon included, in the operations that are fastest in TensorFlow on CPUs
    tflite         the same in the operations that are fastest in LiteRT on CPUs
    integer_safe   for full int8: no softmax, whose int8 form has steps of 1/256, more than the weight of any position
                   of a 56 x 56 map; no division, which fails where its quantized divisor is 0

The integer-safe form leaves the weights without their common denominator: with s = mean of exp, the context is s times
as large, and eq. 7 is blind to a positive factor of the context. Only epsilon notices: what was 1e-5 beside the
deviation becomes sqrt(1e-10) beside s times it.

Where a 1x1 convolution x = W h + b to more channels comes right before NA (ResNet's bottlenecks), all forms take the
context from the narrow h. With weights a_i over the positions that sum to 1,

    mean over channels of x_i   =   (mean over outputs of W) . h_i + mean(b)
    sum_i a_i x_i               =   W (sum_i a_i h_i) + b

The product with W reads all of W once more, so that this saves nothing on the smallest maps.

Nothing here is registered with Keras: a deploy copy is exported, never saved as a .keras file.
"""

import keras
import numpy as np
from keras import layers, ops

from na_keras.layers.normalization_attention import embed

GATE_SCOPE = "na_gate"  # in the names of a file's tensors, by which reports know NA's gates
SMALLEST_VARIANCE = 1e-10  # what takes epsilon's place in the integer-safe form: (1e-5) ** 2

LARGE = 150_000  # numbers of one image's map from which on TensorFlow's matrix product beats a product and a sum


def convolve(x, kernel):
    """1x1 convolution of x (b, h, w, c) with a kernel (c, filters)."""
    return ops.conv(x, kernel[None, None], padding="valid", data_format="channels_last")


def flat_positions(x, *channels):
    """(b, h, w, c) -> (b, h * w, c), or (b, h, w, 1) -> (b, h * w) without `channels`."""
    height, width = x.shape[1:3]
    if height is None or width is None:  # and the batch size is unknown anyway
        return ops.reshape(x, (ops.shape(x)[0], -1, *channels))
    return ops.reshape(x, (-1, height * width, *channels))


def as_map(positions, x):
    """(b, h * w) -> (b, h, w, 1), with the height and width of x."""
    return ops.reshape(positions, (-1, *ops.shape(x)[1:3], 1))


def constant_weight(layer, name, value):
    """A weight of a layer that holds these values and is not trained."""

    def initial(shape, dtype=None):
        return ops.convert_to_tensor(value, dtype)

    return layer.add_weight(value.shape, initial, name=name, trainable=False)


class DeployAttention(layers.Layer):
    """NA for TensorFlow, with the convolution before it or without. (b, h, w, c) -> (b, h, w, filters).

    Args:
        source: the built NormalizationAttention.
        convolution: None, or (kernel (c, filters), bias (filters,)) of the 1x1 convolution that is part of this layer.
    """

    def __init__(self, source, convolution=None):
        super().__init__(name=source.name)
        self.similarity, self.epsilon_inside_sqrt = source.similarity, source.epsilon_inside_sqrt
        self.unbiased, self.epsilon = source.unbiased, source.epsilon
        # Two numbers and one-channel kernels become constants of the graph: reading variables takes time too.
        self.gamma, self.beta = (float(np.asarray(weight)[0]) for weight in (source.gamma, source.beta))
        self.embedding = source.embedding and [
            [[np.asarray(weight) for weight in pair] for pair in role] for role in source.embedding
        ]
        self.kernel = None
        if convolution is not None:
            kernel, bias = convolution
            self.kernel = constant_weight(self, "kernel", kernel)
            self.bias = constant_weight(self, "bias", bias)
            self.mean_kernel = kernel.mean(-1, keepdims=True, dtype="float64").astype("float32")
            self.mean_bias = np.float32(bias.mean(dtype="float64"))

    @staticmethod
    def takes(kernel, output_shape):
        """Whether it saves work to have the convolution before it, with the kernel (c, filters), as a part of it.

        Args:
            kernel: of the 1x1 convolution.
            output_shape: of the convolution, (batch, h, w, filters); h and w may be unknown.
        """
        (inputs, filters), (height, width) = kernel.shape, output_shape[1:3]
        # Half as many positions as inputs, because a batch of several images reads the kernel once.
        enough = height is None or width is None or 2 * height * width >= inputs
        return inputs < filters and enough

    def product_with(self, h, kernel):
        """Of each position of h with a kernel (c, 1): (b, h, w, 1)."""
        # Not a convolution, which takes 60 us longer at batch 1; nor a product of batches, as long.
        return as_map(ops.matmul(ops.reshape(h, (-1, h.shape[3])), kernel), h)

    def channel_mean(self, h):
        """Of the convolution's output, or of h: (b, h, w, 1)."""
        if self.kernel is not None:
            mean = self.product_with(h, self.mean_kernel)
            return mean if self.embedding is None else mean + self.mean_bias  # which cancels in the difference
        return ops.mean(h, axis=3, keepdims=True)

    def weighs_equally(self, h):
        """Whether all positions have the same weight: Table 3's plain mean, and maps of one position."""
        return self.similarity is None or h.shape[1:3] == (1, 1)

    def compared(self, h):
        """The channel mean of each position (b, h * w) and of the image (b, 1), or embeddings of them."""
        key = query = self.channel_mean(h)
        if self.embedding is not None:
            key, query = (embed(key, role) for role in self.embedding)
        # Flat, because a mean over two axes of a one-channel map takes eight times as long as over one axis.
        return flat_positions(key), ops.mean(flat_positions(query), axis=1, keepdims=True)

    def weighted_mean(self, h, scores):
        """Of h (b, h, w, c) over the positions, with the softmax of scores (b, h * w): (b, c)."""
        # The logarithm first, because the softmax by itself goes to oneDNN, which takes longer on long rows.
        weights = ops.exp(ops.log_softmax(scores, axis=1))
        if h.shape[1] and h.shape[2] and h.shape[1] * h.shape[2] * h.shape[3] < LARGE:
            # A matrix product of batches has some 50 us of its own in TensorFlow, as long as all else here takes.
            return ops.sum(h * as_map(weights, h), axis=(1, 2))
        return ops.squeeze(ops.matmul(weights[:, None], flat_positions(h, h.shape[3])), 1)

    def context(self, h):
        """Equation 6: (b, filters)."""
        if self.weighs_equally(h):
            context = ops.mean(h, axis=(1, 2))
        else:
            key, query = self.compared(h)
            context = self.weighted_mean(h, -ops.abs(key - query))
        return context if self.kernel is None else ops.matmul(context, self.kernel) + self.bias

    def sum_of_squares(self, channels):
        """With S = the sum of the squared deviations d from the mean, of which eq. 7 takes the share 1 / n:
        (epsilon beside S or its root, gamma), each times what keeps eq. 8 the same.

        gamma d / sqrt(S / n + epsilon)     = gamma sqrt(n) d / sqrt(S + n epsilon)
        gamma d / (sqrt(S / n) + epsilon)   = gamma sqrt(n) d / (sqrt(S) + sqrt(n) epsilon)
        """
        share = channels - 1 if self.unbiased else channels
        return self.epsilon * (share if self.epsilon_inside_sqrt else share**0.5), self.gamma * share**0.5

    def gate(self, h):
        """Equations 7 to 9, the factors of the channels: (b, 1, 1, filters), in (0, 1)."""
        context = self.context(h)
        epsilon, gamma = self.sum_of_squares(context.shape[1])
        deviation = context - ops.mean(context, axis=1, keepdims=True)
        squares = ops.sum(deviation * deviation, axis=1, keepdims=True)  # not EuclideanNorm: tf2onnx has none
        if self.epsilon_inside_sqrt:
            scale = gamma * ops.rsqrt(squares + epsilon)
        else:
            scale = gamma / (ops.sqrt(squares) + epsilon)
        return ops.reshape(ops.sigmoid(deviation * scale + self.beta), (-1, 1, 1, context.shape[1]))

    def call(self, h):
        """The convolution's output, or h, times the gate."""
        x = h if self.kernel is None else convolve(h, self.kernel) + self.bias
        with keras.name_scope(GATE_SCOPE):
            gate = self.gate(h)
        return x * gate


class LiteAttention(DeployAttention):
    """The same in operations that LiteRT's CPU delegate computes faster."""

    def product_with(self, h, kernel):
        """As a product and a sum: packing the map for a convolution takes longer."""
        return ops.sum(h * kernel[:, 0], axis=3, keepdims=True)

    def weighted_mean(self, h, scores):
        """As a product and a sum again."""
        weights = ops.softmax(scores, axis=1)  # one operation; of five small ones each takes as long
        return ops.sum(h * as_map(weights, h), axis=(1, 2))


class IntegerSafeAttention(LiteAttention):
    """The same without softmax and division, for full int8; see the head of the file."""

    def product_with(self, h, kernel):
        """As a 1x1 convolution: in int8 products and means over the channels take longer, in float less."""
        return convolve(h, kernel)

    def channel_mean(self, h):
        """As a product in any case."""
        if self.kernel is not None:
            return super().channel_mean(h)
        return self.product_with(h, np.full((h.shape[3], 1), 1 / h.shape[3], "float32"))

    def gate(self, h):
        """The factors of the channels: (b, 1, w, filters); repeated along the width, for then the product with x runs
        over rows of w * filters numbers instead of filters (int8, 112 x 112 x 16: 72 us instead of 122).
        """
        if self.weighs_equally(h):
            total, context = 1.0, ops.mean(h, axis=(1, 2), keepdims=True)
        else:
            key, query = self.compared(h)
            scores = ops.minimum(key - query, query - key)  # TFLite has no int8 form of the negative
            weights = as_map(ops.exp(scores), h)
            total = ops.mean(weights, axis=(1, 2), keepdims=True)
            context = ops.mean(h * weights, axis=(1, 2), keepdims=True)
        if self.kernel is not None:
            context = convolve(context, self.kernel) + total * self.bias
        channels = context.shape[3]
        # The mean of squares, because their sum would need more steps of 1/256 than int8 has.
        factor = (channels - 1) / channels if self.unbiased else 1.0
        gamma = self.gamma * factor**0.5
        deviation = context - ops.mean(context, axis=3, keepdims=True)
        # Not ops.square: the converter would make it SQUARED_DIFFERENCE, which has no 16-bit form.
        variance = ops.mean(deviation * deviation, axis=3, keepdims=True)
        epsilon = factor * self.epsilon * ops.square(total) if self.epsilon_inside_sqrt else SMALLEST_VARIANCE
        beta = np.full((1, 1, h.shape[2] or 1, channels), self.beta, "float32")
        return ops.sigmoid(deviation * (ops.rsqrt(variance + epsilon) * gamma) + beta)


SIMILARITIES = ("channel_mean", None)  # of the layers that have these forms
FORMS = {"tensorflow": DeployAttention, "tflite": LiteAttention, "integer_safe": IntegerSafeAttention}


def has_form(attention):
    """Whether a NA layer has these forms."""
    return attention.similarity in SIMILARITIES and attention.data_format == "channels_last"


def check_integer_safe(attention):
    """Raises ValueError unless a NA layer has an integer-safe form."""
    if not has_form(attention):
        raise ValueError(
            "The integer-safe form exists for NormalizationAttention with similarity 'channel_mean' or None and "
            f"channels_last. Received: {attention.name} with similarity={attention.similarity!r}, "
            f"data_format={attention.data_format!r}. Leave the full-integer types out of the export."
        )
