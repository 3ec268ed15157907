"""The training loop: our own instead of model.fit, so that every replica's gradient and every step is accounted for.

One compiled function (steps.py) runs k steps on all replicas. The input depends on (seed, epoch, step) alone and the
checkpoint holds everything else (weights, batch-norm statistics, dropout seeds, momentum, the epoch's partial sums), so
a run continues from its newest checkpoint as if nothing had happened.
"""

import dataclasses
import functools
import pathlib
import signal

import tensorflow as tf

import plots
import recipes
from engine import class_weights, evaluation, steps, strategies
from engine.report import Report
from engine.training_state import TrainingState, copy_weights, make_model
from na_keras.data import pipeline
from na_keras.data.source import Source
from na_keras.files import replace_file
from run_files import checkpoints, run_directory
from run_files.best_epoch import best_epoch, is_finished
from run_files.data_record import DataRecord
from terminal import Interruption


def augmentation_options(recipe):
    """What of a recipe pipeline.training_batches takes."""
    return {
        "batch_size": recipe.batch_size,
        "size": recipe.size,
        "area": recipe.crop_area,
        "aspect": recipe.crop_aspect,
        "flip": recipe.flip,
        "antialias": recipe.antialias,
        "exif_orientation": recipe.exif_orientation,
        "rand_augment": recipe.rand_augment,
        "mix": recipe.mix,
        "skip_unreadable": recipe.skip_unreadable,
    }


def evaluation_options(recipe):
    """What of a recipe evaluation.evaluate takes."""
    return {
        "batch_size": recipe.batch_size,
        "resize": recipe.evaluation_resize,
        "size": recipe.resolved_evaluation_size,
        "exif_orientation": recipe.exif_orientation,
        "skip_unreadable": recipe.skip_unreadable,
    }


def epoch_iterator(strategy, source, recipe, epoch, first_step):
    """The strategy's iterator over the rest of an epoch."""
    options = {"seed": recipe.seed, "epoch": epoch, "first_step": first_step, **augmentation_options(recipe)}
    batches = functools.partial(pipeline.training_batches, source, **options)
    return iter(strategy.distribute_datasets_from_function(lambda context: batches(context=context)))


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


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a run is carried out, as far as the loop is concerned.

    Attributes:
        xla: compile the forward and backward pass with XLA.
        checkpoint_every: steps between checkpoints, besides those at each epoch's end.
        steps_per_call: optimizer steps per call of the compiled function.
        stop_after: None, or the number of steps after which to stop and leave the run unfinished.
    """

    xla: bool = False
    checkpoint_every: int = 1000
    steps_per_call: int = 1
    stop_after: int | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        rows: of history.csv, one per finished epoch.
        step: steps done since the run's beginning.
        signal: the one that interrupted the run, or None.
        finished: whether the recipe's last epoch is done, or its patience is over.
    """

    rows: list[dict]
    step: int
    signal: signal.Signals | None
    finished: bool


@dataclasses.dataclass
class Loop:
    """The loop's surroundings, which its parts below share.

    Attributes:
        recipe, state, execution: what is trained, and how.
        directory: of the started run.
        strategy: tf.distribute.Strategy.
        training, validation: the two sources.
        record: DataRecord of them, or None for none.
    """

    recipe: recipes.Recipe
    state: TrainingState
    directory: pathlib.Path
    strategy: tf.distribute.Strategy
    training: Source
    validation: Source
    execution: Execution
    record: DataRecord | None = None

    def __post_init__(self):
        state, recipe = self.state, self.recipe
        self.chief = strategies.is_chief(self.strategy)
        self.alone = strategies.machines(self.strategy) == 1
        self.epochs, self.classes = state.epochs, len(self.training.class_names)
        self.task = evaluation.task_of(self.training.multi_label)
        if self.record:
            self.epochs.shift = self.record.shift
        self.folder = self.directory / run_directory.CHECKPOINTS
        weights = class_weights.resolve(recipe.class_weights, self.training, self.record)
        self.class_weights = None if weights is None else tf.constant(weights)
        self.train_steps = None  # `begin` makes it
        predict = lambda images: state.evaluated_model(images, training=False)  # noqa: E731
        self.evaluate_steps = steps.make_evaluate_steps(self.strategy, predict, task=self.task)
        schedule = state.schedule
        self.report = Report(self.directory, recipe, self.classes, self.epochs, schedule, self.chief, self.task)
        self.rows = []
        self.answers = None  # to the validation images after the last of these epochs, if this process asked
        self.interruption = None
        self.stopped = False  # on all machines alike

    @property
    def total(self):
        """Steps of the whole run."""
        return self.epochs.first_step(self.recipe.epochs)

    def begin(self, epoch):
        """Before the first step of an epoch, or of what is left of it: the compiled step, made anew where another part
        of the network is trained than before.
        """
        state = self.state
        if state.freezing.begin(epoch) or self.train_steps is None:
            options = {"loss_scale": state.loss_scale, "averaged": state.averaged, "xla": self.execution.xla}
            options |= {"class_weights": self.class_weights, "task": self.task}
            self.train_steps = steps.make_train_steps(
                self.strategy, state.model, state.optimizer, self.recipe, **options
            )
            if state.freezing.unfrozen:
                print("Everything is trained from here on.", flush=True)

    @property
    def finished(self):
        """Whether the last epoch is done and evaluated."""
        return is_finished(self.rows, self.recipe)

    @functools.cached_property
    def saved_network(self):
        """The network that is saved: of one device, ending as its task does. Its weights are any."""
        recipe, state = self.recipe, self.state
        size = recipe.resolved_evaluation_size
        return make_model(recipe, self.classes, False, size, state.precision, activation=self.task.ACTIVATION)

    def restore(self):
        """Continues from the newest checkpoint, if there is one; whether its epoch's evaluation is still to be done."""
        with self.strategy.scope():
            restored = checkpoints.restore(self.state.checkpoint, self.folder)
        step = self.state.step
        strategies.check_same_step(self.strategy, step)
        if self.record:
            strategies.check_same_data(self.strategy, self.record.fingerprint)
            if self.record.accepted:
                self.accept_data(step)
        if step + self.epochs.shift < 0:
            raise checkpoints.CheckpointError(
                f"{restored} is of before the data was changed, after step {step}, and later ones cannot be read."
            )
        if restored:
            print(f"Resuming from {restored}: step {step} of {self.total}")
        # A checkpoint at an epoch's end that still holds the epoch's sums is of before its evaluation.
        epochs, rest = self.epochs.position(step)
        unevaluated = step > 0 and rest == 0 and bool(self.state.partial_sums.numpy()[-1] > 0)
        self.rows = run_directory.read_history(self.directory, epochs - int(unevaluated))
        return unevaluated

    def accept_data(self, step):
        """Goes on with other data, from the beginning of the epoch in which the run stands."""
        repeated = self.record.accept(self.epochs, step, self.recipe.batch_size)
        if repeated:
            print(f"The unfinished epoch begins again with the new data; {repeated} steps were done with the old.")
            self.state.partial_sums.assign(steps.NO_SUMS)
            # Before the record: the sums that the checkpoint held would pass for a whole epoch's.
            self.save(step)
        if self.chief:
            self.record.write(self.directory, self.epochs.shift, step)

    def save(self, step):
        """Writes a checkpoint, if the weights are finite."""
        check_finite(-1, step, self.state.model, self.folder)
        if self.chief:
            checkpoints.save(self.state.checkpoint, self.folder, step)

    def train_epoch(self, step, stop):
        """Trains to the end of the epoch in which `step` lies, to `stop`, or to an interruption; returns the step."""
        epoch, first = self.epochs.position(step)
        self.begin(epoch)
        iterator = epoch_iterator(self.strategy, self.training, self.recipe, epoch, first)
        self.report.start_epoch(step, self.total)
        every = self.execution.checkpoint_every
        end = min(self.epochs.first_step(epoch + 1), stop)
        while step < end and not self.stopped:
            count = min(self.execution.steps_per_call, end - step, every - step % every)
            self.call(iterator, step, count)
            step += count
            if step % every == 0 and step < end:
                self.save(step)
        # Before the evaluation, which may take longer than a scheduler waits between SIGTERM and SIGKILL.
        self.save(step)
        return step

    def call(self, iterator, step, count):
        """One call of the compiled function: `count` steps from `step` on."""
        epoch, first = self.epochs.position(step)
        asked = tf.constant(float(self.interruption.signal is not None))
        with evaluation.naming_unreadable_images(self.training, self.recipe.seed, epoch, first, self.recipe.batch_size):
            result = self.train_steps(iterator, tf.constant(count), self.state.partial_sums.read_value(), asked)
        if result["failed"] >= 0:
            check_finite(int(result["failed"]), step, self.state.model, self.folder)
        self.state.partial_sums.assign(result["sums"])
        # One machine need not wait for the others' votes, which the next call would bring.
        self.stopped = self.interruption.signal is not None if self.alone else bool(result["stop"] > 0)
        self.report.after_call(step + count, count, result["sums"], float(result["waited"]))

    def evaluate(self):
        """Answers of the network as it is to the validation images; all machines together."""
        strategies.copy_from_first(self.strategy, self.state.evaluated_model.non_trainable_variables)
        options = evaluation_options(self.recipe)
        self.answers = evaluation.evaluate(self.strategy, self.evaluate_steps, self.validation, **options)
        return self.answers

    def end_epoch(self, step):
        """Evaluates after the last step of an epoch, and writes the epoch's row of the history."""
        recipe, state = self.recipe, self.state
        sums = state.partial_sums.numpy()
        if not sums[-1]:
            raise evaluation.UnreadableImageError(
                f"{self.training.name}: no image of this epoch can be opened and decoded"
            )
        answers = self.evaluate()
        # The rate of the epoch's last step: the schedule's argument counts finished steps.
        rate = float(state.schedule(step - 1))
        row = {"epoch": self.epochs.position(step)[0], "step": step, "learning_rate": rate}
        row |= steps.means(sums, self.classes, self.task)
        row |= {f"validation_{name}": value for name, value in answers.means.items()}
        row["examples"] = int(sums[-1])
        self.rows.append(row)
        if self.chief:
            # Before the checkpoint: a run killed between the two evaluates again and writes the same row again.
            run_directory.write_history(self.directory, self.rows)
            # After the row and before the checkpoint, for the same reason.
            if recipe.keep_best and best_epoch(self.rows, recipe.keep_best) is row:
                save_network(state.evaluated_model, self.saved_network, self.directory / run_directory.BEST)
        overflows = int(state.loss_scale.overflows.numpy()) if state.loss_scale else 0
        skipped = {
            "training": self.epochs.steps * recipe.batch_size - row["examples"],
            "held-out": self.validation.count - answers.count,
        }
        self.report.end_epoch(row, answers, skipped, overflows)
        state.partial_sums.assign(steps.NO_SUMS)
        self.save(step)

    def write_results(self):
        """The curves of what there is; and of a finished run what its network answered, and the network, last of all:
        its file says "finished".
        """
        recipe, directory = self.recipe, self.directory
        if self.rows:
            title = f"{recipe.model}, attention {recipe.attention}, {recipe.dataset}"
            losses = plots.training_loss(dataclasses.asdict(recipe)), self.task.LOSS
            figure = plots.history_curves(self.rows, title, self.task.CURVES, losses)
            plots.save(figure, directory / run_directory.CURVES)
        if self.finished:
            pixels = recipe.evaluation_resize, recipe.resolved_evaluation_size, recipe.exif_orientation
            for note in self.answers.notes(self.validation.class_names):
                print(note)
            self.task.files.write(directory / run_directory.EVALUATION, self.answers, self.validation, pixels)
            save_network(self.state.evaluated_model, self.saved_network, directory / run_directory.MODEL)


def train(recipe, state, directory, strategy, sources, execution, record=None):
    """Trains to the run's last epoch, from the newest checkpoint in `directory` if there is one.

    Args:
        recipe: Recipe.
        state: TrainingState of this recipe and strategy.
        directory: pathlib.Path of a started run.
        strategy: tf.distribute.Strategy.
        sources: (training, validation), each a na_keras.data.source.Source.
        execution: Execution.
        record: DataRecord of the sources; without one the data counts as that of the run so far.

    Returns:
        Outcome.

    Raises:
        NotFiniteError: the loss or a weight is not finite. The last good checkpoint is kept.
        CheckpointError: no checkpoint of an unfinished run can be read.
        UnreadableImageError: an image does not decode.
        DisagreementError: several machines that do not see the same run directory.
    """
    loop = Loop(recipe, state, directory, strategy, *sources, execution, record)
    unevaluated = loop.restore()
    step, stop = state.step, min(loop.total, execution.stop_after or loop.total)
    with Interruption() as loop.interruption:
        if unevaluated:
            state.freezing.begin(loop.epochs.position(step - 1)[0])
            loop.end_epoch(step)
        while step < stop and not loop.stopped and not loop.finished:
            step = loop.train_epoch(step, stop)
            if loop.epochs.position(step)[1] == 0 and not loop.stopped:
                loop.end_epoch(step)
    if loop.finished and loop.answers is None:  # of a run that was killed before it wrote its results
        loop.evaluate()
    if loop.chief:
        loop.write_results()
    strategies.total(strategy, 0)  # no machine leaves before the chief is done
    received = loop.interruption.signal or (signal.SIGTERM if loop.stopped else None)
    return Outcome(loop.rows, step, received, loop.finished)


def save_network(trained, network, path):
    """Writes a network, another of the same recipe, with the trained weights."""
    copy_weights(trained, network)
    replace_file(path, network.save)
