"""What throughput.py and the loop's clock measure; not how fast this machine is."""

import dataclasses
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_network import FLAGS, tiny

import recipes
import throughput
from engine import steps
from engine.trained import open_trained
from na_keras.data.source import permuted_range
from na_keras.deploy import write_saved_model
from na_keras.models import MODELS


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch):
    """`--model=Tiny` in this process."""
    monkeypatch.setitem(MODELS, "Tiny", tiny)


def measure(*arguments):
    return throughput.main([str(argument) for argument in arguments])


def sleeping(seconds):
    """A function of anything that takes that long, as an operation of a graph."""

    def sleep(value):
        time.sleep(seconds)
        return value

    return lambda value: tf.ensure_shape(tf.numpy_function(sleep, [value], value.dtype), value.shape)


@pytest.mark.parametrize(("input_seconds", "step_seconds"), [(0.05, 0.0), (0.0, 0.05), (0.02, 0.05)])
def test_waiting_is_told_from_computing(input_seconds, step_seconds):
    """A slow input is waited for; behind a slow step it works ahead and is not."""
    slow_input, slow_step = sleeping(input_seconds), sleeping(step_seconds)
    batches = tf.data.Dataset.from_tensors(tf.ones(4)).repeat().map(slow_input).map(lambda sums: (sums,)).prefetch(2)
    run_steps = steps.repeated(tf.distribute.get_strategy(), lambda batch: (slow_step(batch[0]), tf.constant(True)))
    iterator = iter(batches)
    run_steps(iterator, tf.constant(1), steps.NO_SUMS, tf.constant(0.0))
    start = time.perf_counter()
    result = run_steps(iterator, tf.constant(20), steps.NO_SUMS, tf.constant(0.0))
    whole, waited = time.perf_counter() - start, float(result["waited"])
    assert result["sums"][0] == 20 and 0 <= waited <= whole
    # Generous on both sides: sleeping takes its time at least, and a busy machine adds to either.
    assert waited > 0.7 * 20 * input_seconds if step_seconds == 0 else waited < 0.5 * whole


def test_photographs_are_jpegs_of_imagenets_size():
    source = throughput.photographs()
    examples = list(source.examples(None))
    assert len(examples) == source.count == throughput.PHOTOGRAPHS and len(source.class_names) == 1000
    assert len({example["image"].numpy() for example in examples}) > 0.9 * source.count  # few cuts coincide
    shapes = {tuple(tf.io.extract_jpeg_shape(example["image"]).numpy()) for example in examples}
    assert shapes == {(375, 500, 3)}


def test_the_comparison_reads_the_same_files_into_the_same_shapes(capsys):
    recipe = recipes.get_recipe("resnet50-paper", batch_size=64, size=64, evaluation_resize=64)
    source = throughput.photographs()
    for own_crops in (True, False):
        batches = list(throughput.bare_batches(source, recipe, own_crops))
        assert [batch.shape for batch in batches] == [(64, 64, 64, 3)] * 4 and batches[0].dtype == tf.uint8
    times = measure("--compare", *FLAGS, "--batch-size", 64, "--steps", 1, "--rounds", 1)
    assert set(times) == {"bare tf.function", "the loop"} and all(len(values) == 1 for values in times.values())
    printed = capsys.readouterr().out
    for line in ("bare, the same crops", "ours, no antialias", "ours, antialias", "Model Garden", "the loop"):
        assert line in printed
    png = permuted_range(3, None).map(lambda i: {"image": tf.io.encode_png(tf.zeros((9, 9, 3), tf.uint8))})
    with pytest.raises(ValueError, match="does not consist of JPEGs"):
        throughput.compare_input(recipe, dataclasses.replace(source, examples=lambda seed: png), 1)


def test_rates_are_printed_with_the_bottleneck(capsys):
    measure(*FLAGS, "--batch-size", 32, "--steps", 2, "--rounds", 2)
    printed = capsys.readouterr().out
    for line in ("input alone", "step alone", "both", "the bottleneck is", "photographs"):
        assert line in printed
    with pytest.raises(SystemExit, match="photographs holds 256 images, fewer than --batch-size=300"):
        measure("--batch-size", 300)


def test_a_saved_model_is_opened_by_its_signature(tmp_path):
    image = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, keras.layers.Dense(4, "softmax", kernel_initializer="random_normal")(x))
    write_saved_model(model, tmp_path / "1", list("abcd"), resize=36)
    network = open_trained(tmp_path / "1")
    assert (network.classes, network.size, network.from_logits, network.resize) == (4, 32, False, None)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    np.testing.assert_allclose(network.predict(images), model(images.astype(np.float32)), atol=1e-6)
    other = tf.Module()
    other.f = tf.function(lambda x: {"y": x}, input_signature=[tf.TensorSpec((None,))])
    tf.saved_model.save(other, str(tmp_path / "2"), signatures={"serving_default": other.f})
    with pytest.raises(ValueError, match=r"serving_default\(images\) -> probabilities"):
        open_trained(tmp_path / "2")
