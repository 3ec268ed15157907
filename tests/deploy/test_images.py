"""deploy/images.py: what an export makes of an encoded image, for networks of any image shape."""

import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from weights_that_matter import photographs

from na_keras.data.preprocessing import evaluation_image
from na_keras.deploy.images import ImageFormat, image_shape


def encoded(picture):
    return tf.io.encode_png(picture.astype("uint8")).numpy()


@pytest.fixture(scope="module")
def picture():
    """uint8 (60, 90, 3)."""
    return photographs(1, 90)[0][:60].astype("uint8")


def test_squares_are_what_evaluation_takes(picture):
    images = ImageFormat(24, 24, resize=30, exif_orientation=False)
    np.testing.assert_array_equal(images.crop(encoded(picture)), evaluation_image(encoded(picture), 30, 24, False))
    assert ImageFormat(224, 224).resize == 256 and ImageFormat(224, 224).size == 224


@pytest.mark.parametrize(
    ("size", "resize", "scaled"),
    [((20, 40), 20, (26, 40)), ((40, 20), 44, (88, 132)), ((20, 30), 25, (25, 38)), ((30, 70), 30, (46, 70))],
)
def test_others_are_scaled_until_they_cover_the_crop_in_their_own_proportions(size, resize, scaled, picture):
    """`scaled` is of 60 x 90: the smallest that covers the box (resize / shorter side) * size, rounded down."""
    images, (rows, columns) = ImageFormat(*size, resize=resize), scaled
    pillow = np.asarray(Image.fromarray(picture).resize((columns, rows), Image.Resampling.BILINEAR)).astype(int)
    top, left = (round((whole - part) / 2) for whole, part in zip((rows, columns), size, strict=True))
    expected = pillow[top : top + size[0], left : left + size[1]]
    crop = images.crop(encoded(picture)).numpy().astype(int)
    assert crop.shape == (*size, 3) and images.size == list(size)
    assert np.abs(crop - expected).max() <= 1


def test_grey_is_the_luminance_and_grey_files_keep_their_numbers(picture):
    images = ImageFormat(30, 40, channels=1, resize=30)
    colour = ImageFormat(30, 40, resize=30).crop(encoded(picture)).numpy().astype("float64")
    expected = np.floor(colour @ (0.2989, 0.587, 0.114) + 0.5)
    np.testing.assert_array_equal(images.crop(encoded(picture))[..., 0], expected)
    every = np.arange(256, dtype="uint8").reshape(16, 16)
    file = io.BytesIO()
    Image.fromarray(every).save(file, "PNG")
    np.testing.assert_array_equal(ImageFormat(16, 16, 1, 16).crop(file.getvalue())[..., 0], every)


def test_shapes_come_from_the_model_or_from_the_size():
    model = lambda *shape: keras.Sequential([keras.Input(shape), keras.layers.GlobalAveragePooling2D()])  # noqa: E731
    assert image_shape(model(24, 32, 1)) == (24, 32, 1)
    assert image_shape(model(None, None, 3), 24) == (24, 24, 3)
    assert image_shape(model(None, 32, 3), (24, 32)) == (24, 32, 3)
    for size in (None, 24, (24, 24)):
        with pytest.raises(ValueError, match="Expected one size of images"):
            image_shape(model(None, 32, 3), size)
    with pytest.raises(ValueError, match="RGB images"):
        image_shape(model(24, 24, 4))
    with pytest.raises(ValueError, match="resize must be at least the image size 24. Received: 20"):
        ImageFormat(24, 32, resize=20)
