"""An image with NaN or an infinity among its pixels has NaN scores: a check that every float export holds.

Kernels that fuse ReLU with a convolution make 0 of NaN, and so a confident answer of an image that is none. The mean of
the pixels shows it: one NaN makes it NaN, one infinity infinite. The check is in operations that every runtime has.
"""

import keras
from keras import ops


def with_image_check(images, probabilities):
    """The probabilities, with NaN in the rows of images that hold NaN or infinities.

    Args:
        images: float (batch, height, width, channels).
        probabilities: float (batch, classes).
    """
    # Two steps: fast kernels take the mean over height and width. Not x - x or 0 * x, which converters make 0.
    level = ops.mean(ops.mean(images, axis=(1, 2)), axis=1, keepdims=True)
    return ops.where(ops.abs(level) < float("inf"), probabilities, float("nan"))


def checked(network):
    """A functional classifier with the check."""
    return keras.Model(network.inputs[0], with_image_check(network.inputs[0], network.outputs[0]), name=network.name)
