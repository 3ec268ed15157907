"""Runs on multi-label data: what they print, write, keep and refuse; and everything that a network of theirs is kept in
is evaluated to the same numbers.
"""

import csv
import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from multilabel_data import BEST, CLASSES, RUN
from tiny_network import FLAGS, train_here

import evaluate
import figures
import plots
import recipes
import throughput
import train
from engine import loop, multilabel, optimization, steps
from na_keras.data import load_source, pipeline
from na_keras.deploy import convert_tflite, write_saved_model
from na_keras.model_files import load_model
from na_keras.networks import ending
from run_files import data_record, multilabel_files, run_lock

METRICS = ("mean_average_precision", "macro_f1", "exact_match", "binary_accuracy", "loss")


def rows_of(run):
    with (run / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_says_and_writes_what_belongs_to_its_labels(finished):
    run, output = finished
    assert "binary_cross_entropy" in output and "top-1" not in output and "ends in" not in output
    assert "Mean average precision and macro F1 are over 3 of 4 classes: no image has violet" in output
    assert "Finished 2 epochs: mean average precision" in output and "The best epoch is" in output
    rows = rows_of(run)
    trained = ["loss", "binary_accuracy", "exact_match"]
    assert set(rows[0]) == {
        "epoch",
        "step",
        "learning_rate",
        "examples",
        *trained,
        *(f"validation_{m}" for m in METRICS),
    }
    assert all(0 <= float(row[name]) <= 1 for row in rows for name in trained[1:])
    assert sorted(path.name for path in (run / "evaluation").iterdir()) == [
        *("mistakes.csv", "mistakes.png", "per_class.csv"),
    ]
    assert json.loads((run / "data.json").read_text())["multi_label"] is True
    for name in ("model.keras", "best.keras"):
        network = load_model(run / name)
        assert ending(network) == "sigmoid" and network.output_shape == (None, len(CLASSES))
    assert (run / "labels.txt").read_text().split() == list(CLASSES)
    # Training and validation are the same quantity: one chart of TensorBoard, one axis.
    figure = plots.history_curves(rows, "t", multilabel.CURVES, (multilabel.LOSS, multilabel.LOSS))
    assert [(axes.get_ylabel(), len(axes.lines)) for axes in figure.axes] == [
        ("binary cross-entropy", 2),
        ("binary accuracy, %", 3),
    ]


def test_a_run_that_is_killed_in_the_middle_of_an_epoch_ends_in_the_same_bits(finished, data, tmp_path, monkeypatch):
    for pictures in ((plots, "save"), (multilabel_files, "write")):  # a third of the time
        monkeypatch.setattr(*pictures, lambda *arguments: None)
    whole, run = finished[0], tmp_path / "run"
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("model.keras", "step-00000006", "evaluation"))
    code, output = train_here(run, *BEST, "--data-dir", data)
    assert code == 0 and "step 4 of 6" in output, (code, output)
    assert (run / "history.csv").read_bytes() == (whole / "history.csv").read_bytes()
    for name in ("model.keras", "best.keras"):
        pairs = zip(*(load_model(folder / name).get_weights() for folder in (whole, run)), strict=True)
        assert all(np.array_equal(one, other) for one, other in pairs)


@pytest.fixture
def decoded_once(monkeypatch):
    """The batches of an evaluation, as they are the first time, any time: what takes longest otherwise."""
    make, found = pipeline.evaluation_batches, []

    def batches(*arguments, **options):
        found[:] = found or list(make(*arguments, **options))
        return tf.data.Dataset.from_tensor_slices(tuple(tf.stack(parts) for parts in zip(*found, strict=True)))

    monkeypatch.setattr(pipeline, "evaluation_batches", batches)


@pytest.mark.usefixtures("decoded_once")
def test_run_file_and_exports_are_evaluated_to_the_numbers_of_the_history(finished, data, tmp_path, capsys):
    run, _ = finished
    model, version = load_model(run / "model.keras"), tmp_path / "exported" / "1"
    write_saved_model(model, version, list(CLASSES), resize=32)
    manifest = {"answer": {"ending": "sigmoid"}, "preprocessing": {"resize": 32, "size": 32, "exif_orientation": True}}
    (version / "manifest.json").write_text(json.dumps(manifest))
    (version / "labels.txt").write_text("\n".join(CLASSES) + "\n")
    (version / "tflite").mkdir()
    (version / "tflite" / "model_float32.tflite").write_bytes(convert_tflite(model, "float32"))
    expected = {name: float(rows_of(run)[-1][f"validation_{name}"]) for name in METRICS}
    exports = version, version / "tflite" / "model_float32.tflite"
    for path in (run, run / "model.keras", *exports):
        flags = ["--dataset", "csv"] if path in exports else []
        found = evaluate.main(["--model", str(path), "--data-dir", str(data), *flags])
        # Loss and scores are float32 of programs that add in different orders.
        assert found == pytest.approx(expected, rel=1e-4)
    printed = capsys.readouterr().out
    assert "mean average precision" in printed and "worst classes" in printed and "no image has violet" in printed


@pytest.fixture
def one_label(data, tmp_path):
    """The same images with one class each."""
    folder = tmp_path / "one_label"
    folder.mkdir()
    for split in ("train", "validation"):
        lines = [f"{split}{index}.png,{CLASSES[index % 4]}" for index in range(8)]
        (folder / f"{split}.csv").write_text("\n".join(["image,label", *lines]) + "\n")
        for index in range(8):
            (folder / f"{split}{index}.png").symlink_to(data / f"{split}{index}.png")
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--loss", "cross_entropy"), "a column for each class: give --loss binary_cross_entropy"),
        (("--class-weights", "balanced"), "--class-weights weighs an image by its one class"),
        (("--label-smoothing", 0.1), "--label-smoothing spreads a part of the one class over all"),
        (("--keep-best", "top1"), "--keep-best must be mean_average_precision or loss there. Received: top1"),
        (("--keep-best", "mean_class_accuracy"), "--keep-best must be mean_average_precision or loss there"),
    ],
)
def test_what_means_nothing_of_several_labels_is_refused_on_one_line_before_anything_is_written(
    data, tmp_path, arguments, message
):
    text, _ = train_here(tmp_path / "run", *RUN, "--data-dir", data, *arguments)
    assert "train.csv is multi-label" in text and message in text and "\n" not in text
    assert not (tmp_path / "run").exists()


def test_mean_average_precision_is_refused_of_one_label_an_image(one_label, tmp_path):
    flags = (*RUN, "--data-dir", one_label, "--keep-best", "mean_average_precision")
    text, _ = train_here(tmp_path / "run", *flags)
    assert "has one class an image: --keep-best must be top1 or loss or mean_class_accuracy there" in text
    assert not (tmp_path / "run").exists()


def test_networks_and_data_of_different_kinds_are_refused(finished, one_label, data, tmp_path):
    arguments = ["--model", str(finished[0] / "model.keras"), "--data-dir", str(one_label)]
    with pytest.raises(
        SystemExit, match="ends in sigmoids, an answer for each class by itself.*has one class an image"
    ):
        evaluate.main(arguments)
    image = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(image))
    keras.Model(image, keras.layers.Dense(4, "softmax")(x)).save(tmp_path / "softmax.keras")
    (tmp_path / "labels.txt").write_text("\n".join(CLASSES))
    flags = ["--dataset", "csv", "--data-dir", str(data), "--resize", "32"]
    with pytest.raises(SystemExit, match="softmax.keras ends in a softmax, one class an image.*which is multi-label"):
        evaluate.main(["--model", str(tmp_path / "softmax.keras"), *flags])


def test_other_labels_are_no_change_that_a_run_accepts(finished, data):
    sources = [load_source("csv", split, data) for split in ("train", "validation")]
    assert data_record.check(finished[0], sources, True, False).accepted == ()
    sources = [dataclasses.replace(source, multi_label=False) for source in sources]
    with pytest.raises(ValueError, match="a column for each class; it is kept. The data now has one class an image"):
        data_record.check(finished[0], sources, True, True)


def prepared(directory, *arguments):
    """What train.py finds before its first step, nothing written."""
    arguments = train.parse_arguments([str(argument) for argument in arguments])
    with run_lock.RunLock(directory) as lock:
        return train.prepare(arguments, directory, lock)


def test_a_file_keeps_its_sigmoids_on_several_labels_and_says_that_it_gets_a_softmax_on_one(
    finished, data, one_label, tmp_path
):
    flags = (*RUN[2:], "--attention", "none", "--model", finished[0] / "model.keras", "--data-dir")
    run = prepared(tmp_path / "several", *flags, data)
    assert not any("ends in" in note or "classifier" in note for note in run.state.notes)
    trained = load_model(finished[0] / "model.keras").get_weights()
    assert all(np.array_equal(one, other) for one, other in zip(run.state.model.get_weights(), trained, strict=True))
    notes = prepared(tmp_path / "one", *flags, one_label, "--loss", "cross_entropy").state.notes
    assert any("model.keras ends in sigmoids" in note and "the network in a softmax" in note for note in notes)


def test_two_replicas_train_as_one(two_replicas):
    rng = np.random.default_rng(0)
    batch = rng.uniform(0, 1, (8, 6, 6, 3)), rng.random((8, 4)) < 0.4, np.ones(8)
    batches = tf.data.Dataset.from_tensors(tuple(np.float32(part) for part in batch)).repeat(3)
    recipe = recipes.get_recipe("digits-demo", loss="binary_cross_entropy", batch_size=8)

    def after_three_steps(strategy):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            x = keras.layers.Conv2D(5, 3, activation="silu")(image := keras.Input((6, 6, 3)))
            x = keras.layers.BatchNormalization(synchronized=True)(x)
            model = keras.Model(image, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x)))
            optimizer = optimization.make_optimizer(recipe, 0.1, model.trainable_variables)
        train_steps = steps.make_train_steps(strategy, model, optimizer, recipe, task=multilabel)
        iterator = iter(strategy.experimental_distribute_dataset(batches))
        result = train_steps(iterator, tf.constant(3), steps.NO_SUMS, tf.constant(0.0))
        return model.get_weights(), result["sums"].numpy()

    (one, sums), (two, others) = (after_three_steps(s) for s in (tf.distribute.get_strategy(), two_replicas))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(sums, others, rtol=1e-5)
    assert sums[-1] == 24 and 0 < sums[1] < 24


def test_mixed_images_have_the_binary_cross_entropy_of_their_shares(data):
    source = load_source("csv", "train", data)
    recipe = recipes.get_recipe("digits-demo", loss="binary_cross_entropy", mixup=0.5, cutmix=1.0, batch_size=8)
    options = loop.augmentation_options(dataclasses.replace(recipe, size=32))
    _, shares, _ = next(iter(pipeline.training_batches(source, seed=0, epoch=0, first_step=0, **options)))
    shares, logits = shares.numpy(), np.random.default_rng(0).normal(0, 3, (8, 4)).astype("float32")
    assert ((shares > 0) & (shares < 1)).any() and (shares.sum(1) > 1).any()
    losses = steps.recipe_losses(recipe, tf.constant(shares), tf.constant(logits))
    expected = np.mean(np.logaddexp(0, np.float64(logits)) - np.float64(shares) * logits, axis=1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert plots.training_loss(dataclasses.asdict(recipe)) == "mixed binary cross-entropy"


def test_heat_maps_are_of_a_class_that_the_image_has(data):
    source = load_source("csv", "validation", data)
    pairs = figures.choose_examples(source, 5)
    labels = {example["image"].numpy(): example["label"].numpy() for example in source.examples(None)}
    assert len(pairs) == 5 and all(labels[image.numpy()][index] == 1 for image, index in pairs)
    assert {index for _, index in pairs[:3]} == {0, 1, 2}
    none = source.examples(None).map(lambda example: {**example, "label": tf.zeros(4)})
    with pytest.raises(ValueError, match="no image has a class to show"):
        figures.choose_examples(dataclasses.replace(source, examples=lambda seed: none), 2)


def test_the_losses_of_runs_on_both_kinds_of_labels_have_axes_of_their_own(finished, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "history.csv").write_text("epoch,loss,validation_loss\n1,2.0,2.5\n")
    figure = plots.loss_curves(*figures.read_histories([("several", finished[0]), ("one", tmp_path / "other")]))
    assert [(axes.get_title(), axes.get_ylabel()) for axes in figure.axes] == [
        *(("training", "binary cross-entropy"), ("training", "cross-entropy")),
        *(("validation", "binary cross-entropy"), ("validation", "cross-entropy")),
    ]


def test_throughput_measures_no_loss_that_several_labels_do_not_have(data):
    flags = ("--recipe", "digits-demo", *FLAGS, "--dataset", "csv", "--data-dir", data, "--batch-size", 4)
    with pytest.raises(SystemExit, match="throughput.py: .*give --loss binary_cross_entropy"):
        throughput.main([str(flag) for flag in flags])
