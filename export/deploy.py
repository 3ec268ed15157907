"""The network as it ships: the same function of the image, with less work in it.

    float32             whatever the training policy was: a mixed-precision graph does not convert to TFLite's builtin
                        operations, and on a CPU it is slower, not faster
    batch norm          folded into the convolution before it
    NA in float         the layer's arithmetic, epsilon included, in operations that are fast on CPUs
    NA integer-safe     for full int8: no softmax, whose int8 form has steps of 1/256, which is more than the weight of
                        any position of a 56 x 56 map; no division, which fails where its quantized divisor is 0. The
                        weights are left without their common denominator s = mean of e, because eq. 7 is blind to a
                        positive factor of the context. Only epsilon would notice: beside s * std, 1e-5 * s becomes 1e-5.

Where a 1x1 convolution x = W h + b to more channels comes right before NA (ResNet's bottlenecks), both forms take the
context from the narrow h. With weights a_i over the positions that sum to 1,

    mean over channels of x_i   =   (mean over outputs of W) . h_i + mean(b)
    sum_i a_i x_i               =   W (sum_i a_i h_i) + b

Nothing here is registered with Keras: a deploy copy is exported, never saved as a .keras file.
"""

import keras
import numpy as np
from keras import layers, ops

from na_keras import NormalizationAttention, graph
from na_keras.layers.normalization_attention import embed, normalized_gate

HALF_PRECISION = ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16")
CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D)  # that batch norm is folded into; not their subclasses
SIMILARITIES = ("channel_mean", None)  # of NA with a deploy form; the others stay library layers in float files
SMALLEST_VARIANCE = 1e-10  # what takes epsilon's place in the integer-safe form: (1e-5) ** 2


def with_float32(config):
    """A copy of a Keras configuration in which every dtype and dtype policy of floating type is float32."""
    if isinstance(config, dict):
        config = {key: with_float32(value) for key, value in config.items()}
        if config.get("class_name") == "DTypePolicy":
            config["config"] = {**config["config"], "name": "float32"}
        if config.get("dtype") in HALF_PRECISION:
            config["dtype"] = "float32"
        return config
    if isinstance(config, list | tuple):
        return type(config)(with_float32(value) for value in config)
    return config


def float32_copy(model):
    """The same network with the same weights, built to compute in float32."""
    copy = type(model).from_config(with_float32(model.get_config()))
    copy.set_weights(model.get_weights())
    return copy


def convolve(x, kernel):
    """1x1 convolution of x (b, h, w, c) with a kernel (c, filters)."""
    return ops.conv(x, kernel[None, None], padding="valid", data_format="channels_last")


def flat(x):
    """(b, h, w, c) -> (b, h * w, c). The batch size may be unknown, and height and width with it."""
    batch, height, width, channels = x.shape
    if height is None or width is None:
        return ops.reshape(x, (ops.shape(x)[0], -1, channels))
    return ops.reshape(x, (-1, height * width, channels))


def like(positions, x):
    """(b, h * w, 1) -> (b, h, w, 1), the height and width of x."""
    return ops.reshape(positions, (-1, *ops.shape(x)[1:3], 1))


class DeployAttention(layers.Layer):
    """NA in float, with the convolution before it or without. (b, h, w, c) -> (b, h, w, filters).

    Args:
        source: the built NormalizationAttention.
        convolution: None, or (kernel (c, filters), bias (filters,)) of the 1x1 convolution that is part of this layer.
    """

    def __init__(self, source, convolution=None):
        super().__init__(name=source.name)
        self.similarity, self.unbiased = source.similarity, source.unbiased
        self.epsilon, self.epsilon_inside_sqrt = source.epsilon, source.epsilon_inside_sqrt
        self.gamma, self.beta = self._constant("gamma", source.gamma), self._constant("beta", source.beta)
        self.embedding = source.embedding and [
            [[self._constant("embedding", array) for array in pair] for pair in role] for role in source.embedding
        ]
        self.kernel = None
        if convolution is not None:
            kernel, bias = convolution
            self.kernel, self.bias = self._constant("kernel", kernel), self._constant("bias", bias)
            self.mean_kernel = self._constant("mean_kernel", kernel.mean(-1, keepdims=True, dtype="float64"))
            self.mean_bias = self._constant("mean_bias", bias.mean(dtype="float64"))

    def _constant(self, name, value):
        value = np.asarray(value, "float32")
        return self.add_weight(
            value.shape, lambda shape, dtype=None: ops.convert_to_tensor(value), name=name, trainable=False
        )

    def compared(self, h):
        """The channel mean of each position (b, h * w, 1) and of the image (b, 1, 1), or embeddings of them."""
        if self.kernel is None:
            # As a convolution, which TFLite's delegate computes faster than a mean over the last axis.
            mean = convolve(h, np.full((h.shape[3], 1), 1 / h.shape[3], "float32"))
        else:
            mean = convolve(h, self.mean_kernel) + self.mean_bias
        key = query = mean
        if self.embedding is not None:
            key, query = (embed(mean, role) for role in self.embedding)
        # Flat, because a mean over two axes of a one-channel map takes eight times as long as over one axis.
        return flat(key), ops.mean(flat(query), axis=1, keepdims=True)

    def context(self, h):
        """Equation 6: (b, 1, 1, filters)."""
        if self.similarity is None:
            pooled = ops.mean(h, axis=(1, 2), keepdims=True)
        else:
            key, query = self.compared(h)
            scores = -ops.abs(key - query)
            # Not ops.softmax: TensorFlow's takes .02 of the whole network's time on these maps.
            weights = ops.exp(scores - ops.max(scores, axis=1, keepdims=True))
            if self.kernel is None:
                pooled = ops.sum(h * like(weights, h), axis=(1, 2), keepdims=True)
            else:
                pooled = ops.matmul(ops.transpose(weights, (0, 2, 1)), flat(h))[:, None]
            pooled = pooled / ops.sum(weights, axis=1, keepdims=True)[:, None]
        return pooled if self.kernel is None else convolve(pooled, self.kernel) + self.bias

    def gate(self, h):
        """The factors of the channels: (b, 1, 1, filters), in (0, 1)."""
        context = self.context(h)
        return normalized_gate(context, self.gamma, self.beta, 3, self.unbiased, self.epsilon, self.epsilon_inside_sqrt)

    def call(self, h):
        """The convolution's output, or h, times the gate."""
        x = h if self.kernel is None else convolve(h, self.kernel) + self.bias
        return x * self.gate(h)


class IntegerSafeAttention(DeployAttention):
    """The same without softmax and division, for full int8; see the head of the file."""

    def gate(self, h):
        """The factors of the channels: (b, 1, w, filters); repeated along the width, for then the product with x runs
        over rows of w * filters numbers instead of filters (int8, 112 x 112 x 16: 72 us instead of 122).
        """
        if self.similarity is None:
            total, context = 1.0, ops.mean(h, axis=(1, 2), keepdims=True)
        else:
            key, query = self.compared(h)
            scores = ops.minimum(key - query, query - key)  # TFLite has no int8 form of the negative
            weights = like(ops.exp(scores), h)
            total = ops.mean(weights, axis=(1, 2), keepdims=True)
            context = ops.mean(h * weights, axis=(1, 2), keepdims=True)
        if self.kernel is not None:
            context = convolve(context, self.kernel) + total * self.bias
        channels = context.shape[3]
        deviation = context - ops.mean(context, axis=3, keepdims=True)
        # Not ops.square: the converter would make it SQUARED_DIFFERENCE, which has no 16-bit form.
        variance = ops.mean(deviation * deviation, axis=3, keepdims=True)
        if self.unbiased:
            variance = variance * (channels / (channels - 1))
        epsilon = self.epsilon * ops.square(total) if self.epsilon_inside_sqrt else SMALLEST_VARIANCE
        beta = ops.broadcast_to(self.beta, (1, 1, h.shape[2] or 1, channels))
        return ops.sigmoid(deviation * (ops.rsqrt(variance + epsilon) * self.gamma) + beta)


def folded(convolution, norm):
    """(kernel, bias) of a convolution that computes what `convolution` and then `norm`, at inference, compute."""
    array = lambda weight, default: default if weight is None else np.asarray(weight, "float64")  # noqa: E731
    scale = array(norm.gamma, 1.0) / np.sqrt(array(norm.moving_variance, None) + norm.epsilon)
    bias = (array(convolution.bias, 0.0) - array(norm.moving_mean, None)) * scale + array(norm.beta, 0.0)
    kernel = np.asarray(convolution.kernel, "float64")
    if isinstance(convolution, layers.DepthwiseConv2D):  # (k, k, channels, multiplier)
        scale = scale.reshape(kernel.shape[2:])
    return (kernel * scale).astype("float32"), bias.astype("float32")


class Plan:
    """What becomes of each layer of a functional model.

    Attributes:
        replaced: {id of a layer: function of its input}.
        dropped: ids of the layers whose work another one does.
        counts: how many batch norms were folded, NA rewritten, and of these projected.
    """

    def __init__(self, model, form):
        self.replaced, self.dropped = {}, set()
        self.counts = {"batch_norm_folded": 0, "attention": 0, "attention_projected": 0}
        self.form = form
        calls = graph.calls(model)
        uses = [id(call.operation) for call in calls]
        once = {use for use in uses if uses.count(use) == 1}
        self.followers = {}
        for call in calls:
            for tensor in call.inputs:
                self.followers.setdefault(id(tensor), []).append(call)
        for tensor in model.outputs:
            self.followers.setdefault(id(tensor), []).append(None)
        for call in calls:
            if type(call.operation) in CONVOLUTIONS and id(call.operation) in once:
                self.plan_convolution(call, once)
            elif isinstance(call.operation, NormalizationAttention) and id(call.operation) in once - self.dropped:
                self.plan_attention(call.operation)

    def only_follower(self, call, kind, once):
        """The one call that takes this call's output, if its operation is of this kind and called nowhere else."""
        followers = self.followers.get(id(call.outputs[0]), [])
        (follower,) = followers if len(followers) == 1 else (None,)
        fits = follower is not None and type(follower.operation) is kind and id(follower.operation) in once
        return follower if fits else None

    def plan_convolution(self, call, once):
        """Folds the batch norm after a convolution, and the convolution into NA after that if that saves work."""
        convolution = call.operation
        norm = self.only_follower(call, layers.BatchNormalization, once)
        channel_axis = {"channels_last": 3, "channels_first": 1}[convolution.data_format]
        if convolution.activation is not keras.activations.linear or norm is None:
            return
        if norm.operation.axis % 4 != channel_axis:
            return
        kernel, bias = folded(convolution, norm.operation)
        self.dropped.add(id(norm.operation))
        self.counts["batch_norm_folded"] += 1
        attention = self.only_follower(norm, NormalizationAttention, once)
        pointwise = type(convolution) is layers.Conv2D and kernel.shape[:2] == convolution.strides == (1, 1)
        if attention is not None and has_form(attention.operation) and pointwise and convolution.groups == 1:
            if kernel.shape[2] < kernel.shape[3]:
                self.replaced[id(convolution)] = self.form(attention.operation, (kernel[0, 0], bias))
                self.dropped.add(id(attention.operation))
                self.counts["attention"] += 1
                self.counts["attention_projected"] += 1
                return
        with_bias = type(convolution).from_config({**convolution.get_config(), "use_bias": True})
        with_bias.build(call.inputs[0].shape)
        with_bias.set_weights([kernel, bias])
        self.replaced[id(convolution)] = with_bias

    def plan_attention(self, attention):
        """Puts the deploy form in the place of a NA layer."""
        if has_form(attention):
            self.replaced[id(attention)] = self.form(attention)
            self.counts["attention"] += 1
        elif self.form is IntegerSafeAttention:
            raise ValueError(
                "The integer-safe form exists for NormalizationAttention with similarity 'channel_mean' or None and "
                f"channels_last. Received: {attention.name} with similarity={attention.similarity!r}, "
                f"data_format={attention.data_format!r}. Leave the full-integer types out of the export."
            )


def has_form(attention):
    """Whether a NA layer has a deploy form."""
    return attention.similarity in SIMILARITIES and attention.data_format == "channels_last"


def deploy_copy(model, integer_safe=False):
    """The network in deploy form.

    Args:
        model: functional Keras model, or a Sequential with a known input shape. It is left as it is.
        integer_safe: False: NA's arithmetic as trained, for float files. True: the form for full int8.

    Returns:
        (keras.Model with the same inputs and outputs, {"batch_norm_folded": n, "attention": n, "attention_projected": n}).
        Models inside the model are flattened into it.

    Raises:
        ValueError: the model has no graph to rewrite; `integer_safe` and a NA layer without such a form.
    """
    source = graph.checked_functional(float32_copy(model), "deploy_copy")
    form = IntegerSafeAttention if integer_safe else DeployAttention
    plans, copies = [], {}

    def rewrite(functional, inputs):
        plan = Plan(functional, form)
        plans.append(plan)

        def call(operation, *args, **kwargs):
            if id(operation) in plan.dropped:
                return args[0]
            if id(operation) in plan.replaced:
                return plan.replaced[id(operation)](args[0])
            inner = graph.nested(operation)
            if inner is not None:
                return keras.tree.pack_sequence_as(inner.output, rewrite(inner, args[0]))
            if id(operation) not in copies:
                copies[id(operation)] = type(operation).from_config(operation.get_config())
            copied = copies[id(operation)]
            outputs = copied(*args, **kwargs)
            if isinstance(copied, layers.Layer):
                copied.set_weights(operation.get_weights())
            if isinstance(copied, layers.Normalization):
                copied.finalize_state()  # it computes with a form of its weights
            return outputs

        return graph.run(functional, inputs, call)

    inputs = graph.fresh_inputs(source)
    outputs = keras.tree.pack_sequence_as(source.output, rewrite(source, inputs))
    counts = {name: sum(plan.counts[name] for plan in plans) for name in plans[0].counts}
    return keras.Model(inputs, outputs, name=source.name), counts
