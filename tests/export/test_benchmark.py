"""benchmark.py: statistics by a clock that the test sets, the table by the seconds behind it; no actual speed."""

import csv
import dataclasses
import importlib.util
import pathlib
import re
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from programs import error_of
from small_tflite import converted

import benchmark
import na_keras.models
from latency import artifacts, networks, report, runtimes
from latency.report import Row
from na_keras import interleaved
from na_keras.layers import NormalizationAttention, get_attention


class FakeMachine:
    """A clock and programs that take exactly the time they are told; the first call takes a second more."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def clock(self):
        return self.now

    def program(self, name, seconds):
        """seconds: a number, or a function of how often the program has run."""

        def run():
            count = self.calls.count(name)
            self.calls.append(name)
            self.now += (seconds(count) if callable(seconds) else seconds) + (count == 0)

        return run


def test_times_are_per_call_and_ratios_to_the_first():
    machine = FakeMachine()
    programs = {"none": machine.program("none", 0.004), "na": machine.program("na", 0.005)}
    done = []
    seconds = interleaved.measure(programs, 7, clock=machine.clock, progress=done.append)
    assert {name: len(values) for name, values in seconds.items()} == {"none": 7, "na": 7} and done == list(range(1, 8))
    timings = interleaved.summarise(seconds)
    assert timings["none"].milliseconds == pytest.approx(4) and timings["na"].milliseconds == pytest.approx(5)
    assert (timings["none"].ratio, timings["none"].low, timings["none"].high) == (1, 1, 1)
    assert [timings["na"].low, timings["na"].ratio, timings["na"].high] == pytest.approx([1.25] * 3)
    # As often as each other: 2 for a start, and 9 rounds, two of which warm up, of .05 s a program.
    assert machine.calls.count("none") == machine.calls.count("na") == 2 + 9 * round(0.1 / 0.009)


def test_a_slow_program_runs_once_a_round_in_changing_order():
    machine = FakeMachine()
    programs = {name: machine.program(name, 1.0) for name in "abc"}
    interleaved.measure(programs, 10, clock=machine.clock)
    rounds = ["".join(machine.calls[index : index + 3]) for index in range(6, len(machine.calls), 3)]
    assert len(rounds) == 12 and all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 3 and {order[0] for order in rounds} == {"a", "b", "c"}


def test_a_machine_that_slows_down_changes_no_ratio():
    """What ratios of separate runs get wrong."""
    machine = FakeMachine()
    slower = lambda factor: lambda count: factor * (1 + 0.1 * count)  # noqa: E731
    programs = {"none": machine.program("none", slower(1.0)), "na": machine.program("na", slower(1.2))}
    timings = interleaved.summarise(interleaved.measure(programs, 9, clock=machine.clock))
    assert timings["na"].ratio == pytest.approx(1.2) and timings["na"].low == pytest.approx(timings["na"].high)
    assert timings["none"].milliseconds == pytest.approx(1000 * (1 + 0.1 * 8))  # the 5th of 9 rounds after 4 calls


def test_median_and_quartiles():
    timings = interleaved.summarise({"none": [1.0, 2, 1, 2, 1], "na": [5.0, 2, 4, 6, 200]})
    assert timings["na"] == interleaved.Timing(5000.0, 4.0, 3.0, 5.0)  # ratios 5, 1, 4, 3, 200
    assert interleaved.summarise({"none": [2.0], "na": [3.0]})["na"] == interleaved.Timing(3000.0, 1.5, 1.5, 1.5)
    with pytest.raises(ValueError, match="at least one round"):
        interleaved.measure({"none": lambda: None}, 0)


def row(attention, ratio, beside_se=None, model="resnet50", kind="savedmodel", batch=8):
    spread = {"low": ratio - 0.01, "high": ratio + 0.01}
    return Row(model, kind, batch, attention, 1.0, 10 * ratio, ratio, **spread, beside_se=beside_se)


def again(low, high, **of):
    return dataclasses.replace(row("none again", 1.0, **of), low=low, high=high)


def test_targets_are_the_projects_and_only_for_what_they_were_set():
    rows = [row("none", 1.0, -0.02), again(0.995, 1.005), row("se", 1.02, 0.0), row("na", 1.06, 0.041)]
    assert report.limits(rows[3], 224) == (1.08, 0.02)
    assert report.limits(rows[3], 32) == report.limits(rows[2], 224) == (None, None)
    mobile = {"model": "MobileNetV2", "kind": "int8", "batch": 1}
    int8 = [row("none", 1.0, **mobile), again(0.98, 1.0, **mobile), row("na", 1.12, 0.02, **mobile)]
    assert report.limits(int8[2], 224) == (None, 0.03)
    assert report.limits(row("na", 1.06), 224) == (1.08, None)  # nothing beside it
    text = report.table(rows + int8, 224).splitlines()
    assert "1.08 met" in text[4] and "+0.041 0.02 missed" in text[4]
    assert "+0.020 0.03 open" in text[7]  # the same network differs by .02 from itself
    markdown = report.table(rows, 224, "markdown").splitlines()
    assert [cell.strip() for cell in markdown[5].split("|")[1:-1]] == [
        *("resnet50", "savedmodel", "8", "na", "1.00", "10.60", "1.060", "1.050 .. 1.070", "1.08 met"),
        "+0.041 0.02 missed",
    ]
    assert {line.count("|") for line in markdown} == {11}
    without = [row for row in rows if not row.attention.endswith(interleaved.AGAIN)]
    assert "met" not in report.table(without, 224) and "missed" not in report.table(without, 224)


def test_targets_are_marked_in_the_picture_and_what_did_not_run_has_no_bar(monkeypatch):
    drawn = []
    monkeypatch.setattr("na_keras.ratio_bars.draw", lambda bars, *rest: drawn.extend(bars))
    failed = Row("resnet50", "savedmodel", 8, "gc", 0.0, failure="no memory")
    report.draw([row("none", 1.0), again(0.9, 1.1), row("se", 1.02, 0.0), row("na", 1.06, 0.04), failed], 224, "", None)
    assert [(bar.group, bar.name) for bar in drawn] == [
        ("resnet50 savedmodel, batch 8", name) for name in ("none again", "se", "na")
    ]
    assert drawn[0].marks == drawn[1].marks == {}
    assert drawn[2].marks == {"goal": 1.08, "SE and margin": pytest.approx(1.02 + 0.02)}


def test_a_difference_is_taken_round_by_round():
    """A round in which the machine was half as fast changes nothing."""
    base, se, na = [10.0, 20.0, 10.0], [11.0, 22.0, 11.0], [12.0, 24.0, 30.0]
    assert interleaved.difference(na, se, base) == pytest.approx(0.1)


def test_several_processes_give_the_median_and_the_range_of_theirs(tmp_path):
    processes = [[row("none", 1.0), row("na", ratio, ratio - 1.05)] for ratio in (1.3, 1.1, 1.2)]
    none, na = report.combined(processes)
    assert (none.ratio, none.low, none.high) == (1, 1, 1)
    assert (na.ratio, na.low, na.high, na.milliseconds) == (1.2, 1.1, 1.3, 12.0)
    assert na.beside_se == pytest.approx(0.15) and none.beside_se is None
    failed = Row("resnet50", "savedmodel", 8, "na", 0.0, failure="no memory", side="24x40")
    assert report.combined([processes[0], [none, failed], processes[2]])[1] == failed
    report.write_csv([none, na, failed], 224, "here", tmp_path / "rows.csv")
    assert report.read_csv(tmp_path / "rows.csv") == [none, na, failed]


def tiny(input_shape, attention=None, classes=10, classifier_activation="softmax", synchronized_batch_norm=False):
    """Stands for ResNet50: built by the same call, with the same kinds of layers."""
    image = keras.Input(input_shape, name="images")
    x = keras.layers.Rescaling(1 / 127.5, -1)(image)
    for filters in (16, 32):
        x = keras.layers.BatchNormalization()(keras.layers.Conv2D(filters, 3, 2, use_bias=False)(x))
        if attention is not None:
            x = get_attention(attention)(name=f"attention{filters}")(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(classes, classifier_activation, name="predictions")(x), name="tiny")


@pytest.fixture
def tiny_network(monkeypatch):
    monkeypatch.setitem(na_keras.models.MODELS, "Tiny", tiny)


def test_the_table_follows_from_the_seconds(tiny_network, tmp_path, monkeypatch, capsys):
    measured = []
    genuine = interleaved.measure

    def measure(*arguments, **options):
        measured.append(genuine(*arguments, **options, shortest=0.001))
        return measured[-1]

    monkeypatch.setattr(interleaved, "measure", measure)
    table, picture, workdir = tmp_path / "latency.csv", tmp_path / "latency.png", tmp_path / "work"
    kinds = ("keras", "savedmodel", "float32")
    arguments = ["--model", "tiny", "--size", "32", "--rounds", "4", "--batch-size", "1", "3", "--kinds", *kinds]
    arguments += ["--workdir", str(workdir)]
    rows = benchmark.main([*arguments, "--table", str(table), "--output", str(picture)])
    groups = [("tiny", "keras", 1), ("tiny", "keras", 3), ("tiny", "savedmodel", 1), ("tiny", "savedmodel", 3)]
    groups += [("tiny", "float32", 1)]
    names = ("none", "none again", "se", "na")
    assert [(*row.group, row.attention) for row in rows] == [(*group, name) for group in groups for name in names]
    for index, row in enumerate(rows):
        seconds = measured[index // 4]
        ratios = np.array(seconds[row.attention]) / seconds["none"]
        assert len(ratios) == 4 and min(seconds[row.attention]) > 0
        assert row.milliseconds == pytest.approx(1000 * np.median(seconds[row.attention]))
        assert (row.low, row.ratio, row.high) == pytest.approx(tuple(np.percentile(ratios, (25, 50, 75))))
        above = (np.array(seconds[row.attention]) - seconds["se"]) / seconds["none"]
        assert row.beside_se == pytest.approx(np.median(above))

    written = list(csv.DictReader(table.read_text().splitlines()))
    assert [float(line["ratio"]) for line in written] == [row.ratio for row in rows]
    assert all("tensorflow" in line["circumstances"] and line["target"] == "" for line in written)
    assert picture.read_bytes().startswith(b"\x89PNG") and sorted(p.name for p in tmp_path.iterdir()) == [
        "latency.csv", "latency.png", "work"
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert printed.count(f"{rows[-1].ratio:.3f}") >= 2 and re.search(r"\| tiny +\| +float32 \| +1 \| +na \|", printed)

    # Sizes are those of the files; Keras' are the weights'.
    sizes = {(row.kind, row.attention): row.megabytes for row in rows}
    assert sizes["keras", "none"] == pytest.approx(4e-6 * tiny((32, 32, 3), classes=1000).count_params())
    (file,) = workdir.glob("tiny-na-32-float32-*")
    assert sizes["float32", "na"] == file.stat().st_size / 1e6
    (folder,) = workdir.glob("tiny-na-32-savedmodel-*")
    assert sizes["savedmodel", "na"] > (folder / "saved_model.pb").stat().st_size / 1e6

    # The next run takes the files from there; one of other code does not.
    monkeypatch.setitem(runtimes.RUNTIMES, "float32", dataclasses.replace(runtimes.TFLITE, write=42))
    again = [*arguments[:-6], "--kinds", "float32", "--workdir", str(workdir), "--attention", "none"]
    assert len(benchmark.main(again)) == 2
    monkeypatch.setattr(artifacts, "fingerprint", lambda: "other")
    with pytest.raises(TypeError):
        benchmark.main(again)


def test_files_of_other_people_are_measured(tmp_path):
    network = tiny((32, 32, 3))
    archive = keras.export.ExportArchive()
    images = tf.TensorSpec((None, 32, 32, 3), tf.float32, name="images")
    archive.add_endpoint("serving_default", lambda images: {"probabilities": network(images)}, [images])
    archive.write_out(str(tmp_path / "saved"), verbose=False)
    for kind in ("float32", "int8"):
        (tmp_path / f"{kind}.tflite").write_bytes(converted(kind, negative=False))
    rows = benchmark.main(
        ["--rounds", "1", "--batch-size", "2", "--saved-model", f"mine={tmp_path / 'saved'}"]
        + ["--tflite", f"float={tmp_path / 'float32.tflite'}", f"int={tmp_path / 'int8.tflite'}"]
    )
    assert [(*row.group, row.attention) for row in rows] == [
        ("given", "savedmodel", 2, "mine"), ("given", "savedmodel", 2, "mine again"),
        ("given", "tflite", 1, "float"), ("given", "tflite", 1, "float again"), ("given", "tflite", 1, "int"),
    ]  # fmt: skip
    assert all(row.ratio > 0 for row in rows)
    assert rows[-1].megabytes == (tmp_path / "int8.tflite").stat().st_size / 1e6


def test_processes_measure_the_same_one_after_the_other(tmp_path, capfd):
    (file := tmp_path / "mine.tflite").write_bytes(converted("float32", negative=False))
    arguments = ["--tflite", f"mine={file}", "--rounds", "1", "--processes", "2", "--table", str(tmp_path / "all.csv")]
    rows = benchmark.main(arguments)
    assert [row.attention for row in rows] == ["mine", "mine again"] and rows[1].low <= rows[1].ratio <= rows[1].high
    assert report.read_csv(tmp_path / "all.csv") == rows
    assert "1 rounds in each of 2 processes" in (tmp_path / "all.csv").read_text()
    assert "process 2 of 2" in capfd.readouterr().out
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="process 1 ended with 1; what it wrote is above"):
        benchmark.main(["--saved-model", f"mine={tmp_path / 'empty'}", "--processes", "2"])


def test_what_finished_processes_measured_is_reported_when_a_later_one_fails(tmp_path, monkeypatch):
    def run(command):
        path = pathlib.Path(command[command.index("--table", command.index("--workdir")) + 1])
        if runs:
            return types.SimpleNamespace(returncode=3)
        runs.append(command)
        report.write_csv([row("none", 1.0), row("na", 1.2)], 224, "process", path)
        return types.SimpleNamespace(returncode=0)

    runs, table = [], tmp_path / "all.csv"
    monkeypatch.setattr(benchmark.subprocess, "run", run)
    with pytest.raises(SystemExit, match="process 2 ended with 3"):
        benchmark.main(["--kinds", "keras", "--processes", "3", "--table", str(table), "--workdir", str(tmp_path)])
    assert [line.ratio for line in report.read_csv(table)] == [1.0, 1.2]
    assert "processes" not in table.read_text()  # one has measured
    assert not (tmp_path / "process.csv").exists()


def test_programs_compute_what_the_network_does(tmp_path):
    """A benchmark of something that does not run through would be fast."""
    network = tiny((32, 32, 3), "na")
    images = networks.synthetic_images(2, 32)
    expected = network.predict(images, verbose=0)
    answers = {}
    for kind in ("keras", "savedmodel", "float32"):
        runtime = runtimes.RUNTIMES[kind]
        if runtime.write:
            runtime.write(network, kind, 32, tmp_path / kind)
        answers[kind] = runtime.program(tmp_path / kind if runtime.write else network, 2, 32, 1)()
    (output,) = answers["keras"]
    np.testing.assert_allclose(output, expected, atol=1e-6)
    outputs = answers["savedmodel"]
    assert any(output.shape == (2, 10) and np.allclose(output, expected, atol=1e-5) for output in outputs)
    (output,) = answers["float32"]
    first = network.predict(networks.synthetic_images(1, 32), verbose=0)
    np.testing.assert_allclose(output, first, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "attention", "norm_count", "gate_count"),
    [("mobilenetv2", "none", 52, 0), ("MobileNetV2", "na", 52, 17), ("resnet18", "na", 20, 8)],
)
def test_networks_have_nothing_to_fold_away(name, attention, norm_count, gate_count):
    network = networks.make_network(name, attention, 32)
    assert network.input_shape == (None, 32, 32, 3) and network.output_shape == (None, 1000)
    norms = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in norms:
        gamma, beta, mean, variance = (weight.numpy() for weight in layer.weights)
        assert gamma.min() >= 0.5 and np.ptp(gamma) > 0.1 and np.ptp(beta) > 0.05
        assert np.abs(mean).max() > 0 and variance.min() > 0 and not np.allclose(variance, 1)
    gates = [layer for layer in network.layers if isinstance(layer, NormalizationAttention)]
    assert (len(norms), len(gates)) == (norm_count, gate_count)
    assert all(abs(layer.gamma.numpy()[0]) > 1e-3 for layer in gates)
    last = keras.Model(network.input, network.layers[-3].output).predict(networks.synthetic_images(4, 32), verbose=0)
    positive = last[last > 0]
    assert positive.size > 100 and positive.min() > 1e-30 and np.isfinite(last).all()
    assert np.ptp(last, axis=0).max() > 0.1  # images are told apart


def test_files_of_other_images_are_measured_as_they_are_and_with_modules(tmp_path):
    image = keras.Input((None, 40, 1))
    x = keras.layers.Conv2D(8, 3, 2)(keras.layers.Rescaling(1 / 255)(image))
    branch = keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 3, padding="same")(x))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Add()([x, branch]))
    keras.Model(image, keras.layers.Dense(3, "sigmoid")(x)).save(path := tmp_path / "Oblong.keras")
    files = artifacts.Artifacts(tmp_path, 24)
    plain, with_na = (files.network(str(path), attention) for attention in ("none", "na"))
    assert plain.input_shape == with_na.input_shape == (None, 24, 40, 1)
    assert [sum(isinstance(x, NormalizationAttention) for x in model.layers) for model in (plain, with_na)] == [0, 1]
    for kind in ("keras", "savedmodel", "float32"):
        runtime = runtimes.RUNTIMES[kind]
        source = files.path(str(path), "none", kind) if runtime.write else plain
        program = runtime.program(source, 2, 24, 1)
        assert program.side == "24x40" and any(answer.shape[1] == 3 for answer in program())
    assert report.image_sizes([Row("m", "k", 1, "a", 1.0, side=side) for side in ("24x40", 32)], 224) == [32, "24x40"]
    assert "images 32 x 32, 24 x 40;" in report.circumstances(1, 1, [32, "24x40"])


def test_a_network_that_does_not_run_has_a_reason_instead_of_numbers(capsys):
    def refused():
        raise RuntimeError("failed to create XNNPACK\nruntime")

    works = lambda: lambda: None  # noqa: E731
    candidate = lambda name, program: benchmark.Candidate(name, program, lambda: 2.5)  # noqa: E731
    none, se, na = candidate("none", works), candidate("se", refused), candidate("na", works)
    group = ("resnet50", "int8", 1)
    rows = benchmark.measure_group(group, [none, se, na], 2)
    assert [row.failure for row in rows] == ["", "", "failed to create XNNPACK runtime", ""]
    assert rows[2].ratio is None and rows[3].ratio > 0 and rows[3].megabytes == 2.5
    assert "se does not run: failed to create XNNPACK runtime" in capsys.readouterr().out
    lines = report.table(rows, 224).splitlines()
    assert "did not run" in lines[3] and lines[5] == "resnet50 int8 1, se: failed to create XNNPACK runtime"
    rows = benchmark.measure_group(group, [candidate("none", refused), na], 2)
    assert [row.ratio for row in rows] == [None] * 3 and "compared with does not run" in rows[2].failure


def test_what_was_measured_before_an_interruption_is_reported(monkeypatch, tmp_path, capsys):
    def groups(arguments, folder):
        yield ("resnet50", "savedmodel", 8), []
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "library_groups", groups)
    monkeypatch.setattr(benchmark, "measure_group", lambda *arguments: [row("none", 1.0)])
    table = tmp_path / "latency.csv"
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(["--table", str(table), "--kinds", "keras"])
    assert re.search(r"\| resnet50 \| savedmodel \| +8 \| +none \|", capsys.readouterr().out)
    assert len(table.read_text().splitlines()) == 2


def test_bad_arguments_are_refused_before_any_work(tmp_path, monkeypatch):
    program = "export/benchmark.py"
    assert "NAME=PATH" in error_of(program, "--tflite", "file.tflite")
    assert "Did you mean ResNet50" in error_of(program, "--model", "resnet51", "--kinds", "keras")
    for arguments, message in (
        (["--rounds", "0"], "--rounds must be at least 1. Received: 0"),
        (["--batch-size", "1", "0"], "--batch-size must be at least 1. Received: 0"),
        (["--attention", "none", "na", "na"], "each name once. Received: none na na"),
        (["--tflite", "a=x", "a=y"], "--tflite: each name once"),
        (["--table", str(tmp_path / "missing" / "x.csv")], "no folder"),
    ):
        with pytest.raises(SystemExit), monkeypatch.context() as patch:
            errors = []
            patch.setattr("sys.stderr", types.SimpleNamespace(write=errors.append, flush=lambda: None))
            benchmark.main(arguments)
        assert message in "".join(errors)
    with pytest.raises(SystemExit, match="--attention must be of .*Received: nah"):
        benchmark.main(["--attention", "none", "nah"])
    with pytest.raises(SystemExit, match="Nothing at .*given as mine"):
        benchmark.main(["--tflite", f"mine={tmp_path / 'missing.tflite'}"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="SavedModel"):
        benchmark.main(["--saved-model", f"mine={tmp_path / 'empty'}"])
    genuine = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else genuine(name))
    with pytest.raises(SystemExit, match=r"matplotlib is not installed. Run: pip install -e '.\[train\]'"):
        benchmark.main(["--output", str(tmp_path / "x.png"), "--kinds", "keras"])
