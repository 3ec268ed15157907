"""Exact evaluation and what it leaves to be looked at: against NumPy, on one device and on two replicas."""

import csv
import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import plots
from engine import evaluation, multiclass, steps
from na_keras.data import load_source, preprocessing
from na_keras.data.digits import digits
from na_keras.data.image_folder import image_folder
from run_files import evaluation_files, multiclass_files


def cells(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def scores():
    """The held-out digits, a network without a meaning, and its scores of them by NumPy."""
    source = digits("validation")
    kernel = np.random.default_rng(0).normal(0, 0.002, (32 * 32, 10)).astype("float32")
    images = [preprocessing.evaluation_image(e["image"], 32, 32, True)[..., 0] for e in source.examples(None)]
    logits = np.float64(np.reshape(images, (len(images), -1))) @ np.float64(kernel)

    def predict(batch):
        return tf.reshape(tf.cast(batch[..., 0], tf.float32), (-1, 32 * 32)) @ kernel

    return source, predict, logits


@pytest.mark.parametrize("replicas", [1, 2])
def test_every_image_is_counted_once_in_the_confusion_matrix(scores, request, replicas):
    source, predict, logits = scores
    strategy = request.getfixturevalue("two_replicas") if replicas == 2 else tf.distribute.get_strategy()
    # Thirteen batches, the last filled up.
    options = {"batch_size": 28, "resize": 32, "size": 32}
    answers = evaluation.evaluate(strategy, steps.make_evaluate_steps(strategy, predict), source, **options)
    labels = np.array([int(example["label"]) for example in source.examples(None)])
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (labels, logits.argmax(1)), 1)
    np.testing.assert_array_equal(answers.confusion_matrix, matrix)
    assert 0 < np.trace(matrix) < len(labels)
    np.testing.assert_array_equal(answers.positions, np.arange(360))
    np.testing.assert_array_equal(answers.labels, labels)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    # Scores are float32 sums of a thousand products, up to 20: 1e-5 of them is rounding.
    np.testing.assert_allclose(answers.probabilities, shares.max(1), rtol=1e-4)
    np.testing.assert_allclose(answers.losses, -np.log(shares[np.arange(360), labels]), rtol=1e-4, atol=1e-4)
    means = {"loss": answers.losses.mean(dtype=float), "top1": np.trace(matrix) / 360}
    means["top5"] = np.mean(np.argsort(-logits, 1)[:, :5] == labels[:, None]) * 5
    means["mean_class_accuracy"] = np.mean(np.diag(matrix) / matrix.sum(1))
    assert answers.means == pytest.approx(means)


def test_classes_without_images_have_no_part_in_the_mean_over_classes():
    assert multiclass.mean_class_accuracy(np.array([0, 0, 0, 3]), np.array([0, 0, 1, 3])) == pytest.approx(5 / 6)


COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "none": (9, 9, 9), "red": (255, 0, 0)}


@pytest.fixture
def coloured(tmp_path):
    """A folder of wide images of one colour each, in classes of these names; one file is no image."""
    files = {"blue": ["blue"], "green": ["green", "red", "red", "blue"], "none": [], "red": ["red"]}
    for name, colours in files.items():
        (tmp_path / "validation" / name).mkdir(parents=True)
        for index, colour in enumerate(colours):
            pixels = np.full((40, 60, 3), COLOURS[colour], np.uint8)
            data = tf.io.encode_png(pixels).numpy()
            (tmp_path / "validation" / name / f"{index}.png").write_bytes(data)
    (tmp_path / "validation" / "blue" / "damaged.png").write_bytes(b"no image")
    return image_folder("validation", tmp_path, list(COLOURS))


def say_the_colour(images):
    """Probabilities; of red the network is surer than of blue."""
    colours = tf.cast(images[:, 0, 0], tf.float32) / 255
    red, green, blue = tf.unstack(colours, axis=1)
    rows = tf.stack([0.6 * blue, 0.9 * green, tf.zeros_like(red), 0.8 * red], axis=1)
    return rows + (1 - tf.reduce_sum(rows, axis=1, keepdims=True)) / 4


def test_what_one_looks_at_is_in_the_files(coloured, tmp_path):
    device, pixels = tf.distribute.get_strategy(), (34, 32, True)
    evaluate_steps = steps.make_evaluate_steps(device, say_the_colour, from_logits=False)
    options = {"batch_size": 4, "resize": 34, "size": 32, "skip_unreadable": True}
    answers = evaluation.evaluate(device, evaluate_steps, coloured, **options)
    assert answers.positions.tolist() == [0, 2, 3, 4, 5, 6]  # without the damaged one
    names = multiclass_files.write(tmp_path / "output", answers, coloured, pixels, mistakes=2)
    assert {path.name for path in (tmp_path / "output").iterdir()} == set(names)
    for name in names:
        if name.endswith(".png"):
            assert min(tf.io.decode_png((tmp_path / "output" / name).read_bytes()).shape[:2]) > 100

    assert cells(tmp_path / "output" / "confusion_matrix.csv") == [
        ["truth", "blue", "green", "none", "red"],
        ["blue", "1", "0", "0", "0"],
        ["green", "1", "1", "0", "2"],
        ["none", "0", "0", "0", "0"],
        ["red", "0", "0", "0", "1"],
    ]
    assert cells(tmp_path / "output" / "per_class.csv")[1:] == [
        ["blue", "1", "1.0", "2", "", "0"],
        ["green", "4", "0.25", "1", "red", "2"],
        ["none", "0", "", "0", "", "0"],
        ["red", "1", "1.0", "3", "", "0"],
    ]
    assert answers.means["mean_class_accuracy"] == 0.75
    worst = multiclass_files.worst_classes(answers.confusion_matrix, coloured.class_names)
    assert worst == [("green", 4, 0.25, "red", 2)]
    # The surest mistakes, in the stored order, with the files' names.
    found = cells(tmp_path / "output" / "mistakes.csv")[1:]
    assert [row[1:4] for row in found] == [["green", "red", "0.850000"]] * 2
    assert [row[0] for row in found] == [str(tmp_path / f"validation/green/{index}.png") for index in (1, 2)]
    (_, image), (_, other) = evaluation_files.read_images(coloured, np.array([4, 0]), pixels)
    assert image.shape == (32, 32, 3) and (image == COLOURS["red"]).all() and (other == COLOURS["blue"]).all()


def test_a_network_without_mistakes_has_an_empty_list_of_them(tmp_path):
    source = dataclasses.replace(load_source("digits", "validation"), class_names=("a", "b"))
    records = np.zeros((360, 7), np.float32)  # weight, and multiclass.record
    records[:, 0] = 1
    multiclass_files.write(tmp_path, evaluation.make_answers(records, source), source, (32, 32, True))
    assert len(cells(tmp_path / "mistakes.csv")) == 1 and (tmp_path / "mistakes.png").stat().st_size > 1000


def test_the_picture_of_many_classes_names_the_pairs_that_are_confused_most():
    matrix = 50 * np.eye(300, dtype=int)
    matrix[7, 250], matrix[12, 3] = 4, 9
    figure = plots.confusion_matrix(matrix, [f"class {index}" for index in range(300)], "title")
    picture, bars = figure.axes[0], figure.axes[1]
    assert [text.get_text() for text in bars.get_yticklabels()] == [
        "class 12 \u2192 class 3",
        "class 7 \u2192 class 250",
    ]
    # Pooling loses no mistake: 0 off the diagonal but in two cells.
    shown = np.asarray(picture.images[0].get_array())
    assert shown.shape == (plots.CELLS, plots.CELLS) and (shown > 0).sum() >= plots.CELLS + 2
    few = plots.confusion_matrix(matrix[:3, :3], ["a", "b", "c"], "title").axes[0]
    assert [text.get_text() for text in few.texts] == ["50", "50", "50"]
    assert [text.get_text() for text in few.get_yticklabels()] == ["a", "b", "c"]
