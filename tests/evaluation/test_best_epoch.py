"""--keep-best and --patience: the best epoch's network is kept, and a run ends, at whatever moment it was killed."""

import dataclasses
import types

import numpy as np
import pytest
import tensorflow as tf
from small_training import DEMO
from tiny_network import tiny

import plots
from engine import evaluation, loop, multiclass
from engine.training_state import TrainingState
from na_keras.data import pipeline
from na_keras.data.digits import digits
from na_keras.model_files import load_model
from na_keras.models import MODELS
from run_files.best_epoch import best_epoch, is_finished, patience_is_over


def rows_of(*values, metric="top1"):
    return [{"epoch": str(n), f"validation_{metric}": value} for n, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("values", "metric", "best"),
    [
        (("0.5", "0.75", 0.75, 0.25), "top1", 2),  # of equal ones the first
        ((2.5, "0.75", "1.5"), "loss", 2),
        (("", "nan", 0.1), "mean_class_accuracy", 3),  # rows of before the column
        (("nan", ""), "top1", None),
    ],
)
def test_the_best_epoch_follows_from_the_rows(values, metric, best):
    row = best_epoch(rows_of(*values, metric=metric), metric)
    assert (row and int(row["epoch"])) == best


def test_patience_counts_the_epochs_since_the_best():
    recipe = types.SimpleNamespace(keep_best="top1", patience=2, epochs=9)
    over = lambda *values: patience_is_over(rows_of(*values), recipe)  # noqa: E731
    assert not over() and not over(0.5) and not over(0.5, 0.5) and over(0.5, 0.5, 0.5)
    assert not over(0.5, 0.4, 0.6) and not over(0.5, 0.4, 0.6, 0.1) and over(0.5, 0.4, 0.6, 0.1, 0.6)
    assert over("nan", "nan")
    recipe.patience = None
    assert not is_finished(rows_of(*[0.1] * 8), recipe) and is_finished(rows_of(*[0.1] * 9), recipe)


TOP1 = [0.5, 0.7, 0.7, 0.6, 0.9, 0.9]  # after each epoch


class Runs:
    """Runs of a small network on noise, two steps an epoch, whose validation notes the weights and says TOP1."""

    def __init__(self, monkeypatch, **fields):
        monkeypatch.setitem(MODELS, "Tiny", tiny)
        monkeypatch.setattr(evaluation, "evaluate", self.evaluate)
        # Pixels and pictures take most of such a run's time.
        monkeypatch.setattr(pipeline, "training_batches", self.batches)
        monkeypatch.setattr(plots, "save", lambda figure, path: None)
        fields |= {"model": "Tiny", "model_options": {}, "size": 32, "evaluation_resize": 32, "epochs": len(TOP1)}
        self.recipe = dataclasses.replace(DEMO, batch_size=32, warmup_epochs=0, **fields)
        self.sources, self.weights = (digits("train"), digits("validation")), {}

    def batches(self, source, *, epoch, first_step, **options):
        images = np.random.default_rng(epoch).integers(0, 256, (2, 32, 32, 32, 3), np.uint8)
        labels, weights = np.tile(np.arange(32) % 10, (2, 1)), np.ones((2, 32), np.float32)
        return tf.data.Dataset.from_tensor_slices((images, labels, weights)).skip(first_step)

    def evaluate(self, *arguments, **options):
        epoch = self.state.step // 2
        self.weights[epoch] = self.state.evaluated_model.get_weights()
        found = np.zeros(4, int)
        means = {"loss": 1.0, "top1": TOP1[epoch - 1], "top5": 1.0, "mean_class_accuracy": 0.5}
        return multiclass.Answers(10, np.arange(4), np.zeros(4), found, found, np.ones(4), means)

    def go(self, folder):
        device = tf.distribute.get_strategy()
        folder.mkdir(exist_ok=True)
        self.state = TrainingState(self.recipe, device, 10, 2)
        return loop.train(self.recipe, self.state, folder, device, self.sources, loop.Execution())


def assert_same_weights(file, expected):
    for one, other in zip(load_model(file).get_weights(), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_best_network_is_kept_and_patience_ends_the_run_whenever_it_is_killed(tmp_path, monkeypatch):
    whole, plain, killed = tmp_path / "whole", tmp_path / "plain", tmp_path / "killed"
    runs = Runs(monkeypatch, keep_best="top1", patience=2)
    outcome = runs.go(whole)
    assert outcome.finished and [row["epoch"] for row in outcome.rows] == [1, 2, 3, 4]
    weights = runs.weights
    assert_same_weights(whole / "best.keras", weights[2])
    assert_same_weights(whole / "model.keras", weights[4])

    # Neither changes what is trained; without them the run goes on.
    without = Runs(monkeypatch)
    assert len(without.go(plain).rows) == 6 and not (plain / "best.keras").exists()
    for one, other in zip(without.weights[4], weights[4], strict=True):
        np.testing.assert_array_equal(one, other)

    runs, save = Runs(monkeypatch, keep_best="top1", patience=2), loop.save_network

    def go_and_die(name, epoch, written):
        """Killed as it is about to write that file after that epoch, or has just written it."""

        def save_or_die(trained, network, path):
            dies = path.name == name and runs.state.step == 2 * epoch
            if written or not dies:
                save(trained, network, path)
            if dies:
                raise InterruptedError

        monkeypatch.setattr(loop, "save_network", save_or_die)
        with pytest.raises(InterruptedError):
            runs.go(killed)
        monkeypatch.setattr(loop, "save_network", save)

    # With the second epoch's row written, and its network not; then with that, and the checkpoint not.
    go_and_die("best.keras", 2, written=False)
    assert len((killed / "history.csv").read_text().splitlines()) == 3
    assert_same_weights(killed / "best.keras", weights[1])
    go_and_die("best.keras", 2, written=True)
    assert_same_weights(killed / "best.keras", weights[2])
    # Before the network of the last epoch: nothing is left to train.
    go_and_die("model.keras", 4, written=False)
    assert runs.go(killed).finished and runs.state.step == 8
    assert (killed / "history.csv").read_text() == (whole / "history.csv").read_text()
    assert_same_weights(killed / "best.keras", weights[2])
    assert_same_weights(killed / "model.keras", weights[4])
