"""The training of a detector: Model Garden's step and metrics, this project's epochs, checkpoints and reports.

A checkpoint holds weights, momentum, step and the sums of the unfinished epoch: a resumed run has them to the last bit.
The order of the images, their mirroring and the sampling of regions begin anew, so that it does not repeat what the
interrupted run would have done.
"""

import dataclasses
import math
import pathlib
import time

import numpy as np
import tensorflow as tf
from official.core import base_trainer, config_definitions

import plots
import progress
from detection_engine import dataset, evaluation, network
from na_keras.detection.evaluation import METRICS
from na_keras.detection.model_garden import saved
from run_files import checkpoints, run_directory
from terminal import Interruption

DETECTOR = "detector"  # folder of a finished run's detector; its presence says that the run is finished
UNTRAINED = ("mask_loss",)  # Model Garden's metrics of what is not there


class NotFiniteError(ArithmeticError):
    """The loss is not finite; the message names the step and the last good checkpoint."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended: rows of history.csv; steps done; the signal that interrupted it or None; whether the
    last epoch is done.
    """

    rows: list[dict]
    step: int
    signal: object
    finished: bool


class TrainingState:
    """All that a checkpoint holds, made in the strategy's scope.

    Args:
        recipe: DetectionRecipe.
        description: of its detector, from network.describe.
        records: paths of the training records.
        strategy: tf.distribute.Strategy.
        steps_per_epoch: how many.
        weights: network.BackboneWeights, or None.

    Attributes:
        description: of the detector.
        config, model: of the task.
        trainer: Model Garden's, whose `train` does some steps.
        losses: names of its metrics.
        sums: tf.Variable, of these over the steps of the unfinished epoch, and the number of steps.
        checkpoint: tf.train.Checkpoint.
    """

    def __init__(self, recipe, description, records, strategy, steps_per_epoch, weights=None):
        self.description, self.config = description, network.task_config(recipe, description, records)
        schedule = network.trainer_config(recipe, steps_per_epoch)
        experiment = config_definitions.ExperimentConfig(task=self.config, trainer=schedule)
        with strategy.scope():
            task, self.model = network.make_model(recipe, self.config)
            if weights is not None:
                weights.fill(self.model.backbone)
            optimizer = task.create_optimizer(schedule.optimizer_config, experiment.runtime)
            # A checkpoint that is written before the first step of a resumed run must hold the momentum too.
            for variable in self.model.trainable_variables:
                optimizer.add_slot(variable, "momentum")
            self.trainer = base_trainer.Trainer(experiment, task, self.model, optimizer, evaluate=False)
        self.losses = [metric.name for metric in self.trainer.train_metrics if metric.name not in UNTRAINED]
        self.sums = tf.Variable(np.zeros(len(self.losses) + 1))
        self.checkpoint = tf.train.Checkpoint(
            global_step=self.trainer.global_step, model=self.model, optimizer=optimizer, sums=self.sums
        )

    @property
    def step(self):
        """Steps finished."""
        return int(self.trainer.global_step.numpy())

    @property
    def means(self):
        """{loss: mean} over the steps of the unfinished epoch."""
        *sums, count = self.sums.numpy()
        return {name: float(total / count) for name, total in zip(self.losses, sums, strict=True)}

    def train_step(self):
        """One step; returns {name of a loss: float, "learning_rate": float}."""
        logs = self.trainer.train(tf.constant(1))
        values = {name: float(logs[name]) for name in (*self.losses, "learning_rate")}
        self.sums.assign_add([*(values[name] for name in self.losses), 1.0])
        return values


@dataclasses.dataclass
class Loop:
    """The loop's surroundings, which its parts below share."""

    recipe: object
    state: TrainingState
    directory: pathlib.Path
    strategy: tf.distribute.Strategy
    training: dataset.Split
    validation: dataset.Split
    checkpoint_every: int

    def __post_init__(self):
        self.steps_per_epoch = len(self.training.photographs) // self.recipe.batch_size
        self.total = self.steps_per_epoch * self.recipe.epochs
        self.folder = self.directory / run_directory.CHECKPOINTS
        self.log = tf.summary.create_file_writer(str(self.directory / run_directory.TENSORBOARD))
        self.evaluator = evaluation.Evaluator(
            self.state.model, self.state.config, self.strategy, self.validation, self.recipe.batch_size
        )
        self.rows, self.result, self.interruption = [], None, None
        self.seconds_per_step = None

    def restore(self):
        """Continues from the newest checkpoint, if there is one."""
        with self.strategy.scope():
            restored = checkpoints.restore(self.state.checkpoint, self.folder, partial=True)
        step = self.state.step
        if restored:
            print(f"Resuming from {restored}: step {step} of {self.total}", flush=True)
        # A checkpoint at an epoch's end that still holds the epoch's sums is of before its row was written.
        epochs = step // self.steps_per_epoch - int(self.epoch_is_open)
        self.rows = run_directory.read_history(self.directory, epochs)

    @property
    def epoch_is_open(self):
        """Whether the last step ended an epoch whose row is not written yet."""
        return self.state.step % self.steps_per_epoch == 0 and self.state.sums.numpy()[-1] > 0

    def save(self):
        """Writes a checkpoint."""
        checkpoints.save(self.state.checkpoint, self.folder, self.state.step)

    def check_finite(self, values):
        """Raises NotFiniteError if a loss of the step just done is not finite."""
        if all(map(math.isfinite, values.values())):
            return
        good = checkpoints.newest_first(self.folder)
        raise NotFiniteError(
            f"The loss of step {self.state.step} is not finite. The run is stopped; its last good checkpoint is "
            f"{good[0] if good else 'the start'}. A lower --learning-rate, more --warmup-steps or a smaller "
            "--clip-norm are the usual remedies."
        )

    def train_epoch(self, stop):
        """Trains to the end of the epoch, to step `stop`, or to an interruption."""
        first = self.state.step
        epoch = first // self.steps_per_epoch
        end = min((epoch + 1) * self.steps_per_epoch, stop)
        remaining = ""
        if self.seconds_per_step:
            seconds = (self.total - first) * self.seconds_per_step
            remaining = f", about {seconds // 3600:.0f} h {seconds % 3600 / 60:.0f} min to go"
        print(f"Epoch {epoch + 1}/{self.recipe.epochs}{remaining}", flush=True)
        shown = progress.Progress(self.steps_per_epoch, "steps", names=self.state.losses)
        since, counted = None, 0
        while self.state.step < end and not self.interruption.signal:
            values = self.state.train_step()
            self.check_finite(values)
            step, counted = self.state.step, counted + 1
            since = since or time.perf_counter()  # the first step of a process compiles
            shown.update(step - epoch * self.steps_per_epoch, self.state.means)
            self.write(step, values)
            if step % self.checkpoint_every == 0 and step < end:
                self.save()
        self.save()
        if counted > 1:
            self.seconds_per_step = (time.perf_counter() - since) / (counted - 1)
            print(f"    {self.recipe.batch_size / self.seconds_per_step:.1f} images/s", flush=True)

    def write(self, step, values, folder="training"):
        """Points in TensorBoard."""
        with self.log.as_default(step):
            for name, value in values.items():
                tf.summary.scalar(f"{folder}/{name}", value)
        self.log.flush()

    def end_epoch(self):
        """After the last step of an epoch: the evaluation, if it is time, and the epoch's row of the history."""
        step, recipe = self.state.step, self.recipe
        epoch = step // self.steps_per_epoch
        row = {"epoch": epoch, "step": step, "learning_rate": self.learning_rate} | self.state.means
        row |= dict.fromkeys(METRICS, "")
        if epoch % recipe.evaluation_epochs == 0 or epoch == recipe.epochs:
            self.result = self.evaluator.evaluate()
            numbers = evaluation.in_table(self.result.numbers)
            row |= numbers
            self.write(step, {name: value for name, value in numbers.items() if value != ""}, "validation")
            print(f"    {self.result.in_words}", flush=True)
        self.rows.append(row)
        # Before the checkpoint: a run killed between the two evaluates again and writes the same row again.
        run_directory.write_history(self.directory, self.rows)
        self.state.sums.assign(np.zeros(len(self.state.losses) + 1))
        self.save()

    @property
    def learning_rate(self):
        """Of the step just done."""
        optimizer = self.state.trainer.optimizer
        rate = optimizer.learning_rate
        return float(rate(optimizer.iterations - 1) if callable(rate) else rate)

    def write_results(self):
        """The curves of what there is; of a finished run what its detector found, and last of all the detector."""
        if self.rows:
            recipe = self.recipe
            title = f"{recipe.detector}, {recipe.model}, attention {recipe.attention}"
            plots.save(evaluation.curves(self.rows, title), self.directory / run_directory.CURVES)
        if len(self.rows) < self.recipe.epochs:
            return False
        result = self.result or self.evaluator.evaluate()  # of a run that was killed before it wrote its results
        evaluation.write(self.directory / run_directory.EVALUATION, result, self.validation)
        saved.save(self.directory / DETECTOR, self.state.model, self.state.description)
        return True


def train(recipe, state, directory, strategy, splits, *, checkpoint_every=1000, stop_after=None):
    """Trains to the run's last epoch, from the newest checkpoint in `directory` if there is one.

    Args:
        recipe: DetectionRecipe.
        state: TrainingState of it.
        directory: pathlib.Path of a started run.
        strategy: tf.distribute.Strategy.
        splits: (training, validation), each a dataset.Split.
        checkpoint_every: steps between checkpoints, besides those at each epoch's end.
        stop_after: None, or the number of steps after which to stop and leave the run unfinished.

    Returns:
        Outcome.

    Raises:
        NotFiniteError: the loss is not finite. The last good checkpoint is kept.
        CheckpointError: there are checkpoints, but none can be read.
    """
    loop = Loop(recipe, state, directory, strategy, *splits, checkpoint_every)
    loop.restore()
    stop = min(loop.total, stop_after or loop.total)
    with Interruption() as loop.interruption:
        if loop.epoch_is_open:
            loop.end_epoch()
        while state.step < stop and not loop.interruption.signal:
            loop.train_epoch(stop)
            if loop.epoch_is_open and not loop.interruption.signal:
                loop.end_epoch()
    finished = loop.write_results()
    return Outcome(loop.rows, state.step, loop.interruption.signal, finished)
