"""Our pipelines for `model.fit`: arguments that give it fresh crops in each epoch and every validation image once.

Keras iterates a dataset anew for each epoch, and once more before the first to see what it holds: neither a counter of
iterations nor a shuffle of the dataset's own could say which epoch it is. So the training data is one endless dataset,
epoch after epoch as training/train.py sees them, and `steps_per_epoch` says where each ends.
"""

import itertools

import tensorflow as tf

from na_keras.data import pipeline


def endless_batches(source, *, seed, first_epoch, **options):
    """The batches of the epoch `first_epoch`, then of the next, without end; see `pipeline.training_batches`.

    Weights, which are all 1 without `skip_unreadable`, are left out then.
    """
    parts = 3 if options.get("skip_unreadable") else 2

    def epoch_batches(epoch):
        return pipeline.training_batches(source, seed=seed, epoch=epoch, first_step=0, **options)

    first = epoch_batches(first_epoch)

    def batches():
        for epoch in itertools.count(first_epoch):
            for batch in first if epoch == first_epoch else epoch_batches(epoch):
                yield batch[:parts]

    # A generator, because TFDS takes the seed of its order as a number of Python's only.
    dataset = tf.data.Dataset.from_generator(batches, output_signature=first.element_spec[:parts])
    return dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))


def even_batch_size(count, batch_size):
    """A batch size up to the one that is asked for whose last batch is at least half full.

    Keras deals each batch to all replicas. It fails where one of them gets nothing, as of a last batch of one image,
    and where the first batch does not part evenly: sizes are multiples of 8, or else of 4 or 2, as far as what is asked
    for is one.
    """
    steps = [step for step in (8, 4, 2, 1) if batch_size % step == 0]
    sizes = (size for step in steps for size in range(min(batch_size, count // step * step), 0, -step))
    return next(size for size in sizes if count % size == 0 or 2 * (count % size) >= size)


def exact_batches(source, *, batch_size, **options):
    """(images, labels) of every example once, the last batch incomplete; see `pipeline.evaluation_batches`.

    Keras' metrics would count the examples with weight 0 that fill batches up.
    """

    def with_weight(images, labels, weights):
        return tf.boolean_mask(images, weights > 0), tf.boolean_mask(labels, weights > 0)

    batch_size = even_batch_size(source.count, batch_size)
    batches = pipeline.evaluation_batches(source, batch_size=batch_size, **options).map(with_weight, tf.data.AUTOTUNE)
    return batches.filter(lambda images, labels: tf.shape(labels)[0] > 0) if options["skip_unreadable"] else batches


def fit_arguments(training, validation=None, *, size, batch_size, resize=None, seed=0, first_epoch=0, **augmentation):
    """Keyword arguments of `model.fit`: our pipelines with fresh crops in each epoch, and exact validation.

        model.fit(**fit_arguments(training, validation, size=224, batch_size=32), epochs=10)

    Epoch e sees the batches that `training/train.py` sees in its epoch e with the same seed, size and augmentation, on
    one device or under a strategy of one machine, whose replicas share each batch. Images are uint8, 0..255: the
    network normalises them itself. Labels are class numbers, int64; with MixUp or CutMix, and of multi-label sources,
    they are float32 (batch, classes).

    Args:
        training, validation: Sources, as `load_source` returns them; validation may be None.
        size: pixels of the images' sides.
        batch_size: images per step, all replicas together. The images that are left over after the last full batch of
            an epoch are others in each epoch.
        resize: pixels of the shorter side before validation's centre crop, by default 8/7 of `size`.
        seed: decides order and augmentation.
        first_epoch: the number of the first epoch, from 0. A later call of `fit` that goes on gives it to see other
            crops than before, beside `initial_epoch` of `fit` or without.
        **augmentation: `rand_augment`, `mix`, `skip_unreadable`, `area`, `aspect`, `flip`, `antialias`,
            `exif_orientation` of pipeline.training_batches; validation images are turned upright and skipped alike.

    Returns:
        Dictionary of "x", an endless tf.data.Dataset of (images, labels), with `skip_unreadable` (images, labels,
        weights 1 or 0); "steps_per_epoch"; "shuffle" (False: it is shuffled); and with validation images
        "validation_data", a tf.data.Dataset of (images, labels) that `model.evaluate` takes too: every image once, but
        unreadable ones that are to be skipped.

    Raises:
        ValueError: fewer training images than one batch, or `resize` below `size`.
    """
    batches = {"size": size, "batch_size": batch_size}
    arguments = {
        "x": endless_batches(training, seed=seed, first_epoch=first_epoch, **batches, **augmentation),
        "steps_per_epoch": training.count // batch_size,
        "shuffle": False,
    }
    if validation is not None:
        common = {"exif_orientation": True, "skip_unreadable": False}
        common |= {name: augmentation[name] for name in common if name in augmentation}
        resize = resize or round(size * 256 / 224)
        arguments["validation_data"] = exact_batches(validation, resize=resize, **batches, **common)
    return arguments
