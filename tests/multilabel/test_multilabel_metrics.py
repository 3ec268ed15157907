"""Numbers of multi-label answers, against scikit-learn and float64; and what is written of them."""

import csv
import inspect

import numpy as np
import pytest
import tensorflow as tf
from sklearn import metrics

from engine import evaluation, multiclass, multilabel, steps
from na_keras.data import load_source
from run_files import multilabel_files

IMAGES, NAMES = 200, ("a", "b", "c", "d", "never")


def logits_and_targets():
    """Logits with many ties, some of them at one half, and targets that they say something of; no image has "never"."""
    rng = np.random.default_rng(0)
    logits = np.round(rng.normal(0, 1.5, (IMAGES, len(NAMES))) * 2) / 2
    targets = rng.random((IMAGES, len(NAMES))) < 1 / (1 + np.exp(-logits - rng.normal(0, 2, (IMAGES, 1))))
    targets[:, -1], targets[::7] = False, False
    return logits, targets


def binary_cross_entropies(logits, targets):
    """float64: -t log sigmoid(z) - (1 - t) log (1 - sigmoid(z)) = log(1 + exp(z)) - t z, the mean over the classes."""
    return np.mean(np.logaddexp(0, logits) - targets * logits, axis=1)


def answers_to(logits, targets):
    outputs, labels = tf.constant(logits, tf.float32), tf.constant(targets, tf.float32)
    losses = steps.example_losses(labels, outputs, multilabel.LOSS)
    records = multilabel.record(losses, labels, outputs, True).numpy()
    return multilabel.make_answers(np.arange(len(logits)), records, logits.shape[1])


def test_means_are_those_of_scikit_learn_over_the_classes_that_an_image_has():
    logits, targets = logits_and_targets()
    answers, shares = answers_to(logits, targets), 1 / (1 + np.exp(-logits))
    present, yes = slice(0, 4), shares >= 0.5
    assert (shares == 0.5).any() and len(np.unique(logits)) < 30
    np.testing.assert_array_equal(answers.targets, targets)
    np.testing.assert_array_equal(answers.yes, yes)
    # float32 keeps 7 digits of each.
    np.testing.assert_allclose(answers.losses, binary_cross_entropies(logits, targets), rtol=1e-5)
    each = [metrics.average_precision_score(targets[:, index], logits[:, index]) for index in range(4)]
    np.testing.assert_allclose(answers.average_precisions[present], each, rtol=1e-12)
    assert np.isnan(answers.average_precisions[-1])
    assert answers.means == pytest.approx(
        {
            "loss": binary_cross_entropies(logits, targets).mean(),
            "binary_accuracy": (yes == targets).mean(),
            "exact_match": metrics.accuracy_score(targets, yes),
            "mean_average_precision": metrics.average_precision_score(targets[:, present], shares[:, present]),
            "macro_f1": metrics.f1_score(targets[:, present], yes[:, present], average="macro"),
        },
        rel=1e-6,
    )
    assert answers.notes(NAMES) == ["Mean average precision and macro F1 are over 4 of 5 classes: no image has never"]
    assert answers_to(logits[:, present], targets[:, present]).notes(NAMES[:4]) == []


def test_a_collapsed_network_has_the_share_of_each_class_as_its_average_precision():
    targets = np.array([[1, 0], [0, 0], [1, 0], [1, 1]], bool)
    answers = answers_to(np.zeros((4, 2)), targets)
    assert answers.average_precisions.tolist() == [0.75, 0.25] and answers.means["mean_average_precision"] == 0.5
    nothing = answers_to(np.zeros((4, 2)), np.zeros((4, 2), bool)).means
    assert np.isnan(nothing["mean_average_precision"]) and np.isnan(nothing["macro_f1"])
    assert np.isnan(multilabel.average_precision(targets[:, 0], np.array([0.1, np.nan, 0.2, 0.3])))


def test_a_step_adds_up_what_an_evaluation_says_of_the_same_images():
    logits, targets = logits_and_targets()
    outputs, labels = tf.constant(logits, tf.float32), tf.constant(targets, tf.float32)
    losses, weights = steps.example_losses(labels, outputs, multilabel.LOSS), tf.constant([1.0] * 150 + [0.0] * 50)
    sums = steps.example_sums(losses, labels, outputs, weights, multilabel)
    expected = answers_to(logits[:150], targets[:150]).means
    means = steps.means(sums, len(NAMES), multilabel)
    assert means == pytest.approx({name: expected[name] for name in means}, rel=1e-5)
    assert list(means) == ["loss", "binary_accuracy", "exact_match"] and float(sums[-1]) == 150
    # A mixed image has what at least half of it has.
    shares = multilabel.example_values(tf.zeros(1), tf.constant([[0.5, 0.4, 1.0]]), tf.constant([[1.0, 1.0, 1.0]]))
    np.testing.assert_allclose(shares[:, 0], [0, 2 / 3, 0, 1])


def test_both_kinds_of_labels_have_the_same_names_and_arguments():
    """What takes a task takes either."""
    functions = ("statistics", "example_values", "record", "make_answers")
    for name in (*functions, "Answers", "files", "SUMS", "METRICS", "KEEP_BEST", "CURVES", "LOSS", "ACTIVATION"):
        assert hasattr(multiclass, name) and hasattr(multilabel, name)
    for name in functions:
        counts = [len(inspect.signature(getattr(task, name)).parameters) for task in (multiclass, multilabel)]
        assert counts[0] == counts[1]
    assert len(multiclass.SUMS) == len(multilabel.SUMS) == len(steps.NO_SUMS)
    for task in (multiclass, multilabel):
        assert set(task.KEEP_BEST) < set(task.METRICS) and task.LOSS in steps.LOSSES


def see_blue_and_green(images):
    """Probabilities by the colours of the bands: blue is seen, green is missed, red never, violet everywhere."""
    bands = tf.cast(images, tf.float32)[:, 4::12, 16] / 255  # (images, bands, 3)
    blue, green = bands[:, 0, 2], bands[:, 1, 1]
    fixed = tf.ones_like(blue)
    return tf.stack([blue, 0.5 * green, 0.2 * fixed, 0.97 * fixed], axis=1)


def answers_by(strategy, source):
    evaluate_steps = steps.make_evaluate_steps(strategy, see_blue_and_green, False, multilabel)
    return evaluation.evaluate(strategy, evaluate_steps, source, batch_size=4, resize=36, size=36)


@pytest.fixture(scope="module")
def on_one_device(data):
    return answers_by(tf.distribute.get_strategy(), load_source("csv", "validation", data))


@pytest.mark.parametrize("replicas", [1, 2])
def test_every_image_is_evaluated_once_with_its_own_labels(data, request, replicas):
    source, answers = load_source("csv", "validation", data), request.getfixturevalue("on_one_device")
    if replicas == 2:
        answers = answers_by(request.getfixturevalue("two_replicas"), source)
    targets = np.array([example["label"].numpy() for example in source.examples(None)])
    np.testing.assert_array_equal(answers.targets, targets == 1)
    np.testing.assert_array_equal(answers.positions, np.arange(10))
    np.testing.assert_array_equal(answers.yes[:, 0], targets[:, 0] == 1)
    assert answers.yes[:, 3].all() and not answers.yes[:, 1:3].any()


def test_what_one_looks_at_is_in_the_files(on_one_device, data, tmp_path):
    source, answers = load_source("csv", "validation", data), on_one_device
    (tmp_path / "confusion_matrix.csv").write_text("of another evaluation")
    names = multilabel_files.write(tmp_path, answers, source, (36, 36, True), mistakes=12)
    assert not (tmp_path / "confusion_matrix.csv").exists()
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    blues, greens, reds, _ = answers.targets.sum(0)
    assert 0 < min(reds, greens, blues)
    with (tmp_path / "per_class.csv").open(newline="") as file:
        rows = {row.pop("class"): row for row in csv.DictReader(file)}
    assert list(rows["blue"].values()) == [str(blues), "1.0", str(blues), "1.0", "1.0"]
    assert list(rows["green"].values()) == [str(greens), "1.0", "0", "", "0.0"]
    assert list(rows["red"].values()) == [str(reds), str(reds / 10), "0", "", "0.0"]  # equal scores: its share
    assert list(rows["violet"].values()) == ["0", "", "10", "0.0", ""]
    with (tmp_path / "mistakes.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    # The surest first: ten times violet, in the stored order, then red that is there.
    assert [row["class"] for row in found] == ["violet"] * 10 + ["red"] * 2
    assert [row["truth"] for row in found] == ["0"] * 10 + ["1"] * 2
    assert [row["image"] for row in found[:10]] == [str(data / f"validation{index}.png") for index in range(10)]
    assert found[0]["probability"] == "0.970000"
    header, rows = multilabel_files.worst_table(answers, source.class_names)
    assert rows == [("red", reds, f"{10 * reds:.2f} %", "", "0.00 %")] and header[2] == "average precision"
    assert min(tf.io.decode_png((tmp_path / "mistakes.png").read_bytes()).shape[:2]) > 100
