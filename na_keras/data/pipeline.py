"""The two tf.data pipelines: augmented training batches that can start at any step, and exact evaluation batches.

Order and augmentation are pure functions of (seed, epoch, example), so training that starts at step k of an epoch sees
exactly the batches that an uninterrupted epoch would have seen from there on. Iterators need not be saved.

A tf.distribute strategy calls them once per machine, with a context that says which one it is
(`strategy.distribute_datasets_from_function`). A machine decodes only its part of each global batch, every W-th
example of W machines, and gets it in portions of one replica.
"""

import re

import tensorflow as tf

from na_keras.data import augmentation, preprocessing

ONE_DEVICE = tf.distribute.InputContext()
# What reading an image raises that is damaged, missing, a folder or forbidden. TensorFlow cannot turn a message with a
# file's name that is no UTF-8 into an exception of its own: Python's comes instead.
UNREADABLE = (
    *(tf.errors.InvalidArgumentError, tf.errors.NotFoundError),
    *(tf.errors.PermissionDeniedError, tf.errors.FailedPreconditionError, UnicodeDecodeError),
)


def epoch_seed(seed, epoch):
    """One non-negative number per (seed, epoch); consecutive epochs of one run never share it."""
    return seed * 100_003 + epoch


def loading(load, blank, skip_unreadable):
    """A dataset transformation: `load(example)`, (image, label, weight), of each example; with `skip_unreadable` the
    `blank` image with weight 0 in place of one that cannot be loaded.
    """
    if skip_unreadable:
        return or_else(load, lambda example: (blank, example["label"], 0.0))
    return lambda examples: examples.map(load, tf.data.AUTOTUNE)


def or_else(load, replace):
    """A dataset transformation: `load(example)` for each example, or `replace(example)` where loading it fails."""

    def load_one(example):
        replacement = tf.data.Dataset.from_tensors(replace(example))
        loaded = tf.data.Dataset.from_tensors(example).map(load).ignore_errors()
        return loaded.concatenate(replacement).take(1)

    parallel = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
    return lambda examples: examples.interleave(load_one, cycle_length=16, **parallel)


def training_batches(
    source,
    *,
    seed,
    epoch,
    first_step,
    batch_size,
    size,
    rand_augment=None,
    mix=None,
    skip_unreadable=False,
    context=ONE_DEVICE,
    **crop,
):
    """Batches of one epoch from `first_step` on; the last, incomplete batch is dropped.

    Args:
        source: na_keras.data.source.Source.
        seed, epoch: decide the order, and with each example's index its crop, flip and further augmentation.
        first_step: how many batches to leave out; they are skipped before decoding.
        batch_size: examples per batch, all replicas together.
        size: pixels of the images' sides.
        rand_augment: None, or the magnitude of `augmentation.rand_augment`.
        mix: None, or {"mixup": alpha, "cutmix": alpha} of `augmentation.mixed_batch`; then labels are float32 (portion,
            classes). Examples are mixed within a machine's part of the batch.
        skip_unreadable: give an image that cannot be opened or decoded the weight 0 instead of stopping.
        context: tf.distribute.InputContext, which machine this is and how many replicas there are.
        **crop: `area`, `aspect`, `flip`, `antialias`, `exif_orientation` of `preprocessing.training_image`.

    Returns:
        tf.data.Dataset of (uint8 (portion, size, size, 3), int64 labels (portion,), float32 weights 1 or 0 (portion,)),
        with portion = batch_size / replicas; of a multi-label source labels are float32 (portion, classes).

    Raises:
        ValueError: fewer examples than one batch.
    """
    if source.count < batch_size:
        raise ValueError(f"{source.name} holds {source.count} images, fewer than one batch of {batch_size}")
    base = tf.constant([seed, epoch], tf.int64)
    examples, read = source.unread(epoch_seed(seed, epoch))

    def load(example):
        example = read(example)
        image_seed = tf.random.fold_in(base, example["index"])
        image = preprocessing.training_image(example["image"], image_seed, size, **crop)
        if rand_augment is not None:
            # Of another stream than the crop's: fold_in with an index that no image has.
            image = augmentation.rand_augment(image, tf.random.fold_in(image_seed, -1), rand_augment)
        return image, example["label"], 1.0

    machines, machine = context.num_input_pipelines, context.input_pipeline_id
    blank = tf.zeros((size, size, 3), tf.uint8)
    examples = examples.skip(first_step * batch_size).shard(machines, machine)
    images = examples.apply(loading(load, blank, skip_unreadable))
    portion = batch_size // context.num_replicas_in_sync
    if mix is None:
        return images.batch(portion, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    classes = len(source.class_names)

    def mixed(step, batch):
        batch_seed = tf.random.fold_in(tf.random.fold_in(base, -1 - machine), step)
        return augmentation.mixed_batch(*batch, batch_seed, classes, **mix)

    own = images.batch(batch_size // machines, drop_remainder=True).enumerate(first_step)
    return own.map(mixed, tf.data.AUTOTUNE).rebatch(portion, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def evaluation_batches(
    source, *, batch_size, resize, size, exif_orientation=True, skip_unreadable=False, context=ONE_DEVICE
):
    """Every example once, in the stored order, in full batches: the last ones are filled up with weight 0.

    Args:
        source: na_keras.data.source.Source.
        batch_size: examples per batch, all replicas together.
        resize, size, exif_orientation: see `preprocessing.evaluation_image`.
        skip_unreadable: give an image that cannot be opened or decoded the weight 0 instead of stopping.
        context: tf.distribute.InputContext, which machine this is and how many replicas there are.

    Returns:
        tf.data.Dataset of (uint8 (portion, size, size, 3), int64 labels (portion,), float32 weights 1 or 0
        (portion,)), with portion = batch_size / replicas; of a multi-label source labels are float32 (portion,
        classes). Over all machines the weights add up to `source.count`, less the images that were skipped.
    """
    examples, read = source.unread(None)

    def load(example):
        image = preprocessing.evaluation_image(read(example)["image"], resize, size, exif_orientation)
        return image, example["label"], 1.0

    blank = tf.zeros((size, size, 3), tf.uint8)
    machines, machine = context.num_input_pipelines, context.input_pipeline_id
    own = len(range(machine, source.count, machines))
    missing = -(-source.count // batch_size) * (batch_size // machines) - own
    label = examples.element_spec["label"]
    filler = tf.data.Dataset.from_tensors((blank, tf.zeros(label.shape, label.dtype), 0.0))
    images = examples.shard(machines, machine).apply(loading(load, blank, skip_unreadable))
    filled = images.concatenate(filler.repeat(missing))
    return filled.batch(batch_size // context.num_replicas_in_sync, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def reason(error):
    """What an error of UNREADABLE says, in one line without TensorFlow's names for its operations."""
    if isinstance(error, UnicodeDecodeError):
        message = error.object.decode(errors="backslashreplace")
    else:
        message = error.message
    (line, *_) = (line for line in message.splitlines() if line.strip())
    line = re.sub(r"\{\{.*?\}\} ?| \[Op:\w+\].*$", "", line)
    if line.startswith("assertion failed: "):  # each value of the message is in brackets
        line = line.removeprefix("assertion failed: ").replace("] [", " ").strip("[]")
    return line


def unreadable(examples, read):
    """Those of a dataset's examples that cannot be opened or decoded, one by one; see `Source.unread`.

    Yields:
        (name, reason), both text.
    """
    for example in examples:
        try:
            preprocessing.decode(read(example)["image"], exif_orientation=False)
        except UNREADABLE as error:
            yield example["name"].numpy().decode(errors="backslashreplace"), reason(error)


def first_unreadable(source, seed, epoch, first_step, batch_size):
    """Finds the image that stopped a pipeline: decodes one by one from where it stood.

    Args:
        source: na_keras.data.source.Source.
        seed, epoch, first_step, batch_size: of `training_batches`; a seed of None is evaluation's order.

    Returns:
        (name, message) of the first image that cannot be opened or decoded, or None if all can.
    """
    order, read = source.unread(None if seed is None else epoch_seed(seed, epoch))
    return next(unreadable(order.skip(first_step * batch_size), read), None)


def check_files(source):
    """Decodes every image of a source, and names those that would stop a run.

    Args:
        source: na_keras.data.source.Source.

    Yields:
        (name, reason), both text, for each image that cannot be opened or decoded, in the stored order.
    """
    examples, read = source.unread(None)

    def load(example):
        # Never true; said by the decoded pixels, so that they are decoded.
        return example, tf.shape(preprocessing.decode(read(example)["image"], exif_orientation=False))[0] < 0

    def fallback(example):
        return example, tf.constant(True)

    checked = examples.apply(or_else(load, fallback))
    suspects = checked.filter(lambda _, failed: failed)
    yield from unreadable(suspects.map(lambda suspect, _: suspect), read)
