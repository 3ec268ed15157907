"""RandAugment's operations against Pillow, and what MixUp and CutMix do to pixels, targets and weights."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from na_keras.data import augmentation

FILL = tuple(int(value) for value in augmentation.FILL)


@pytest.fixture(scope="module")
def photograph():
    image = load_sample_images().images[0][100:260, 200:424]
    return np.clip(image.astype(int) + 20, 25, 240).astype(np.uint8)  # so that auto-contrast has something to do


def pillow_affine(*matrix):
    return lambda image: image.transform(image.size, Image.AFFINE, matrix, Image.BILINEAR, fillcolor=FILL)


# operation: (magnitude, sign, the same with Pillow)
PILLOW = {
    "auto_contrast": (6, 1, ImageOps.autocontrast),
    "equalize": (6, 1, ImageOps.equalize),
    "invert": (6, 1, ImageOps.invert),
    "posterize": (6, 1, lambda image: ImageOps.posterize(image, 2)),
    "solarize": (6, 1, lambda image: ImageOps.solarize(image, 256 - 153)),
    "solarize_add": (6, 1, lambda image: image.point([min(255, i + 66) if i < 128 else i for i in range(256)] * 3)),
    "color": (6, 1, lambda image: ImageEnhance.Color(image).enhance(1.54)),
    "contrast": (6, -1, lambda image: ImageEnhance.Contrast(image).enhance(0.46)),
    "brightness": (5, 1, lambda image: ImageEnhance.Brightness(image).enhance(1.45)),
    "sharpness": (6, -1, lambda image: ImageEnhance.Sharpness(image).enhance(0.46)),
    "rotate": (6, 1, lambda image: image.rotate(18, Image.BILINEAR, fillcolor=FILL)),
    "shear_x": (6, -1, pillow_affine(1, -0.18, 0, 0, 1, 0)),
    "shear_y": (6, 1, pillow_affine(1, 0, 0, 0.18, 1, 0)),
    "translate_x": (4, 1, pillow_affine(1, 0, 0.18 * 224, 0, 1, 0)),
    "translate_y": (4, -1, pillow_affine(1, 0, 0, 0, 1, -0.18 * 160)),
}


@pytest.mark.parametrize("operation", augmentation.OPERATIONS, ids=lambda f: f.__name__)
def test_operation_equals_pillows(photograph, operation):
    magnitude, sign, pillow = PILLOW[operation.__name__]
    ours = operation(tf.constant(photograph), tf.constant(magnitude, tf.float32), tf.constant(sign, tf.float32))
    theirs = np.asarray(pillow(Image.fromarray(photograph)))
    difference = np.abs(ours.numpy().astype(int) - theirs)
    if operation.__name__.startswith(("rotate", "shear", "translate")):
        # Along the source's border Pillow repeats the last pixel for half a pixel, where we blend into FILL.
        assert (difference > 1).mean() < 0.02
    else:  # rounding: Pillow cuts where we round
        assert difference.max() <= 1
    assert np.abs(ours.numpy().astype(int) - photograph).mean() > 2  # it does something


def test_sign_turns_the_direction(photograph):
    for operation in (augmentation.rotate, augmentation.shear_x, augmentation.translate_y, augmentation.brightness):
        one, other = (operation(tf.constant(photograph), 6.0, sign).numpy() for sign in (1.0, -1.0))
        assert (one != other).mean() > 0.5


def test_rand_augment_is_a_function_of_its_seed(photograph):
    image = tf.constant(photograph)
    draw = tf.function(lambda seed: augmentation.rand_augment(image, seed, 6.0))
    images = [draw(tf.constant([seed, 0], tf.int64)).numpy() for seed in range(100)]
    np.testing.assert_array_equal(images[3], draw(tf.constant([3, 0], tf.int64)).numpy())
    unchanged = sum((image == photograph).all() for image in images)
    # Two operations, each left out half of the time: a quarter stays. 4 sigma of 100 draws are 17.
    assert abs(unchanged - 25) < 17
    assert len({image.tobytes() for image in images}) > 60


def batch(count=64, size=16):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, size, size, 3)).astype(np.uint8)
    return tf.constant(images), tf.constant(np.arange(count) % 10), tf.ones(count)


def mix(images, labels, weights, **options):
    options = {"mixup": 0.0, "cutmix": 0.0, **options}
    return [value.numpy() for value in augmentation.mixed_batch(images, labels, weights, [1, 2], 10, **options)]


def test_mixup_blends_pixels_and_targets_by_the_same_share():
    images, labels, weights = batch()
    mixed, targets, _ = mix(images, labels, weights, mixup=0.8)
    np.testing.assert_allclose(targets.sum(axis=1), 1.0, atol=1e-6)
    assert (np.abs(targets.max(axis=1) - 0.5) < 0.45).mean() > 0.5
    for index in range(len(labels)):
        own, partner = int(labels[index]), int(labels[-1 - index])
        share = targets[index, own]
        blend = share * images[index].numpy() + (1 - share) * images[-1 - index].numpy().astype(float)
        if own != partner:
            assert np.abs(mixed[index] - blend).max() <= 0.501  # rounding to whole levels


def test_cutmix_pastes_a_box_and_counts_its_area():
    images, labels, weights = batch()
    mixed, targets, _ = mix(images, labels, weights, cutmix=1.0)
    for index in range(len(labels)):
        own, partner = images[index].numpy(), images[-1 - index].numpy()
        pasted = (mixed[index] == partner).all(axis=-1) & (own != partner).any(axis=-1)
        assert ((mixed[index] == own).all(axis=-1) | pasted).all()
        rows, columns = np.flatnonzero(pasted.any(axis=1)), np.flatnonzero(pasted.any(axis=0))
        if pasted.any():
            assert pasted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        if labels[index] != labels[-1 - index]:
            assert targets[index, int(labels[-1 - index])] == pytest.approx(pasted.mean(), abs=1e-6)
    areas = 1 - targets[np.arange(64), labels.numpy()]
    # 1 - share is uniform in 0..1, less what the border cuts off: mean about .32; 4 sigma of 64 draws are .13.
    assert abs(areas.mean() - 0.32) < 0.13


def test_both_methods_are_used():
    images, labels, weights = batch()
    mixed, _, _ = mix(images, labels, weights, mixup=0.8, cutmix=1.0)
    kept = [((m == a) | (m == b)).all() for m, a, b in zip(mixed, images.numpy(), images.numpy()[::-1], strict=True)]
    assert 0.25 < np.mean(kept) < 0.75  # CutMix invents no pixel


def test_an_unreadable_half_takes_the_mixed_example_out():
    images, labels, _ = batch(4)
    assert mix(images, labels, tf.constant([1.0, 0.0, 1.0, 1.0]), mixup=0.8)[2].tolist() == [1, 0, 0, 1]


def test_mixing_ratios_are_beta_distributed():
    draws = augmentation.mixing_ratios(20_000, 0.1, [3, 4]).numpy()
    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)) = .2083.
    assert np.isfinite(draws).all() and abs(draws.mean() - 0.5) < 0.02 and abs(draws.var() - 0.2083) < 0.005
