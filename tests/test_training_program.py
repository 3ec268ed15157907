"""train.py and evaluate.py as programs: a whole run, an interrupted one, refusals that keep what is there."""

import csv
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from na_keras.model_files import load_model
from programs import error_of, run

# 22 steps an epoch at batch 64.
SHORT = ("--epochs", 2, "--checkpoint-every", 5, "--steps-per-call", 4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run from start to end, on two virtual CPUs, and what it printed."""
    directory = tmp_path_factory.mktemp("runs") / "finished"
    result = run("training/train.py", "--run-dir", directory, "--strategy=mirrored", "--virtual-cpus", 2, *SHORT)
    return directory, result.stdout


def rows_of(directory):
    with (directory / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_everything_in_its_directory(finished):
    directory, output = finished
    assert "2 replica(s), global batch 64" in output and "Finished 2 epochs" in output
    recipe = json.loads((directory / "recipe.json").read_text())
    assert recipe["recipe"] == "digits-demo" and recipe["epochs"] == 2 and recipe["attention"] == "na"
    (start,) = json.loads((directory / "environment.json").read_text())
    assert start["replicas"] == 2 and start["packages"]["keras"] == keras.__version__
    assert (directory / "labels.txt").read_text().split() == list("0123456789")
    assert [row["epoch"] for row in rows_of(directory)] == ["1", "2"]
    assert (directory / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((directory / "checkpoints").glob("*.index"))) == 2
    (events,) = (directory / "tensorboard").iterdir()
    tags = {
        value.tag
        for record in tf.data.TFRecordDataset(str(events))
        for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value
    }
    assert {"loss", "validation_top1", "learning_rate", "images_per_second"} <= tags
    assert load_model(directory / "model.keras").name == "mobilenetv2"


def test_evaluate_prints_the_last_line_of_the_history(finished):
    directory, _ = finished
    last = rows_of(directory)[-1]
    result = run("training/evaluate.py", "--model", directory / "model.keras", "--batch-size", 50)
    assert f"top-1 {100 * float(last['validation_top1']):.2f} %" in result.stdout
    assert "over 360 images" in result.stdout


def test_a_finished_run_is_refused_and_kept(finished):
    directory, _ = finished
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    message = error_of("training/train.py", "--run-dir", directory, *SHORT)
    assert "holds a finished run (model.keras); it is kept" in message
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before


def test_a_stopped_run_resumes_to_the_same_bits(tmp_path):
    """Stopped inside an epoch, between checkpoints' steps; dropout, momentum and data order must all continue."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run("training/train.py", "--run-dir", whole, *SHORT)
    first = run("training/train.py", "--run-dir", stopped, *SHORT, "--steps", 33)
    assert "Stopped after 33 steps as asked" in first.stdout and not (stopped / "model.keras").exists()
    message = error_of("training/train.py", "--run-dir", stopped, *SHORT, "--batch-size", 32)
    assert "batch_size: 64 there, 32 asked for" in message
    second = run("training/train.py", "--run-dir", stopped, *SHORT)
    assert "step 33 of 44" in second.stdout
    assert (whole / "history.csv").read_text() == (stopped / "history.csv").read_text()
    models = [load_model(directory / "model.keras") for directory in (whole, stopped)]
    for one, other in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(json.loads((stopped / "environment.json").read_text())) == 2


def test_a_folder_that_holds_something_else_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    message = error_of("training/train.py", "--run-dir", tmp_path)
    assert "is not empty and holds no run" in message
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--recipe", "imagenet"), "recipe must be one of ['digits-demo'"),
        (("--batch-size", 63, "--strategy=mirrored", "--virtual-cpus", 2), "divisible by the 2 replicas"),
        (("--steps", 0), "--steps must be at least 1"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_written(tmp_path, arguments, message):
    assert message in error_of("training/train.py", "--run-dir", tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


def test_evaluate_refuses_what_is_no_model(tmp_path):
    assert "No model file at" in error_of("training/evaluate.py", "--model", tmp_path / "missing.keras")
    text = tmp_path / "text.keras"
    text.write_text("not a model")
    assert "is not a Keras model file" in error_of("training/evaluate.py", "--model", text)
