"""Runs that start from trained networks, and make_model.py: what is recorded, resumed, refused and written."""

import json
import shutil

import keras
import numpy as np
import pytest
from keras import layers
from tiny_network import train_here

import evaluate
import make_model
import recipes
from na_keras.model_files import load_model
from run_files import run_directory

FLAGS = (
    "--size",
    32,
    "--evaluation-resize",
    32,
    "--epochs",
    1,
    "--warmup-epochs",
    0,
    "--attention",
    "na",
    "--ema-decay",
    0.5,
)


@keras.saving.register_keras_serializable(package="test_transfer")
class Doubled(layers.Layer):
    """Stands for a class of the user's own."""

    def call(self, x):
        return 2.0 * x


def trained_file(path, first=()):
    """A functional classifier of 7 classes with a residual branch, whose statistics are those of digits, roughly."""
    x = image = keras.Input((32, 32, 3), name="images")
    for layer in first:
        x = layer(x)
    x = shortcut = layers.BatchNormalization()(layers.Conv2D(8, 3, 4, activation="relu")(x))
    x = layers.BatchNormalization(name="branch_bn")(layers.Conv2D(8, 3, padding="same")(x))
    x = layers.GlobalAveragePooling2D()(layers.Add()([shortcut, x]))
    keras.Model(image, layers.Dense(7, "softmax", name="head")(x)).save(path)
    return path


def test_a_run_from_a_file_is_recorded_resumed_and_evaluated(tmp_path):
    file = trained_file(tmp_path / "mine.keras", [layers.Rescaling(1 / 255)])
    flags, run = ("--model", file, "--preserve", *FLAGS), tmp_path / "run"
    code, output = train_here(run, *flags, "--steps", 2)
    assert code == 0, (code, output)
    assert "mine.keras is of 7 classes, the network has 10." in output
    assert "the network computes what it did without them" in output
    recipe = json.loads((run / "recipe.json").read_text())
    assert len(recipe["model_sha256"]) == 64 and recipe["attention"] == "na" and recipe["model_options"] == {}

    shutil.copy(file, tmp_path / "kept.keras")
    trained_file(file, [layers.Rescaling(1 / 127.5)])
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    message, _ = train_here(run, *flags)
    assert "model_sha256: " in message and "another recipe" in message
    with pytest.raises(SystemExit, match="is not the file any more that the run"):
        evaluate.main(["--model", str(run)])
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before

    shutil.copy(tmp_path / "kept.keras", file)
    code, output = train_here(run, *flags)
    assert code == 0 and "Finished 1 epochs" in output
    network = load_model(run / "model.keras")
    assert network.output_shape == (None, 10) and network.get_layer("branch_bn_attention")
    losses = [evaluate.main(["--model", str(path)])["loss"] for path in (run, run / "model.keras")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # logits and probabilities of the same network


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "{tmp}/unclear.keras"), "does not show what its pixels mean. Say it by --pixels: raw"),
        (("--model", "{tmp}/unclear.keras", "--pixels", "tf", "--size", 48), "give --size 32"),
        (("--model", "{tmp}/own.keras", "--import", "nothing_of_that_name"), "nothing_of_that_name cannot be imported"),
        (("--model", "keras.applications.MobileNetV9"), "Did you mean MobileNetV"),
        (("--weights", "{tmp}/missing.npz"), "No file at: {tmp}/missing.npz"),
        (("--weights", "{tmp}/unclear.keras"), "does not fit 'mobilenetv2'; nothing was loaded"),
        (("--where", "bn$"), "--where is not for networks of this library"),
        (("--where", "("), "where: expected regular expressions"),
        (("--preserve",), "--preserve is about trained weights"),
    ],
)
def test_bad_starts_are_refused_on_one_line_before_anything_is_written(tmp_path, arguments, message):
    trained_file(tmp_path / "unclear.keras")
    trained_file(tmp_path / "own.keras", [Doubled()])
    before = sorted(tmp_path.iterdir())
    code, output = train_here(tmp_path / "run", *(str(argument).format(tmp=tmp_path) for argument in arguments))
    assert message.format(tmp=tmp_path) in code and "\n" not in code and "Traceback" not in output
    assert sorted(tmp_path.iterdir()) == before


def make(*arguments):
    make_model.main([str(argument) for argument in arguments])


def test_make_model_writes_a_ready_network_once(tmp_path, capsys):
    file, output = trained_file(tmp_path / "mine.h5"), tmp_path / "ready.keras"
    make("--model", file, "--pixels", "tf", "--attention", "na", "--output", output)
    printed = capsys.readouterr().out
    assert "the network computes what it did without them" in printed and "model_sha256: " in printed
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    expected = load_model(file)(images / np.float32(127.5) - 1)
    np.testing.assert_allclose(keras.saving.load_model(output)(images), expected, atol=1e-5)
    written = output.read_bytes()
    with pytest.raises(SystemExit, match="ready.keras is there already; it is kept"):
        make("--model", file, "--pixels", "tf", "--output", output)
    with pytest.raises(SystemExit, match="make_model.py: model must be one of .*Did you mean"):
        make("--model", "ResNet51", "--output", tmp_path / "other.keras")
    assert output.read_bytes() == written and sorted(p.name for p in tmp_path.iterdir()) == ["mine.h5", "ready.keras"]


def test_evaluate_takes_a_name_only_with_weights():
    for arguments, message in (
        (["--model", "keras.applications.MobileNetV2"], "names a network without weights. Give --weights imagenet"),
        (["--model", "ResNet51"], "Did you mean"),
    ):
        with pytest.raises(SystemExit, match=message):
            evaluate.main(arguments)


def test_foreign_networks_have_no_attention_unless_given_and_names_are_recorded_as_they_are_written():
    recipe = recipes.get_recipe("resnet50-paper", model="keras.applications.efficientnetb0")
    assert (recipe.model, recipe.attention) == ("keras.applications.EfficientNetB0", None)
    assert recipes.get_recipe("resnet50-paper", model="keras.applications.VGG16", attention="se").attention == "se"
    assert recipes.get_recipe("digits-demo", model="mobilenetv2") == recipes.RECIPES["digits-demo"]


def test_runs_of_before_began_from_nothing():
    new = ("weights", "where", "preserve", "pixels")
    assert {name: run_directory.BEFORE[name] for name in new} == dict.fromkeys(new)
