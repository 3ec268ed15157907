"""Sources and pipelines: what a resumed, a distributed and an evaluated run rely on."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from na_keras.data import load_source, pipeline
from na_keras.data.digits import digits
from na_keras.data.source import permuted_range

OPTIONS = {"size": 32, "area": (0.7, 1.0), "aspect": (0.9, 1.1), "flip": True}


def batches(epoch=0, first_step=0, seed=3, batch_size=256, count=-1):
    dataset = pipeline.training_batches(
        digits("train"), seed=seed, epoch=epoch, first_step=first_step, batch_size=batch_size, **OPTIONS
    ).take(count)
    return [(images.numpy(), labels.numpy()) for images, labels, weights in dataset if (weights.numpy() == 1).all()]


@functools.cache
def whole_epoch():
    return batches()


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
    assert_same(whole_epoch(), batches())
    for other in ({"epoch": 1}, {"seed": 4}):
        assert (whole_epoch()[0][1] != batches(**other, count=1)[0][1]).any()


def test_augmentation_changes_between_epochs_for_the_same_example():
    source = digits("train")
    one_image = {}
    for epoch in (0, 1):
        order = [int(e["index"]) for e in source.examples(pipeline.epoch_seed(3, epoch))]
        position = order.index(100)
        step, offset = divmod(position, 16)
        ((images, _),) = batches(epoch=epoch, first_step=step, batch_size=16, count=1)
        one_image[epoch] = images[offset]
    assert (one_image[0] != one_image[1]).any()


def test_starting_at_a_step_gives_the_rest_of_the_epoch():
    assert_same(batches(first_step=2), whole_epoch()[2:])
    assert batches(first_step=5) == []


def test_the_incomplete_last_batch_is_dropped():
    assert [len(labels) for _, labels in whole_epoch()] == [256] * 5


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
    with pytest.raises(ValueError, match="digits, folder, csv or a name that TFDS knows. Received: 'mnits'"):
        load_source("mnits", "train")
    with pytest.raises(ValueError, match="train.*validation.*Received: 'test'"):
        load_source("digits", "test")
    with pytest.raises(ValueError, match="For the images in photographs give --dataset=folder"):
        load_source("digits", "train", "photographs")  # which would be ignored


def on_machine(machine, machines=2, replicas=4, **options):
    context = tf.distribute.InputContext(machines, machine, replicas)
    batches = pipeline.training_batches(
        digits("train"), seed=3, epoch=0, first_step=1, batch_size=64, context=context, **OPTIONS, **options
    )
    return [tuple(part.numpy() for part in batch) for batch in batches.take(6)]


def test_machines_share_each_global_batch():
    """Two machines with two replicas each: what they get of a step is the step's global batch, nothing twice."""
    whole = batches(first_step=1, batch_size=64, count=3)
    shares = [on_machine(0), on_machine(1)]
    for step in range(3):  # two portions, one a replica, make a machine's step
        portions = [share[2 * step + replica] for share in shares for replica in range(2)]
        assert [len(labels) for _, labels, _ in portions] == [16] * 4
        images = {image.tobytes() for portion in portions for image in portion[0]}
        assert images == {image.tobytes() for image in whole[step][0]}


@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_counts_every_image_once_on_several_machines(count):
    weights = []
    for machine in range(count):
        context = tf.distribute.InputContext(count, machine, 2 * count)
        batches = pipeline.evaluation_batches(digits("validation"), batch_size=100, resize=36, size=32, context=context)
        portions = [weight.numpy() for _, _, weight in batches]
        assert [len(weight) for weight in portions] == [50 // count] * 8
        weights += [float(weight.sum()) for weight in portions]
    assert sum(weights) == 360


def test_mixed_batches_can_start_at_any_step_and_hold_shares_of_classes():
    mix = {"mixup": 0.2, "cutmix": 1.0}
    options = {"seed": 3, "epoch": 0, "batch_size": 64, "mix": mix, "rand_augment": 6.0, **OPTIONS}
    whole = list(pipeline.training_batches(digits("train"), first_step=18, **options))
    rest = list(pipeline.training_batches(digits("train"), first_step=20, **options))
    assert (len(whole), len(rest)) == (4, 2)
    for batch, other in zip(whole[2:], rest, strict=True):
        for part, other_part in zip(batch, other, strict=True):
            np.testing.assert_array_equal(part, other_part)
    targets = whole[0][1].numpy()
    assert targets.shape == (64, 10) and ((targets > 0.01) & (targets < 0.99)).any()
    np.testing.assert_allclose(targets.sum(axis=1), 1.0, atol=1e-6)
    # Mixed over a machine's share, then dealt to replicas: one device sees the same images.
    context = tf.distribute.InputContext(1, 0, 4)
    dealt = list(pipeline.training_batches(digits("train"), first_step=18, context=context, **options))
    np.testing.assert_array_equal(np.concatenate([images for images, _, _ in dealt[:4]]), whole[0][0])


def test_rand_augment_changes_images_in_the_pipeline():
    options = {"seed": 3, "epoch": 0, "first_step": 0, "batch_size": 64, **OPTIONS}
    plain, _, _ = next(iter(pipeline.training_batches(digits("train"), **options)))
    changed, _, _ = next(iter(pipeline.training_batches(digits("train"), rand_augment=6.0, **options)))
    share = np.mean([(a != b).any() for a, b in zip(plain.numpy(), changed.numpy(), strict=True)])
    assert 0.4 < share < 0.95  # three of four expected


def damaged(index):
    """The digits with one file cut in the middle."""
    source = digits("train")

    def cut(example):
        broken = tf.strings.substr(example["image"], 0, 40)
        return {**example, "image": tf.where(example["index"] == index, broken, example["image"])}

    return dataclasses.replace(source, examples=lambda seed: source.examples(seed).map(cut))


def test_an_unreadable_image_is_left_out_only_when_asked_for_and_moves_no_other():
    options = {"seed": 3, "epoch": 0, "first_step": 0, "batch_size": 64, **OPTIONS}
    first = [int(e["index"]) for e in digits("train").examples(pipeline.epoch_seed(3, 0)).take(64)]
    source = damaged(first[10])
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(pipeline.training_batches(source, **options).take(1))
    order = digits("train").examples(pipeline.epoch_seed(3, 0))
    (name,) = [e["name"].numpy().decode() for e in order.skip(10).take(1)]
    assert pipeline.first_unreadable(source, 3, 0, 0, 64)[0] == name
    whole = list(pipeline.training_batches(digits("train"), **options))
    left = list(pipeline.training_batches(source, skip_unreadable=True, **options))
    assert len(left) == len(whole)
    assert sum(float(tf.reduce_sum(weights)) for _, _, weights in left) == 22 * 64 - 1
    for position, (images, labels, weights) in enumerate(left):
        kept = weights.numpy() == 1
        assert position or list(np.flatnonzero(~kept)) == [10]
        np.testing.assert_array_equal(labels, whole[position][1])
        np.testing.assert_array_equal(images.numpy()[kept], whole[position][0].numpy()[kept])
    evaluation = {"batch_size": 64, "resize": 36, "size": 32}
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(pipeline.evaluation_batches(damaged(1), **evaluation))
    left = list(pipeline.evaluation_batches(damaged(1), skip_unreadable=True, **evaluation))
    assert [int(weight) for weight in left[0][2][:3]] == [1, 0, 1] and len(left) == 23
    assert sum(float(tf.reduce_sum(weights)) for _, _, weights in left) == 1437 - 1
