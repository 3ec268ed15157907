"""Sources and pipelines: what a resumed, a distributed and an evaluated run rely on."""

import numpy as np
import pytest

from na_keras.data import load_source, pipeline
from na_keras.data.digits import digits
from na_keras.data.source import permuted_range

OPTIONS = {"size": 32, "area": (0.7, 1.0), "aspect": (0.9, 1.1), "flip": True}


def batches(epoch=0, first_step=0, seed=3, batch_size=256):
    dataset = pipeline.training_batches(
        digits("train"), seed=seed, epoch=epoch, first_step=first_step, batch_size=batch_size, **OPTIONS
    )
    return [(images.numpy(), labels.numpy()) for images, labels in dataset]


def assert_same(one, other):
    assert len(one) == len(other)
    for (images, labels), (other_images, other_labels) in zip(one, other, strict=True):
        np.testing.assert_array_equal(labels, other_labels)
        np.testing.assert_array_equal(images, other_images)


def test_digits_are_scikit_learns_with_a_fifth_held_out():
    train, validation = digits("train"), digits("validation")
    assert (train.count, validation.count) == (1437, 360)
    assert train.class_names == tuple("0123456789")
    names = {e["name"].numpy() for source in (train, validation) for e in source.examples(None)}
    assert len(names) == 1797
    labels = [int(e["label"]) for e in validation.examples(None)]
    assert np.bincount(labels, minlength=10).min() >= 26


def test_an_epoch_holds_every_example_at_most_once():
    indices = sorted(int(e["index"]) for e in digits("train").examples(11))
    assert indices == list(range(1437))


@pytest.mark.parametrize("count", [1, 2, 3, 10, 1000])
def test_permuted_range_is_a_permutation(count):
    assert sorted(int(i) for i in permuted_range(count, 5)) == list(range(count))
    assert [int(i) for i in permuted_range(count, None)] == list(range(count))


def test_training_batches_are_a_function_of_seed_and_epoch():
    assert_same(batches(), batches())
    for other in ({"epoch": 1}, {"seed": 4}):
        assert (batches()[0][1] != batches(**other)[0][1]).any()


def test_augmentation_changes_between_epochs_for_the_same_example():
    source = digits("train")
    one_image = {}
    for epoch in (0, 1):
        order = [int(e["index"]) for e in source.examples(pipeline.epoch_seed(3, epoch))]
        position = order.index(100)
        images, _ = batches(epoch=epoch, batch_size=1437)[0]
        one_image[epoch] = images[position]
    assert (one_image[0] != one_image[1]).any()


def test_starting_at_a_step_gives_the_rest_of_the_epoch():
    assert_same(batches(first_step=2), batches()[2:])
    assert batches(first_step=5) == []


def test_the_incomplete_last_batch_is_dropped():
    assert [len(labels) for _, labels in batches()] == [256] * 5


@pytest.mark.parametrize("batch_size", [1, 7, 64, 360, 500])
def test_evaluation_counts_every_image_once(batch_size):
    seen, weights = [], 0.0
    for images, labels, weight in pipeline.evaluation_batches(
        digits("validation"), batch_size=batch_size, resize=36, size=32
    ):
        assert images.shape == (batch_size, 32, 32, 3)
        seen += labels.numpy()[weight.numpy() > 0].tolist()
        weights += float(weight.numpy().sum())
    assert weights == 360
    assert seen == [int(e["label"]) for e in digits("validation").examples(None)]


def test_fewer_images_than_a_batch_is_an_error():
    with pytest.raises(ValueError, match="digits/train holds 1437 images, fewer than one batch of 2000"):
        batches(batch_size=2000)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="digits, folder or a name that TFDS knows. Received: 'mnits'"):
        load_source("mnits", "train")
    with pytest.raises(ValueError, match="train.*validation.*Received: 'test'"):
        load_source("digits", "test")
