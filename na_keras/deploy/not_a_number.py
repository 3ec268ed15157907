"""An image with NaN or an infinity among its pixels has NaN scores: a check that every float export holds.

Kernels that fuse ReLU with a convolution make 0 of NaN, and so a confident answer of an image that is none. The mean of
the pixels shows it: one NaN makes it NaN, one infinity infinite. The check is in operations that every runtime has.
"""

import keras
from keras import ops


def with_image_check(images, answers):
    """The answers, with NaN in the rows of images that hold NaN or infinities.

    Args:
        images: float (batch, height, width, channels).
        answers: float (batch, ...).
    """
    # Two steps: fast kernels take the mean over height and width. Not x - x or 0 * x, which converters make 0.
    level = ops.mean(ops.mean(images, axis=(1, 2)), axis=1, keepdims=True)
    if len(answers.shape) != 2:
        level = ops.reshape(level, (-1, *[1] * (len(answers.shape) - 1)))
    return ops.where(ops.abs(level) < float("inf"), answers, float("nan"))


def checked(network):
    """A functional classifier with the check."""
    images = network.inputs[0]
    outputs = keras.tree.map_structure(lambda answers: with_image_check(images, answers), network.output)
    return keras.Model(images, outputs, name=network.name)
