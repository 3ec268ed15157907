"""Each module is a function of a feature map and explicit weights; its layer adds nothing to that but the weights.

Another implementation of Keras' layers can therefore hold the weights and call the same function.
"""

import keras
import numpy as np
import pytest
from attention_layers import ROWS, features, make
from keras import ops

from na_keras.layers import (
    cbam,
    efficient_channel_attention,
    gather_excite,
    global_context,
    linear_context_transform,
    non_local,
    normalization_attention,
    selective_kernel,
    simam,
    spatial_group_enhance,
    squeeze_excite,
    style_recalibration,
)
from na_keras.layers.feature_map import linear


def dense(layer):
    """A Dense layer without activation as a function of its arrays."""
    weights = [keras.ops.convert_to_numpy(weight) for weight in layer.weights]
    return linear(*weights)


def dense_relu(layer):
    return lambda x: ops.relu(dense(layer)(x))


def normed(layer):
    """Batch norm at inference, or layer norm, as arithmetic on its arrays."""
    gamma, beta = (ops.convert_to_numpy(weight) for weight in (layer.gamma, layer.beta))
    if isinstance(layer, keras.layers.LayerNormalization):

        def layer_norm(x):
            mean, variance = ops.mean(x, -1, keepdims=True), ops.var(x, -1, keepdims=True)
            return (x - mean) / ops.sqrt(variance + layer.epsilon) * gamma + beta

        return layer_norm
    mean, variance = (ops.convert_to_numpy(weight) for weight in (layer.moving_mean, layer.moving_variance))
    return lambda x: (x - mean) / np.sqrt(variance + layer.epsilon) * gamma + beta


def convolved(layer):
    """A convolution without bias as a function of its kernel."""
    kernel = ops.convert_to_numpy(layer.kernel)
    options = {"padding": layer.padding, "data_format": "channels_last", "strides": layer.strides}
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return lambda x: ops.depthwise_conv(x, kernel, **options)
    return lambda x: ops.conv(x, kernel, dilation_rate=layer.dilation_rate, **options)


def of_normalization_attention(x, layer):
    names = ("similarity", "unbiased", "epsilon", "epsilon_inside_sqrt", "data_format")
    options = {name: getattr(layer, name) for name in names}
    embedding = layer.embedding and [
        [[ops.convert_to_numpy(weight) for weight in pair] for pair in role] for role in layer.embedding
    ]
    gamma, beta = ops.convert_to_numpy(layer.gamma), ops.convert_to_numpy(layer.beta)
    return normalization_attention.normalization_attention(x, gamma, beta, embedding=embedding, **options)


def of_gather_excite(x, layer):
    steps = [(convolved(a), normed(b)) for a, b in zip(layer.steps[::2], layer.steps[1::2], strict=True)]
    return gather_excite.gather_excite(x, layer.extent, steps, layer.data_format)


def of_selective_kernel(x, layer):
    triples = zip(layer.convolutions, layer.norms, layer.dilation_rates, strict=True)
    branches = [(convolved(convolution), normed(norm), dilation) for convolution, norm, dilation in triples]
    rest = dense(layer.squeeze), normed(layer.squeeze_bn), dense(layer.excite)
    return selective_kernel.selective_kernel(x, branches, *rest, layer.data_format)


def of_non_local(x, layer):
    names = ("query", "key") if hasattr(layer, "query") else ()
    kernel = ops.convert_to_numpy(layer.pair_kernel) if layer.pairwise == "concatenation" else None
    return non_local.non_local(
        x,
        dense(layer.value),
        dense(layer.project),
        normed(layer.project_bn),
        **{name: dense(getattr(layer, name)) for name in names},
        pair_kernel=kernel,
        pairwise=layer.pairwise,
        subsample=layer.subsample,
        data_format=layer.data_format,
    )


def arrays(layer, *names):
    return [ops.convert_to_numpy(getattr(layer, name)) for name in names]


# class name -> function of (x, built layer) that calls the module's function on the layer's weights as plain arrays
FUNCTIONS = {
    "NormalizationAttention": of_normalization_attention,
    "SqueezeExcite": lambda x, layer: squeeze_excite.squeeze_excite(
        x, dense_relu(layer.squeeze), dense(layer.excite), layer.data_format
    ),
    "GatherExcite": of_gather_excite,
    "SelectiveKernel": of_selective_kernel,
    "CBAM": lambda x, layer: cbam.cbam(
        x,
        dense_relu(layer.squeeze),
        dense(layer.excite),
        convolved(layer.spatial_conv),
        normed(layer.spatial_bn),
        layer.data_format,
    ),
    "GlobalContext": lambda x, layer: global_context.global_context(
        x,
        *arrays(layer, "mask_kernel", "mask_bias"),
        dense(layer.squeeze),
        normed(layer.norm),
        dense(layer.excite),
        layer.data_format,
    ),
    "SpatialGroupEnhance": lambda x, layer: spatial_group_enhance.spatial_group_enhance(
        x, *arrays(layer, "gamma", "beta"), layer.epsilon, layer.data_format
    ),
    "LinearContextTransform": lambda x, layer: linear_context_transform.linear_context_transform(
        x, *arrays(layer, "gamma", "beta"), layer.groups, layer.epsilon, layer.data_format
    ),
    "StyleRecalibration": lambda x, layer: style_recalibration.style_recalibration(
        x, *arrays(layer, "mean_weight", "deviation_weight"), normed(layer.bn), layer.epsilon, layer.data_format
    ),
    "EfficientChannelAttention": lambda x, layer: efficient_channel_attention.efficient_channel_attention(
        x, *arrays(layer, "kernel"), layer.data_format
    ),
    "SimAM": lambda x, layer: simam.simam(x, layer.regularization, layer.data_format),
    "NonLocal": of_non_local,
}


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("name", ROWS)
def test_the_function_on_the_layers_weights_is_the_layer(name, data_format):
    layer = make(name, data_format=data_format)
    x = features(name)
    x = np.moveaxis(x, 3, 1) if data_format == "channels_first" else x
    expected = ops.convert_to_numpy(layer(x))
    ours = ops.convert_to_numpy(FUNCTIONS[type(layer).__name__](ops.convert_to_tensor(x), layer))
    # The same operations in float32, but for the norms' own order of multiplications: some units in the last place.
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
