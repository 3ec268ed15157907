"""Exif orientation: photographs of all eight orientations come out as Pillow turns them, in evaluation and training."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from na_keras.data import exif, preprocessing

ORIENTATIONS = range(1, 9)


@pytest.fixture(scope="module")
def photograph():
    return Image.fromarray(load_sample_images().images[0]).resize((160, 107))


@tf.function(input_signature=[tf.TensorSpec((), tf.string), tf.TensorSpec((2,), tf.int32)])
def training_crop(data, seed):
    return preprocessing.training_image(data, seed, 32)


def entry(tag, kind, value, order):
    """A directory entry of TIFF with one value of 16 bits (kind 3) or 32 bits (kind 4)."""
    packed = struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value)
    return struct.pack(order + "HHI", tag, kind, 1) + packed


def tiff(value, order=">", kind=3, before=2, gap=0):
    """An Exif segment's content with the tag behind `before` others; `gap` bytes stand before the directory."""
    entries = [entry(0x0200 + k, 3, 7, order) for k in range(before)] + [entry(0x0112, kind, value, order)]
    head = {">": b"MM\0*", "<": b"II*\0"}[order] + struct.pack(order + "I", 8 + gap) + bytes(gap)
    return head + struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)


def segment(marker, content):
    return b"\xff" + bytes([marker]) + struct.pack(">H", 2 + len(content)) + content


def jpeg(image, *segments, jfif=True, **options):
    """A JPEG file with segments behind the one of JFIF or in its place."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, "subsampling": 0, **options})
    data = buffer.getvalue()
    assert data[2:4] == b"\xff\xe0" and data[4:6] == b"\0\x10"
    return data[: 20 if jfif else 2] + b"".join(segments) + data[20:]


def oriented(image, value, **options):
    return jpeg(image, segment(0xE1, b"Exif\0\0" + tiff(value, **options)))


def pillow_upright(data):
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data)).convert("RGB"))


def as_png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("value", ORIENTATIONS)
def test_decoding_and_evaluation_turn_the_image_as_pillow_does(photograph, value, order):
    data = oriented(photograph, value, order=order)
    upright = pillow_upright(data)
    assert upright.size == (photograph.size if value < 5 else photograph.size[::-1])
    np.testing.assert_array_equal(preprocessing.decode(data), upright)
    for resize, size in ((64, 48), (48, 48)):
        ours = preprocessing.evaluation_image(data, resize, size)
        np.testing.assert_array_equal(ours, preprocessing.evaluation_image(as_png(upright), resize, size))
    stored = preprocessing.decode(data, exif_orientation=False)
    np.testing.assert_array_equal(stored, Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("value", ORIENTATIONS)
def test_training_takes_its_windows_from_the_upright_image(photograph, value):
    data = oriented(photograph, value)
    png = as_png(pillow_upright(data))
    for seed in range(6):
        seed = tf.constant([seed, 5])
        np.testing.assert_array_equal(training_crop(data, seed), training_crop(png, seed))


def test_training_can_leave_the_orientation_alone(photograph):
    data, seed = oriented(photograph, 6), tf.constant([3, 5])
    plain = preprocessing.training_image(jpeg(photograph), seed, 32)
    np.testing.assert_array_equal(preprocessing.training_image(data, seed, 32, exif_orientation=False), plain)
    assert (preprocessing.training_image(data, seed, 32).numpy() != plain.numpy()).any()


def test_the_tag_is_found_behind_other_segments_and_entries(photograph):
    exif_segment = segment(0xE1, b"Exif\0\0" + tiff(6))
    xmp, comment = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0"), segment(0xFE, b"text")
    profile = segment(0xE2, bytes(40_000))
    for data in (
        jpeg(photograph, exif_segment, jfif=False),
        jpeg(photograph, xmp, profile, comment, exif_segment),
        jpeg(photograph, exif_segment, segment(0xE1, b"Exif\0\0" + tiff(3))),
        oriented(photograph, 6, before=40),
        oriented(photograph, 6, gap=5001),
        oriented(photograph, 6, kind=4),
        oriented(photograph, 6, kind=4, order="<"),
    ):
        assert int(exif.jpeg_orientation(data)) == 6
        np.testing.assert_array_equal(preprocessing.decode(data), pillow_upright(data))


def test_pillows_own_files_are_turned(photograph):
    tags = Image.Exif()
    tags[0x0112], tags[0x010F] = 8, "a camera"
    data = jpeg(photograph, exif=tags.tobytes())
    assert int(exif.jpeg_orientation(data)) == 8


WHOLE = b"Exif\0\0" + tiff(6)
DAMAGED = {
    "no Exif": [],
    "another program's segment": [segment(0xE1, b"Exig" + WHOLE[4:])],
    "nothing behind the name": [segment(0xE1, WHOLE[:6])],
    "half a header": [segment(0xE1, WHOLE[:11])],
    "no byte order": [segment(0xE1, WHOLE[:6] + b"XX" + WHOLE[8:])],
    "a directory behind the end": [segment(0xE1, WHOLE[:10] + b"\xff\xff\xff\xff" + WHOLE[14:])],
    "a directory at the end": [segment(0xE1, WHOLE[:10] + struct.pack(">I", 65_535) + WHOLE[14:])],
    "fewer entries than declared": [segment(0xE1, WHOLE[:14] + b"\xff\xff" + WHOLE[16:30])],
    "no entries": [segment(0xE1, WHOLE[:14] + bytes(2))],
    "value 0": [segment(0xE1, b"Exif\0\0" + tiff(0))],
    "value 9": [segment(0xE1, b"Exif\0\0" + tiff(9))],
    "a large value": [segment(0xE1, b"Exif\0\0" + tiff(2**32 - 1, kind=4))],
    "a value of text": [segment(0xE1, b"Exif\0\0" + tiff(6, kind=4).replace(b"\x01\x12\0\x04", b"\x01\x12\0\x02"))],
    "a thousand empty segments": [segment(0xE0, b"")] * 1000 + [segment(0xE1, WHOLE)],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_exif_leaves_the_image_as_it_is_stored(photograph, name):
    data = jpeg(photograph, *DAMAGED[name])
    np.testing.assert_array_equal(preprocessing.decode(data), preprocessing.decode(data, exif_orientation=False))


def test_exif_without_an_image_is_an_error_like_any_other(photograph):
    data = oriented(photograph, 6)
    for length in (3, 21, 24, 30, 40):
        with pytest.raises(tf.errors.InvalidArgumentError):
            preprocessing.decode(data[:length])
        assert int(exif.jpeg_orientation(data[:length])) == 1
