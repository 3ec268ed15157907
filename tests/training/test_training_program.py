"""train.py and evaluate.py as programs: a whole run, an interrupted one, refusals that keep what is there."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from imagenet_tars import write_imagenet_tars
from programs import ROOT, run
from tiny_network import FLAGS, tiny, train_here

import evaluate
import plots
import recipes
import train
from na_keras.model_files import load_model
from na_keras.models import MODELS
from run_files import checkpoints, run_directory
from run_files.checkpoints import newest_first

# 22 steps an epoch at batch 64.
SHORT = (*FLAGS, "--epochs", 2, "--checkpoint-every", 5, "--steps-per-call", 4)
# Two replicas with a batch norm each and a moving average: whatever a resumed run could get wrong.
REPLICAS = ("--strategy=mirrored", "--virtual-cpus", 2, "--ema-decay", 0.8, *SHORT)


@pytest.fixture(scope="module", autouse=True)
def tiny_model():
    """`--model=Tiny` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "Tiny", tiny)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run from start to end, on two virtual CPUs, and what it printed."""
    directory = tmp_path_factory.mktemp("runs") / "finished"
    code, output = train_here(directory, *REPLICAS)
    assert code == 0
    return directory, output


def rows_of(directory):
    with (directory / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def tags_of(log):
    """Names of the points in one of TensorBoard's folders."""
    (events,) = log.iterdir()
    records = [tf.compat.v1.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(events))]
    return {value.tag for record in records for value in record.summary.value}


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
    assert [path.name for path in newest_first(directory / "checkpoints")] == ["step-00000044", "step-00000040"]
    training, validation = (tags_of(directory / "tensorboard" / name) for name in ("training", "validation"))
    assert {"learning_rate", "images_per_second", "input_wait_milliseconds"} <= training
    # TensorBoard draws what has the same name in two logs on one chart.
    assert training & validation == {"loss", "top1", "top5"} and validation - training == {"mean_class_accuracy"}
    with (directory / "speed.csv").open(newline="") as file:
        speeds = list(csv.DictReader(file))
    assert [row["epoch"] for row in speeds] == ["1", "2"]
    for row in speeds:
        parts = float(row["input_wait_milliseconds"]), float(row["compute_milliseconds"])
        assert min(parts) >= 0 and sum(parts) == pytest.approx(float(row["step_milliseconds"]), abs=0.01)
    assert [row["examples"] for row in rows_of(directory)] == [str(22 * 64)] * 2
    assert "to go" in output and "waiting for input" in output
    assert load_model(directory / "model.keras").name == "tiny"


def test_evaluate_prints_the_last_line_of_the_history(finished, tmp_path):
    directory, _ = finished
    last = rows_of(directory)[-1]
    # Whatever backend this machine prefers.
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    expected = f"top-1 {100 * float(last['validation_top1']):.2f} %, top-5 {100 * float(last['validation_top5']):.2f} %"
    result = run("training/evaluate.py", "--model", directory / "model.keras", "--batch-size", 50, env=environment)
    assert expected in result.stdout and "over 360 images" in result.stdout
    # In process, for speed: the newest checkpoint of the run, and a checkpoint by itself.
    newest, before = newest_first(directory / "checkpoints")
    loss = evaluate.main(["--model", str(directory)])["loss"]
    assert loss == pytest.approx(float(last["validation_loss"]), rel=1e-5)  # another batch size
    again = evaluate.main(["--model", str(newest), "--output", str(tmp_path / "looked_at"), "--mistakes", "3"])
    assert again["loss"] == loss != evaluate.main(["--model", str(before)])["loss"]
    # The run wrote the same when it ended, of more mistakes.
    for name, lines in (("per_class.csv", 11), ("confusion_matrix.csv", 11), ("mistakes.csv", 4)):
        folders = directory / "evaluation", tmp_path / "looked_at"
        end, now = ((folder / name).read_text().splitlines() for folder in folders)
        assert len(now) == lines and [line[:8] for line in now] == [line[:8] for line in end[:lines]]


def test_a_finished_run_is_refused_and_kept(finished):
    directory, _ = finished
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    message, _ = train_here(directory, *SHORT)
    assert "holds a finished run (model.keras); it is kept" in message
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before


def start_and_kill(directory, step, *arguments):
    """Starts the run in a process of its own and kills it once there is a checkpoint of at least `step`."""
    command = [sys.executable, str(ROOT / "tests/helpers/tiny_network.py"), "--run-dir", directory, *arguments]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        deadline = time.monotonic() + 300
        while not any(int(path.name[5:]) >= step for path in newest_first(directory / "checkpoints")):
            assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
            time.sleep(0.005)
        process.kill()
        process.communicate(timeout=120)
    return process.returncode


def test_killed_stopped_and_damaged_runs_end_with_the_same_bits(finished, tmp_path, monkeypatch):
    """kill -9, then SIGTERM, then a truncated newest checkpoint: the end is that of an undisturbed run.

    Weights, momentum, moving average, dropout's seeds, data order, the partial epoch's statistics and what each
    replica's batch norms evaluate with must all continue.
    """
    whole, disturbed = finished[0], tmp_path / "disturbed"
    assert start_and_kill(disturbed, 5, *REPLICAS) == -signal.SIGKILL and not (disturbed / "model.keras").exists()

    message, _ = train_here(disturbed, *REPLICAS, "--batch-size", 32)
    assert "batch_size: 64 there, 32 asked for" in message

    save = checkpoints.save

    def save_and_signal(checkpoint, folder, step):
        save(checkpoint, folder, step)
        if step == 35:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(checkpoints, "save", save_and_signal)
    code, output = train_here(disturbed, *REPLICAS)
    monkeypatch.undo()
    assert code == 128 + signal.SIGTERM and "Interrupted by SIGTERM; a checkpoint is written" in output
    assert "Resuming from" in output and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    newest, before = newest_first(disturbed / "checkpoints")
    (data,) = newest.glob("state.data*")
    data.write_bytes(data.read_bytes()[:100])
    code, output = train_here(disturbed, *REPLICAS)
    assert code == 0 and f"WARNING: the checkpoint {newest} is damaged and not used" in output
    assert f"Resuming from {before}" in output and "Finished 2 epochs" in output

    assert (whole / "history.csv").read_text() == (disturbed / "history.csv").read_text()
    models = [load_model(directory / "model.keras") for directory in (whole, disturbed)]
    for one, other in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(json.loads((disturbed / "environment.json").read_text())) == 3


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    arguments = ("--learning-rate", 1e25, "--warmup-epochs", 0, "--epochs", 1, "--checkpoint-every", 100)
    message, _ = train_here(tmp_path / "run", *FLAGS, *arguments)
    assert "The loss or the gradient of step" in message and "is not finite" in message and "--clip-norm" in message
    assert not (tmp_path / "run" / "model.keras").exists()
    assert newest_first(tmp_path / "run" / "checkpoints") == []


def test_the_modern_recipe_trains_in_half_precision_and_saves_a_network_of_the_size_it_tests_at(tmp_path):
    tiny = ("--dataset", "digits", "--model", "Tiny", "--model-options", '{"filters": 16}', "--size", 32)
    sizes = ("--evaluation-size", 48, "--evaluation-resize", 48, "--batch-size", 256, "--target-threshold", 0.3)
    epochs = ("--epochs", 1, "--warmup-epochs", 0, "--precision", "float16")
    code, output = train_here(tmp_path / "run", "--recipe", "resnet50-a3", *tiny, *sizes, *epochs)
    # The loss of training and that of the held-out images are different things, and are called so.
    assert code == 0 and "steps, " in output and ", binary_cross_entropy 0." in output and ", cross-entropy " in output
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert (recipe["precision"], recipe["optimizer"], recipe["target_threshold"]) == ("float16", "lamb", 0.3)
    model = load_model(tmp_path / "run" / "model.keras")
    assert model.input_shape == (None, 48, 48, 3)
    assert (
        model.get_layer("convolution").compute_dtype == "float16" and model.layers[-1].activation.__name__ == "softmax"
    )
    row = rows_of(tmp_path / "run")[0]
    # The mean binary cross-entropy of ten classes, not a cross-entropy: a fresh network has .69.
    assert 0.2 < float(row["loss"]) < 1.2 and row["examples"] == str(5 * 256)
    assert evaluate.main(["--model", str(tmp_path / "run" / "model.keras")])["loss"] == pytest.approx(
        float(row["validation_loss"]), rel=0.02
    )  # float16 activations, other batches


def test_imagenets_own_archives_and_a_damaged_image_that_stops_training_by_name_or_is_counted(tmp_path):
    damaged = f"{write_imagenet_tars(tmp_path)[3]}_2.JPEG"
    synsets = write_imagenet_tars(tmp_path, damaged=damaged)
    data = ("--recipe", "resnet50-paper", "--epochs", 1, "--batch-size", 16, "--data-dir", tmp_path, *FLAGS)
    message, _ = train_here(tmp_path / "run", *data)
    assert f"the image {damaged} cannot be decoded" in message
    code, output = train_here(tmp_path / "run", *data, "--skip-unreadable")  # a run that it stopped goes on
    assert code == 0 and "80 training and" in output and "Finished 1 epochs" in output
    assert "WARNING: 1 unreadable training images were left out of this epoch" in output
    assert rows_of(tmp_path / "run")[0]["examples"] == "79"
    labels = (tmp_path / "run" / "labels.txt").read_text().split()
    assert len(labels) == 1000 and labels[100:110] == synsets


def test_a_run_killed_before_its_network_is_written_finishes_at_once(finished, tmp_path, monkeypatch):
    """model.keras is the last thing that is written, so whatever is missing then is made by the same command."""
    directory = tmp_path / "run"
    shutil.copytree(finished[0], directory)
    (directory / "model.keras").unlink()
    (directory / "curves.png").unlink()

    def killed(*arguments):
        assert (directory / "curves.png").exists()
        raise InterruptedError

    monkeypatch.setattr("engine.loop.save_network", killed)
    with pytest.raises(InterruptedError):
        train_here(directory, *REPLICAS)
    monkeypatch.undo()
    code, output = train_here(directory, *REPLICAS)
    assert code == 0 and "step 44 of 44" in output and "Finished 2 epochs" in output
    networks = [load_model(path / "model.keras").get_weights() for path in (finished[0], directory)]
    for one, other in zip(*networks, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_decides_a_batch_norm_must_be_the_same_on_resume(tmp_path):
    recipe = recipes.RECIPES["digits-demo"]
    decided = run_directory.as_json("digits-demo", recipe, replicas=2, sync_bn=False)
    assert not run_directory.check(tmp_path / "new", decided)
    run_directory.write_text(tmp_path / "environment.json", "[]")
    for leftover in (".labels.txt.tmp", ".recipe.json.tmp", ".tmp-labels.txt", ".tmp-recipe.json"):
        (tmp_path / leftover).write_text("half")
    assert not run_directory.check(tmp_path, decided)  # a start that was killed before recipe.json
    run_directory.start(tmp_path, decided, tf.distribute.get_strategy(), ["a"])
    assert run_directory.check(tmp_path, decided)
    for changed in ({"replicas": 4, "sync_bn": False}, {"replicas": 2, "sync_bn": True}):
        with pytest.raises(ValueError, match="replicas: 2 there, 4 asked for|sync_bn: False there, True asked for"):
            run_directory.check(tmp_path, run_directory.as_json("digits-demo", recipe, **changed))
    # A run that version 0.1 started goes on: it had no choice of precision.
    later = {"optimizer", "loss", "ema_decay", "evaluation_size", "rand_augment", "mixup", "cutmix", "target_threshold"}
    older = {name: value for name, value in decided.items() if name not in {*later, "skip_unreadable"}}
    run_directory.write_text(tmp_path / "recipe.json", json.dumps(older))
    now = run_directory.as_json("digits-demo", recipe, replicas=2, sync_bn=False, precision="float32", xla=False)
    assert run_directory.check(tmp_path, now)
    assert run_directory.stored_recipe(tmp_path)[0] == recipe
    with pytest.raises(ValueError, match="precision: 'float32' there, 'float16' asked for"):
        run_directory.check(tmp_path, {**now, "precision": "float16"})
    with pytest.raises(FileExistsError, match="is a file; it is kept"):
        run_directory.check(tmp_path / "labels.txt", decided)


def test_a_history_of_an_older_version_gets_the_new_columns(tmp_path):
    (tmp_path / "history.csv").write_text("epoch,loss\n1,2.5\n")
    rows = run_directory.read_history(tmp_path, 1)
    new = {"epoch": 2, "loss": 1.5, "validation_mean_class_accuracy": 0.5, "examples": 64}
    run_directory.write_history(tmp_path, [*rows, new])
    lines = ["epoch,loss,validation_mean_class_accuracy,examples", "1,2.5,,", "2,1.5,0.5,64"]
    assert (tmp_path / "history.csv").read_text().splitlines() == lines
    rows = run_directory.read_history(tmp_path, 2)
    axes = plots.new_figure(4, 4).subplots()
    plots.draw_curves(axes, {"mean": (rows, "validation_mean_class_accuracy")}, None, "%")
    assert [list(line) for line in axes.lines[0].get_data()] == [[2], [0.5]]


def test_a_folder_that_holds_something_else_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    message, _ = train_here(tmp_path)
    assert "is not empty and holds no run" in message
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--recipe", "imagenet"), "recipe must be one of ['digits-demo'"),
        (("--recipe", "resnet50-paper", "--data-dir", "nowhere"), "training never downloads"),
        (("--batch-size", 2000), "holds 1437 images, fewer than one --batch-size"),
        (("--batch-size", 63, "--strategy=mirrored"), "divisible by the 2 replicas"),
        (("--steps", 0), "--steps: must be a whole number of at least 1"),
        (("--model-options", "[]"), "expected JSON, as in '{\"alpha\": 0.35}'. Received: '[]'"),
        (("--no-weight-decay", '"bias$"'), "expected JSON, as in '[\"bias$\"]'. Received"),
        (
            ("--no-weight-decay", '["bias$", "("]'),
            "expected regular expressions. Received: '(': missing )",
        ),
        (
            (*FLAGS, "--no-weight-decay", '["bias$", "biass$"]'),
            "'biass$' is found in none of the 8 variables' paths",
        ),
        (("--data-dir", "photographs"), "For the images in photographs give --dataset=folder"),
        (("--optimizer", "lamb", "--momentum", 0.9), "--momentum has no effect without --optimizer=sgd"),
        (("--xla", "--sync-bn"), "choose one"),
        (("--sync-bn",), "--sync-bn has no effect without several replicas"),
        (("--attention", "sk"), "MobileNetV2"),
        (("--model-options", '{"alpa": 0.5}'), "MobileNetV2 does not take --model-options={'alpa': 0.5}"),
        (("--strategy=multi_worker_mirrored",), "needs --run-dir"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_written(tmp_path, capsys, arguments, message):
    directory = () if "needs --run-dir" in message else ("--run-dir", tmp_path / "run")
    with pytest.raises(SystemExit) as error:
        train.main([str(argument) for argument in (*directory, *arguments)])
    assert message in f"{error.value.code} {capsys.readouterr().err}"
    assert not (tmp_path / "run").exists()


def evaluation_error(*arguments):
    with pytest.raises(SystemExit) as error:
        evaluate.main([str(argument) for argument in arguments])
    return str(error.value.code)


def test_evaluate_refuses_what_does_not_fit(tmp_path):
    alone = tmp_path / "alone.keras"
    tiny((32, 32, 3), 10, "softmax", "na", False).save(alone)
    assert "give --dataset and --resize" in evaluation_error("--model", alone)
    digits = ("--dataset", "digits", "--resize")
    assert "image size 32. Received: 16" in evaluation_error("--model", alone, *digits, 16)
    three = tmp_path / "three.keras"
    tiny((32, 32, 3), 3, "softmax", "na", False).save(three)
    assert "The network has 3 classes, digits has 10" in evaluation_error("--model", three, *digits, 32)
    wide = tmp_path / "wide.keras"
    tiny((32, 64, 3), 10, "softmax", "na", False).save(wide)
    assert "square RGB images" in evaluation_error("--model", wide, *digits, 32)


def test_evaluate_refuses_what_is_no_model(tmp_path):
    assert "No model file at" in evaluation_error("--model", tmp_path / "missing.keras")
    assert "holds neither recipe.json" in evaluation_error("--model", tmp_path)
    text = tmp_path / "text.keras"
    text.write_text("not a model")
    assert "is not a Keras model file" in evaluation_error("--model", text)


def test_a_program_in_a_pipe_prints_plain_lines_and_no_chatter(tmp_path):
    """From a trained file, a small network; `--run-dir=~/x` is a folder at home, which the shell does not say."""
    tiny((32, 32, 3), 10, "softmax", "na", False).save(tmp_path / "tiny.keras")
    small = ("--model", tmp_path / "tiny.keras", "--size", 32, "--evaluation-resize", 32)
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    environment["HOME"] = str(tmp_path)
    result = run("training/train.py", "--run-dir=~/run", *small, "--steps", 3, env=environment)
    assert result.stderr == "" and result.stdout.isascii() and result.stdout.replace("\n", "").isprintable()
    assert len(result.stdout) < 600 and "on CPU (no GPU found)" in result.stdout.splitlines()[0]
    assert "Stopped after 3 steps" in result.stdout and newest_first(tmp_path / "run" / "checkpoints")
