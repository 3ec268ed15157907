"""Stronger augmentation for modern recipes: RandAugment on one image, MixUp and CutMix on a batch (TensorFlow).

Everything is a pure function of a seed, so that a resumed run sees the same pixels. Keras' layers of these names draw
from a running state instead, and its RandAugment computes all its operations for each one it keeps, at angles and
shifts of another scale; so the three are written here.

    RandAugment   Cubuk et al., arXiv 1909.13719, with the operations and the scale of timm's "rand-m6-mstd0.5-inc1"
                  (timm/data/auto_augment.py), which the recipes of arXiv 2110.00476 name; pixels are Pillow's within 1,
                  but along the border of an image that was rotated, sheared or shifted
    MixUp         Zhang et al., arXiv 1710.09412:  x = ratio * a + (1 - ratio) * b, ratio ~ Beta(alpha, alpha)
    CutMix        Yun et al., arXiv 1905.04899: a box of b, 1 - ratio of the area, is pasted into a
"""

import tensorflow as tf

HIGHEST = 10.0  # magnitudes run from 0 to here
FILL = (124.0, 116.0, 104.0)  # ImageNet's mean colour, where a transformed image ends
LUMINANCE = (19595, 38470, 7471)  # Pillow's, / 65536
SMOOTH = ((1, 1, 1), (1, 5, 1), (1, 1, 1))  # Pillow's filter of that name, / 13


def look_up(image, table):
    """table (256,) or (256, 3), one column a channel, at each pixel. uint8."""
    table = tf.cast(tf.clip_by_value(tf.broadcast_to(tf.reshape(table, (256, -1)), (256, 3)), 0, 255), tf.uint8)
    return tf.stack([tf.gather(table[:, channel], tf.cast(image[..., channel], tf.int32)) for channel in range(3)], -1)


def blend(degenerate, image, factor):
    """degenerate + factor * (image - degenerate), clipped: factor 1 is the image, 0 the degenerate, 2 exaggerates."""
    image = tf.cast(image, tf.float32)
    return tf.cast(tf.clip_by_value(degenerate + factor * (image - degenerate), 0.0, 255.0), tf.uint8)


def grey(image):
    """Luminance (height, width, 1), float32 whole numbers."""
    weighted = tf.reduce_sum(tf.cast(image, tf.int32) * LUMINANCE, axis=-1, keepdims=True)
    return tf.cast((weighted + 0x8000) // 0x10000, tf.float32)


def affine(image, a, b, c, d, e, f):
    """The image whose pixel (x, y) comes from (a x + b y + c, d x + e y + f), coordinates of pixel corners; bilinear.

    Outside of the source is FILL.
    """
    # The operation takes coordinates of pixel centres, half a pixel from the corners.
    c, f = c + (a + b - 1) / 2, f + (d + e - 1) / 2
    # Its own filling would blend into the last row and column; a mask says how much of a pixel is inside.
    pixels = tf.concat([tf.cast(image, tf.float32) - FILL, tf.ones_like(image[..., :1], tf.float32)], axis=-1)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels[None],
        transforms=tf.stack([tf.cast(value, tf.float32) for value in (a, b, c, d, e, f, 0.0, 0.0)])[None],
        output_shape=tf.shape(image)[:2],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )[0, ..., :3]
    return tf.cast(tf.clip_by_value(tf.round(moved + FILL), 0.0, 255.0), tf.uint8)


def auto_contrast(image, magnitude, sign):
    """Stretches each channel to 0..255."""
    low, high = (tf.cast(reduce(image, axis=(0, 1)), tf.float32) for reduce in (tf.reduce_min, tf.reduce_max))
    scale = tf.where(high > low, 255.0 / tf.maximum(high - low, 1.0), 1.0)
    offset = tf.where(high > low, -low * scale, 0.0)
    return look_up(image, tf.floor(tf.range(256.0)[:, None] * scale + offset + 1e-4))


def equalize(image, magnitude, sign):
    """Gives each channel a flat histogram."""
    pixels = tf.cast(tf.reshape(image, (-1, 3)), tf.int32)
    histogram = tf.stack([tf.math.bincount(pixels[:, c], minlength=256, maxlength=256) for c in range(3)], axis=1)
    last = tf.gather(histogram, tf.reduce_max(pixels, axis=0), axis=0)  # (3, 3): its diagonal is what counts
    step = (tf.reduce_sum(histogram, axis=0) - tf.linalg.diag_part(last)) // 255
    table = (tf.cumsum(histogram, axis=0, exclusive=True) + step // 2) // tf.maximum(step, 1)
    return look_up(image, tf.where(step > 0, table, tf.range(256)[:, None]))


def invert(image, magnitude, sign):
    """255 minus the pixel."""
    return 255 - image


def posterize(image, magnitude, sign):
    """Keeps the upper 4 to 0 bits."""
    kept = 4 - tf.cast(magnitude / HIGHEST * 4, tf.int32)
    return look_up(image, tf.bitwise.bitwise_and(tf.range(256), 256 - tf.bitwise.left_shift(1, 8 - kept)))


def solarize(image, magnitude, sign):
    """Inverts pixels above a threshold, 256 to 0."""
    threshold = 256 - tf.cast(magnitude / HIGHEST * 256, tf.int32)
    return look_up(image, tf.where(tf.range(256) < threshold, tf.range(256), 255 - tf.range(256)))


def solarize_add(image, magnitude, sign):
    """Adds 0 to 110 to the darker half."""
    added = tf.cast(magnitude / HIGHEST * 110, tf.int32)
    return look_up(image, tf.where(tf.range(256) < 128, tf.range(256) + added, tf.range(256)))


def enhancement(magnitude, sign):
    """The factor of the next four: 1 plus or minus up to .9."""
    return 1 + sign * magnitude / HIGHEST * 0.9


def color(image, magnitude, sign):
    """Towards grey, or away from it."""
    return blend(grey(image), image, enhancement(magnitude, sign))


def contrast(image, magnitude, sign):
    """Towards the mean grey, or away from it."""
    return blend(tf.floor(tf.reduce_mean(grey(image)) + 0.5), image, enhancement(magnitude, sign))


def brightness(image, magnitude, sign):
    """Towards black, or away from it."""
    return blend(0.0, image, enhancement(magnitude, sign))


def sharpness(image, magnitude, sign):
    """Towards a smoothed image, or away from it; the outermost pixels are left."""
    kernel = tf.tile(tf.constant(SMOOTH, tf.float32)[:, :, None, None] / 13, (1, 1, 3, 1))
    smooth = tf.nn.depthwise_conv2d(tf.cast(image, tf.float32)[None], kernel, (1, 1, 1, 1), "VALID")[0]
    inner = blend(tf.floor(smooth + 0.5), image[1:-1, 1:-1], enhancement(magnitude, sign))
    rows = tf.concat([image[1:-1, :1], inner, image[1:-1, -1:]], axis=1)
    return tf.concat([image[:1], rows, image[-1:]], axis=0)


def rotate(image, magnitude, sign):
    """By up to 30 degrees about the centre."""
    angle = sign * magnitude / HIGHEST * 30 * (3.141592653589793 / 180)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32) / 2)
    c, f = width - cosine * width + sine * height, height - sine * width - cosine * height
    return affine(image, cosine, -sine, c, sine, cosine, f)


def shear_x(image, magnitude, sign):
    """By up to .3 pixels a row."""
    return affine(image, 1.0, sign * magnitude / HIGHEST * 0.3, 0.0, 0.0, 1.0, 0.0)


def shear_y(image, magnitude, sign):
    """By up to .3 pixels a column."""
    return affine(image, 1.0, 0.0, 0.0, sign * magnitude / HIGHEST * 0.3, 1.0, 0.0)


def translate_x(image, magnitude, sign):
    """By up to .45 of the width."""
    width = tf.cast(tf.shape(image)[1], tf.float32)
    return affine(image, 1.0, 0.0, sign * magnitude / HIGHEST * 0.45 * width, 0.0, 1.0, 0.0)


def translate_y(image, magnitude, sign):
    """By up to .45 of the height."""
    height = tf.cast(tf.shape(image)[0], tf.float32)
    return affine(image, 1.0, 0.0, 0.0, 0.0, 1.0, sign * magnitude / HIGHEST * 0.45 * height)


# Each (image, magnitude 0..10, sign 1 or -1) -> image, uint8 (height, width, 3).
OPERATIONS = (
    *(auto_contrast, equalize, invert, rotate, posterize, solarize, solarize_add, color, contrast, brightness),
    *(sharpness, shear_x, shear_y, translate_x, translate_y),
)


@tf.autograph.experimental.do_not_convert
def rand_augment(image, seed, magnitude, deviation=0.5, count=2, probability=0.5):
    """Draws `count` operations, and applies each with some probability, at a magnitude near the given one.

    Args:
        image: uint8 (height, width, 3), at least 3 x 3.
        seed: int tensor (2,); the result is a pure function of image and seed.
        magnitude, deviation: mean and standard deviation of the operations' strength, cut to 0..10.
        count: how many operations are drawn.
        probability: of applying each.

    Returns:
        uint8 tensor of the same shape.
    """
    shape = image.shape
    for layer_seed in tf.unstack(tf.random.split(seed, count)):
        choice_seed, strength_seed, uniform_seed = tf.unstack(tf.random.split(layer_seed, 3))
        choice = tf.random.stateless_uniform([], choice_seed, 0, len(OPERATIONS), tf.int32)
        strength = tf.random.stateless_normal([], strength_seed, magnitude, deviation)
        strength = tf.clip_by_value(strength, 0.0, HIGHEST)
        apply, positive = tf.unstack(tf.random.stateless_uniform([2], uniform_seed))
        sign = tf.where(positive < 0.5, -1.0, 1.0)
        branches = [lambda f=f, x=image, m=strength, s=sign: f(x, m, s) for f in OPERATIONS]
        # The default, the last branch, is no operation.
        index = tf.where(apply < probability, choice, len(branches))
        image = tf.switch_case(index, [*branches, lambda x=image: x])
    return tf.ensure_shape(image, shape)


def mixing_ratios(count, alpha, seed):
    """`count` draws of Beta(alpha, alpha), float32 (count,)."""
    # float64: at alpha .1 a gamma variable below float32's smallest number is no rarity.
    one, other = tf.unstack(tf.random.stateless_gamma([2, count], seed, alpha, dtype=tf.float64))
    return tf.cast(one / (one + other), tf.float32)


def boxes(ratio, height, width, seed):
    """Masks float32 (batch, height, width, 1): 1 inside a box of 1 - ratio (batch,) of the area, whose centre is drawn
    uniformly and which is cut at the border.
    """
    side = tf.sqrt(1.0 - ratio)
    centres = tf.random.stateless_uniform([2, tf.shape(ratio)[0]], seed)

    def inside(length, centre):
        size, middle = tf.floor(side * length), tf.floor(centre * length)
        low = tf.maximum(middle - tf.floor(size / 2), 0.0)
        high = tf.minimum(middle - tf.floor(size / 2) + size, length)
        position = tf.range(length)
        return tf.cast((position >= low[:, None]) & (position < high[:, None]), tf.float32)

    rows, columns = inside(tf.cast(height, tf.float32), centres[0]), inside(tf.cast(width, tf.float32), centres[1])
    return (rows[:, :, None] * columns[:, None, :])[..., None]


@tf.autograph.experimental.do_not_convert
def mixed_batch(images, labels, weights, seed, classes, mixup, cutmix):
    """Mixes each example with the one that stands opposite in the batch, by MixUp or by CutMix with equal chances.

    Each example draws its own mixing ratio (timm: one for a GPU's whole batch).

    Args:
        images: uint8 (batch, height, width, 3).
        labels: int64 (batch,), or float32 (batch, classes) of 0 and 1. weights: float32 (batch,).
        seed: int tensor (2,).
        classes: number of classes.
        mixup, cutmix: alpha of the Beta distribution of the mixing ratio; 0 leaves a method out,
            both 0 leave the images as they are.

    Returns:
        (images uint8, targets float32 (batch, classes), weights): an example with an unreadable half has weight 0.
    """
    count, height, width = tf.shape(images)[0], tf.shape(images)[1], tf.shape(images)[2]
    choice_seed, mixup_seed, cutmix_seed, box_seed = tf.unstack(tf.random.split(seed, 4))
    pixels, targets = tf.cast(images, tf.float32), labels if labels.shape.rank == 2 else tf.one_hot(labels, classes)
    own = tf.ones((count, 1, 1, 1))  # of each pixel, how much is the example's own
    if mixup:
        own = tf.reshape(mixing_ratios(count, mixup, mixup_seed), (-1, 1, 1, 1))
    own = tf.broadcast_to(own, (count, height, width, 1))
    if cutmix:
        cut = 1.0 - boxes(mixing_ratios(count, cutmix, cutmix_seed), height, width, box_seed)
        chance = 0.5 if mixup else 1.0
        chosen = tf.random.stateless_uniform([count, 1, 1, 1], choice_seed) < chance
        own = tf.where(chosen, cut, own)
    mixed = own * pixels + (1.0 - own) * pixels[::-1]
    ratio = tf.reduce_mean(own, axis=(1, 2))  # (batch, 1)
    targets = ratio * targets + (1.0 - ratio) * targets[::-1]
    both = weights if not (mixup or cutmix) else weights * weights[::-1]
    return tf.cast(tf.round(mixed), tf.uint8), targets, both
