"""From encoded images to pixels: the one definition that training, evaluation, export and serving share (TensorFlow).

Every function takes one encoded image, a scalar string tensor, and runs in tf.data maps, in tf.function and in exported
graphs. Pixels stay 0..255; the networks normalise them in their own graph. None has control flow of tensors in Python:
AutoGraph, which would rewrite them for a second or two of each program's start, leaves them alone.

- Decoding: JPEG with the accurate integer transform (equal to Pillow's; TensorFlow's default is off by up to 22), PNG,
  the first frame of a GIF, BMP of 8 (palette), 24 and 32 bits, still WebP, known by their signature; whatever else
  TensorFlow can decode is refused (image_headers.py). Grey and CMYK become RGB; of 16 bits the high byte is kept;
  transparency is dropped.
- What declares more than 179 million pixels is refused before it is decoded (image_headers.py). A JPEG not in training:
  its files are the owner's choice, and the check costs 5 % of an image's CPU time.
- Orientation: a JPEG is turned upright as its Exif tag says, unless `exif_orientation` is False (exif.py).
- Evaluation: torchvision's Resize and CenterCrop, within 1 of Pillow.
- Training: torchvision's RandomResizedCrop ("random-size cropping" of the paper's section 5.1) and a horizontal flip.
  tf.image.sample_distorted_bounding_box draws from another distribution (mean area .37 of the image instead of .43).
"""

import math

import tensorflow as tf

from na_keras.data import exif
from na_keras.data.image_headers import (
    BITMAP_COLOURS,
    BITMAP_HEADER_SIZE,
    apart,
    check_format,
    declared_pixels,
    has_format,
    jpeg_pixels,
    number,
    read_header,
    within_limit,
)

ACCURATE = "INTEGER_ACCURATE"
BITMAP_FILE_HEADER = 14  # bytes of a BMP before the header that `BITMAP_HEADER_SIZE` counts; behind it, the palette
WINDOW_ATTEMPTS = 10  # torchvision's, before it falls back to a centre crop


def decode_bitmap(data, header):
    """An encoded BMP whose header `check_format` has passed -> uint8 (height, width, 3)."""
    image = tf.io.decode_bmp(data, channels=0)  # (height, width, 1, 3 or 4)

    def palette_colours():
        start = BITMAP_FILE_HEADER + tf.cast(number(header, BITMAP_HEADER_SIZE, 4), tf.int32)
        declared = tf.cast(number(header, BITMAP_COLOURS, 4), tf.int32)
        count = tf.where((declared > 0) & (declared < 256), declared, 256)
        entries = tf.io.decode_raw(tf.strings.substr(data, start, 4 * count), tf.uint8, fixed_length=4 * 256)
        blue_green_red = tf.reshape(entries, (256, 4))[:, :3]
        return tf.gather(tf.reverse(blue_green_red, [1]), tf.cast(image[..., 0], tf.int32))

    return tf.cond(tf.shape(image)[-1] == 1, palette_colours, lambda: image[..., :3])


def decode_other(data):
    """An encoded image that is no JPEG -> uint8 (height, width, 3).

    Raises:
        tf.errors.InvalidArgumentError: when run, on what is none of the formats, damaged, or declared to be too large.
    """
    header = read_header(data)
    with tf.control_dependencies(check_format(data, header)), within_limit(declared_pixels(data)):
        still = lambda channels: tf.io.decode_image(data, channels=channels, expand_animations=False)  # noqa: E731
        image = tf.case(
            [
                (has_format(header, "BMP"), lambda: decode_bitmap(data, header)),
                # With 3 channels asked for, a WebP with transparency is an error.
                (has_format(header, "WebP"), lambda: still(0)[..., :3]),
            ],
            default=lambda: still(3),
        )
    return tf.ensure_shape(image, (None, None, 3))


decode_other_apart = apart(decode_other)


@tf.autograph.experimental.do_not_convert
def decode(data, exif_orientation=True):
    """Decodes a whole image.

    Args:
        data: encoded image, scalar string tensor.
        exif_orientation: turn a JPEG upright as its Exif tag says (exif.py); otherwise the pixels are as stored.

    Returns:
        uint8 tensor (height, width, 3).

    Raises:
        tf.errors.InvalidArgumentError: when run, on what is none of the formats, damaged, or declared to be too large.
    """

    def jpeg():
        with within_limit(jpeg_pixels(data)):
            image = tf.io.decode_jpeg(data, channels=3, dct_method=ACCURATE)
        return exif.upright(image, exif.jpeg_orientation(data)) if exif_orientation else image

    image = tf.cond(tf.io.is_jpeg(data), jpeg, lambda: decode_other_apart(data))
    return tf.ensure_shape(image, (None, None, 3))


def decode_window(data, window_of_shape, exif_orientation=True):
    """Decodes only a window of an image.

    Of a JPEG with subsampled colour, the window's first and last column may differ by a few levels from decoding all
    and slicing: the colour of a pixel is interpolated from neighbours that are not decoded.

    Args:
        data: encoded image, scalar string tensor.
        window_of_shape: function from the image's shape (height, width, channels), int32, to the window (top, left,
            height, width), int32; both are of the upright image.
        exif_orientation: see `decode`.

    Returns:
        uint8 tensor (window's height, window's width, 3).

    Raises:
        tf.errors.InvalidArgumentError: when run, on what is none of the formats or damaged.
    """
    is_jpeg, stored_as_seen = tf.io.is_jpeg(data), tf.constant(exif.STORED_AS_SEEN)

    def of_jpeg():
        orientation = exif.jpeg_orientation(data) if exif_orientation else stored_as_seen
        return tf.io.extract_jpeg_shape(data), orientation, tf.zeros((0, 0, 3), tf.uint8)

    def of_whole_image():
        image = decode_other_apart(data)
        return tf.shape(image), stored_as_seen, image

    shape, orientation, image = tf.cond(is_jpeg, of_jpeg, of_whole_image)
    if exif_orientation:
        shape = exif.upright_shape(shape, orientation)
    # Between the two conditions, not in their branches: there its many small operations take twice the time.
    window = window_of_shape(shape)

    def part():
        top, left, height, width = tf.unstack(window)
        return image[top : top + height, left : left + width]

    def decoded_part():
        stored = exif.stored_window(window, shape, orientation) if exif_orientation else window
        pixels = tf.io.decode_and_crop_jpeg(data, stored, channels=3, dct_method=ACCURATE)
        return exif.upright(pixels, orientation) if exif_orientation else pixels

    return tf.ensure_shape(tf.cond(is_jpeg, decoded_part, part), (None, None, 3))


def to_pixels(image):
    """Float image -> uint8, rounded. Both resizes take weighted means with positive weights: nothing leaves 0..255."""
    return tf.cast(image + 0.5, tf.uint8)


@tf.autograph.experimental.do_not_convert
def evaluation_image(data, resize=256, size=224, exif_orientation=True):
    """Resizes the shorter side to `resize` (bilinear, antialiased) and takes the central `size` x `size` pixels.

    Of a crop that is not square: resizes the image, in its proportions, until it just covers a box of the crop's
    proportions whose shorter side is `resize`, and takes the central pixels.

    Args:
        data: encoded image, scalar string tensor.
        resize: pixels of the shorter side before the crop, at least the crop's.
        size: pixels of the result's sides, or (height, width).
        exif_orientation: see `decode`.

    Returns:
        uint8 tensor (size, size, 3), or (height, width, 3).

    Raises:
        ValueError: `resize` is less than the crop's shorter side.
        tf.errors.InvalidArgumentError: see `decode`.
    """
    given, size = size, tuple(size) if isinstance(size, list | tuple) else (size, size)
    if resize < min(size):
        raise ValueError(f"resize must be at least the crop's size. Received: resize={resize}, size={given}")
    image = decode(data, exif_orientation)
    shape = tf.shape(image)[:2]
    rows, columns = tf.unstack(shape)
    height, width = (round(side * resize / min(size)) for side in size)
    # The decoders take no side over a million pixels: no overflow.
    resized = tf.stack([tf.maximum(height, width * rows // columns), tf.maximum(width, height * columns // rows)])
    offset = tf.round(tf.cast(resized - size, tf.float32) / 2.0)
    # Resize and crop at once: only the pixels that are kept are computed, however long the image is.
    crop = tf.raw_ops.ScaleAndTranslate(
        images=tf.cast(image, tf.float32)[None],
        size=size,
        scale=tf.cast(resized, tf.float32) / tf.cast(shape, tf.float32),
        translation=-offset,
        kernel_type="triangle",
        antialias=True,
    )
    return tf.ensure_shape(to_pixels(crop[0]), (*size, 3))


def random_window(shape, seed, area=(0.08, 1.0), aspect=(3 / 4, 4 / 3)):
    """torchvision's RandomResizedCrop: a window with a random part of the image's area and a random aspect ratio.

    Args:
        shape: (height, width, ...) of the image, integer tensor.
        seed: int tensor (2,); the window is a pure function of shape and seed.
        area: range of the window's part of the image's area, drawn uniformly.
        aspect: range of width / height, drawn uniformly in the logarithm.

    Returns:
        int32 tensor (top, left, height, width): the first of ten draws that fits, else a centre crop whose aspect
        ratio is the nearest allowed.
    """
    rows, columns = tf.cast(shape[0], tf.float32), tf.cast(shape[1], tf.float32)
    uniform = tf.random.stateless_uniform([4, WINDOW_ATTEMPTS], seed)
    target = rows * columns * (area[0] + uniform[0] * (area[1] - area[0]))
    log_low, log_high = math.log(aspect[0]), math.log(aspect[1])
    ratio = tf.exp(log_low + uniform[1] * (log_high - log_low))
    widths, heights = tf.round(tf.sqrt(target * ratio)), tf.round(tf.sqrt(target / ratio))
    fits = (widths > 0) & (widths <= columns) & (heights > 0) & (heights <= rows)
    first = tf.argmax(tf.cast(fits, tf.int32))
    height, width = heights[first], widths[first]
    top = tf.floor(uniform[2, first] * (rows - height + 1))
    left = tf.floor(uniform[3, first] * (columns - width + 1))
    # One pixel at least: an image may be a hundred times longer than wide.
    widest = tf.maximum(1.0, tf.round(rows * aspect[1]))
    highest = tf.maximum(1.0, tf.round(columns / aspect[0]))
    central_width = tf.where(columns / rows > aspect[1], widest, columns)
    central_height = tf.where(columns / rows < aspect[0], highest, rows)
    central_top, central_left = tf.floor((rows - central_height) / 2), tf.floor((columns - central_width) / 2)
    central = tf.stack([central_top, central_left, central_height, central_width])
    window = tf.where(tf.reduce_any(fits), tf.stack([top, left, height, width]), central)
    return tf.cast(window, tf.int32)


@tf.autograph.experimental.do_not_convert
def training_image(
    data,
    seed,
    size=224,
    area=(0.08, 1.0),
    aspect=(3 / 4, 4 / 3),
    flip=True,
    antialias=True,
    exif_orientation=True,
):
    """Random-size crop, resized to `size` x `size`, flipped left to right with probability one half.

    Args:
        data: encoded image, scalar string tensor.
        seed: int tensor (2,); the result is a pure function of data and seed.
        size: pixels of the result's sides.
        area, aspect: see `random_window`.
        flip: whether to flip at all.
        antialias: filter when shrinking, as Pillow and torchvision do; twice the CPU time of going without.
        exif_orientation: see `decode`; the window is drawn in the upright image.

    Returns:
        uint8 tensor (size, size, 3).

    Raises:
        tf.errors.InvalidArgumentError: see `decode_window`.
    """
    window_seed, flip_seed = tf.unstack(tf.random.split(seed, 2))
    crop = decode_window(data, lambda shape: random_window(shape, window_seed, area, aspect), exif_orientation)
    image = to_pixels(tf.image.resize(crop, (size, size), antialias=antialias))
    if flip:
        mirrored = tf.random.stateless_uniform([], flip_seed) < 0.5
        # Not image[:, ::-1], which takes longer than decoding the file.
        image = tf.cond(mirrored, lambda: tf.reverse(image, [1]), lambda: image)
    return image
