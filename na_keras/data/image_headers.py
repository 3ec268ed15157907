"""How many pixels an image file claims to hold, read from its header before anything is decoded (TensorFlow).

A file of a few kilobytes can declare billions of pixels, and decoding it would take all memory of a server. The limit
is Pillow's: above it Pillow raises DecompressionBombError.

- JPEG: TensorFlow's own reader of the frame header.
- PNG, BMP, WebP: width and height stand at fixed places.
- GIF: the decoder keeps every frame, whatever the size of the canvas in the header; so all frames are counted, by
  walking from block to block as the format defines them.
"""

import tensorflow as tf

MAX_PIXELS = 2 * 89_478_485  # 179 million: at most 2.7 GB for one image while it is decoded and resized

HEADER_BYTES = 30  # of WebP, the longest of those with fixed places
GIF_IMAGE, GIF_EXTENSION = 0x2C, 0x21  # the two kinds of block; any other byte ends the file


def number(data, start, count, big_endian=False):
    """The unsigned integer in `count` bytes of `data`, an int64 tensor of byte values, from `start` on."""
    exponents = range(count - 1, -1, -1) if big_endian else range(count)
    return tf.reduce_sum(data[start : start + count] * [256**exponent for exponent in exponents])


def signed(value):
    """The 32 bits of a non-negative int64 as a signed number, an int64 tensor too."""
    return tf.where(value < 2**31, value, value - 2**32)


def begins(header, start, magic):
    """Whether the bytes from `start` on are those of `magic`."""
    return tf.reduce_all(header[start : start + len(magic)] == tf.constant(list(magic), tf.int64))


def declared_sizes(header):
    """Rows (is this the file's format, width, height) for the formats whose size stands at a fixed place."""
    webp = begins(header, 0, b"RIFF") & begins(header, 8, b"WEBP")
    low14, lossless = 2**14 - 1, number(header, 21, 4)
    size = lambda start: tf.abs(signed(number(header, start, 4)))  # noqa: E731
    return (
        (begins(header, 0, b"\x89PNG"), number(header, 16, 4, True), number(header, 20, 4, True)),
        (begins(header, 0, b"BM"), size(18), size(22)),  # rows from top to bottom have a negative height
        (webp & begins(header, 12, b"VP8 "), number(header, 26, 2) & low14, number(header, 28, 2) & low14),
        (webp & begins(header, 12, b"VP8L"), (lossless & low14) + 1, (lossless // 2**14 & low14) + 1),
        (webp & begins(header, 12, b"VP8X"), number(header, 24, 3) + 1, number(header, 27, 3) + 1),
    )


def gif_pixels(data):
    """Pixels of all frames of a GIF, float64; counted until the limit is passed or the blocks end."""
    length = tf.strings.length(data)
    # Zeros behind the end, so that a block's first ten bytes can be read at once at any place.
    content = tf.io.decode_raw(data, tf.uint8, fixed_length=length + 16)

    def colour_table(flags):
        return tf.where(flags & 0x80 > 0, 3 * 2 ** ((flags & 7) + 1), 0)

    def unfinished(position, pixels, in_data):
        return (position < length) & (pixels <= MAX_PIXELS)

    def next_block(position, pixels, in_data):
        head = tf.cast(content[position : position + 10], tf.int32)
        # An image or an extension goes on in pieces of at most 255 bytes, each behind its length; length 0 is the end.
        is_image, is_extension = ~in_data & (head[0] == GIF_IMAGE), ~in_data & (head[0] == GIF_EXTENSION)
        width, height = head[5] + 256 * head[6], head[7] + 256 * head[8]
        area = tf.cast(width, tf.float64) * tf.cast(height, tf.float64)
        step = tf.where(is_image, 11 + colour_table(head[9]), tf.where(is_extension, 2, length))
        return (
            position + tf.where(in_data, 1 + head[0], step),
            pixels + tf.where(is_image, area, 0),
            tf.where(in_data, head[0] > 0, is_image | is_extension),
        )

    start = 13 + colour_table(tf.cast(content[10], tf.int32))
    state = (start, tf.constant(0.0, tf.float64), tf.constant(False))
    return tf.while_loop(unfinished, next_block, state, parallel_iterations=1)[1]


# Its own function, never merged into the caller's graph: the executor touches every operation of a branch not taken,
# and these hundred would add a sixth to the time that a JPEG takes.
@tf.function(
    input_signature=[tf.TensorSpec((), tf.string)], autograph=False, experimental_attributes={"_noinline": True}
)
def declared_pixels(data):
    """Pixels of an encoded PNG, GIF (all frames), BMP or WebP as its headers declare them.

    Args:
        data: encoded image, scalar string tensor.

    Returns:
        float64 scalar (32-bit widths times heights overflow an int64); 0 for what has none of these formats.
    """
    header = tf.cast(tf.io.decode_raw(data, tf.uint8, fixed_length=HEADER_BYTES), tf.int64)

    def fixed_places():
        area = lambda width, height: tf.cast(width, tf.float64) * tf.cast(height, tf.float64)  # noqa: E731
        sizes = declared_sizes(header)
        return tf.add_n([tf.where(applies, area(width, height), 0) for applies, width, height in sizes])

    return tf.cond(begins(header, 0, b"GIF8"), lambda: gif_pixels(data), fixed_places)


def jpeg_pixels(data):
    """Pixels of an encoded JPEG as its header declares them, float64 scalar."""
    return tf.reduce_prod(tf.cast(tf.io.extract_jpeg_shape(data)[:2], tf.float64))


def within_limit(pixels):
    """A context for the operations that decode: they run only if `pixels` is at most MAX_PIXELS.

    Raises:
        tf.errors.InvalidArgumentError: when run, for more pixels.
    """
    message = f"The image is too large: at most {MAX_PIXELS} pixels are decoded; its header declares"
    # Not tf.debugging.Assert, which puts a tf.cond around this operation.
    check = tf.raw_ops.Assert(condition=pixels <= MAX_PIXELS, data=[message, pixels])
    return tf.control_dependencies([check] if check is not None else [])
