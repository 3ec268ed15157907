"""preprocess_input: every dtype, arrays and tensors, and shapes that are no RGB images."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import na_keras

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3)).astype("uint8")
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
EXPECTED = (PIXELS / 255 - MEAN) / DEVIATION


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64"])
def test_arrays_and_tensors_of_every_dtype_are_normalised(dtype):
    pixels = PIXELS.astype(dtype)
    tensor = keras.ops.convert_to_tensor(pixels)
    for given, expected in (
        (pixels, EXPECTED),
        (pixels[0], EXPECTED[0]),
        (pixels[None], EXPECTED[None]),
        (tensor, EXPECTED),
    ):
        normalised = keras.ops.convert_to_numpy(na_keras.preprocess_input(given))
        np.testing.assert_allclose(normalised, expected, atol=1e-5)
        assert normalised.dtype == (dtype if dtype.startswith("float") else "float32")
    np.testing.assert_array_equal(pixels, PIXELS)


def test_channels_first():
    first = np.moveaxis(PIXELS, -1, 1)
    for given in (first, keras.ops.convert_to_tensor(first)):
        normalised = na_keras.preprocess_input(given, "channels_first")
        np.testing.assert_allclose(keras.ops.convert_to_numpy(normalised), np.moveaxis(EXPECTED, -1, 1), atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a tf.data map computes with TensorFlow")
def test_integers_are_normalised_inside_of_a_dataset():
    dataset = tf.data.Dataset.from_tensor_slices(PIXELS).map(na_keras.preprocess_input)
    np.testing.assert_allclose(np.stack(list(dataset.as_numpy_iterator())), EXPECTED, atol=1e-5)
    unknown = tf.data.Dataset.from_tensors(tf.io.encode_png(PIXELS[0])).map(tf.io.decode_image)
    with pytest.raises(ValueError, match="Received: shape unknown"):
        unknown.map(na_keras.preprocess_input)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 4), (2, 5, 4, 4), (3, 5, 4)])
def test_what_is_no_rgb_image_is_refused(shape):
    for given in (np.zeros(shape, "uint8"), keras.ops.zeros(shape)):
        with pytest.raises(ValueError, match=rf"height, width, 3\) in channels_last.*Received: shape \({shape[0]}"):
            na_keras.preprocess_input(given)
    with pytest.raises(ValueError, match="in channels_first"):
        na_keras.preprocess_input(np.zeros((2, 4, 5, 5)), "channels_first")
    with pytest.raises(ValueError, match="channels_middle"):
        na_keras.preprocess_input(np.zeros((5, 4, 3)), "channels_middle")
