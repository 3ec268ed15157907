"""Training detectors by the program's own parts: weights, what is frozen, resuming, evaluation, what is refused."""

import csv
import dataclasses
import json
import os
import signal

import keras
import numpy as np
import pytest

pytest.importorskip("official", reason="needs the extra detection, in an environment of its own (docs/detection.md)")

import tensorflow as tf  # noqa: E402

import evaluate_detection  # noqa: E402
import train_detection  # noqa: E402
from detection_engine import dataset, loop, network, recipes  # noqa: E402
from engine import strategies  # noqa: E402
from na_keras import ResNet18, to_torch_state_dict  # noqa: E402
from na_keras.detection.model_garden import saved  # noqa: E402
from na_keras.models import in_stages  # noqa: E402

TINY = {"model": "ResNet18", "size": 48, "longer_size": 64, "filters": 8, "coarsest_level": 6, "batch_size": 1}
TINY |= {"epochs": 3, "drop_epochs": (2,), "warmup_steps": 0, "learning_rate": 0.01, "flip": False}
FLAGS = ["--size", "48", "--longer-size", "64", "--filters", "8", "--batch-size", "1", "--epochs", "2"]
FLAGS += ["--drop-epochs", "1", "--warmup-steps", "0", "--no-flip"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with two splits of one photograph each, with a box of each of two classes."""
    folder = tmp_path_factory.mktemp("boxes")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for split in ("train", "val"):
        pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        (folder / "images" / f"{split}.png").write_bytes(tf.io.encode_png(pixels).numpy())
        boxes = [(1, 7, [4, 6, 24, 20]), (2, 18, [30, 10, 30, 36])]
        content = {
            "images": [{"id": 5, "file_name": f"{split}.png", "width": 64, "height": 48}],
            "categories": [{"id": 18, "name": "dog"}, {"id": 7, "name": "cup"}],
            "annotations": [{"id": i, "image_id": 5, "category_id": c, "bbox": box} for i, c, box in boxes],
        }
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The file of a ResNet18 of 5 classes without attention, whose batch norms are not fresh."""
    model, path = ResNet18(classes=5, input_shape=(32, 32, 3)), tmp_path_factory.mktemp("classifier") / "trained.keras"
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.weights])
    model.save(path)
    return path


def make_state(data, folder, strategy=None, **fields):
    """(recipe, TrainingState, splits), by default on a single device."""
    recipe = recipes.get_recipe("cells-demo", **TINY | fields)
    splits = [dataset.open_split(data, split) for split in ("train", "val")]
    paths = [str(path) for path in dataset.converted(splits[0], folder, lambda done: None)]
    description = network.describe(recipe, splits[0].annotations.categories)
    weights = network.BackboneWeights(recipe) if recipe.weights else None
    strategy = strategy or tf.distribute.get_strategy()
    state = loop.TrainingState(recipe, description, paths, strategy, 1, weights)
    return recipe, state, splits


def train(data, folder, stop=None, **fields):
    """The state after a run in a folder, which is begun or resumed, and its Outcome."""
    recipe, state, splits = make_state(data, folder / "tfrecords", **fields)
    folder.mkdir(exist_ok=True)
    outcome = loop.train(recipe, state, folder, tf.distribute.get_strategy(), splits, stop_after=stop)
    return state, outcome


def values_of(state):
    """All that decides how a run goes on."""
    optimizer = state.trainer.optimizer
    return [variable.numpy() for variable in (*state.model.variables, *optimizer.variables(), state.sums)]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished run of three epochs of one step: (folder, state, outcome)."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    state, outcome = train(data, folder)
    (folder / "detector.json").write_text(json.dumps(state.description))  # as the program does at the start
    return folder, state, outcome


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(run, data, tmp_path, monkeypatch):
    """One photograph, not mirrored: nothing of the input is random, and RetinaNet samples nothing."""
    whole, state, _ = run
    step = loop.TrainingState.train_step

    def interrupted(state):
        values = step(state)
        os.kill(os.getpid(), signal.SIGTERM)
        return values

    monkeypatch.setattr(loop.TrainingState, "train_step", interrupted)
    _, outcome = train(data, tmp_path / "parts")
    assert (outcome.signal, outcome.step, outcome.finished) == (signal.SIGTERM, 1, False)
    monkeypatch.undo()
    resumed, outcome = train(data, tmp_path / "parts")
    assert outcome.finished and resumed.step == 3
    for one, other in zip(values_of(state), values_of(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (whole / "history.csv").read_text() == (tmp_path / "parts" / "history.csv").read_text()


def test_two_replicas_with_one_image_each_equal_one_with_that_image(data, run, tmp_path):
    """They see the same anchors, so that their losses are divided by the same numbers; batch norms see one image."""
    for split in ("train", "val"):
        content = json.loads((data / f"instances_{split}.json").read_text())
        copies = [{**entry, "id": 2 * entry["id"], "image_id": 6} for entry in content["annotations"]]
        content["images"].append({**content["images"][0], "id": 6, "file_name": f"copy/{split}.png"})
        content["annotations"] += [{**entry, "id": 100 + entry["id"]} for entry in copies]
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(content))
    (tmp_path / "images").mkdir()
    for name in ("train.png", "val.png"):
        (tmp_path / "images" / name).write_bytes((data / "images" / name).read_bytes())
    (tmp_path / "images" / "copy").symlink_to(data / "images")
    two = strategies.mirrored(use_gpus=False)
    one = make_state(data, tmp_path / "one")[1]
    both = make_state(tmp_path, tmp_path / "two", strategy=two, batch_size=2)[1]
    before = [variable.numpy() for variable in one.model.trainable_variables]
    losses, changed = [state.train_step() for state in (one, both)], 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for old, single, double in zip(before, one.model.trainable_variables, both.model.trainable_variables, strict=True):
        # A sum of two float32 numbers and its half: a step is equal to a few units in the last place of the weight.
        np.testing.assert_allclose(double.numpy(), single.numpy(), rtol=1e-6, atol=1e-7)
        changed += (single.numpy() != old).any()
    assert changed > len(before) / 2


def test_the_history_has_losses_of_every_epoch_and_the_schedules_rate(run):
    folder, _, outcome = run
    rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"] and len(outcome.rows) == 3
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([0.01, 0.01, 0.001])
    assert all(float(row["total_loss"]) > 0 for row in rows)
    assert [row["AP"] == "" for row in rows] == [True, True, False]  # every fifth epoch, and the last


def test_a_saved_detector_finds_what_the_trained_one_finds(run):
    folder, state, _ = run
    loaded = saved.load(*saved.find(folder))
    image = np.random.default_rng(1).normal(size=(1, 64, 64, 3)).astype("float32")
    shape = np.array([[64.0, 64.0]], "float32")
    for one, other in zip(state.model.weights, loaded.model.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    found = [model(image, image_shape=shape, training=False) for model in (state.model, loaded.model)]
    np.testing.assert_array_equal(*(answers["detection_boxes"].numpy() for answers in found))
    assert loaded.categories == {7: "cup", 18: "dog"}


@pytest.mark.parametrize("what", ["", "detector", "checkpoints/step-00000003"])
def test_a_run_its_detector_and_its_checkpoints_are_evaluated_alike(run, data, what, tmp_path):
    folder, _, outcome = run
    arguments = ["--model", str(folder / what), "--data-dir", str(data), "--output", str(tmp_path)]
    numbers = evaluate_detection.main(arguments)
    assert numbers["AP"] == float(outcome.rows[-1]["AP"])
    assert (tmp_path / "per_class.csv").read_text().startswith("class,AP\ncup,")
    assert (tmp_path / "detections.png").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_no_checkpoint_is_written(data, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.TrainingState, "train_step", lambda state: {"total_loss": float("nan")})
    with pytest.raises(loop.NotFiniteError, match="last good checkpoint is the start. A lower --learning-rate"):
        train(data, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_records_are_taken_as_they_are_or_written_where_it_is_said(data, tmp_path, capsys):
    split = dataset.open_split(data, "train")
    (tmp_path / "file").write_text("no folder")
    parse = lambda *flags: train_detection.parse_arguments(["--data-dir", str(data), *map(str, flags)])  # noqa: E731
    written = train_detection.training_records(parse("--records-dir", tmp_path / "records"), split)
    assert [os.path.dirname(path) for path in written] == [str(tmp_path / "records")]
    taken = train_detection.training_records(parse("--train-records", tmp_path / "records/*"), split)
    assert taken == written
    with pytest.raises(OSError, match="file/records cannot be written: give --records-dir DIR"):
        train_detection.training_records(parse("--records-dir", tmp_path / "file/records"), split)
    other = dataset.open_split(data, "val")
    photograph = dataclasses.replace(other.annotations.photographs[0], id=6)
    other = dataclasses.replace(other.annotations, photographs=(photograph,))
    with pytest.raises(ValueError, match="begins with the image '5', which .* does not have"):
        dataset.ready_records(str(tmp_path / "records/*"), other)


def test_a_classifier_with_attention_in_some_stages_becomes_the_backbone_that_has_it_there(data, tmp_path):
    trained = ResNet18(classes=5, input_shape=(32, 32, 3), attention=in_stages("se", (5,)))
    trained.save(tmp_path / "trained.keras")
    fields = {"weights": str(tmp_path / "trained.keras"), "attention": "se"}
    _, state, _ = make_state(data, tmp_path, **fields, attention_stages=(5,))
    layers = [layer for layer in state.model.backbone.layers if layer.name.endswith("_attention")]
    assert [layer.name for layer in layers] == ["conv5_block1_attention", "conv5_block2_attention"]
    for layer in layers:
        for one, other in zip(layer.get_weights(), trained.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("ending", [".weights.h5", ".npz"])
def test_the_weights_of_a_backbone_come_from_files_of_all_kinds(classifier, ending, tmp_path):
    trained, path = keras.saving.load_model(classifier), tmp_path / f"trained{ending}"
    np.savez(path, **to_torch_state_dict(trained)) if ending == ".npz" else trained.save_weights(path)
    recipe = recipes.get_recipe("cells-demo", **TINY, weights=str(path), attention="none")
    arrays = network.BackboneWeights(recipe).arrays
    expected = {layer.name: layer.get_weights() for layer in trained.layers if layer.weights}
    assert set(expected) - set(arrays) == {"predictions"}
    for name, values in arrays.items():
        for one, other in zip(values, expected[name], strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_detector_of_other_categories_is_not_evaluated(run, data, tmp_path):
    content = json.loads((data / "instances_val.json").read_text())
    content["categories"][0]["name"] = "wolf"
    (tmp_path / "instances_val.json").write_text(json.dumps(content))
    (tmp_path / "images").symlink_to(data / "images")
    with pytest.raises(SystemExit, match=r"does not have the categories of .*\(18, 'dog'\), \(18, 'wolf'\)"):
        evaluate_detection.main(["--model", str(run[0]), "--data-dir", str(tmp_path)])


def test_the_backbone_is_the_classifier_and_what_is_frozen_stays(data, classifier, tmp_path):
    options = {"weights": str(classifier), "frozen_stages": 1, "fixed_batch_norm": True, "learning_rate": 0.1}
    trained = keras.saving.load_model(classifier)
    _, state, _ = make_state(data, tmp_path, **options)
    backbone = {layer.name: layer for layer in state.model.backbone.layers if layer.weights}
    names = [layer.name for layer in trained.layers if layer.name in backbone]
    assert {"conv1_conv", "conv5_block2_2_conv"} <= {*names}
    for name in names:
        if not name.endswith("_2_bn"):  # these carry what NA's fresh modules multiply by
            for one, other in zip(backbone[name].get_weights(), trained.get_layer(name).get_weights(), strict=True):
                np.testing.assert_array_equal(one, other)
    before = {name: layer.get_weights() for name, layer in backbone.items()}
    state.train_step()
    changed = {
        f"{name} {i}"
        for name, layer in backbone.items()
        for i, (one, other) in enumerate(zip(layer.get_weights(), before[name], strict=True))
        if (one != other).any()
    }
    assert not [name for name in changed if name.startswith(("conv1_", "conv2_"))]
    assert "conv5_block2_2_conv 0" in changed and "conv5_block2_2_bn 0" in changed  # kernel; scale
    assert not [name for name in changed if name.endswith(("bn 2", "bn 3"))]  # statistics


def test_cascade_rcnn_trains_its_three_heads(data, tmp_path):
    fields = {"detector": "cascade_rcnn", "units": 8, "regions": 16, "attention": "gc", "attention_stages": (4, 5)}
    _, state, _ = make_state(data, tmp_path, **fields)
    modules = [layer.name for layer in state.model.backbone.layers if layer.name.endswith("_attention")]
    assert modules == [f"conv{stage}_block{block}_attention" for stage in (4, 5) for block in (1, 2)]
    heads = [[weight.numpy() for weight in head.trainable_weights] for head in state.model.detection_head]
    losses = state.train_step()
    assert all(np.isfinite(value) for value in losses.values())
    assert losses["rpn_score_loss"] == pytest.approx(np.log(2), abs=0.05)  # of a fresh head: neither yes nor no
    assert losses["frcnn_cls_loss"] == pytest.approx(1.75 * np.log(3), abs=0.1)  # 1 + 1/2 + 1/4
    for head, before in zip(state.model.detection_head, heads, strict=True):
        assert any((weight.numpy() != old).any() for weight, old in zip(head.trainable_weights, before, strict=True))


@pytest.mark.parametrize(("detector", "strides"), [("retinanet", 8), ("cascade_rcnn", 4)])
def test_the_smallest_anchors_are_32_pixels_unless_chosen(detector, strides):
    """As in mmdetection; cells-demo halves them."""
    for fields, expected in (({"anchor_size": None}, 32), ({}, 16), ({"anchor_size": 3.0}, 3 * strides)):
        recipe = recipes.get_recipe("cells-demo", detector=detector)
        recipe = dataclasses.replace(recipe, **fields)
        config = saved.task_config(network.describe(recipe, {1: "cell"})).model
        assert config.anchor.anchor_size * 2**config.min_level == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--recipe", "coco-paper"], "keeps parts of a trained backbone as they are, and there are no --weights"),
        (["--frozen-stages", "1"], "--frozen-stages has no effect without --weights"),
        (["--units", "9"], "--units has no effect without --detector=cascade_rcnn"),
        (["--attention-stages", "3", "6"], "--attention-stages must be ascending numbers of 2 3 4 5. Received: 3 6"),
        (["--attention", "none", "--attention-stages", "3"], "--attention-stages has no effect without --attention"),
        (["--attention", "cbam"], "A detector's backbone takes attention none, na, .*'cbam'"),
        (["--drop-epochs", "2"], "between 1 and 1, the run's last epoch but one. Received: 2"),
        (["--longer-size", "40"], "longer_size must be at least 48. Received: 40"),
        (["--batch-size", "2"], "has 1 images, fewer than one --batch-size"),
        (["--weights", "nowhere.keras"], "nowhere.keras"),
        (["--train-records", "nowhere*"], "no file is named nowhere"),
        (["--data-dir", "nowhere"], "nowhere must hold annotations/instances_train"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_nothing_is_written(flags, message, data, tmp_path):
    arguments = ["--recipe", "cells-demo", "--data-dir", str(data), "--run-dir", str(tmp_path / "run"), *FLAGS, *flags]
    with pytest.raises(SystemExit, match=f"train_detection.py: .*{message}"):
        train_detection.main(arguments)
    assert not (tmp_path / "run").exists()


def test_a_run_of_other_data_or_another_recipe_is_not_resumed(data, tmp_path):
    arguments = ["--recipe", "cells-demo", "--run-dir", str(tmp_path / "run"), *FLAGS]
    assert train_detection.main([*arguments, "--data-dir", str(data), "--steps", "1"]) == 0
    with pytest.raises(SystemExit, match="another recipe.*\n.*attention: 'na' there, None asked for"):
        train_detection.main([*arguments, "--data-dir", str(data), "--attention", "none"])
    other = tmp_path / "other"
    other.mkdir()
    (other / "images").symlink_to(data / "images")
    for split in ("train", "val"):
        text = (data / f"instances_{split}.json").read_text()
        (other / f"instances_{split}.json").write_text(text.replace("[4, 6, 24, 20]", "[4, 6, 24, 21]"))
    with pytest.raises(SystemExit, match="The data is not that of the run"):
        train_detection.main([*arguments, "--data-dir", str(other)])
