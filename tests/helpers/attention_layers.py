"""The contract table: every attention layer with the arguments and the input that its tests use. A row a layer or form.

A new layer joins by one row here: its float64 oracle, and a call of its pure function with a dictionary of weights.
"""

import typing

import keras
import numpy as np
import reference
import reference_peers as peers

import na_keras
from na_keras.layers import (
    cbam,
    efficient_channel_attention,
    feature_map,
    gather_excite,
    global_context,
    linear_context_transform,
    non_local,
    selective_kernel,
    simam,
    spatial_group_enhance,
    squeeze_excite,
    style_recalibration,
)
from na_keras.layers import normalization_attention as na


def embedding_of(w):
    """Table 2's embedding, as oracle and function take it, or None."""
    if "key_1_kernel" not in w:
        return None
    return [[(w[f"{role}_{order}_kernel"], w[f"{role}_{order}_bias"]) for order in (1, 2)] for role in ("key", "query")]


def normalization_attention(x, w, embedding_kernel_size=None, **options):
    return reference.normalization_attention(x, w["gamma"], w["beta"], embedding=embedding_of(w), **options)


# The layers' pure functions, from (x, {"sublayer/weight": array}, the layer's arguments and data_format): explicit
# weights, no sublayer; batch norm, which is a callable, at inference.


def dense(w, name):
    return w[f"{name}/kernel"], w.get(f"{name}/bias")


def batch_norm(w, name):
    gamma, beta, mean, variance = (w[f"{name}/{k}"] for k in ("gamma", "beta", "moving_mean", "moving_variance"))
    norm = keras.ops.batch_normalization
    return lambda x: keras.ops.cast(norm(x, mean, variance, -1, beta, gamma, epsilon=1e-5), x.dtype)


def na_function(x, w, embedding_kernel_size=None, **options):
    return na.normalization_attention(x, w["gamma"], w["beta"], embedding=embedding_of(w), **options)


def se_function(x, w, reduction, **options):
    return squeeze_excite.squeeze_excite(x, dense(w, "squeeze"), dense(w, "excite"), **options)


def ge_function(x, w, extent=None, parametrized=False, **options):
    names = [f"gather_{order}" for order in range(1, extent.bit_length())] if parametrized else ()
    steps = [(w[f"{name}_depthwise/kernel"], batch_norm(w, f"{name}_bn")) for name in names]
    return gather_excite.gather_excite(x, extent, steps, **options)


def cbam_function(x, w, reduction, kernel_size, **options):
    mlp = dense(w, "squeeze"), dense(w, "excite")
    return cbam.cbam(x, *mlp, w["spatial_conv/kernel"], batch_norm(w, "spatial_bn"), **options)


def gc_function(x, w, reduction, **options):
    mask, norm = (w["mask_kernel"], w["mask_bias"]), (w["norm/gamma"], w["norm/beta"])
    return global_context.global_context(x, mask, dense(w, "squeeze"), norm, dense(w, "excite"), **options)


def sk_function(x, w, groups, data_format, strides=1, dilation_rates=None, **_):
    last = feature_map.to_channels_last(x, data_format)
    branches = [
        selective_kernel.kernel_branch(
            last, w[f"branch_{order}_conv/kernel"], batch_norm(w, f"branch_{order}_bn"), strides, dilation
        )
        for order, dilation in enumerate(dilation_rates or [1] * len(groups), start=1)
    ]
    selected = selective_kernel.select_kernel(
        branches, dense(w, "squeeze"), batch_norm(w, "squeeze_bn"), dense(w, "excite")
    )
    return feature_map.from_channels_last(selected, data_format)


def sge_function(x, w, groups, **options):
    return spatial_group_enhance.spatial_group_enhance(x, w["gamma"], w["beta"], **options)


def non_local_function(x, w, **options):
    optional = {name: dense(w, name) for name in ("query", "key") if f"{name}/kernel" in w}
    weights = non_local.Weights(
        dense(w, "value"),
        dense(w, "project"),
        batch_norm(w, "project_bn"),
        pair_kernel=w.get("pair_kernel"),
        **optional,
    )
    return non_local.non_local(x, weights, **options)


def eca_function(x, w, kernel_size, **options):
    return efficient_channel_attention.efficient_channel_attention(x, w["kernel"], **options)


def simam_function(x, w, **options):
    return simam.simam(x, **options)


def lct_function(x, w, **options):
    return linear_context_transform.linear_context_transform(x, w["gamma"], w["beta"], **options)


def srm_function(x, w, **options):
    weights = w["mean_weight"], w["deviation_weight"], batch_norm(w, "bn")
    return style_recalibration.style_recalibration(x, *weights, **options)


class Row(typing.NamedTuple):
    """A layer class, its arguments, channels, the float64 oracle, and the pure function that the layer calls."""

    layer: type
    arguments: dict
    channels: int
    oracle: typing.Callable
    function: typing.Callable


ROWS = {
    "na": Row(na_keras.NormalizationAttention, {}, 8, normalization_attention, na_function),
    "na_embedding": Row(
        na_keras.NormalizationAttention, {"embedding_kernel_size": 3}, 8, normalization_attention, na_function
    ),
    "se": Row(na_keras.SqueezeExcite, {"reduction": 4}, 8, peers.squeeze_excite, se_function),
    "ge": Row(na_keras.GatherExcite, {}, 8, peers.gather_excite, ge_function),
    "ge_pooled": Row(na_keras.GatherExcite, {"extent": 3}, 8, peers.gather_excite, ge_function),
    "ge_parametrized": Row(
        na_keras.GatherExcite, {"extent": 4, "parametrized": True}, 8, peers.gather_excite, ge_function
    ),
    "cbam": Row(na_keras.CBAM, {"reduction": 4, "kernel_size": 5}, 8, peers.cbam, cbam_function),
    "gc": Row(na_keras.GlobalContext, {"reduction": 2}, 8, peers.global_context, gc_function),
    "sk": Row(na_keras.SelectiveKernel, {"groups": (1, 4), "reduction": 2}, 8, peers.selective_kernel, sk_function),
    "sk_strided": Row(
        na_keras.SelectiveKernel,
        {"filters": 12, "strides": 2, "groups": (1, 4), "reduction": 8, "minimum_features": 3},
        8,
        peers.selective_kernel,
        sk_function,
    ),
    "sk_dilated": Row(
        na_keras.SelectiveKernel,
        {"groups": (4, 4, 1), "dilation_rates": (1, 2, 1), "reduction": 4},
        8,
        peers.selective_kernel,
        sk_function,
    ),
    "sge": Row(na_keras.SpatialGroupEnhance, {"groups": 4}, 8, peers.spatial_group_enhance, sge_function),
    "non_local": Row(na_keras.NonLocal, {}, 8, peers.non_local, non_local_function),
    "non_local_gaussian": Row(
        na_keras.NonLocal, {"pairwise": "gaussian", "subsample": True}, 8, peers.non_local, non_local_function
    ),
    "non_local_dot": Row(
        na_keras.NonLocal, {"pairwise": "dot_product", "subsample": True}, 8, peers.non_local, non_local_function
    ),
    "non_local_concatenation": Row(
        na_keras.NonLocal, {"pairwise": "concatenation"}, 8, peers.non_local, non_local_function
    ),
    "eca": Row(
        na_keras.EfficientChannelAttention, {"kernel_size": 5}, 8, peers.efficient_channel_attention, eca_function
    ),
    "simam": Row(na_keras.SimAM, {}, 8, peers.simam, simam_function),
    "lct": Row(na_keras.LinearContextTransform, {"groups": 2}, 8, peers.linear_context_transform, lct_function),
    "srm": Row(na_keras.StyleRecalibration, {}, 8, peers.style_recalibration, srm_function),
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
