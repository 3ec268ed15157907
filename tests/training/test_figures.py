"""figures.py: the pictures show the numbers that are there, and nothing is written when something is wrong."""

import json

import keras
import matplotlib.colors
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from programs import error_of, run

import figures
import plots
from engine import multiclass
from na_keras import NormalizationAttention, grad_cam
from na_keras.data import load_source
from run_files import run_directory


def small_network(classes, attention=False):
    """Two convolutions, the second named C3 as in the networks; NA between them."""
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, 2, activation="relu")(layers.Rescaling(1 / 255)(image))
    if attention:
        x = NormalizationAttention(name="block_attention")(x)
    x = layers.Conv2D(16, 3, 2, activation="relu", name="C3")(x)
    # Positive, so that no class's map is all zeros.
    predictions = layers.Dense(classes, "softmax", kernel_initializer=keras.initializers.RandomUniform(0, 1))
    return keras.Model(image, predictions(layers.GlobalAveragePooling2D()(x)))


HISTORY = "epoch,step,loss,validation_loss\n1,22,2.0,2.5\n2,44,0.5,1.0\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two run directories with untrained networks in them."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("vanilla", "na"):
        (folder / name).mkdir()
        small_network(10, attention=name == "na").save(folder / name / "model.keras")
        (folder / name / "recipe.json").write_text(json.dumps({"dataset": "digits", "evaluation_resize": 36}))
        (folder / name / "history.csv").write_text(HISTORY)
    return folder


def size_of(path):
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    return tf.io.decode_png(data).shape[:2]


def test_loss_as_a_command(runs, tmp_path):
    output = tmp_path / "loss.png"
    output.write_text("an old picture")
    result = run("training/figures.py", "loss", f"a={runs / 'na'}", f"b={runs / 'vanilla'}", "--output", output)
    assert f"Wrote {output}" in result.stdout and size_of(output)[1] == 900
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_loss_curves_are_the_histories():
    rows = [
        {"epoch": "1", "loss": "2.0", "validation_loss": "2.5"},
        {"epoch": "2", "loss": ".5", "validation_loss": "1"},
    ]
    training, validation = plots.loss_curves({"a": rows, "b": rows[:1]}).axes
    assert [list(line.get_ydata()) for line in training.lines] == [[2.0, 0.5], [2.0]]
    assert [list(line.get_ydata()) for line in validation.lines] == [[2.5, 1.0], [2.5]]
    assert [text.get_text() for text in training.get_legend().get_texts()] == ["a", "b"]


def test_losses_of_different_kinds_have_axes_of_their_own():
    rows = [{"epoch": "1", "loss": "0.02", "validation_loss": "2.5", "top1": ".1", "validation_top1": ".2"}]
    labels = lambda figure: [(axes.get_ylabel(), len(axes.lines)) for axes in figure.axes]  # noqa: E731
    assert labels(plots.history_curves(rows, "t", multiclass.CURVES)) == [
        ("cross-entropy", 2),
        ("top-1 accuracy, %", 2),
    ]
    binary = "binary_cross_entropy", "cross_entropy"
    assert labels(plots.history_curves(rows, "t", multiclass.CURVES, binary)) == [
        ("binary cross-entropy", 1),
        ("cross-entropy", 1),
        ("top-1 accuracy, %", 2),
    ]
    assert labels(plots.loss_curves({"a": rows, "b": rows}, {"b": binary})) == [
        ("cross-entropy", 1),
        ("binary cross-entropy", 1),
        ("cross-entropy", 2),
    ]
    assert labels(plots.loss_curves({"b": rows}, {"b": binary})) == [("binary cross-entropy", 1), ("cross-entropy", 1)]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "cross_entropy"),
        ({"loss": "binary_cross_entropy"}, "binary_cross_entropy"),
        ({"label_smoothing": 0.1, "cutmix": 1.0}, "smoothed, mixed cross-entropy"),
        ({"class_weights": "balanced"}, "class-weighted cross-entropy"),
    ],
)
def test_only_a_plain_cross_entropy_shares_the_axes_of_the_validations(fields, name):
    assert plots.training_loss({**run_directory.BEFORE, **fields}) == name


def test_heat_maps_have_a_row_per_network_below_the_images(runs, tmp_path):
    output = tmp_path / "maps.png"
    networks = [f"vanilla={runs / 'vanilla/model.keras'}", f"NA={runs / 'na/model.keras'}"]
    figures.main(["heatmaps", *networks, "--layer", "C3", "--count", "3", "--output", str(output)])
    height, width = size_of(output)
    assert 400 < height < 500 and 400 < width < 450


def test_red_is_where_the_map_is_largest():
    model = small_network(4)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    figure = figures.heat_maps({"net": model}, images, (3, 0), ("a", "b", "c", "a long class name"), "C3", False)
    cells = np.array(figure.axes).reshape(2, 2)
    np.testing.assert_array_equal(cells[0, 1].images[0].get_array(), images[1])
    maps = grad_cam(model, images, [3, 0], "C3", scaled=True)
    for column in range(2):
        shown = np.asarray(cells[1, column].images[0].get_array())
        colour = (shown - 0.5 * images[column] / 255) / 0.5
        hue = matplotlib.colors.rgb_to_hsv(np.clip(colour, 0, 1))[..., 0]
        assert hue[np.unravel_index(maps[column].argmax(), (32, 32))] < 0.05  # red; the least is blue, 2/3
    probability = model.predict(images, verbose=0)[0, 3]
    assert cells[1, 0].get_title() == f"a long class n: {100 * probability:.0f} %"
    assert [axes.get_ylabel() for axes in cells[:, 0]] == ["image", "net"]
    # --predicted: the map of the class that the network says, here another than the label.
    best = model.predict(images, verbose=0).argmax(-1)
    wrong = (best + 1) % 4
    figure = figures.heat_maps({"net": model}, images, wrong, ("a", "b", "c", "d"), "C3", True)
    titles = [axes.get_title()[0] for axes in np.array(figure.axes).reshape(2, 2)[1]]
    assert titles == ["abcd"[index] for index in best]


def test_gates_are_what_the_layers_multiply_by():
    image = keras.Input((8, 8, 3))
    inner_image = keras.Input((8, 8, 4))
    inner = keras.Model(inner_image, NormalizationAttention(gamma_initializer="ones", name="b_attention")(inner_image))
    x = layers.Conv2D(4, 1)(NormalizationAttention(name="a_attention")(image))
    model = keras.Model(image, inner(x))
    images = np.random.default_rng(0).uniform(0, 255, (5, 8, 8, 3)).astype("float32")
    gates = figures.gates_of(model, images)
    assert list(gates) == ["a_attention", "b_attention"] and gates["a_attention"].shape == (15,)
    np.testing.assert_allclose(gates["a_attention"], 1 / (1 + np.exp(-1)), rtol=1e-6)
    before = keras.Model(image, x).predict(images, verbose=0)
    ratio = model.predict(images, verbose=0)[:, 0, 0] / before[:, 0, 0]
    np.testing.assert_allclose(gates["b_attention"], ratio.ravel(), rtol=1e-4)
    axes = figures.gate_boxes(gates, "title").axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "b"]


def test_gates_as_a_command_with_image_files(runs, tmp_path):
    output = tmp_path / "gates.png"
    arguments = ["gates", f"NA={runs / 'na/model.keras'}", "--images", "docs/digit.jpg", "--output", str(output)]
    figures.main(arguments)
    assert size_of(output)[0] == 400


def test_examples_are_of_different_classes_first():
    _, labels = zip(*figures.choose_examples(load_source("digits", "validation"), 12), strict=True)
    assert labels[:10] == tuple(range(10)) and len(labels) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss", "a={runs}", "--output", "{tmp}/x.png"], "holds no history.csv with a finished epoch"),
        (["loss", "a={runs}/na", "a={runs}/vanilla", "--output", "{tmp}/x.png"], "a different name for each"),
        (["loss", "a={runs}/na", "--output", "{tmp}/missing/x.png"], "There is no folder"),
        (["heatmaps", "a={runs}/na/recipe.json", "--output", "{tmp}/x.png"], "is not a Keras model file"),
        (["heatmaps", "a={runs}/none.keras", "--output", "{tmp}/x.png"], "No model file"),
        (["heatmaps", "a={runs}/na/model.keras", "--layer", "z", "--output", "{tmp}/x.png"], "has no layer 'z'"),
        (["heatmaps", "a={runs}/na/model.keras", "--images", "z.jpg", "--output", "{tmp}/x.png"], "No image at z.jpg"),
        (["gates", "a={runs}/vanilla/model.keras", "--output", "{tmp}/x.png"], "no NormalizationAttention layer"),
        (["gates", "a={runs}/na/model.keras", "--images", "setup.cfg", "--output", "{tmp}/x.png"], "does not decode"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(runs, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=f"figures.py: .*{message}"):
        figures.main([argument.format(runs=runs, tmp=tmp_path) for argument in arguments])
    assert not list(tmp_path.iterdir())


def test_bad_flags_are_refused():
    assert "expected NAME=PATH, as in NA=runs/na. Received: 'runs/na'" in error_of(
        "training/figures.py", "loss", "runs/na", "--output", "x.png"
    )
    for arguments, message in (
        (["loss", "a=b", "--output", "x.pdf"], "ends in .png"),
        (["gates", "a=b", "--output", "x.png", "--count", "0"], "--count: must be a whole number of at least 1"),
        (["gates", "a=b", "--output", "x.png", "--images", "c.jpg", "--dataset", "digits"], "instead of a dataset's"),
    ):
        assert message in error_of("training/figures.py", *arguments)
