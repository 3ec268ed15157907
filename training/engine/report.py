"""How training goes, for a person: progress on the terminal, points in TensorBoard, rows in speed.csv."""

import dataclasses
import time

import numpy as np
import tensorflow as tf

import plots
import progress
from engine import evaluation, steps
from run_files import run_directory

LOG_EVERY = 100  # steps between points in TensorBoard


class Report:
    """Tells a person how training goes.

    Only a chief's report writes files. The first call of a process, which compiles, is left out of the speeds.

    Args:
        directory: of the started run.
        recipe: Recipe.
        classes: how many.
        epochs, schedule: of the TrainingState.
        chief: whether this process writes the run directory.
        task: the module multiclass or multilabel.
    """

    def __init__(self, directory, recipe, classes, epochs, schedule, chief, task):
        self.directory, self.recipe, self.schedule, self.chief = directory, recipe, schedule, chief
        self.classes, self.epochs, self.task = classes, epochs, task
        # In this epoch: steps, seconds, seconds of them waiting for input; and the same of the call that compiled.
        self.spent, self.compiling = np.zeros(3), np.zeros(3)
        self.called = False
        # Two logs, because TensorBoard draws what has one name in several logs on one chart.
        folders = {name: str(directory / run_directory.TENSORBOARD / name) for name in ("training", "validation")}
        make = tf.summary.create_file_writer if chief else lambda folder: tf.summary.create_noop_writer()
        self.logs = {name: make(folder) for name, folder in folders.items()}
        # The validation's is the plain loss of the task.
        comparable = plots.training_loss(dataclasses.asdict(recipe)) == task.LOSS
        self.loss_name = "loss" if comparable else "training_loss"

    def start_epoch(self, step, total):
        """Before the first step of an epoch, or of what is left of one."""
        remaining = ""
        if self.spent[0]:
            seconds = (total - step) * self.speed()["step_milliseconds"] / 1000
            remaining = f", about {seconds // 3600:.0f} h {seconds % 3600 / 60:.0f} min to go"
        print(f"Epoch {self.epochs.position(step)[0] + 1}/{self.recipe.epochs}{remaining}", flush=True)
        names = [self.recipe.loss, *self.task.statistics(self.classes)[1:]]
        self.progress = progress.Progress(self.epochs.steps, "steps", names=names)
        self.spent, self.compiling, self.since = np.zeros(3), np.zeros(3), time.perf_counter()

    def after_call(self, step, count, sums, waited):
        """After `count` more steps, `step` in all."""
        now = time.perf_counter()
        spent = np.array([count, now - self.since, waited])
        self.spent, self.since = self.spent + spent, now
        if not self.called:
            self.called, self.compiling = True, spent
        means = steps.means(sums, self.classes, self.task)
        # The training loss under its own name: the held-out images' is always the task's.
        shown = {self.recipe.loss if name == "loss" else name: value for name, value in means.items()}
        # A call's end is the epoch's end where the step divides.
        self.progress.update(self.epochs.position(step - 1)[1] + 1, shown, count)
        if step // LOG_EVERY > (step - count) // LOG_EVERY:
            values = {f"epoch_so_far/{name}": value for name, value in means.items()}
            self.write("training", step, {**values, "learning_rate": float(self.schedule(step - 1)), **self.speed()})

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

    def write(self, log, step, values):
        """Points in TensorBoard, in the log "training" or "validation"."""
        with self.logs[log].as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self.logs[log].flush()

    def end_epoch(self, row, answers, skipped, overflows):
        """After the evaluation of an epoch.

        Args:
            row: of history.csv.
            answers: what evaluation.evaluate returned.
            skipped: how many unreadable images were left out, {"training": ..., "held-out": ...}.
            overflows: of the loss scale, since the start.
        """
        trained = {name: row[name] for name in ("learning_rate", "examples", *self.task.statistics(self.classes)[1:])}
        self.write("training", row["step"], {self.loss_name: row["loss"], **trained})
        self.write("validation", row["step"], answers.means)
        print(f"    held out ({answers.count} images): {evaluation.in_words(self.task, answers.means)}", flush=True)
        if self.spent[0]:  # not in a process that came for the evaluation only
            speed = self.speed()
            self.write("training", row["step"], speed)
            if self.chief:
                row = {"epoch": row["epoch"], "steps": int(self.spent[0]), **speed}
                run_directory.append_speed(self.directory, row)
            print(
                f"    {speed['images_per_second']:.0f} images/s, a step {speed['step_milliseconds']:.1f} ms, "
                f"{speed['input_wait_milliseconds']:.1f} ms of it waiting for input"
            )
        for kind, number in skipped.items():
            if number:
                print(f"    WARNING: {number} unreadable {kind} images were left out of this epoch")
        if overflows:
            print(f"    {overflows} steps since the start overflowed in float16 and changed nothing")
