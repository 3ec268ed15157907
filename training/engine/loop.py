"""The training loop: our own instead of model.fit, so that every replica's gradient and every step is accounted for.

One compiled function (steps.py) runs k steps on all replicas. The input depends on (seed, epoch, step) alone and the
checkpoint holds everything else (weights, batch-norm statistics, dropout seeds, momentum, the epoch's partial sums), so
a run continues from its newest checkpoint as if nothing had happened.
"""

import functools
import signal
import time

import keras
import numpy as np
import tensorflow as tf

import plots
from engine import checkpoints, evaluation, optimization, run_directory, steps, strategies
from na_keras.data import pipeline
from na_keras.models import MODELS

LOG_EVERY = 100  # steps between points in TensorBoard


def make_model(recipe, classes, sync_bn, size, precision="float32", activation=None):
    """The recipe's network, freshly initialised from its seed; without an activation its outputs are logits.

    Raises:
        ValueError, TypeError: the builder does not take the recipe's attention, sizes or model_options.
    """
    keras.utils.set_random_seed(recipe.seed)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision if precision == "float32" else f"mixed_{precision}")
    try:
        return MODELS[recipe.model](
            input_shape=(size, size, 3),
            classes=classes,
            classifier_activation=activation,
            attention=recipe.attention,
            synchronized_batch_norm=sync_bn,
            **recipe.model_options,
        )
    finally:
        keras.config.set_dtype_policy(before)


def augmentation_options(recipe):
    """What of a recipe pipeline.training_batches takes."""
    return {
        "batch_size": recipe.batch_size,
        "size": recipe.size,
        "area": recipe.crop_area,
        "aspect": recipe.crop_aspect,
        "flip": recipe.flip,
        "antialias": recipe.antialias,
        "rand_augment": recipe.rand_augment,
        "mix": recipe.mix,
        "skip_unreadable": recipe.skip_unreadable,
    }


def epoch_iterator(strategy, source, recipe, epoch, first_step):
    """The strategy's iterator over the rest of an epoch."""
    options = {"seed": recipe.seed, "epoch": epoch, "first_step": first_step, **augmentation_options(recipe)}
    batches = functools.partial(pipeline.training_batches, source, **options)
    return iter(strategy.distribute_datasets_from_function(lambda context: batches(context=context)))


class Run:
    """What a run consists of on the devices: network, moving average, optimizer, loss scale, and the sums of the
    unfinished epoch; everything of it that a checkpoint holds.
    """

    def __init__(self, recipe, strategy, classes, steps_per_epoch, precision="float32", sync_bn=False):
        """Builds all of it in the strategy's scope. Raises what make_model raises."""
        self.precision = precision
        self.schedule = optimization.make_schedule(recipe, steps_per_epoch)
        size = recipe.size if recipe.tested_size == recipe.size else None
        with strategy.scope():
            self.model = make_model(recipe, classes, sync_bn, size, precision)
            self.optimizer = optimization.make_optimizer(recipe, self.schedule, self.model.trainable_variables)
            average = recipe.ema_decay is not None
            self.averaged = make_model(recipe, classes, sync_bn, size, precision) if average else None
            self.loss_scale = optimization.LossScale() if precision == "float16" else None
        self.partial_sums = tf.Variable(steps.NO_SUMS)
        optional = {
            "averaged": self.averaged and [variable.value for variable in self.averaged.variables],
            "loss_scale": self.loss_scale and self.loss_scale.variables,
        }
        self.checkpoint = tf.train.Checkpoint(
            model=[variable.value for variable in self.model.variables],
            optimizer=[variable.value for variable in self.optimizer.variables],
            partial_sums=self.partial_sums,
            **{name: value for name, value in optional.items() if value is not None},
        )

    @property
    def tested(self):
        """The network that is evaluated and saved."""
        return self.averaged or self.model

    @property
    def step(self):
        """Steps finished."""
        return int(self.optimizer.iterations.numpy())


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


class NotFiniteError(ArithmeticError):
    """The loss or a weight is not finite; the message names the step and the last good checkpoint."""


def check_finite(failed, first_step, model, folder):
    """Raises NotFiniteError if a step failed (loss or, at the smallest loss scale, gradient not finite), or a weight
    is not finite.
    """
    if failed < 0 and all(bool(tf.reduce_all(tf.math.is_finite(v.value))) for v in model.trainable_variables):
        return
    good = checkpoints.newest_first(folder)
    what = (
        f"The loss or the gradient of step {first_step + failed + 1}"
        if failed >= 0
        else f"A weight after step {first_step}"
    )
    raise NotFiniteError(
        f"{what} is not finite. The run is stopped; its last good checkpoint is {good[0] if good else 'the start'}. "
        "A lower learning rate, a longer warm-up or --clip-norm are the usual remedies."
    )


class Report:
    """Tells a person how training goes: a progress bar on the terminal, points in TensorBoard, a row in speed.csv.

    Only a chief's report writes files. The first call of a process, which compiles, is left out of the speeds.
    """

    def __init__(self, directory, recipe, steps_per_epoch, schedule, chief):
        self.directory, self.recipe, self.schedule, self.chief = directory, recipe, schedule, chief
        self.steps_per_epoch = steps_per_epoch
        # In this epoch: steps, seconds, seconds of them waiting for input; and the same of the call that compiled.
        self.spent, self.compiling = np.zeros(3), np.zeros(3)
        self.called = False
        folder = str(directory / run_directory.TENSORBOARD)
        self.logs = tf.summary.create_file_writer(folder) if chief else tf.summary.create_noop_writer()

    def start_epoch(self, step, total):
        """Before the first step of an epoch, or of what is left of one."""
        remaining = ""
        if self.spent[0]:
            seconds = (total - step) * self.speed()["step_milliseconds"] / 1000
            remaining = f", about {seconds // 3600:.0f} h {seconds % 3600 / 60:.0f} min to go"
        print(f"Epoch {step // self.steps_per_epoch + 1}/{self.recipe.epochs}{remaining}")
        names = list(steps.SUMS[:-1])
        self.bar = keras.utils.Progbar(self.steps_per_epoch, unit_name="step", stateful_metrics=names)
        self.spent, self.compiling, self.since = np.zeros(3), np.zeros(3), time.perf_counter()

    def after_call(self, step, count, sums, waited):
        """After `count` more steps, `step` in all."""
        now = time.perf_counter()
        spent = np.array([count, now - self.since, waited])
        self.spent, self.since = self.spent + spent, now
        if not self.called:
            self.called, self.compiling = True, spent
        means = steps.means(sums)
        # A call's end is the epoch's end where the step divides.
        self.bar.update((step - 1) % self.steps_per_epoch + 1, list(means.items()))
        if step // LOG_EVERY > (step - count) // LOG_EVERY:
            values = {f"epoch_so_far/{name}": value for name, value in means.items()}
            self.write(step, {**values, "learning_rate": float(self.schedule(step - 1)), **self.speed()})

    def speed(self):
        """Images a second and milliseconds a step, whole and split, since the start of the epoch."""
        counted = self.spent - self.compiling if self.spent[0] > self.compiling[0] else self.spent
        count, seconds, waited = counted
        return {
            "images_per_second": count * self.recipe.batch_size / seconds,
            "step_milliseconds": 1000 * seconds / count,
            "input_wait_milliseconds": 1000 * waited / count,
            "compute_milliseconds": 1000 * (seconds - waited) / count,
        }

    def write(self, step, values):
        """Points in TensorBoard."""
        with self.logs.as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self.logs.flush()

    def end_epoch(self, row, count, skipped, overflows):
        """After the evaluation of an epoch, with its row of history.csv."""
        self.write(row["step"], row)
        print(
            f"    held out ({count} images): loss {row['validation_loss']:.4f}, "
            f"top-1 {100 * row['validation_top1']:.2f} %, top-5 {100 * row['validation_top5']:.2f} %"
        )
        if self.spent[0]:  # not in a process that came for the evaluation only
            speed = self.speed()
            self.write(row["step"], speed)
            if self.chief:
                row = {"epoch": row["epoch"], "steps": int(self.spent[0]), **speed}
                run_directory.append_speed(self.directory, row)
            print(
                f"    {speed['images_per_second']:.0f} images/s, a step {speed['step_milliseconds']:.1f} ms, "
                f"{speed['input_wait_milliseconds']:.1f} ms of it waiting for input"
            )
        if skipped:
            print(f"    WARNING: {skipped} unreadable training images were left out of this epoch")
        if overflows:
            print(f"    {overflows} steps since the start overflowed in float16 and changed nothing")


def train(run, recipe, directory, strategy, sources, *, xla, checkpoint_every, steps_per_call, stop_after):
    """Trains to the recipe's last epoch, from the newest checkpoint in `directory` if there is one.

    Args:
        run: Run of this recipe and strategy.
        recipe: Recipe.
        directory: pathlib.Path of a started run.
        strategy: tf.distribute.Strategy.
        sources: (training, validation), each a na_keras.data.source.Source.
        xla: compile the forward and backward pass with XLA.
        checkpoint_every: steps between checkpoints, besides the one after each epoch.
        steps_per_call: optimizer steps per call of the compiled function.
        stop_after: None, or the number of steps after which to stop and leave the run unfinished.

    Returns:
        (rows of history.csv, steps done, the signal that interrupted the run or None, whether it is finished).

    Raises:
        NotFiniteError: the loss or a weight is not finite. The last good checkpoint is kept.
        CheckpointError: no checkpoint of an unfinished run can be read.
        UnreadableImageError: an image does not decode.
        DisagreementError: several machines that do not see the same run directory.
    """
    training, validation = sources
    classes, chief, machines = len(training.class_names), strategies.is_chief(strategy), strategies.machines(strategy)
    steps_per_epoch = training.count // recipe.batch_size
    total = recipe.epochs * steps_per_epoch
    folder = directory / run_directory.CHECKPOINTS
    with strategy.scope():
        restored = checkpoints.restore(run.checkpoint, folder)
    step = run.step
    strategies.check_same_step(strategy, step)
    if restored:
        print(f"Resuming from {restored}: step {step} of {total}")
    train_steps = steps.make_train_steps(strategy, run.model, run.optimizer, recipe, run.loss_scale, run.averaged, xla)
    evaluate_steps = steps.make_evaluate_steps(strategy, lambda images: run.tested(images, training=False))
    # A checkpoint at an epoch's end that still holds the epoch's sums is of before its evaluation.
    unevaluated = step > 0 and step % steps_per_epoch == 0 and run.partial_sums.numpy()[-1] > 0
    rows = run_directory.read_history(directory, step // steps_per_epoch - int(unevaluated))
    report = Report(directory, recipe, steps_per_epoch, run.schedule, chief)
    stop = min(total, stop_after or total)
    interruption = Interruption()
    stopped = False  # on all machines alike

    def save():
        check_finite(-1, step, run.model, folder)
        if chief:
            checkpoints.save(run.checkpoint, folder, step)

    def end_epoch():
        """Evaluates, and writes the epoch's row of the history."""
        sums = run.partial_sums.numpy()
        strategies.copy_from_first(strategy, run.tested.non_trainable_variables)
        validated, count = evaluation.evaluate(
            strategy, evaluate_steps, validation, recipe.batch_size, recipe.evaluation_resize, recipe.tested_size
        )
        # The rate of the epoch's last step: the schedule's argument counts finished steps.
        row = {"epoch": step // steps_per_epoch, "step": step, "learning_rate": float(run.schedule(step - 1))}
        row |= steps.means(sums) | {f"validation_{name}": value for name, value in validated.items()}
        row["examples"] = int(sums[-1])
        rows.append(row)
        if chief:
            # Before the checkpoint: a run killed between the two evaluates again and writes the same row again.
            run_directory.write_history(directory, rows)
        overflows = int(run.loss_scale.overflows.numpy()) if run.loss_scale else 0
        report.end_epoch(row, count, steps_per_epoch * recipe.batch_size - int(sums[-1]), overflows)
        run.partial_sums.assign(steps.NO_SUMS)
        save()

    if unevaluated:
        end_epoch()
    while step < stop and not stopped:
        epoch, first = divmod(step, steps_per_epoch)
        iterator = epoch_iterator(strategy, training, recipe, epoch, first)
        report.start_epoch(step, total)
        end = min((epoch + 1) * steps_per_epoch, stop)
        while step < end and not stopped:
            count = min(steps_per_call, end - step, checkpoint_every - step % checkpoint_every)
            position = recipe.seed, epoch, step - epoch * steps_per_epoch, recipe.batch_size
            asked = tf.constant(float(interruption.signal is not None))
            with evaluation.naming_unreadable_images(training, *position):
                result = train_steps(iterator, tf.constant(count), run.partial_sums.read_value(), asked)
            if result["failed"] >= 0:
                check_finite(int(result["failed"]), step, run.model, folder)
            run.partial_sums.assign(result["sums"])
            step += count
            # One machine need not wait for the others' votes, which the next call would bring.
            stopped = bool(result["stop"] > 0) if machines > 1 else interruption.signal is not None
            report.after_call(step, count, result["sums"], float(result["waited"]))
            if step % checkpoint_every == 0 and step < end:
                save()
        # Before the evaluation, which may take longer than a scheduler waits between SIGTERM and SIGKILL.
        save()
        if step % steps_per_epoch == 0 and not stopped:
            end_epoch()
    interruption.restore()
    finished = len(rows) == recipe.epochs
    if chief:
        if finished:
            save_network(recipe, run, classes, directory)
        if rows:
            title = f"{recipe.model}, attention {recipe.attention}, {recipe.dataset}"
            plots.draw(rows, directory / run_directory.CURVES, title)
    strategies.total(strategy, 0)  # no machine leaves before the chief is done
    signal_received = interruption.signal or (signal.SIGTERM if stopped else None)
    return rows, step, signal_received, finished


def save_network(recipe, run, classes, directory):
    """Writes model.keras: the trained weights in a network of one device that ends in a softmax."""
    network = make_model(recipe, classes, False, recipe.tested_size, run.precision, activation="softmax")
    network.set_weights(run.tested.get_weights())
    temporary = directory / f".tmp.{run_directory.MODEL}"
    network.save(temporary)
    temporary.rename(directory / run_directory.MODEL)
