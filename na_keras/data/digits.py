"""Scikit-learn's handwritten digits (UCI "Optical Recognition of Handwritten Digits", test part): real images that an
installed package holds, so that the whole path runs without a download.

1797 grey images of 8 x 8 pixels with values 0..16, written by 13 people, in the writers' order. They are enlarged to
48 x 48, framed in black to 64 x 64 and encoded as JPEG, so that they pass through the same decoding, cropping and
resizing as photographs do. Every fifth image is held out, 360 in all; the same 13 hands wrote both parts.
"""

import functools

import numpy as np
import tensorflow as tf

from na_keras.data.source import Source, permuted_range

HELD_OUT_EVERY = 5
SIDE, BORDER = 48, 8  # pixels; the border keeps random crops from cutting into the strokes


@functools.cache
def encoded_digits():
    """(JPEG bytes (1797,), labels int64 (1797,)) as NumPy arrays, in the stored order."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.repeat(digits.images[..., None] * (255 / 16), 3, axis=-1)
    enlarged = tf.clip_by_value(tf.image.resize(pixels, (SIDE, SIDE), "bicubic"), 0, 255)
    framed = tf.pad(tf.cast(tf.round(enlarged), tf.uint8), [[0, 0], [BORDER, BORDER], [BORDER, BORDER], [0, 0]])
    encoded = [tf.io.encode_jpeg(image, quality=95).numpy() for image in framed]
    return np.array(encoded, object), digits.target.astype(np.int64)


def digits(split):
    """The embedded digits as a Source; `split` is "train" (1437 images) or "validation" (360)."""
    images, labels = encoded_digits()
    held_out = np.arange(len(labels)) % HELD_OUT_EVERY == 0
    chosen = np.flatnonzero(held_out if split == "validation" else ~held_out)
    images, labels, positions = tf.constant(images[chosen].tolist()), tf.constant(labels[chosen]), tf.constant(chosen)

    def examples(seed):
        def example(i):
            name = tf.strings.join(["digits/", tf.strings.as_string(positions[i])])
            return {"image": images[i], "label": labels[i], "index": i, "name": name}

        return permuted_range(len(chosen), seed).map(example)

    return Source(f"digits/{split}", tuple("0123456789"), len(chosen), examples)
