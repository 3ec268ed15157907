"""PyTorch's ResNet50 and MobileNetV2 with NA, inference, written a second time with jax.lax and explicit padding.

Weights come from a dictionary "layer name/weight name" -> array. Only what the arrays cannot say stands here: strides,
padding on both sides, epsilon, the order of operations and where attention sits.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import reference
from jax import lax

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_disable_most_optimizations", True)  # what is compiled runs once or twice

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def weights_of(model):
    return {f"{layer.name}/{w.name}": np.array(w) for layer in model.layers for w in layer.weights}


@functools.partial(jax.jit, static_argnames=("stride", "groups"))
def convolution(x, kernel, stride=1, groups=1):
    half = kernel.shape[0] // 2
    padding = [(half, half), (half, half)]
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=dimensions, feature_group_count=groups
    )


def depthwise(x, kernel, stride):
    channels = kernel.shape[2]
    return convolution(x, kernel.reshape(3, 3, 1, channels), stride, groups=channels)


@jax.jit
def normalize(x, gamma, beta, mean, variance):
    return (x - mean) / jnp.sqrt(variance + 1e-5) * gamma + beta


def norm(x, w, name):
    return normalize(x, *(w[f"{name}/{k}"] for k in ("gamma", "beta", "moving_mean", "moving_variance")))


def attention(x, w, name):
    gamma, beta = w[f"{name}/gamma"], w[f"{name}/beta"]
    return jnp.asarray(reference.normalization_attention(np.asarray(x), gamma, beta), "float32")


def max_pool_3_2_1(x):
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(x, -np.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)


def resnet50(images, w):
    """(b, h, w, 3) in 0..255 -> logits."""
    x = jnp.asarray((images / 255 - MEAN) / DEVIATION, "float32")
    x = jax.nn.relu(norm(convolution(x, w["conv1_conv/kernel"], 2), w, "conv1_bn"))
    x = max_pool_3_2_1(x)
    for stage, blocks in ((2, 3), (3, 4), (4, 6), (5, 3)):
        for block in range(1, blocks + 1):
            name = f"conv{stage}_block{block}"
            stride = 2 if block == 1 and stage > 2 else 1
            y = jax.nn.relu(norm(convolution(x, w[f"{name}_1_conv/kernel"]), w, f"{name}_1_bn"))
            y = jax.nn.relu(norm(convolution(y, w[f"{name}_2_conv/kernel"], stride), w, f"{name}_2_bn"))
            y = norm(convolution(y, w[f"{name}_3_conv/kernel"]), w, f"{name}_3_bn")
            y = attention(y, w, f"{name}_attention")
            if block == 1:
                x = norm(convolution(x, w[f"{name}_0_conv/kernel"], stride), w, f"{name}_0_bn")
            x = jax.nn.relu(x + y)
    return x.mean((1, 2)) @ w["predictions/kernel"] + w["predictions/bias"]


def mobilenet_v2(images, w):
    """(b, h, w, 3) in 0..255 -> logits."""
    x = jnp.asarray((images / 255 - MEAN) / DEVIATION, "float32")
    x = jax.nn.relu6(norm(convolution(x, w["Conv1/kernel"], 2), w, "bn_Conv1"))
    strides = [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1]
    for index, stride in enumerate(strides):
        name = f"block_{index}" if index else "expanded_conv"
        y = x
        if index:
            y = jax.nn.relu6(norm(convolution(y, w[f"{name}_expand/kernel"]), w, f"{name}_expand_BN"))
        y = jax.nn.relu6(norm(depthwise(y, w[f"{name}_depthwise/kernel"], stride), w, f"{name}_depthwise_BN"))
        y = norm(convolution(y, w[f"{name}_project/kernel"]), w, f"{name}_project_BN")
        y = attention(y, w, f"{name}_attention")
        x = x + y if stride == 1 and x.shape == y.shape else y
    x = jax.nn.relu6(norm(convolution(x, w["Conv_1/kernel"]), w, "Conv_1_bn"))
    return x.mean((1, 2)) @ w["predictions/kernel"] + w["predictions/bias"]
