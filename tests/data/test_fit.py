"""model.fit on our pipelines: fresh crops in each epoch, the training programs' batches, exact validation."""

import dataclasses
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from na_keras.data import fit_arguments, load_source, pipeline
from na_keras.data.fit import even_batch_size

CROP = {"area": (0.7, 1.0), "flip": False}


def part(split, count):
    """The first digits of a split."""
    source = load_source("digits", split)

    def examples(seed):
        return source.examples(None).take(count).shuffle(count, seed or 0, reshuffle_each_iteration=False)

    return dataclasses.replace(source, count=count, examples=examples)


class Recorder(keras.callbacks.Callback):
    """Keeps each epoch's batches, which the model below writes into a variable."""

    def __init__(self, seen):
        super().__init__()
        self.seen, self.epochs = seen, []

    def on_epoch_begin(self, epoch, logs=None):
        """Begins an epoch."""
        self.epochs.append([])

    def on_train_batch_end(self, batch, logs=None):
        """Keeps a batch."""
        self.epochs[-1].append(self.seen.numpy())


@keras.saving.register_keras_serializable("tests")
class Seen(keras.layers.Layer):
    """Passes images on and remembers the batch."""

    def __init__(self, shape):
        super().__init__()
        self.batch = self.add_weight(shape=shape, dtype="float32", trainable=False, initializer="zeros")

    def call(self, images, training=False):
        """Images in, images out."""
        if training:
            self.batch.assign(images)
        return images


def test_fit_sees_the_training_programs_batches_epoch_after_epoch_and_every_validation_image_once(monkeypatch):
    training, validation = part("train", 19), part("validation", 21)
    by_epoch, make = {}, pipeline.training_batches  # the datasets, which take long to make

    def training_batches(source, **options):
        assert options == {"seed": 5, "first_step": 0, "batch_size": 8, "size": 32, **CROP, "epoch": options["epoch"]}
        if options["epoch"] not in by_epoch:
            by_epoch[options["epoch"]] = make(source, **options)
        return by_epoch[options["epoch"]]

    monkeypatch.setattr(pipeline, "training_batches", training_batches)
    arguments = fit_arguments(training, validation, size=32, batch_size=8, seed=5, first_epoch=1, **CROP)
    seen = Seen((8, 32, 32, 3))
    image = keras.Input((32, 32, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(seen(image)))
    model = keras.Model(image, keras.layers.Dense(10, "softmax")(x))
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    recorder = Recorder(seen.batch)
    history = model.fit(**arguments, epochs=2, verbose=0, callbacks=[recorder]).history
    for epoch, batches in enumerate(recorder.epochs, 1):
        np.testing.assert_array_equal(batches, [images.numpy() for images, _, _ in by_epoch[epoch]])
    assert (recorder.epochs[0][0] != recorder.epochs[1][0]).any()
    # Exactly: as over the evaluation's own batches, which are filled up to 24.
    hits = losses = 0.0
    for images, labels, weights in pipeline.evaluation_batches(validation, batch_size=8, resize=37, size=32):
        chosen = model(images).numpy()
        hits += (weights.numpy() * (chosen.argmax(-1) == labels.numpy())).sum()
        losses -= (weights.numpy() * np.log(chosen[np.arange(8), labels])).sum()
    last = {"val_accuracy": history["val_accuracy"][-1], "val_loss": history["val_loss"][-1]}
    assert last == pytest.approx({"val_accuracy": hits / 21, "val_loss": losses / 21}, rel=1e-5)


def test_unreadable_images_are_left_out_when_asked_for():
    source = part("train", 20)
    cut = lambda e: {**e, "image": tf.where(e["index"] == 3, b"\xff\xd8\xff cut", e["image"])}  # noqa: E731
    damaged = dataclasses.replace(source, examples=lambda seed: source.examples(seed).map(cut))
    arguments = fit_arguments(
        damaged, damaged, size=32, batch_size=10, skip_unreadable=True, mix={"mixup": 0.2, "cutmix": 0}
    )
    batches = list(itertools.islice(arguments["x"], 2))
    assert batches[0][1].shape == (10, 10) and all(len(batch) == 3 for batch in batches)
    assert sum(float(tf.reduce_sum(weights)) for _, _, weights in batches) == 18  # it and what it is mixed with
    assert sum(len(labels) for _, labels in arguments["validation_data"]) == 19
    with pytest.raises(ValueError, match="20 images, fewer than one batch of 32"):
        fit_arguments(source, size=32, batch_size=32)


def test_the_last_validation_batch_is_at_least_half_full_and_the_first_parts_evenly():
    for count in range(1, 200):
        for largest in (1, 2, 24, 64):
            size = even_batch_size(count, largest)
            assert 1 <= size <= min(largest, count) and (count % size == 0 or 2 * (count % size) >= size)
    assert [even_batch_size(count, 64) for count in (128, 100, 65, 17)] == [64, 64, 40, 10]
