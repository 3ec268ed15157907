"""The training loop: our own instead of model.fit, so that every replica's gradient and every step is accounted for.

One compiled function (steps.py) runs k steps on all replicas. The input depends on (seed, epoch, step) alone and the
checkpoint holds everything else (weights, batch-norm statistics, dropout seeds, momentum, the epoch's partial sums), so
a run continues from its newest checkpoint as if nothing had happened.
"""

import contextlib
import re
import signal
import time

import keras
import tensorflow as tf

import checkpoints
import curves
import run_directory
import steps
from na_keras.data import pipeline
from na_keras.models import MODELS
from na_keras.optimizers import TorchSGD


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
    """Learning rate as a function of the number of finished steps."""
    warmup, total = recipe.warmup_epochs * steps_per_epoch, recipe.epochs * steps_per_epoch
    if recipe.schedule == "step":
        # The last one lies beyond the end: Keras wants at least one.
        drops = range(recipe.decay_epochs, recipe.epochs + recipe.decay_epochs, recipe.decay_epochs)
        # Keras keeps the old value up to and including a boundary.
        boundaries = [epoch * steps_per_epoch - 1 for epoch in drops]
        rates = [recipe.learning_rate * recipe.decay_factor**k for k in range(len(boundaries) + 1)]
        return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else recipe.learning_rate,
        decay_steps=max(1, total - warmup),
        warmup_target=recipe.learning_rate if warmup else None,
        warmup_steps=warmup,
    )


def make_optimizer(recipe, schedule, variables):
    """SGD as PyTorch has it, built for the variables, some of them spared from the decay."""
    optimizer = TorchSGD(schedule, recipe.momentum, l2=recipe.weight_decay)
    spared = [v for v in variables if any(re.search(pattern, v.path) for pattern in recipe.no_weight_decay)]
    optimizer.exclude_from_weight_decay(var_list=spared)
    optimizer.build(variables)
    return optimizer


def evaluate(strategy, evaluate_steps, source, batch_size, resize, size):
    """Means over every example of the source, and how many that were."""
    batches = pipeline.evaluation_batches(source, batch_size=batch_size, resize=resize, size=size)
    iterator = iter(strategy.experimental_distribute_dataset(batches))
    with naming_unreadable_images(source, None, 0, 0, batch_size):
        sums, _ = evaluate_steps(iterator, tf.constant(-(-source.count // batch_size)), steps.NO_SUMS)
    return steps.means(sums), int(sums[-1])


class Interruption:
    """Notes SIGTERM and SIGINT instead of dying of them, so that the loop can end at a step's boundary."""

    def __init__(self):
        self.signal = None
        self.previous = {number: signal.signal(number, self.note) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(self, number, frame):
        """Remembers the first signal; a second one acts as it would have without us."""
        self.signal = signal.Signals(number)
        self.restore()

    def restore(self):
        """Puts the handlers back that were there before."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)


class UnreadableImageError(ValueError):
    """An image does not decode; the message names it."""


@contextlib.contextmanager
def naming_unreadable_images(source, *position):
    """Turns TensorFlow's error about some image into one that names it; `position` as in pipeline.first_unreadable."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = pipeline.first_unreadable(source, *position)
        if found is None:
            raise
        raise UnreadableImageError(f"{source.name}: the image {found[0]} cannot be decoded: {found[1]}") from error


class NotFiniteError(ArithmeticError):
    """The loss or a weight is not finite; the message names the step and the last good checkpoint."""


def check_finite(failed, first_step, model, folder):
    """Raises NotFiniteError if a step's loss was not finite, or a weight is not."""
    if failed < 0 and all(bool(tf.reduce_all(tf.math.is_finite(v.value))) for v in model.trainable_variables):
        return
    good = checkpoints.newest_first(folder)
    what = f"The loss of step {first_step + failed + 1}" if failed >= 0 else f"A weight after step {first_step}"
    raise NotFiniteError(
        f"{what} is not finite. The run is stopped; its last good checkpoint is {good[0] if good else 'the start'}. "
        "A lower learning rate, a longer warm-up or --clip-norm are the usual remedies."
    )


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
        (rows of history.csv, steps done, the signal that interrupted the run or None). The run is finished if
        model.keras is there.

    Raises:
        NotFiniteError: the loss or a weight is not finite. The last good checkpoint is kept.
        CheckpointError: no checkpoint of an unfinished run can be read.
        UnreadableImageError: an image does not decode.
    """
    training, validation = sources
    steps_per_epoch = training.count // recipe.batch_size
    total = recipe.epochs * steps_per_epoch
    schedule = make_schedule(recipe, steps_per_epoch)
    with strategy.scope():
        model = make_model(recipe, len(training.class_names), sync_bn)
        optimizer = make_optimizer(recipe, schedule, model.trainable_variables)
    partial_sums = tf.Variable(steps.NO_SUMS)
    checkpoint = tf.train.Checkpoint(
        model=[variable.value for variable in model.variables],
        optimizer=[variable.value for variable in optimizer.variables],
        partial_sums=partial_sums,
    )
    folder = directory / run_directory.CHECKPOINTS
    with strategy.scope():
        restored = checkpoints.restore(checkpoint, folder)
    step = int(optimizer.iterations.numpy())
    if restored:
        print(f"Resuming from {restored}: step {step} of {total}")
    train_steps = steps.make_train_steps(strategy, model, optimizer, recipe)
    evaluate_steps = steps.make_evaluate_steps(strategy, model)
    rows = run_directory.read_history(directory, step // steps_per_epoch)
    logs = tf.summary.create_file_writer(str(directory / run_directory.TENSORBOARD))
    stop = min(total, stop_after or total)
    interruption = Interruption()

    while step < stop and not interruption.signal:
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
        bar = keras.utils.Progbar(steps_per_epoch, unit_name="step", stateful_metrics=list(steps.SUMS[:-1]))
        started, started_at = time.perf_counter(), step
        end = min((epoch + 1) * steps_per_epoch, stop)
        while step < end and not interruption.signal:
            count = min(steps_per_call, end - step, checkpoint_every - step % checkpoint_every)
            with naming_unreadable_images(
                training, recipe.seed, epoch, step - epoch * steps_per_epoch, recipe.batch_size
            ):
                sums, failed = train_steps(iterator, tf.constant(count), partial_sums.read_value())
            if failed >= 0:
                check_finite(int(failed), step, model, folder)
            partial_sums.assign(sums)
            step += count
            bar.update(step - epoch * steps_per_epoch, list(steps.means(sums).items()))
            if step % checkpoint_every == 0 and step < end:
                check_finite(-1, step, model, folder)
                checkpoints.save(checkpoint, folder, step)
        check_finite(-1, step, model, folder)
        if step % steps_per_epoch == 0:
            images_per_second = (step - started_at) * recipe.batch_size / (time.perf_counter() - started)
            trained = steps.means(partial_sums.numpy())
            validated, count = evaluate(
                strategy, evaluate_steps, validation, recipe.batch_size, recipe.evaluation_resize, recipe.size
            )
            # The rate of the epoch's last step: the schedule's argument counts finished steps.
            row = {"epoch": epoch + 1, "step": step, "learning_rate": float(schedule(step - 1)), **trained}
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
            partial_sums.assign(steps.NO_SUMS)
        checkpoints.save(checkpoint, folder, step)
    interruption.restore()
    if step == total:
        temporary = directory / f".tmp.{run_directory.MODEL}"
        model.save(temporary)
        temporary.rename(directory / run_directory.MODEL)
    if rows:
        title = f"{recipe.model}, attention {recipe.attention}, {recipe.dataset}"
        curves.draw(rows, directory / run_directory.CURVES, title)
    return rows, step, interruption.signal
