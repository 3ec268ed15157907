"""Which way up a photograph is: the Exif tag Orientation of a JPEG file, and turning pixels by it (TensorFlow).

A camera stores the pixels as its sensor lies and notes how to turn them (Exif 2.32, section 4.6.4, tag 0x0112; JPEG's
segments: ITU T.81, annex B; the tag's container: TIFF 6.0, section 2). The value, and what makes stored rows upright:

    1  nothing              5  transpose
    2  mirror the columns   6  transpose, mirror the columns (a quarter turn clockwise)
    3  mirror both          7  transpose, mirror both
    4  mirror the rows      8  transpose, mirror the rows (a quarter turn anticlockwise)

The tag is read from a JPEG's Exif segment alone, the only place where cameras write it: not from XMP, not from PNG or
WebP. Where the tag is missing or damaged the value is 1: no file is refused for its Exif.
"""

import tensorflow as tf

from na_keras.data.image_headers import apart

STORED_AS_SEEN = 1
FIRST_TRANSPOSED = 5
MIRRORED_ROWS, MIRRORED_COLUMNS = (3, 4, 7, 8), (2, 3, 6, 7)

EXIF_MARKER, COMMENT_MARKER = 0xE1, 0xFE
EXIF = b"Exif\0\0"  # how the content of an Exif segment begins; a TIFF file follows
JFIF_LENGTH = 16  # of the segment that most files without Exif begin with
MOST_SEGMENTS = 64  # looked at, so that a file of many empty ones takes no server's time
SEGMENT_BYTES = 2**16

ORIENTATION_TAG, SHORT, LONG = 0x0112, 3, 4  # the tag, and the types of TIFF that its value may have
ENTRY_BYTES = 12


def bytes_at(data, position, count):
    """`count` bytes of a string from `position` on as int32, zeros behind its end."""
    position = tf.minimum(position, tf.strings.length(data))  # tf.strings.substr refuses a place behind the end
    piece = tf.strings.substr(data, position, count)
    return tf.cast(tf.io.decode_raw(piece, tf.uint8, fixed_length=count), tf.int32)


def may_precede(marker):
    """Whether a segment's second byte is an application's or a comment's: an Exif segment comes behind such only."""
    return (tf.bitwise.bitwise_and(marker, 0xF0) == 0xE0) | (marker == COMMENT_MARKER)


def exif_content(data):
    """The TIFF file in a JPEG's Exif segment: scalar string tensor, empty where there is none."""

    def is_exif(head):
        return (head[1] == EXIF_MARKER) & tf.reduce_all(head[4:10] == tf.constant(list(EXIF)))

    def another(position, head):
        return (head[0] == 0xFF) & may_precede(head[1]) & ~is_exif(head)

    def next_segment(position, head):
        # Behind the marker, the length of what follows, which counts itself.
        position = tf.minimum(position + 2 + head[2] * 256 + head[3], tf.strings.length(data))
        return position, bytes_at(data, position, 10)

    start = tf.constant(2)
    position, head = tf.while_loop(
        another,
        next_segment,
        (start, bytes_at(data, start, 10)),
        parallel_iterations=1,
        maximum_iterations=MOST_SEGMENTS,
    )
    content = tf.minimum(position + 4 + len(EXIF), tf.strings.length(data))
    length = tf.maximum(head[2] * 256 + head[3] - 2 - len(EXIF), 0)
    return tf.where(is_exif(head), tf.strings.substr(data, content, length), "")


def orientation_of_tiff(tiff):
    """The value of the tag Orientation in a TIFF file's first directory, int32; 1 where there is none of 1..8."""
    content = tf.io.decode_raw(tiff, tf.uint8, fixed_length=SEGMENT_BYTES)
    byte_order = content[:4]
    big_endian = tf.reduce_all(byte_order == tf.constant(list(b"MM\0*"), tf.uint8))
    known = big_endian | tf.reduce_all(byte_order == tf.constant(list(b"II*\0"), tf.uint8))

    def number(digits):
        """The unsigned number in the last axis, of at most 4 bytes."""
        digits = tf.cast(digits, tf.int64)
        powers = tf.constant([256**exponent for exponent in range(digits.shape[-1])], tf.int64)
        return tf.reduce_sum(digits * tf.where(big_endian, powers[::-1], powers), axis=-1)

    directory = tf.cast(tf.minimum(number(tf.ensure_shape(content[4:8], (4,))), SEGMENT_BYTES - 2), tf.int32)
    declared = tf.cast(number(tf.ensure_shape(content[directory : directory + 2], (2,))), tf.int32)
    count = tf.minimum(declared, (SEGMENT_BYTES - 2 - directory) // ENTRY_BYTES)
    entries = content[directory + 2 : directory + 2 + ENTRY_BYTES * count]
    entries = tf.reshape(entries, (-1, ENTRY_BYTES))  # each: tag, type, how many values, value
    tag, kind = number(entries[:, :2]), number(entries[:, 2:4])
    value = tf.where(kind == LONG, number(entries[:, 8:12]), number(entries[:, 8:10]))
    wanted = (tag == ORIENTATION_TAG) & ((kind == SHORT) | (kind == LONG)) & (value >= 1) & (value <= 8)
    found = tf.reduce_max(tf.where(wanted & known, value, STORED_AS_SEEN))
    return tf.cast(tf.maximum(found, STORED_AS_SEEN), tf.int32)  # of no entries, the maximum is the lowest number


@apart
def orientation_in_segments(data):
    """The Exif orientation of an encoded JPEG, int32; its segments are read one after the other."""
    return orientation_of_tiff(exif_content(data))


def jpeg_orientation(data):
    """The Exif orientation of an encoded JPEG.

    Args:
        data: an encoded JPEG, scalar string tensor.

    Returns:
        int32 scalar, 1..8; 1 for a file without the tag or with a damaged one.
    """
    # Most files without Exif show it at once: by a table as first segment, or behind the one of JFIF.
    head = bytes_at(data, 0, 22)
    first, length, second = head[3], head[4] * 256 + head[5], head[21]
    only_jfif = (first == 0xE0) & (length == JFIF_LENGTH) & ~may_precede(second)
    return tf.cond(
        may_precede(first) & ~only_jfif, lambda: orientation_in_segments(data), lambda: tf.constant(STORED_AS_SEEN)
    )


def one_of(orientation, values):
    """Whether the orientation is one of `values`, boolean scalar tensor."""
    return tf.reduce_any(orientation == tf.constant(values))


def upright_shape(shape, orientation):
    """(height, width, channels) of the upright image, from that of the stored one."""
    return tf.where(orientation >= FIRST_TRANSPOSED, tf.gather(shape, (1, 0, 2)), shape)


def stored_window(window, shape, orientation):
    """Where a window of the upright image lies in the stored one.

    Args:
        window: int32 (4,): top, left, height, width in the upright image.
        shape: int32 (3,) of the upright image.
        orientation: int32 scalar, 1..8.

    Returns:
        int32 (4,): top, left, height, width in the stored image.
    """

    def moved():
        top, left, height, width = tf.unstack(window)
        top = tf.where(one_of(orientation, MIRRORED_ROWS), shape[0] - top - height, top)
        left = tf.where(one_of(orientation, MIRRORED_COLUMNS), shape[1] - left - width, left)
        transposed = orientation >= FIRST_TRANSPOSED
        return tf.where(transposed, tf.stack([left, top, width, height]), tf.stack([top, left, height, width]))

    return tf.cond(orientation == STORED_AS_SEEN, lambda: window, moved)


def upright(image, orientation):
    """The stored pixels (height, width, 3) turned as the orientation says; the sides are exchanged by 5 to 8."""

    def turned():
        def transpose():
            # Not tf.transpose: once a process, oneDNN would report to everyone's terminal that it has none for uint8.
            height, width, channels = tf.unstack(tf.shape(image))
            position = tf.range(width)[:, None] + width * tf.range(height)  # (width, height)
            return tf.gather(tf.reshape(image, (-1, channels)), position)

        pixels = tf.cond(orientation >= FIRST_TRANSPOSED, transpose, lambda: image)
        mirrored = [one_of(orientation, MIRRORED_ROWS), one_of(orientation, MIRRORED_COLUMNS), tf.constant(False)]
        return tf.raw_ops.Reverse(tensor=pixels, dims=tf.stack(mirrored))

    return tf.cond(orientation == STORED_AS_SEEN, lambda: image, turned)
