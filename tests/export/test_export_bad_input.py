"""Hostile and unusual input to an exported SavedModel: right answers or INVALID_ARGUMENT, and it goes on answering.

What an answer must be is taken from Pillow's pixels, evaluation preprocessing and the Keras model.
"""

import io
import struct
import subprocess
import sys
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from programs import ROOT
from small_run import LABELS, make_run
from tensorflow.core.protobuf import config_pb2

from na_keras.data import image_headers, preprocessing
from na_keras.deploy import write_saved_model

RESIZE, SIZE = 56, 48


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return keras.saving.load_model(make_run(tmp_path_factory.mktemp("run") / "run"))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "1"
    write_saved_model(model, path, LABELS, resize=RESIZE, top=len(LABELS))
    return path


@pytest.fixture(scope="module")
def signatures(folder):
    return tf.saved_model.load(str(folder)).signatures


def pixels(shape, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def png(width, height, depth, colour, rows):
    """A PNG file from its uncompressed rows, each behind a zero byte."""

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 1)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png16(image):
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)
    return png(image.shape[1], image.shape[0], 16, 2 if image.ndim == 3 else 0, rows)


def jpeg_of(width, height):
    """A JPEG file of 8 x 8 pixels whose header declares another size."""
    data = encoded(pixels((8, 8, 3)), "JPEG")
    frame = data.index(b"\xff\xc0") + 5
    return data[:frame] + struct.pack(">HH", height, width) + data[frame + 4 :]


def gif_of(side, frames, canvas=5):
    """A GIF with `frames` black frames on a canvas of another size; some bytes per thousand pixels."""
    data = encoded(np.zeros((side, side), np.uint8), "GIF")
    image = data.index(b",\0\0\0\0" + struct.pack("<HH", side, side))
    assert data.endswith(b";")
    return data[:6] + struct.pack("<HH", canvas, canvas) + data[10:image] + data[image:-1] * frames + b";"


def changed(data, place, content):
    return data[:place] + content + data[place + len(content) :]


def palette(image):
    return Image.fromarray(image).quantize(16)


PHOTO = pixels((60, 90, 3))
GREY, DEEP, DEEP_GREY = PHOTO[..., 0], pixels((60, 90, 3), 1, np.uint16), pixels((60, 90), 2, np.uint16)
ALPHA = np.dstack([PHOTO, pixels((60, 90), 3)])
CMYK = encoded(Image.fromarray(PHOTO).convert("CMYK"), "JPEG")

# Encoded file, and its pixels.
ANSWERED = {
    "PNG": (encoded(PHOTO), PHOTO),
    "grey PNG": (encoded(GREY), GREY),
    "PNG with alpha": (encoded(ALPHA), PHOTO),
    "grey PNG with alpha": (encoded(Image.fromarray(ALPHA[..., 2:], "LA")), ALPHA[..., 2]),
    "palette PNG": (encoded(palette(PHOTO)), np.asarray(palette(PHOTO).convert("RGB"))),
    "palette PNG with transparency": (
        encoded(palette(PHOTO), transparency=3),
        np.asarray(palette(PHOTO).convert("RGB")),
    ),
    "PNG of 16 bits": (png16(DEEP), DEEP >> 8),  # the high byte, as Pillow has it in RGB
    "grey PNG of 16 bits": (png16(DEEP_GREY), DEEP_GREY >> 8),
    "CMYK JPEG": (CMYK, np.asarray(Image.open(io.BytesIO(CMYK)).convert("RGB"))),
    "BMP": (encoded(PHOTO, "BMP"), PHOTO),
    "GIF": (encoded(GREY, "GIF"), GREY),
    "WebP": (encoded(PHOTO, "WEBP", lossless=True), PHOTO),
    "1 x 1": (encoded(PHOTO[:1, :1]), PHOTO[:1, :1]),
    "10000 x 1": (encoded(pixels((1, 10_000, 3), 4)), pixels((1, 10_000, 3), 4)),
    "1 x 10000": (encoded(pixels((10_000, 1, 3), 5)), pixels((10_000, 1, 3), 5)),
}

PNG, WEBP = encoded(PHOTO), encoded(PHOTO, "WEBP", lossless=True)
LOSSY = encoded(PHOTO, "WEBP")
EXTENDED = encoded(PHOTO, "WEBP", lossless=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")
FOURTEEN_BITS = struct.pack("<I", 2**28 - 1)  # twice 16383, as WebP packs them
# Encoded file, and what the error says.
REFUSED = {
    "nothing": (b"", r"expected JPEG, PNG, GIF, BMP, WebP; received\] \[0\]"),
    "text": (b"Dear Sir or Madam", r"expected JPEG, PNG, GIF, BMP, WebP; received\] \[17\]"),
    "JPEG XL": (b"\xff\x0a" + bytes(100), "Not an accepted image format"),
    "JPEG XL in a box": (bytes.fromhex("0000000c4a584c200d0a870a") + bytes(100), "Not an accepted image format"),
    "a JPEG's first bytes": (b"\xff\xd8\xff\xe0 cut", "JPEG"),
    "half a JPEG": (encoded(PHOTO, "JPEG")[:1500], "JPEG"),
    "half a PNG": (PNG[: len(PNG) // 2], "PNG"),
    "a PNG's first bytes": (PNG[:8], "PNG"),
    "half a GIF": (encoded(GREY, "GIF")[:900], "GIF"),
    "animated WebP": (
        encoded(Image.fromarray(PHOTO), "WEBP", save_all=True, append_images=[Image.fromarray(PHOTO[::-1])]),
        "WebP",
    ),
    "PNG of no pixels": (changed(PNG, 16, bytes(4)), "PNG"),
    "JPEG of no rows": (jpeg_of(8, 0), "JPEG"),
    "JPEG of 3.6 billion pixels": (jpeg_of(60_000, 60_000), "too large"),
    "PNG of 400 million pixels": (changed(PNG, 16, struct.pack(">II", 20_000, 20_000)), "too large"),
    "PNG of 2 ** 64 pixels": (changed(PNG, 16, b"\xff" * 8), "too large"),
    "BMP of 400 million pixels": (changed(encoded(PHOTO, "BMP"), 18, struct.pack("<ii", 20_000, -20_000)), "too large"),
    "BMP of 2 ** 31 rows": (changed(encoded(PHOTO, "BMP"), 18, struct.pack("<ii", 1, -(2**31))), "too large"),
    "lossless WebP of 268 million pixels": (changed(WEBP, 21, FOURTEEN_BITS), "too large"),
    "lossy WebP of 268 million pixels": (changed(LOSSY, 26, b"\xff\x3f\xff\x3f"), "too large"),
    "extended WebP of 268 million pixels": (changed(EXTENDED, 24, b"\xff\x3f\0\xff\x3f\0"), "too large"),
    "GIF of one large frame": (gif_of(14_000, 1), "too large"),
    "GIF of many frames": (gif_of(3000, 20), "too large"),
}


def answer_of(signatures, *files):
    """Probabilities in the order of the classes; all of them are asked for."""
    answer = signatures["serve_bytes"](image_bytes=tf.constant(files))
    probabilities = np.zeros(answer["scores"].shape, np.float32)
    np.put_along_axis(probabilities, answer["classes"].numpy(), answer["scores"].numpy(), axis=1)
    return probabilities


def expected_of(model, image):
    rgb = np.ascontiguousarray(np.broadcast_to(image[..., None], (*image.shape, 3)) if image.ndim == 2 else image)
    crop = preprocessing.evaluation_image(tf.io.encode_png(rgb.astype(np.uint8)), RESIZE, SIZE)
    return model.predict(tf.cast(crop, tf.float32)[None], verbose=0)


@pytest.mark.parametrize("name", ANSWERED)
def test_unusual_images_are_answered_as_evaluation_does(signatures, model, name):
    data, image = ANSWERED[name]
    np.testing.assert_allclose(answer_of(signatures, data), expected_of(model, image), atol=1e-5)


def test_pillow_takes_the_high_byte_of_16_bits_too():
    data, image = ANSWERED["PNG of 16 bits"]
    np.testing.assert_array_equal(Image.open(io.BytesIO(data)).convert("RGB"), image)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_decoded_is_an_error_and_the_next_request_is_answered(signatures, model, name):
    data, message = REFUSED[name]
    good, image = ANSWERED["PNG"]
    for batch in ([data], [good, data, good]):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            answer_of(signatures, *batch)
    np.testing.assert_allclose(answer_of(signatures, good), expected_of(model, image), atol=1e-5)


@pytest.mark.parametrize(
    ("data", "count"),
    [
        *((ANSWERED[name][0], 60 * 90) for name in ("PNG", "BMP", "GIF", "WebP")),
        (LOSSY, 60 * 90),
        (EXTENDED, 60 * 90),
        (gif_of(7, 3), 3 * 49),
        (encoded(GREY, "GIF", comment=b"\x2c" * 600), 60 * 90),  # pieces of an extension are not taken for frames
        (b"", 0),
        (b"GIF8", 0),
        (encoded(GREY, "GIF")[:13], 0),
    ],
)
def test_declared_pixels(data, count):
    assert float(image_headers.declared_pixels(data)) == count


def test_exactly_the_limit_is_decoded_and_one_more_is_not():
    for pixels_declared, allowed in ((image_headers.MAX_PIXELS, True), (image_headers.MAX_PIXELS + 1, False)):
        pixels_declared = tf.constant(pixels_declared, tf.float64)
        if allowed:
            with image_headers.within_limit(pixels_declared):
                continue
        with pytest.raises(tf.errors.InvalidArgumentError, match="at most 178956970"):
            image_headers.within_limit(pixels_declared)


MEMORY = """
import pathlib, resource, sys
import tensorflow as tf
signature = tf.saved_model.load(sys.argv[1]).signatures["serve_bytes"]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
first, *files = sorted(pathlib.Path(sys.argv[2]).iterdir())
signature(image_bytes=tf.constant([first.read_bytes()]))
before = peak()
for path in files:
    try:
        signature(image_bytes=tf.constant([path.read_bytes()]))
        print(path.name, "answered", peak() - before)
    except tf.errors.InvalidArgumentError as error:
        print(path.name, "refused", peak() - before)
"""


def test_neither_bombs_nor_long_images_take_memory(folder, tmp_path):
    """Files that would really decode to half a gigabyte and more, and one whose resized form would have 94 million."""
    row = b"\0" * (1 + 13_400 // 8 + 1)
    files = {
        "0 first": encoded(PHOTO),
        "1 png": png(13_400, 13_400, 1, 0, row * 13_400),
        "2 gif": gif_of(3000, 20),
        "3 jpeg": jpeg_of(20_000, 20_000),
        "4 long": ANSWERED["10000 x 1"][0],
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", MEMORY, str(folder), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    lines = [line.rsplit(" ", 2) for line in result.stdout.splitlines()]
    assert [(name, what) for name, what, _ in lines] == [
        ("1 png", "refused"),
        ("2 gif", "refused"),
        ("3 jpeg", "refused"),
        ("4 long", "answered"),
    ]
    assert float(lines[-1][2]) < 100  # MiB


def test_an_empty_batch_has_an_empty_answer(signatures):
    images = signatures["serving_default"](images=tf.zeros((0, SIZE, SIZE, 3)))
    files = signatures["serve_bytes"](image_bytes=tf.zeros((0,), tf.string))
    assert images["probabilities"].shape == (0, len(LABELS))
    for answer in (images, files):
        shapes = {name: (answer[name].shape, answer[name].dtype) for name in ("classes", "scores", "labels")}
        empty = tf.TensorShape((0, len(LABELS)))
        assert shapes == {"classes": (empty, tf.int32), "scores": (empty, tf.float32), "labels": (empty, tf.string)}


def test_not_a_number_spoils_its_own_row_only(signatures, model):
    images = np.stack([preprocessing.evaluation_image(ANSWERED["PNG"][0], RESIZE, SIZE).numpy().astype("float32")] * 5)
    images[1, 3, 4, 1], images[2, 0, 0, 0], images[3] = np.nan, np.inf, 1e4
    answer = signatures["serving_default"](images=tf.constant(images))
    probabilities = answer["probabilities"].numpy()
    np.testing.assert_allclose(probabilities[[0, 4]], np.repeat(expected_of(model, PHOTO), 2, 0), atol=1e-5)
    assert np.isnan(probabilities[1:3]).all() and np.isnan(answer["scores"].numpy()[1:3]).all()
    assert np.isin(answer["classes"], range(len(LABELS))).all()
    assert np.isfinite(probabilities[3]).all()  # outside 0..255: whatever the network makes of it


@pytest.fixture
def run_at_server(folder):
    """The signatures as a server runs them: a TF1 session that feeds what it is given, unchecked."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        declared = tf.compat.v1.saved_model.load(session, ["serve"], str(folder)).signature_def

        def run(signature, value):
            ((_, feed),) = declared[signature].inputs.items()
            options = config_pb2.CallableOptions(feed=[feed.name], fetch=[declared[signature].outputs["scores"].name])
            return session._make_callable_from_options(options)(value)[0]  # make_callable checks shapes, servers do not

        yield run


@pytest.mark.parametrize(
    "shape", [(1, SIZE + 1, SIZE, 3), (1, SIZE, SIZE, 1), (SIZE, SIZE, 3), (1, 1, SIZE, SIZE, 3), ()]
)
def test_images_of_another_shape_are_an_error_at_a_server(run_at_server, shape):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"is not compatible with expected shape \[\?,48,48,3\]"):
        run_at_server("serving_default", np.zeros(shape, "float32"))
    assert run_at_server("serving_default", np.zeros((2, SIZE, SIZE, 3), "float32")).shape == (2, len(LABELS))


@pytest.mark.parametrize("shape", [(), (1, 1)])
def test_bytes_of_another_rank_are_an_error_at_a_server(run_at_server, shape):
    with pytest.raises(tf.errors.InvalidArgumentError):
        run_at_server("serve_bytes", np.full(shape, PNG, object))
    assert run_at_server("serve_bytes", np.array([PNG], object)).shape == (1, len(LABELS))


@pytest.mark.parametrize(
    ("signature", "value"),
    [
        ("serving_default", np.zeros((1, SIZE, SIZE, 3), "uint8")),
        ("serving_default", np.array([b"text"], object)),
        ("serve_bytes", np.zeros((1, SIZE, SIZE, 3), "float32")),
    ],
)
def test_another_dtype_is_an_error_at_a_server(run_at_server, signature, value):
    with pytest.raises(tf.errors.InvalidArgumentError):
        run_at_server(signature, value)
