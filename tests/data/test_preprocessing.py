"""Decoding, cropping and resizing against Pillow and torchvision's published rule."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

import serving_client
from na_keras.data import image_headers, preprocessing


@pytest.fixture(scope="module")
def photographs():
    return [Image.fromarray(array) for array in load_sample_images().images]  # 640 x 427 each


def encoded(image, format="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pillow_evaluation(data, resize, size):
    """torchvision's Resize(resize) and CenterCrop(size), by its rules for rounding."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    short = min(width, height)
    width, height = int(resize * width / short), int(resize * height / short)
    array = np.asarray(image.resize((width, height), Image.BILINEAR))
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    return array[top : top + size, left : left + size].astype(int)


@pytest.mark.parametrize("shape", [(640, 427), (427, 640), (333, 500), (200, 150), (256, 256), (1000, 90)])
@pytest.mark.parametrize(("resize", "size"), [(256, 224), (224, 224), (64, 48)])
def test_evaluation_crop_is_within_one_of_pillow(photographs, shape, resize, size):
    for photograph in photographs:
        data = encoded(photograph.resize(shape), quality=92)
        ours = preprocessing.evaluation_image(data, resize, size).numpy().astype(int)
        # Pillow rounds to 8 bits between its two passes, we once: one level at most.
        assert np.abs(ours - pillow_evaluation(data, resize, size)).max() <= 1


def test_decoding_equals_pillow_exactly(photographs):
    for photograph in photographs:
        data = encoded(photograph, quality=85)
        np.testing.assert_array_equal(preprocessing.decode(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("subsampling", [0, 2])
def test_window_of_a_jpeg_is_the_slice_of_the_decoded_image(photographs, subsampling):
    """JPEG decodes its window only, PNG decodes all and slices: two paths, one result."""
    jpeg = encoded(photographs[0], quality=85, subsampling=subsampling)
    png = encoded(Image.fromarray(preprocessing.decode(jpeg).numpy()), "PNG")
    np.testing.assert_array_equal(preprocessing.evaluation_image(jpeg), preprocessing.evaluation_image(png))
    for seed in range(10):
        window = lambda shape, seed=seed: preprocessing.random_window(shape, tf.constant([seed, 7]))  # noqa: E731
        one, other = (preprocessing.decode_window(data, window).numpy().astype(int) for data in (jpeg, png))
        np.testing.assert_array_equal(one[:, 1:-1], other[:, 1:-1])
        # The outermost columns interpolate subsampled colour (subsampling=2) from outside the window.
        assert np.abs(one - other).max() <= (0 if subsampling == 0 else 10)


@pytest.mark.parametrize(
    ("format", "mode", "options"),
    [
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("PNG", "L", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("PNG", "I;16", {}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
    ],
)
def test_every_common_format_becomes_rgb(photographs, format, mode, options):
    if mode == "I;16":
        image = Image.fromarray(np.asarray(photographs[0].convert("L")).astype(np.uint16) * 257)
    else:
        image = photographs[0].quantize(256) if mode == "P" else photographs[0].convert(mode)
    data = encoded(image, format, **options)
    expected = np.asarray(photographs[0].convert("L" if mode in ("L", "I;16") else "RGB")).astype(float)
    decoded = preprocessing.decode(data).numpy().astype(float)
    assert decoded.shape == (*expected.shape[:2], 3)
    # Palettes and JPEG lose a little; a wrong channel order or an inverted CMYK would lose everything.
    assert np.abs(decoded - expected.reshape(*expected.shape[:2], -1)).mean() < 12
    assert preprocessing.evaluation_image(data).shape == (224, 224, 3)
    assert preprocessing.training_image(data, tf.constant([0, 0])).shape == (224, 224, 3)


def pillow_pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def whole(shape):
    return tf.stack([0, 0, shape[0], shape[1]])


def on_all_paths(data):
    """The decoded file: eagerly and in a tf.data map, for evaluation and for training's window."""
    for decode in (preprocessing.decode, lambda data: preprocessing.decode_window(data, whole)):
        yield decode(data).numpy()
        yield next(iter(tf.data.Dataset.from_tensors(data).map(decode))).numpy()


@pytest.mark.parametrize("bits", [8, 24, 32])
def test_bitmap_files_have_pillows_pixels(photographs, bits):
    """8 bits are a palette: TensorFlow alone returns its indices as grey."""
    image = {8: photographs[0].quantize(200), 24: photographs[0], 32: photographs[0].convert("RGBA")}[bits]
    data = encoded(image.crop((0, 0, 61, 40)), "BMP")
    assert data[28] == bits
    for pixels in on_all_paths(data):
        np.testing.assert_array_equal(pixels, pillow_pixels(data))


def test_a_bitmap_without_a_colour_count_has_256_colours(photographs):
    data = bytearray(encoded(photographs[0].quantize(256).crop((0, 0, 60, 40)), "BMP"))
    data[46:50] = bytes(4)
    np.testing.assert_array_equal(preprocessing.decode(bytes(data)), pillow_pixels(bytes(data)))


@pytest.mark.parametrize("lossless", [True, False])
def test_transparency_of_webp_is_dropped(photographs, lossless):
    image = photographs[0].crop((0, 0, 61, 40)).convert("RGBA")
    image.putalpha(Image.fromarray((np.arange(61 * 40) % 256).astype(np.uint8).reshape(40, 61)))
    data = encoded(image, "WEBP", lossless=lossless, exact=True)
    for pixels in on_all_paths(data):
        np.testing.assert_array_equal(pixels, pillow_pixels(data))


def bitmap(bits, compression=0, header=40):
    """A BMP file of 3 x 2 pixels, zeros."""
    size = struct.pack("<ii" if header >= 40 else "<HH", 3, 2)
    fields = struct.pack("<I", header) + size + struct.pack("<HHI", 1, bits, compression)
    start = 14 + max(header, len(fields))
    return (
        b"BM" + struct.pack("<IHHI", start + 200, 0, 0, start) + fields + bytes(start - 14 - len(fields)) + bytes(200)
    )


UNSUPPORTED = {
    "JPEG XL": (b"\xff\x0a" + bytes(100), "Not an accepted image format"),
    "JPEG XL in a box": (bytes.fromhex("0000000c4a584c200d0a870a") + bytes(100), "Not an accepted image format"),
    "AVIF": (bytes.fromhex("00000020") + b"ftypavif" + bytes(100), "Not an accepted image format"),
    "TIFF": (b"II*\0" + bytes(100), "Not an accepted image format"),
    "RIFF sound": (b"RIFF" + bytes(4) + b"WAVE" + bytes(100), "Not an accepted image format"),
    "BMP of 1 bit": (bitmap(1), "This kind of BMP"),
    "BMP of 4 bits": (bitmap(4), "This kind of BMP"),
    "BMP of 16 bits": (bitmap(16), "This kind of BMP"),
    "compressed BMP": (bitmap(8, compression=1), "This kind of BMP"),
    "BMP with masks of its own": (bitmap(32, compression=3), "This kind of BMP"),
    "BMP of OS/2": (bitmap(24, header=12), "This kind of BMP"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_formats_that_are_not_listed_are_refused_before_they_are_decoded(name):
    """TensorFlow's decode_image reads JPEG XL, and no limit of pixels would hold it; or it misreads the file."""
    data, message = UNSUPPORTED[name]
    for decode in (
        preprocessing.decode,
        tf.function(preprocessing.decode),
        preprocessing.evaluation_image,
        lambda data: preprocessing.training_image(data, tf.constant([0, 0])),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            decode(tf.constant(data))


def test_the_client_and_the_library_accept_the_same_formats():
    assert serving_client.SIGNATURES == image_headers.SIGNATURES


@pytest.mark.parametrize("shape", [(1, 1), (10_000, 1), (1, 10_000), (3, 2)])
def test_extreme_shapes_give_an_answer(shape):
    data = encoded(Image.fromarray(np.full((*shape, 3), 200, np.uint8)), "PNG")
    assert (preprocessing.evaluation_image(data).numpy() == 200).all()
    for seed in range(3):
        assert (preprocessing.training_image(data, tf.constant([seed, 0])).numpy() == 200).all()


@pytest.mark.parametrize("data", [b"", b"this is text, not an image", b"\xff\xd8\xff\xe0 cut"])
def test_what_is_not_an_image_is_an_error(data):
    with pytest.raises(tf.errors.InvalidArgumentError):
        preprocessing.evaluation_image(data)
    with pytest.raises(tf.errors.InvalidArgumentError):
        preprocessing.training_image(data, tf.constant([0, 0]))


def test_truncated_jpeg_is_an_error(photographs):
    data = encoded(photographs[0])
    with pytest.raises(tf.errors.InvalidArgumentError):
        preprocessing.evaluation_image(data[: len(data) // 2])


def test_resize_below_the_crop_is_refused(photographs):
    with pytest.raises(ValueError, match="at least the crop's size. Received: resize=200, size=224"):
        preprocessing.evaluation_image(encoded(photographs[0]), 200, 224)


def numpy_window(rng, rows, columns, area=(0.08, 1.0), aspect=(3 / 4, 4 / 3)):
    """torchvision.transforms.RandomResizedCrop.get_params, by its documentation."""
    for _ in range(10):
        target = rows * columns * rng.uniform(*area)
        ratio = np.exp(rng.uniform(*np.log(aspect)))
        width, height = round(np.sqrt(target * ratio)), round(np.sqrt(target / ratio))
        if 0 < width <= columns and 0 < height <= rows:
            return rng.integers(0, rows - height + 1), rng.integers(0, columns - width + 1), height, width
    if columns / rows < aspect[0]:
        height, width = round(columns / aspect[0]), columns
    elif columns / rows > aspect[1]:
        height, width = rows, round(rows * aspect[1])
    else:
        height, width = rows, columns
    return (rows - height) // 2, (columns - width) // 2, height, width


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (100, 1000)])
def test_random_windows_have_torchvisions_distribution(shape):
    count = 4000
    seeds = tf.stack([tf.range(count), tf.ones(count, tf.int32)], axis=1)
    spec = tf.TensorSpec((4,), tf.int32)
    windows = tf.function(
        lambda: tf.map_fn(lambda seed: preprocessing.random_window(shape, seed), seeds, fn_output_signature=spec)
    )().numpy()
    top, left, height, width = windows.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= shape[0]).all() and (left + width <= shape[1]).all()
    rng = np.random.default_rng(0)
    expected = np.array([numpy_window(rng, *shape) for _ in range(count)])
    # Five standard errors of the difference of two means. TensorFlow's own sampler is 0.06 (fifteen) off in area.
    for statistic in (
        lambda w: w[:, 2] * w[:, 3] / (shape[0] * shape[1]),
        lambda w: np.log(w[:, 3] / w[:, 2]),
        lambda w: w[:, 0] + w[:, 2] / 2,
        lambda w: w[:, 1] + w[:, 3] / 2,
    ):
        ours, theirs = statistic(windows), statistic(expected)
        error = np.sqrt((ours.var() + theirs.var()) / count)
        assert abs(ours.mean() - theirs.mean()) <= 5 * error + 1e-9


def test_training_image_is_a_function_of_its_seed(photographs):
    data = encoded(photographs[0])
    one, again, other = (
        preprocessing.training_image(data, tf.constant(seed)).numpy() for seed in ([1, 2], [1, 2], [1, 3])
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_half_of_the_images_are_flipped():
    ramp = np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 1, 3))
    data = encoded(Image.fromarray(ramp), "PNG")
    train = tf.function(lambda data, seed: preprocessing.training_image(data, seed, 32))
    rising = [
        int(image[0, 0, 0]) < int(image[0, -1, 0])
        for image in (train(data, tf.constant([i, 0])).numpy() for i in range(200))
    ]
    assert 70 <= sum(rising) <= 130  # 100 expected, standard deviation 7
    kept = (preprocessing.training_image(data, tf.constant([i, 0]), 32, flip=False).numpy() for i in range(20))
    assert all(image[0, 0, 0] < image[0, -1, 0] for image in kept)


def test_antialias_filters_when_shrinking(photographs):
    data = encoded(photographs[0])
    seed = tf.constant([0, 1])
    rough, smooth = (
        preprocessing.training_image(data, seed, 64, antialias=a).numpy().astype(int) for a in (False, True)
    )
    roughness = lambda image: np.abs(np.diff(image, axis=1)).mean()  # noqa: E731
    assert roughness(rough) > 1.1 * roughness(smooth)
