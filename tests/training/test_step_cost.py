"""step_cost.py: statistics of given numbers, what a process measures, and the files; no actual speed."""

import csv
import importlib.util
import re

import keras
import numpy as np
import pytest

import step_cost
from costs import report, worker

SHAPE = "8 x 56 x 56 x 256"


def group(*ratios, measurement="forward", engine="tensorflow", subject=SHAPE, modules=("se", "se", "na")):
    """Rows of processes of one round in which each module took these multiples of the base's second."""
    processes = [[[value] for value in process] for process in ratios]
    return report.rows_of(measurement, engine, subject, modules, processes)


def test_a_row_is_the_median_of_the_processes_medians():
    first = [[1.0, 2.0, 1.0], [1.0, 2.0, 2.0], [3.0, 3.0, 1.5]]  # ratios of na: 3, 1.5, 1.5
    second = [[2.0, 2.0, 2.0], [2.0, 2.2, 2.0], [2.2, 2.4, 2.6]]  # 1.1, 1.2, 1.3
    third = [[1.0, 1.0, 1.0], [0.5, 1.0, 1.0], [2.0, 2.0, 2.0]]
    base, again, na = report.rows_of("forward", "jax", SHAPE, ["se", "se", "na"], [first, second, third])
    assert (base.module, again.module, na.module) == ("se", "se again", "na")
    assert (base.ratio, base.low, base.high, base.amount) == (1, 1, 1, 1000)
    assert [na.ratio, na.low, na.high] == pytest.approx([1.5, 1.2, 2.0]) and na.amount == pytest.approx(2400)
    assert report.null_spread([base, again, na]) == 0  # medians of 1, 1 and 1


@pytest.mark.parametrize(("ratio", "word"), [(1.04, "met"), (1.06, "open"), (1.14, "open"), (1.16, "missed")])
def test_a_goal_is_met_or_missed_by_more_than_the_null_test(ratio, word):
    rows = group([1.0, 0.95, ratio], [1.0, 1.01, ratio])  # the null test differs by .05
    assert report.verdict(rows[2], rows) == f"1.10 {word}"
    assert report.verdict(rows[0], rows) == report.verdict(rows[1], rows) == ""


def test_goals_of_steps_are_beside_se_and_only_of_what_they_were_set_for():
    modules = ("none", "none", "se", "na")
    rows = group([1.0, 1.001, 1.05, 1.07], measurement="step", subject="ResNet50, 8 at 160", modules=modules)
    assert report.verdict(rows[3], rows) == "SE + 0.03 met"
    rows = group([1.0, 1.001, 1.05, 1.09], measurement="step", subject="ResNet50, 8 at 160", modules=modules)
    assert report.verdict(rows[3], rows) == "SE + 0.03 missed"
    other = group([1.0, 1.001, 1.05, 1.09], measurement="step", subject="ResNet50, 8 at 224", modules=modules)
    assert report.verdict(other[3], other) == ""
    without_se = group(
        [1.0, 1.0, 1.0], measurement="step", subject="ResNet50, 8 at 160", modules=("none", "none", "na")
    )
    assert report.verdict(without_se[2], without_se) == ""


def test_goals_are_marked_in_the_picture(monkeypatch):
    drawn = []
    monkeypatch.setattr("na_keras.ratio_bars.draw", lambda bars, *rest: drawn.extend(bars))
    modules = ("none", "none", "se", "na")
    step = group([1.0, 1.0, 1.05, 1.07], measurement="step", subject="ResNet50, 8 at 160", modules=modules)
    report.draw([*group([1.0, 1.0, 1.04]), *step], "a machine", None)
    marks = [{name: pytest.approx(value) for name, value in bar.marks.items()} for bar in drawn]
    assert [bar.name for bar in drawn] == ["se again", "na", "none again", "se", "na"]
    assert marks == [{}, {"goal": 1.10}, {}, {}, {"SE and margin": 1.05 + 0.03}]


def test_the_program_measures_in_processes_of_their_own_and_writes_what_it_found(tmp_path, capsys):
    table, picture = tmp_path / "cost.csv", tmp_path / "cost.png"
    engines = ["tensorflow", *(["jax"] if importlib.util.find_spec("jax") else [])]
    arguments = ["--what", "layer", "--shapes", "1x4x4x16", "--rounds", "2", "--processes", "1", "--engines", *engines]
    rows = step_cost.main([*arguments, "--table", str(table), "--output", str(picture)])
    wanted = [(name, engine) for engine in engines for name in ("forward", "forward + backward") for _ in range(3)]
    assert [(row.measurement, row.engine) for row in rows] == wanted
    assert [row.module for row in rows] == ["se", "se again", "na"] * 2 * len(engines)
    assert all(row.amount > 0 and row.low == row.ratio == row.high for row in rows)
    with table.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["ratio"]) for line in lines] == [row.ratio for row in rows]
    assert "1 processes of 2 rounds; " in lines[0]["circumstances"]
    assert picture.read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    assert "1 x 4 x 4 x 16" in printed and "| measurement" in printed


@pytest.mark.parametrize("xla", [False, True])
def test_a_step_trains_the_network(xla):
    """What is timed is a training step: the loss of the same batch falls, and the weights move."""
    model = worker.make_model({"model": "ResNet18", "size": 32}, "na")
    before = model.get_weights()
    images = worker.random_numbers(2, 32, 32, 3)
    step = worker.OnTensorFlow(xla).step(model, images, np.array([1, 2], "int32"))
    losses = [float(step()) for _ in range(4)]
    assert losses[-1] < losses[0]
    assert all((new != old).any() for new, old in zip(model.get_weights(), before, strict=True) if old.ndim == 4)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="runs there, in test_backends.py")
def test_a_step_trains_the_network_on_jax():
    image = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(image))
    model = keras.Model(image, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x)))
    engine = worker.OnJax(False)
    step = engine.step(model, worker.random_numbers(2, 8, 8, 3), np.array([1, 2], "int32"))
    losses = [float(step()) for _ in range(4)]
    assert losses[-1] < losses[0]
    assert engine.device() == "CPU" and engine.device_megabytes() is None and "JAX" in engine.versions()


def test_the_memory_of_a_step_is_the_process_s_largest():
    job = {"what": "memory", "model": "ResNet18", "batch": 2, "size": 32, "modules": ["none"]}
    ((megabytes,),) = worker.measure(job, worker.OnTensorFlow(False))["memory"]
    assert 100 < megabytes < 100_000  # ResNet18 with gradients and momentum has 140 MB, TensorFlow some hundred


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attention", "none", "sa"], "--attention must be of cbam, .*Received: sa"),
        (["--attention", "na", "na"], "each name once"),
        (["--what", "layer", "--attention", "none"], "needs a module"),
        (["--shapes", "8x56x56"], "expected BATCHxHEIGHTxWIDTHxCHANNELS. Received: 8x56x56"),
        (["--model", "ResNet51"], "ResNet51"),
        (["--table", "nowhere/cost.csv"], "no folder .*nowhere"),
        (["--what", "layer", "--attention", "se", "gc"], "gc does not fit 8 x 112 x 112 x 16; leave"),
        (["--what", "step", "--model", "ResNet18", "--attention", "none", "sk"], "sk does not fit ResNet18, 8 at 160"),
    ],
)
def test_bad_input_ends_before_anything_is_measured(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(step_cost, "run_worker", lambda job: pytest.fail("began to measure"))
    with pytest.raises(SystemExit) as stopped:
        step_cost.main(arguments)
    text = f"{stopped.value} {capsys.readouterr().err}"
    assert re.search(message, text)


def test_a_failing_process_ends_the_program_with_its_last_line():
    job = {"what": "layer", "engine": "tensorflow", "shape": [1, 4, 4, 1], "modules": ["na"]}
    with pytest.raises(RuntimeError, match="layer, tensorflow: .*single channel"):
        step_cost.run_worker(job | {"precision": "float32", "rounds": 1})


def test_an_answer_is_that_of_the_deployed_network():
    job = {"what": "answer", "model": "ResNet18", "size": 32, "classes": 3, "modules": ["none", "se"], "rounds": 1}
    answers = []
    engine = worker.OnTensorFlow(False)
    measured = engine.answer

    def noted(model, images):
        program = measured(model, images)
        answers.append((program(), model(images, training=False)))
        return program

    engine.answer = noted
    times = worker.measure(job, engine)["answer"]
    assert len(times) == 2 and all(len(seconds) == 1 for seconds in times)
    for answer, expected in answers:
        np.testing.assert_allclose(answer, expected, atol=1e-5)  # probabilities
        assert answer.shape == (1, 3)
