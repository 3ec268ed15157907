"""The attention modules of Table 4 as layers of tf_keras, around the library's functions.

Names, shapes and order of the weights are those of the layers of the same name in na_keras.layers, so that weights go
from one to the other by `set_weights`. Feature maps are (batch, height, width, channels); weights are float32 under any
mixed-precision policy.
"""

from functools import partial

import tf_keras

from na_keras.layers.feature_map import check_reduction
from na_keras.layers.global_context import global_context
from na_keras.layers.initializers import KAIMING_NORMAL_FAN_IN
from na_keras.layers.normalization_attention import normalization_attention
from na_keras.layers.squeeze_excite import squeeze_excite


class AttentionLayer(tf_keras.layers.Layer):
    """A layer with float32 weights."""

    def weight(self, name, shape, initializer):
        """A float32 variable, which no policy casts: the functions decide."""
        options = {"dtype": "float32", "experimental_autocast": False}
        return self.add_weight(name=name, shape=shape, initializer=initializer, **options)

    def dense(self, name, inputs, units, initializer=None):
        """(kernel, bias) of a fully connected layer; by default as torch.nn.Linear draws them."""
        # A configuration: each weight gets an initializer, with a seed, of its own.
        uniform = {"class_name": "RandomUniform", "config": {"minval": -(inputs**-0.5), "maxval": inputs**-0.5}}
        initial = initializer or uniform
        shapes = {"kernel": (inputs, units), "bias": (units,)}
        return tuple(self.weight(f"{name}/{part}", shape, initial) for part, shape in shapes.items())


class NormalizationAttention(AttentionLayer):
    """NA. `options` are those of na_keras.layers.normalization_attention.normalization_attention, as plain values."""

    def __init__(self, options=None, **kwargs):
        super().__init__(**kwargs)
        self.options = dict(options or {})

    def build(self, input_shape):
        """Creates gamma and beta, each of shape (1,)."""
        self.gamma, self.beta = self.weight("gamma", (1,), "zeros"), self.weight("beta", (1,), "ones")
        super().build(input_shape)

    def call(self, x):
        """x times its gate, in the dtype of x."""
        return normalization_attention(x, self.gamma, self.beta, **self.options)

    def get_config(self):
        """All constructor arguments as plain values."""
        return {**super().get_config(), "options": self.options}


class ReducingAttention(AttentionLayer):
    """What SE and GC share: a hidden layer of channels // reduction features."""

    smallest = 1  # features of the hidden layer

    def __init__(self, reduction=16, **kwargs):
        super().__init__(**kwargs)
        self.reduction = reduction

    def features(self, channels):
        """Of the hidden layer. Raises ValueError: too few."""
        check_reduction(type(self).__name__, channels, self.reduction, features=self.smallest)
        return channels // self.reduction

    def get_config(self):
        """All constructor arguments as plain values."""
        return {**super().get_config(), "reduction": self.reduction}


class SqueezeExcite(ReducingAttention):
    """SE."""

    def build(self, input_shape):
        """Creates kernel and bias of two fully connected layers."""
        channels = input_shape[-1]
        features = self.features(channels)
        self.squeeze = self.dense("squeeze", channels, features)
        self.excite = self.dense("excite", features, channels)
        super().build(input_shape)

    def call(self, x):
        """x times its gate, in the dtype of x."""
        return squeeze_excite(x, self.squeeze, self.excite)


class GlobalContext(ReducingAttention):
    """GC."""

    smallest = 2

    def build(self, input_shape):
        """Creates the mask's weights, and those of the transform."""
        channels = input_shape[-1]
        features = self.features(channels)
        self.mask = (
            self.weight("mask_kernel", (channels,), KAIMING_NORMAL_FAN_IN),
            self.weight("mask_bias", (1,), "zeros"),
        )
        self.squeeze = self.dense("squeeze", channels, features)
        self.norm = self.weight("norm/gamma", (features,), "ones"), self.weight("norm/beta", (features,), "zeros")
        self.excite = self.dense("excite", features, channels, "zeros")
        super().build(input_shape)

    def call(self, x):
        """x plus the transformed context, in the dtype of x."""
        return global_context(x, self.mask, self.squeeze, self.norm, self.excite)


PAPER = {"similarity": "l1", "unbiased": False, "epsilon_inside_sqrt": True}
# The names of na_keras.ATTENTION that a detector's backbone takes.
ATTENTION = {
    "na": NormalizationAttention,
    "na_paper": partial(NormalizationAttention, options=PAPER),
    "na_mean": partial(NormalizationAttention, options={"similarity": None}),
    "se": SqueezeExcite,
    "gc": GlobalContext,
}


def get_attention(name):
    """The factory of that name, None for None. Raises ValueError: no such name (the message lists them)."""
    if name is None or name in ATTENTION:
        return ATTENTION.get(name)
    raise ValueError(f"A detector's backbone takes attention none, {', '.join(ATTENTION)}. Received: {name!r}")
