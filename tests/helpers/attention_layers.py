"""The contract table: every attention layer with the arguments and the input that its tests use. A row a layer or form.

A new layer joins by one row here, and gets test_layers_contract.py; with an oracle, test_layers_peers.py as well.
"""

import typing

import keras
import numpy as np
import reference
import reference_peers as peers

import na_keras


def normalization_attention(x, w, embedding_kernel_size=None, **options):
    def convolution(name):
        return w[f"{name}_kernel"], w[f"{name}_bias"]

    embedding = None
    if embedding_kernel_size:
        embedding = [[convolution(f"{role}_{order}") for order in (1, 2)] for role in ("key", "query")]
    return reference.normalization_attention(x, w["gamma"], w["beta"], embedding=embedding, **options)


class Row(typing.NamedTuple):
    """A layer class, constructor arguments, channels, and the float64 function that computes the same."""

    layer: type
    arguments: dict
    channels: int
    oracle: typing.Callable


ROWS = {
    "na": Row(na_keras.NormalizationAttention, {}, 8, normalization_attention),
    "na_embedding": Row(na_keras.NormalizationAttention, {"embedding_kernel_size": 3}, 8, normalization_attention),
    "se": Row(na_keras.SqueezeExcite, {"reduction": 4}, 8, peers.squeeze_excite),
    "ge": Row(na_keras.GatherExcite, {}, 8, peers.gather_excite),
    "ge_pooled": Row(na_keras.GatherExcite, {"extent": 3}, 8, peers.gather_excite),
    "ge_parametrized": Row(na_keras.GatherExcite, {"extent": 4, "parametrized": True}, 8, peers.gather_excite),
    "cbam": Row(na_keras.CBAM, {"reduction": 4, "kernel_size": 5}, 8, peers.cbam),
    "gc": Row(na_keras.GlobalContext, {"reduction": 2}, 8, peers.global_context),
    "sk": Row(na_keras.SelectiveKernel, {"groups": (1, 4), "reduction": 2}, 8, peers.selective_kernel),
    "sk_strided": Row(
        na_keras.SelectiveKernel,
        {"filters": 12, "strides": 2, "groups": (1, 4), "reduction": 8, "minimum_features": 3},
        8,
        peers.selective_kernel,
    ),
    "sk_dilated": Row(
        na_keras.SelectiveKernel,
        {"groups": (4, 4, 1), "dilation_rates": (1, 2, 1), "reduction": 4},
        8,
        peers.selective_kernel,
    ),
    "sge": Row(na_keras.SpatialGroupEnhance, {"groups": 4}, 8, peers.spatial_group_enhance),
    "non_local": Row(na_keras.NonLocal, {}, 8, peers.non_local),
    "non_local_gaussian": Row(na_keras.NonLocal, {"pairwise": "gaussian", "subsample": True}, 8, peers.non_local),
    "non_local_dot": Row(na_keras.NonLocal, {"pairwise": "dot_product", "subsample": True}, 8, peers.non_local),
    "non_local_concatenation": Row(na_keras.NonLocal, {"pairwise": "concatenation"}, 8, peers.non_local),
    "eca": Row(na_keras.EfficientChannelAttention, {"kernel_size": 5}, 8, peers.efficient_channel_attention),
    "simam": Row(na_keras.SimAM, {}, 8, peers.simam),
    "lct": Row(na_keras.LinearContextTransform, {"groups": 2}, 8, peers.linear_context_transform),
    "srm": Row(na_keras.StyleRecalibration, {}, 8, peers.style_recalibration),
}


def make(name, **options):
    """The row's layer, built, with weights that hide nothing: no zeros, no ones, positive variances."""
    row = ROWS[name]
    layer = row.layer(**row.arguments, **options)
    shape = [None, None, None, None]
    shape[layer.channel_axis] = row.channels
    layer.build(tuple(shape))
    randomize(layer)
    return layer


def randomize(layer):
    rng = np.random.default_rng(0)
    for weight in layer.weights:
        low, high = (0.5, 1.5) if weight.path.endswith("variance") else (-0.8, 0.8)
        weight.assign(rng.uniform(low, high, weight.shape))


def features(name, shape=(2, 5, 7), seed=0):
    """A batch of feature maps, float32, channels last."""
    return np.random.default_rng(seed).normal(0, 1, (*shape, ROWS[name].channels)).astype("float32")


def weights_of(layer):
    """{"sublayer/weight": float64 array}, without the layer's own name."""
    return {
        weight.path.removeprefix(f"{layer.name}/"): keras.ops.convert_to_numpy(weight).astype("float64")
        for weight in layer.weights
    }


def oracle(name, layer, x):
    """What the layer should return for x, channels last, in float64."""
    row = ROWS[name]
    return row.oracle(np.asarray(x, "float64"), weights_of(layer), **row.arguments)
