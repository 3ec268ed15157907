"""Gradients on whichever backend Keras runs."""

import keras
import numpy as np


def output_and_gradients(function, arrays, cotangent):
    """function(*arrays) and the gradient of sum(output * cotangent) with respect to each array, as NumPy arrays."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        tensors = [tf.constant(array) for array in arrays]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            output = function(*tensors)
            total = tf.reduce_sum(output * cotangent)
        gradients = tape.gradient(total, tensors, unconnected_gradients="zero")
    elif backend == "jax":
        import jax

        @jax.jit
        def both(*tensors):
            output, pullback = jax.vjp(function, *tensors)
            return output, pullback(jax.numpy.asarray(cotangent))

        output, gradients = both(*arrays)
    else:
        import torch

        tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
        output = function(*tensors)
        total = (output * torch.tensor(cotangent)).sum()
        gradients = torch.autograd.grad(total, tensors, allow_unused=True)
        gradients = [torch.zeros_like(t) if g is None else g for g, t in zip(gradients, tensors, strict=True)]
    return keras.ops.convert_to_numpy(output), [np.asarray(keras.ops.convert_to_numpy(g)) for g in gradients]
