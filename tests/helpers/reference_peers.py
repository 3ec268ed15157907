"""The layers beside NormalizationAttention once more in float64 NumPy, written from the equations: the tests' oracle.

Every function takes x (b, h, w, c) and a dictionary of the layer's weights, "sublayer/weight" -> array, and returns the
same as the layer at inference. Loops and indices where the layers have clever shapes.
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0)


def dense(x, w, name):
    return x @ w[f"{name}/kernel"] + w.get(f"{name}/bias", 0.0)


def batch_norm(x, w, name):
    gamma, beta, mean, variance = (w[f"{name}/{k}"] for k in ("gamma", "beta", "moving_mean", "moving_variance"))
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def convolve(x, kernel, stride=1, dilation=1, groups=1):
    """PyTorch's convolution: zeros on both sides alike; kernel (k, k, inputs of a group, outputs)."""
    size, outputs = kernel.shape[0], kernel.shape[3]
    around = dilation * (size // 2)
    padded = np.pad(x, ((0, 0), (around, around), (around, around), (0, 0)))
    height, width = (-(-side // stride) for side in x.shape[1:3])
    result = np.zeros((x.shape[0], height, width, outputs))
    per_group = (x.shape[3] // groups, outputs // groups)
    for i in range(height):
        for j in range(width):
            rows = [i * stride + dilation * k for k in range(size)]
            columns = [j * stride + dilation * k for k in range(size)]
            window = padded[:, rows][:, :, columns]
            for group in range(groups):
                taken = slice(group * per_group[0], (group + 1) * per_group[0])
                made = slice(group * per_group[1], (group + 1) * per_group[1])
                result[:, i, j, made] = np.einsum("bijc,ijco->bo", window[..., taken], kernel[..., made])
    return result


def excitation(z, w):
    return dense(relu(dense(z, w, "squeeze")), w, "excite")


def squeeze_excite(x, w, reduction=16):
    return x * sigmoid(excitation(x.mean((1, 2)), w))[:, None, None]


def cbam(x, w, reduction=16, kernel_size=7):
    x = x * sigmoid(excitation(x.mean((1, 2)), w) + excitation(x.max((1, 2)), w))[:, None, None]
    maps = np.stack([x.max(3), x.mean(3)], axis=3)
    return x * sigmoid(batch_norm(convolve(maps, w["spatial_conv/kernel"]), w, "spatial_bn"))


def global_context(x, w, reduction=16):
    positions = x.reshape(len(x), -1, x.shape[3])
    weights = softmax(positions @ w["mask_kernel"] + w["mask_bias"], axis=1)
    hidden = dense(np.einsum("bn,bnc->bc", weights, positions), w, "squeeze")
    hidden = (hidden - hidden.mean(1, keepdims=True)) / np.sqrt(hidden.var(1, keepdims=True) + 1e-5)
    return x + dense(relu(hidden * w["norm/gamma"] + w["norm/beta"]), w, "excite")[:, None, None]


def spatial_group_enhance(x, w, groups=64, epsilon=1e-5):
    result, size = np.empty_like(x), x.shape[3] // groups
    for n, image in enumerate(x):
        for group in range(groups):
            features = image[..., group * size : (group + 1) * size]
            scores = features @ features.mean((0, 1))
            sigma = scores.std(ddof=1) if scores.size > 1 else 0.0
            gate = sigmoid(w["gamma"][group] * (scores - scores.mean()) / (sigma + epsilon) + w["beta"][group])
            result[n, ..., group * size : (group + 1) * size] = features * gate[..., None]
    return result


def gather_excite(x, w, extent=None, parametrized=False):
    height, width = x.shape[1:3]
    if extent is None:
        return x * sigmoid(x.mean((1, 2), keepdims=True))
    if parametrized:
        gathered = x
        for order in range(1, int(np.log2(extent)) + 1):
            kernel = w[f"gather_{order}_depthwise/kernel"].transpose(0, 1, 3, 2)  # (3, 3, 1, c): a group a channel
            gathered = batch_norm(convolve(gathered, kernel, 2, groups=x.shape[3]), w, f"gather_{order}_bn")
    else:
        rows, columns = range(0, height, extent), range(0, width, extent)
        near = [[slice(max(0, u - extent + 1), u + extent) for u in side] for side in (rows, columns)]
        gathered = np.stack([np.stack([x[:, i, j].mean((1, 2)) for j in near[1]], 1) for i in near[0]], 1)
    result = np.empty_like(x)
    for i in range(height):
        for j in range(width):
            source = gathered[:, i * gathered.shape[1] // height, j * gathered.shape[2] // width]
            result[:, i, j] = x[:, i, j] * sigmoid(source)
    return result


def selective_kernel(
    x, w, filters=None, strides=1, groups=(1, 32), dilation_rates=(1, 1), reduction=16, minimum_features=1
):
    branches = []
    for order, (number, dilation) in enumerate(zip(groups, dilation_rates, strict=True), start=1):
        u = convolve(x, w[f"branch_{order}_conv/kernel"], strides, dilation, number)
        branches.append(relu(batch_norm(u, w, f"branch_{order}_bn")))
    hidden = relu(batch_norm(dense(sum(branches).mean((1, 2)), w, "squeeze"), w, "squeeze_bn"))
    scores = np.stack(np.split(dense(hidden, w, "excite"), len(branches), axis=1))
    return sum(a[:, None, None] * u for a, u in zip(softmax(scores, axis=0), branches, strict=True))


def non_local(x, w, pairwise="embedded_gaussian", reduction=2, subsample=False):
    def pool(values):  # the maxima of 2 x 2 positions, fewer at the far edges of odd sides
        if not subsample:
            return values.reshape(len(x), -1, values.shape[3])
        rows, columns = range(0, values.shape[1], 2), range(0, values.shape[2], 2)
        return np.stack([values[:, i : i + 2, j : j + 2].max((1, 2)) for i in rows for j in columns], axis=1)

    value = pool(dense(x, w, "value"))
    queries, keys = (x, x) if pairwise == "gaussian" else (dense(x, w, "query"), dense(x, w, "key"))
    queries, keys = queries.reshape(len(x), -1, queries.shape[3]), pool(keys)
    gathered = np.zeros((len(x), queries.shape[1], value.shape[2]))
    for n in range(len(x)):
        for i, query in enumerate(queries[n]):
            if pairwise == "concatenation":
                kernel = w["pair_kernel"].ravel()
                f = np.array([max(0.0, kernel @ np.concatenate([query, key])) for key in keys[n]])
            else:
                f = np.array([query @ key for key in keys[n]])
            f = softmax(f, 0) if "gaussian" in pairwise else f / len(f)
            gathered[n, i] = sum(weight * v for weight, v in zip(f, value[n], strict=True))
    return x + batch_norm(dense(gathered, w, "project"), w, "project_bn").reshape(x.shape)


def efficient_channel_attention(x, w, kernel_size=None):
    z, kernel = x.mean((1, 2)), w["kernel"][:, 0, 0]
    half = len(kernel) // 2
    padded = np.pad(z, ((0, 0), (half, half)))
    scores = np.stack([padded[:, c : c + len(kernel)] @ kernel for c in range(z.shape[1])], axis=1)
    return x * sigmoid(scores)[:, None, None]


def simam(x, w, regularization=1e-4):
    squared = (x - x.mean((1, 2), keepdims=True)) ** 2
    positions = x.shape[1] * x.shape[2]
    variance = squared.sum((1, 2), keepdims=True) / max(positions - 1, 1)
    inverse_energy = (squared + 2 * variance + 2 * regularization) / (4 * (variance + regularization))
    return x * sigmoid(inverse_energy)


def linear_context_transform(x, w, groups=64, epsilon=1e-5):
    z = x.mean((1, 2))
    parts = [
        (p - p.mean(1, keepdims=True)) / np.sqrt(p.var(1, keepdims=True) + epsilon) for p in np.split(z, groups, 1)
    ]
    return x * sigmoid(w["gamma"] * np.concatenate(parts, axis=1) + w["beta"])[:, None, None]


def style_recalibration(x, w, epsilon=1e-5):
    variance = x.var((1, 2), ddof=1) if x.shape[1] * x.shape[2] > 1 else 0.0
    style = w["mean_weight"] * x.mean((1, 2)) + w["deviation_weight"] * np.sqrt(variance + epsilon)
    return x * sigmoid(batch_norm(style, w, "bn"))[:, None, None]
