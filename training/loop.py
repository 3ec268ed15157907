"""The training loop: our own instead of model.fit, so that every replica's gradient and every step is accounted for.

One tf.function runs k steps on all replicas. The loss is the sum of the examples' losses over the GLOBAL batch size, so
that gradients summed over replicas are those of one device. The input depends on (seed, epoch, step) alone and the
checkpoint holds everything else (weights, batch-norm statistics, dropout seeds, momentum, the epoch's partial sums), so
a run continues from its newest checkpoint as if nothing had happened.
"""

import time

import keras
import numpy as np
import tensorflow as tf

import curves
import run_directory
from na_keras.data import pipeline
from na_keras.models import MODELS
from na_keras.optimizers import TorchSGD

# What a step and an evaluation add up, over examples.
SUMS = ("loss", "top1", "top5", "examples")
NO_SUMS = np.zeros(len(SUMS), np.float64)


def make_model(recipe, classes, sync_bn):
    """The recipe's network, freshly initialised from its seed."""
    keras.utils.set_random_seed(recipe.seed)
    return MODELS[recipe.model](
        input_shape=(recipe.size, recipe.size, 3),
        classes=classes,
        attention=recipe.attention,
        synchronized_batch_norm=sync_bn,
        **recipe.model_options,
    )


def make_schedule(recipe, steps_per_epoch):
    """Learning rate of each step: linear warm-up, then cosine decay to zero."""
    warmup, total = recipe.warmup_epochs * steps_per_epoch, recipe.epochs * steps_per_epoch
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else recipe.learning_rate,
        decay_steps=max(1, total - warmup),
        warmup_target=recipe.learning_rate if warmup else None,
        warmup_steps=warmup,
    )


def example_sums(losses, labels, probabilities, weights):
    """The numbers of `SUMS` over a batch: float32 (4,)."""
    in_top = lambda k: tf.cast(tf.math.in_top_k(labels, probabilities, k), tf.float32)  # noqa: E731
    values = tf.stack([losses, in_top(1), in_top(min(5, probabilities.shape[-1])), tf.ones_like(losses)])
    return tf.reduce_sum(values * weights, axis=1)


def example_losses(labels, probabilities):
    """Cross-entropy of each example. Keras keeps the softmax's input with its output and computes from that."""
    return keras.losses.sparse_categorical_crossentropy(labels, probabilities)


def repeated(strategy, replica_step):
    """run(iterator, count, sums): `sums` plus those of `count` batches, each dealt to all replicas, compiled as one.

    The running sums (float64) go in and come out, one batch added after the other, so that they do not depend on how
    the batches were grouped into calls.
    """

    @tf.function
    def run(iterator, count, sums):
        for _ in tf.range(count):
            batch = strategy.reduce("SUM", strategy.run(replica_step, args=next(iterator)), axis=None)
            sums += tf.cast(batch, tf.float64)
        return sums

    return run


def make_train_steps(strategy, model, optimizer, batch_size):
    """run(iterator, count, sums): `count` optimizer steps on batches of (images, labels), adding up their sums."""

    def replica_step(images, labels):
        with tf.GradientTape() as tape:
            probabilities = model(images, training=True)
            losses = example_losses(labels, probabilities)
            loss = tf.reduce_sum(losses) / batch_size
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        optimizer.apply(gradients, model.trainable_variables)  # adds the gradients of all replicas up
        return example_sums(losses, labels, probabilities, tf.ones_like(losses))

    return repeated(strategy, replica_step)


def make_evaluate_steps(strategy, model):
    """run(iterator, count, sums): adds up the sums of `count` batches of (images, labels, weights)."""

    def replica_step(images, labels, weights):
        probabilities = model(images, training=False)
        return example_sums(example_losses(labels, probabilities), labels, probabilities, weights)

    return repeated(strategy, replica_step)


def means(sums):
    """{"loss": ..., "top1": ..., "top5": ...} per example."""
    values = np.asarray(sums, np.float64)
    return {name: float(value / values[-1]) for name, value in zip(SUMS[:-1], values[:-1], strict=True)}


def evaluate(strategy, evaluate_steps, source, batch_size, resize, size):
    """Means over every example of the source, and how many that were."""
    batches = pipeline.evaluation_batches(source, batch_size=batch_size, resize=resize, size=size)
    iterator = iter(strategy.experimental_distribute_dataset(batches))
    sums = evaluate_steps(iterator, tf.constant(-(-source.count // batch_size)), NO_SUMS)
    return means(sums), int(sums[-1])


def train(recipe, directory, strategy, sources, sync_bn, checkpoint_every, steps_per_call, stop_after):
    """Trains to the recipe's last epoch, from the newest checkpoint in `directory` if there is one.

    Args:
        recipe: Recipe.
        directory: pathlib.Path of a started run.
        strategy: tf.distribute.Strategy.
        sources: (training, validation), each a na_keras.data.source.Source.
        sync_bn: batch statistics over all replicas.
        checkpoint_every: steps between checkpoints, besides the one after each epoch.
        steps_per_call: optimizer steps per call of the compiled function.
        stop_after: None, or the number of steps after which to stop and leave the run unfinished.

    Returns:
        The rows of history.csv, and whether the last epoch was reached.
    """
    training, validation = sources
    steps_per_epoch = training.count // recipe.batch_size
    with strategy.scope():
        model = make_model(recipe, len(training.class_names), sync_bn)
        schedule = make_schedule(recipe, steps_per_epoch)
        optimizer = TorchSGD(schedule, recipe.momentum, l2=recipe.weight_decay)
        optimizer.build(model.trainable_variables)
    partial_sums = tf.Variable(NO_SUMS)
    checkpoint = tf.train.Checkpoint(
        model=[variable.value for variable in model.variables],
        optimizer=[variable.value for variable in optimizer.variables],
        partial_sums=partial_sums,
    )
    manager = tf.train.CheckpointManager(checkpoint, str(directory / run_directory.CHECKPOINTS), max_to_keep=2)
    with strategy.scope():
        restored = manager.restore_or_initialize()
    step = int(optimizer.iterations.numpy())
    if restored:
        print(f"Resuming from {restored}: step {step} of {recipe.epochs * steps_per_epoch}")
    train_steps = make_train_steps(strategy, model, optimizer, recipe.batch_size)
    evaluate_steps = make_evaluate_steps(strategy, model)
    rows = run_directory.read_history(directory, step // steps_per_epoch)
    logs = tf.summary.create_file_writer(str(directory / run_directory.TENSORBOARD))
    stop = min(recipe.epochs * steps_per_epoch, stop_after or recipe.epochs * steps_per_epoch)

    while step < stop:
        epoch, first = divmod(step, steps_per_epoch)
        batches = pipeline.training_batches(
            training,
            seed=recipe.seed,
            epoch=epoch,
            first_step=first,
            batch_size=recipe.batch_size,
            size=recipe.size,
            area=recipe.crop_area,
            aspect=recipe.crop_aspect,
            flip=recipe.flip,
            antialias=recipe.antialias,
        )
        iterator = iter(strategy.experimental_distribute_dataset(batches))
        print(f"Epoch {epoch + 1}/{recipe.epochs}")
        bar = keras.utils.Progbar(steps_per_epoch, unit_name="step", stateful_metrics=list(SUMS[:-1]))
        started, started_at = time.perf_counter(), step
        end = min((epoch + 1) * steps_per_epoch, stop)
        while step < end:
            to_checkpoint = checkpoint_every - step % checkpoint_every
            count = min(steps_per_call, end - step, to_checkpoint)
            partial_sums.assign(train_steps(iterator, tf.constant(count), partial_sums.read_value()))
            step += count
            bar.update(step - epoch * steps_per_epoch, list(means(partial_sums.numpy()).items()))
            if step % checkpoint_every == 0 and step < end:
                manager.save(step)
        if step % steps_per_epoch == 0:
            images_per_second = (step - started_at) * recipe.batch_size / (time.perf_counter() - started)
            trained = means(partial_sums.numpy())
            validated, count = evaluate(
                strategy, evaluate_steps, validation, recipe.batch_size, recipe.evaluation_resize, recipe.size
            )
            # The rate of the epoch's last step: the schedule's argument counts finished steps.
            learning_rate = float(schedule(step - 1))
            row = {"epoch": epoch + 1, "step": step, "learning_rate": learning_rate, **trained}
            row |= {f"validation_{name}": value for name, value in validated.items()}
            rows.append(row)
            # Before the checkpoint: a run killed between the two repeats the epoch's end and writes the row again.
            run_directory.write_history(directory, rows)
            with logs.as_default(step):
                for name, value in {**row, "images_per_second": images_per_second}.items():
                    tf.summary.scalar(name, value)
            logs.flush()
            print(
                f"    held out ({count} images): loss {validated['loss']:.4f}, top-1 {100 * validated['top1']:.2f} %, "
                f"top-5 {100 * validated['top5']:.2f} %; {images_per_second:.0f} images/s"
            )
            partial_sums.assign(NO_SUMS)
        manager.save(step)
    finished = step == recipe.epochs * steps_per_epoch
    if rows:
        title = f"{recipe.model}, attention {recipe.attention}, {recipe.dataset}"
        curves.draw(rows, directory / run_directory.CURVES, title)
    if finished:
        temporary = directory / f".tmp.{run_directory.MODEL}"
        model.save(temporary)
        temporary.rename(directory / run_directory.MODEL)
    return rows, finished
