"""SE and ECA as they are exported in float, where a 1x1 convolution x = W h + b to more channels comes right before.

Their gates depend on x by its mean over the positions alone, and mean(x) = W mean(h) + b: the narrow h is read instead
of x. SE's first fully connected layer takes W and b in, so that this reads no more weights either.

Nothing here is registered with Keras: a deploy copy is exported, never saved as a .keras file.
"""

import numpy as np
from keras import layers, ops

from na_keras.deploy.attention_forms import DeployAttention, constant_weight, convolve
from na_keras.layers import EfficientChannelAttention, SqueezeExcite
from na_keras.layers.efficient_channel_attention import gate_of_mean as eca_gate
from na_keras.layers.squeeze_excite import gate_of_mean as se_gate


class MeanGate(layers.Layer):
    """A convolution and the attention layer behind it. (b, h, w, c) -> (b, h, w, filters).

    Args:
        source: the built attention layer.
        convolution: (kernel (c, filters), bias (filters,)) of the 1x1 convolution.
    """

    def __init__(self, source, convolution):
        super().__init__(name=source.name)
        self.kernel, self.bias = (
            constant_weight(self, *pair) for pair in zip(("kernel", "bias"), convolution, strict=True)
        )

    def call(self, h):
        """The convolution's output times the gate."""
        return (convolve(h, self.kernel) + self.bias) * self.gate(ops.mean(h, axis=(1, 2)))


class DeploySqueezeExcite(MeanGate):
    """SE; its hidden layer sees W mean(h) + b as one product."""

    def __init__(self, source, convolution):
        super().__init__(source, convolution)
        squeeze, excite = (
            [np.asarray(part, "float64") for part in (layer.kernel, layer.bias)]
            for layer in (source.squeeze, source.excite)
        )
        kernel, bias = (np.asarray(part, "float64") for part in convolution)
        squeeze = kernel @ squeeze[0], bias @ squeeze[0] + squeeze[1]
        self.squeeze, self.excite = (
            [
                constant_weight(self, f"{name}_{part}", value)
                for part, value in zip(("kernel", "bias"), pair, strict=True)
            ]
            for name, pair in (("squeeze", squeeze), ("excite", excite))
        )

    @staticmethod
    def takes(source, kernel, output_shape):
        """Whether it saves work; see DeployAttention.takes."""
        quantized = any(getattr(layer, "quantization_mode", None) for layer in (source.squeeze, source.excite))
        return source.data_format == "channels_last" and not quantized and kernel.shape[0] < kernel.shape[1]

    def gate(self, mean):
        """Of the mean (b, c) of h: (b, 1, 1, filters)."""
        return se_gate(mean, self.squeeze, self.excite, "channels_last")


class DeployEfficientChannelAttention(MeanGate):
    """ECA."""

    def __init__(self, source, convolution):
        super().__init__(source, convolution)
        self.along_channels = np.asarray(source.kernel)

    @staticmethod
    def takes(source, kernel, output_shape):
        """Whether it saves work: the product with W reads it once more, as NA's."""
        return source.data_format == "channels_last" and DeployAttention.takes(kernel, output_shape)

    def gate(self, mean):
        """Of the mean (b, c) of h: (b, 1, 1, filters)."""
        return eca_gate(ops.matmul(mean, self.kernel) + self.bias, self.along_channels, "channels_last")


MEAN_GATES = {SqueezeExcite: DeploySqueezeExcite, EfficientChannelAttention: DeployEfficientChannelAttention}
