"""The layers once more in float64 NumPy, written from the equations with plain loops: the oracle of the tests."""

import numpy as np


def convolve_same(image, kernel, bias):
    """(b, h, w) with a (k, k, 1, 1) kernel and a (1,) bias, zero padding."""
    half = kernel.shape[0] // 2
    padded = np.pad(image, ((0, 0), (half, half), (half, half)))
    result = np.zeros_like(image)
    for i in range(image.shape[1]):
        for j in range(image.shape[2]):
            window = padded[:, i : i + 2 * half + 1, j : j + 2 * half + 1]
            result[:, i, j] = np.sum(window * kernel[:, :, 0, 0], axis=(1, 2)) + bias[0]
    return result


def embed(image, layers):
    (kernel_1, bias_1), (kernel_2, bias_2) = layers
    return convolve_same(np.maximum(convolve_same(image, kernel_1, bias_1), 0), kernel_2, bias_2)


def scores(x, similarity, embedding):
    """(h, w, c) -> list of the similarity of each position, rows first."""
    positions = [x[i, j] for i in range(x.shape[0]) for j in range(x.shape[1])]
    context = np.mean(positions, axis=0)  # eq. 4
    if embedding is not None:
        channel_mean = x.mean(-1)[None]
        query = embed(channel_mean, embedding[1]).mean()
        return [-abs(key - query) for key in embed(channel_mean, embedding[0]).ravel()]
    if similarity == "channel_mean":
        return [-abs(p.mean() - context.mean()) for p in positions]
    if similarity == "l1":
        return [-np.sum(np.abs(p - context)) for p in positions]  # eq. 5
    if similarity == "squared":
        return [-np.sum((p - context) ** 2) for p in positions]
    if similarity == "dot":
        return [p @ context for p in positions]
    return [0.0 for _ in positions]  # None: equal weights


def normalization_attention(
    x,
    gamma,
    beta,
    similarity="channel_mean",
    unbiased=True,
    epsilon=1e-5,
    epsilon_inside_sqrt=False,
    embedding=None,
):
    """(b, h, w, c) -> the same shape, float64."""
    x = np.asarray(x, np.float64)
    result = np.empty_like(x)
    for n, image in enumerate(x):
        phi = np.array(scores(image, similarity, embedding))
        weights = np.exp(phi - phi.max())
        weights /= weights.sum()
        g = sum(w * p for w, p in zip(weights, image.reshape(-1, image.shape[-1]), strict=True))  # eq. 6
        variance = np.var(g, ddof=1 if unbiased else 0)
        sigma = np.sqrt(variance + epsilon) if epsilon_inside_sqrt else np.sqrt(variance) + epsilon  # eq. 7
        result[n] = image / (1 + np.exp(-(gamma * (g - g.mean()) / sigma + beta)))  # eqs. 8, 9
    return result
