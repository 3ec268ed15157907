"""The images that a classifier takes, RGB or grey, square or not, and how an encoded image becomes one.

cropped   by na_keras.preprocessing.evaluation_image
grey      0.2989 red + 0.5870 green + 0.1140 blue of the crop (ITU-R BT.601, as tf.image.rgb_to_grayscale), rounded;
          files that are grey keep their numbers
"""

import dataclasses

import tensorflow as tf

from na_keras.data import preprocessing

GREY = "round(0.2989 R + 0.5870 G + 0.1140 B)"


def sides_of(size):
    """(height, width) of a size as it is given: pixels of both sides, or (height, width); None of None."""
    if size is None:
        return None, None
    return tuple(size) if isinstance(size, list | tuple) else (size, size)


def image_shape(model, size=None):
    """The shape of the images that a classifier takes.

    Args:
        model: Keras model.
        size: pixels of the sides, or (height, width), for a model whose own input shape leaves them open.

    Returns:
        (height, width, channels).

    Raises:
        ValueError: not one image, RGB or grey, in; or the size is not the model's, or nothing says it.
    """
    image = getattr(model, "input_shape", None)
    if not isinstance(image, tuple) or any(isinstance(side, tuple) for side in image):
        raise ValueError(f"Expected a classifier with one input and one output. Received: {image}")
    if len(image) != 4 or image[3] not in (1, 3):
        raise ValueError(
            f"Expected a classifier of RGB images (batch, height, width, 3), or grey ones. Received: {image}"
        )
    given = sides_of(size)
    sides = tuple(own or side for own, side in zip(image[1:3], given, strict=True))
    if None in sides or any(side not in (None, own) for own, side in zip(sides, given, strict=True)):
        raise ValueError(
            "Expected one size of images, the model's own or `size` where it leaves them open, a number or (height, "
            f"width). Received: images of {image[1]} x {image[2]}, size={size}"
        )
    return *sides, image[3]


@dataclasses.dataclass(frozen=True)
class ImageFormat:
    """What images a classifier takes, and how an encoded image becomes one.

    Attributes:
        height, width: pixels.
        channels: 3 for RGB, 1 for grey.
        resize: pixels of the shorter side of what is cropped, at least the crop's; None: 8/7 of that, 256 for 224.
        exif_orientation: whether JPEG photographs are turned upright as their Exif tag says.

    Raises:
        ValueError: at construction, `resize` is smaller than the crop.
    """

    height: int
    width: int
    channels: int = 3
    resize: int | None = None
    exif_orientation: bool = True

    def __post_init__(self):
        if self.resize is None:
            object.__setattr__(self, "resize", round(self.shorter * 256 / 224))
        if self.resize < self.shorter:
            raise ValueError(f"resize must be at least the image size {self.shorter}. Received: {self.resize}")

    @property
    def shape(self):
        """(height, width, channels)."""
        return self.height, self.width, self.channels

    @property
    def shorter(self):
        """Pixels of the shorter side of the crop."""
        return min(self.height, self.width)

    @property
    def size(self):
        """As it is recorded: pixels of a square's sides, or [height, width]."""
        return self.height if self.height == self.width else [self.height, self.width]

    def crop(self, data):
        """What the classifier takes of an encoded image.

        Args:
            data: scalar string tensor.

        Returns:
            uint8 tensor (height, width, channels).

        Raises:
            tf.errors.InvalidArgumentError: see na_keras.data.preprocessing.decode.
        """
        image = preprocessing.evaluation_image(data, self.resize, (self.height, self.width), self.exif_orientation)
        if self.channels == 1:
            image = preprocessing.to_pixels(tf.image.rgb_to_grayscale(tf.cast(image, tf.float32)))
        return tf.ensure_shape(image, self.shape)
