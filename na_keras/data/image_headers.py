"""What an image file's first bytes say, read before anything is decoded: its format, and how many pixels it claims to
hold (TensorFlow).

Formats are recognised by their signature, and only those of SIGNATURES are decoded. TensorFlow's decode_image knows
more, and more with each release (2.21: JPEG XL, where 816 kB decode to 6.9 GB); what is not checked here stays closed.

A file of a few kilobytes can declare billions of pixels, and decoding it would take all memory of a server. The limit
is Pillow's: above it Pillow raises DecompressionBombError.

- JPEG: TensorFlow's own reader of the frame header.
- PNG, BMP, WebP: width and height stand at fixed places.
- GIF: the decoder keeps every frame, whatever the size of the canvas in the header; so all frames are counted, by
  walking from block to block as the format defines them.
"""

import functools

import tensorflow as tf

MAX_PIXELS = 2 * 89_478_485  # 179 million: at most 2.7 GB for one image while it is decoded and resized

# The formats that are decoded: each begins with these bytes at these places. export/serving_client.py holds a copy.
SIGNATURES = {
    "JPEG": ((0, b"\xff\xd8\xff"),),
    "PNG": ((0, b"\x89PNG\r\n\x1a\n"),),
    "GIF": ((0, b"GIF8"),),
    "BMP": ((0, b"BM"),),
    "WebP": ((0, b"RIFF"), (8, b"WEBP")),
}

HEADER_BYTES = 66  # as far as the colour masks of a BMP, the longest of those with fixed places
# What stands at fixed places of a BMP's header and of an extended WebP's.
BITMAP_HEADER_SIZE, BITMAP_BITS, BITMAP_COMPRESSION, BITMAP_COLOURS, BITMAP_MASKS = 14, 28, 30, 46, 54
UNCOMPRESSED, BIT_FIELDS = 0, 3
BLUE_GREEN_RED = b"\0\0\xff\0" + b"\0\xff\0\0" + b"\xff\0\0\0"  # masks of red, green, blue in a pixel's 32 bits
WEBP_FLAGS, WEBP_ANIMATION = 20, 0x02
GIF_IMAGE, GIF_EXTENSION = 0x2C, 0x21  # the two kinds of block; any other byte ends the file


def apart(function):
    """`function` of an encoded image (a scalar string tensor), never merged into the graph that calls it.

    The executor touches every operation of a branch not taken: a hundred for rare files would add a sixth to the time
    that each JPEG takes. Eagerly the function is called as it is, so that its errors have one line.
    """
    graph = tf.function(
        function,
        input_signature=[tf.TensorSpec((), tf.string)],
        autograph=False,
        experimental_attributes={"_noinline": True},
    )
    return functools.wraps(function)(lambda data: function(data) if tf.executing_eagerly() else graph(data))


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


def read_header(data):
    """The first HEADER_BYTES bytes of an encoded image as int64, zeros behind its end."""
    return tf.cast(tf.io.decode_raw(data, tf.uint8, fixed_length=HEADER_BYTES), tf.int64)


def has_format(header, name):
    """Whether a header is that of the format `name` of SIGNATURES, boolean scalar tensor."""
    return tf.reduce_all([begins(header, start, magic) for start, magic in SIGNATURES[name]])


def check_format(data, header):
    """The assertions that a file is one of the formats and of a kind that is decoded rightly.

    TensorFlow reads a BMP's 8 bits as grey whatever its palette and takes compressed ones for plain; other depths and
    the older header it misreads or refuses with a message about channels.

    Args:
        data: encoded image, scalar string tensor.
        header: of `read_header`.

    Returns:
        a list of operations, which raise InvalidArgumentError when run.
    """
    known = tf.reduce_any([has_format(header, name) for name in SIGNATURES])
    length = tf.strings.length(data)
    # Bytes as numbers: TensorFlow cannot turn an error's text with bytes that are no UTF-8 into a Python exception.
    bytes_read = ["bytes that begin with", tf.cast(header[:12], tf.uint8)]
    expected = f"Not an accepted image format: expected {', '.join(SIGNATURES)}; received"
    checks = [tf.raw_ops.Assert(condition=known, data=[expected, length, *bytes_read], summarize=12)]

    bits, compression = number(header, BITMAP_BITS, 2), number(header, BITMAP_COMPRESSION, 4)
    plain = (compression == UNCOMPRESSED) & ((bits == 8) | (bits == 24) | (bits == 32))
    masked = (compression == BIT_FIELDS) & (bits == 32) & begins(header, BITMAP_MASKS, BLUE_GREEN_RED)
    decodable = (number(header, BITMAP_HEADER_SIZE, 4) >= 40) & (plain | masked)
    message = "This kind of BMP is not decoded: expected 8, 24 or 32 bits a pixel, uncompressed; received bits"
    received = [message, bits, "and compression", compression, "behind a header of bytes", header[BITMAP_HEADER_SIZE]]
    checks.append(tf.raw_ops.Assert(condition=~has_format(header, "BMP") | decodable, data=received))

    animated = begins(header, 12, b"VP8X") & (tf.bitwise.bitwise_and(header[WEBP_FLAGS], WEBP_ANIMATION) > 0)
    message = "An animated WebP is not decoded: expected a still one"
    checks.append(tf.raw_ops.Assert(condition=~(has_format(header, "WebP") & animated), data=[message]))
    return [check for check in checks if check is not None]  # eagerly they have run


def declared_sizes(header):
    """Rows (is this the file's format, width, height) for the formats whose size stands at a fixed place."""
    webp = has_format(header, "WebP")
    low14, lossless = 2**14 - 1, number(header, 21, 4)
    size = lambda start: tf.abs(signed(number(header, start, 4)))  # noqa: E731
    return (
        (has_format(header, "PNG"), number(header, 16, 4, True), number(header, 20, 4, True)),
        (has_format(header, "BMP"), size(18), size(22)),  # rows from top to bottom have a negative height
        (webp & begins(header, 12, b"VP8 "), number(header, 26, 2) & low14, number(header, 28, 2) & low14),
        (webp & begins(header, 12, b"VP8L"), (lossless & low14) + 1, (lossless // 2**14 & low14) + 1),
        (webp & begins(header, 12, b"VP8X"), number(header, 24, 3) + 1, number(header, 27, 3) + 1),
    )


@tf.function(input_signature=[tf.TensorSpec((), tf.string)], autograph=False)
def gif_pixels(data):
    """Pixels of all frames of a GIF, float64; counted until the limit is passed or the blocks end.

    A graph when called eagerly too: the blocks of one photograph are hundreds, of some twenty operations each.
    """
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


@apart
def declared_pixels(data):
    """Pixels of an encoded PNG, GIF (all frames), BMP or WebP as its headers declare them.

    Args:
        data: encoded image, scalar string tensor.

    Returns:
        float64 scalar (32-bit widths times heights overflow an int64); 0 for what has none of these formats.
    """
    header = read_header(data)

    def fixed_places():
        area = lambda width, height: tf.cast(width, tf.float64) * tf.cast(height, tf.float64)  # noqa: E731
        sizes = declared_sizes(header)
        return tf.add_n([tf.where(applies, area(width, height), 0) for applies, width, height in sizes])

    return tf.cond(has_format(header, "GIF"), lambda: gif_pixels(data), fixed_places)


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
