"""What TFLite files do with pixels as they come: raw bytes, narrow samples, NaN, several images at a time."""

import functools

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import na_keras
from na_keras import NormalizationAttention
from na_keras.deploy import convert_tflite, describe
from na_keras.deploy.tflite import conversion

SIDE = 16
DIM = np.random.default_rng(0).integers(70, 181, (6, SIDE, SIDE, 3)).astype("float32")  # reaches neither 0 nor 255
FLOAT_KINDS, BYTE_KINDS = ("float32", "float16", "dynamic"), ("int8", "int8_float_gate")


@pytest.fixture(scope="module")
def files():
    """{kind: file} of a network with ReLU6, and NA in both forms: alone, and after a 1x1 convolution."""
    keras.utils.set_random_seed(0)
    image = keras.Input((SIDE, SIDE, 3))
    x = layers.ReLU(6.0)(layers.Conv2D(8, 3, 2)(layers.Rescaling(1 / 127.5, -1)(image)))
    x = NormalizationAttention()(x)
    wide = layers.BatchNormalization()(layers.Conv2D(16, 1)(x))
    x = layers.ReLU(6.0)(NormalizationAttention()(wide))
    model = keras.Model(image, layers.Dense(3, "softmax")(layers.GlobalAveragePooling2D()(x)))
    return {kind: convert_tflite(model, kind, DIM) for kind in (*FLOAT_KINDS, *BYTE_KINDS)}


def run(file, images):
    """The stored answers to all images at once, after resizing the input."""
    interpreter = Interpreter(model_content=file, num_threads=1)
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(source["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], images.astype(source["dtype"]))
    interpreter.invoke()
    return interpreter.get_tensor(target["index"])


@pytest.mark.parametrize("kind", BYTE_KINDS)
def test_a_byte_is_a_pixel_whatever_the_samples(kind, files):
    (source,) = describe(files[kind])["inputs"]
    assert (source["dtype"], source["scale"], source["zero_point"]) == ("uint8", [1.0], [0])
    in_float = run(files["float32"], DIM)
    np.testing.assert_allclose(run(files[kind], DIM) / 256, in_float, atol=0.05)


def test_images_that_reach_both_ends_stay_the_only_ones():
    full = DIM.copy()
    full[2, 0, 0], full[3, 0, 0] = 0, 255
    for images, count in ((DIM, len(DIM) + 1), (full, len(full))):
        given = conversion.with_full_range(lambda images=images: ([image[None]] for image in images))
        pixels = np.concatenate([image for (image,) in given()])
        assert (len(pixels), pixels.min(), pixels.max()) == (count, 0, 255)
    with pytest.raises(ValueError, match="Expected pixels 0..255. Received: from 70.0 to 300"):
        conversion.representative_function(np.concatenate([DIM, np.full_like(DIM, 300)]), DIM.shape[1:])


def test_an_input_of_another_scale_is_refused(monkeypatch):
    for scale, zero_point in ((0.784, 0), (1.0, 3)):
        source = {"dtype": "uint8", "scale": [scale], "zero_point": [zero_point]}
        monkeypatch.setattr(conversion.graph, "describe", lambda blob, source=source: {"inputs": [source]})
        with pytest.raises(ValueError, match=f"of scale 1 and zero point 0. Received: scale .{scale}."):
            conversion.check_raw_pixels(b"")


@pytest.mark.parametrize("kind", FLOAT_KINDS)
def test_not_a_number_spoils_its_own_row_only(kind, files):
    images = DIM.copy()
    images[1, 3, 4, 1], images[4, 0, 0, 2] = np.nan, np.inf
    answers = run(files[kind], images)
    assert np.isnan(answers).all(1).tolist() == [False, True, False, False, True, False]
    assert np.isfinite(answers[[0, 2, 3, 5]]).all()


@pytest.mark.parametrize("kind", [*FLOAT_KINDS, *BYTE_KINDS])
def test_several_images_at_a_time_get_the_answers_of_each_alone(kind, files):
    alone = np.concatenate([run(files[kind], image[None]) for image in DIM]).astype("float32")
    assert np.ptp(alone, axis=0).max() > 0
    np.testing.assert_allclose(run(files[kind], DIM).astype("float32"), alone, atol=1 if kind in BYTE_KINDS else 1e-5)


def users_squeeze_excite(x):
    """As many write it themselves."""
    gate = layers.Dense(32, "sigmoid")(layers.Dense(4, "relu")(layers.GlobalAveragePooling2D()(x)))
    return layers.Multiply()([x, layers.Reshape((1, 1, 32))(gate)])


def test_a_batch_as_large_as_the_map_is_wide_gets_the_answers_of_each_alone():
    """Where a gate (batch, channels) meets the map, it would be taken for one gate a column, without an error."""
    grouped = {"lct": na_keras.LinearContextTransform, "sge": na_keras.SpatialGroupEnhance}
    modules = {name: factory for name, factory in na_keras.ATTENTION.items() if name != "sk"}
    modules |= {name: functools.partial(layer, groups=4) for name, layer in grouped.items()}
    image = keras.Input((SIDE + 2, SIDE + 2, 3))
    x = layers.Conv2D(32, 3, 3)(layers.Rescaling(1 / 127.5, -1)(image))
    branches = [factory()(x) for factory in modules.values()] + [users_squeeze_excite(x)]
    pooled = layers.Concatenate()([layers.GlobalAveragePooling2D()(branch) for branch in branches])
    model = keras.Model(image, layers.Dense(3, "softmax")(pooled))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(
            rng.uniform(0.5, 1.5, weight.shape) if "variance" in weight.path else rng.normal(0, 0.5, weight.shape)
        )
    images = rng.uniform(0, 255, (6, 1, 1, 3)) * rng.uniform(0, 1, (6, SIDE + 2, SIDE + 2, 3))
    assert x.shape[2] == len(images)
    file = convert_tflite(model)
    alone = np.concatenate([run(file, image[None]) for image in images])
    assert np.ptp(alone, axis=0).max() > 0.1
    np.testing.assert_allclose(run(file, images), alone, atol=1e-6)
    np.testing.assert_allclose(run(file, images[:4]), alone[:4], atol=1e-6)
