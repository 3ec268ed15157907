"""A study of two modules and two seeds: killed, gone on with, extended, reported from its two files; refusals."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from programs import ROOT, run
from tiny_network import FLAGS, tiny, train_here

import compare
from na_keras.models import MODELS
from study import pictures, report
from study.record import Cell, Study

SHORT = [
    "--import",
    "study_modules",
    *map(str, FLAGS),
    "--epochs",
    "2",
    "--batch-size",
    "256",
    "--checkpoint-every",
    "2",
]
WHAT = ["--attention", "none", "na", "--seeds", "0", "1"]


@pytest.fixture(scope="module", autouse=True)
def tiny_model():
    """`--model=Tiny` in this process, and `--import study_modules` in others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "Tiny", tiny)
        for folder in ("tests/helpers", "tests/study"):
            patch.setenv("PYTHONPATH", str(ROOT / folder), prepend=os.pathsep)
        yield


def run_study(arguments):
    """compare.py in this process; its runs are processes of their own."""
    return compare.main([str(argument) for argument in arguments])


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def rows_of(directory):
    with (directory / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A study whose program was killed while it trained its second cell, whose process lives on."""
    directory = tmp_path_factory.mktemp("studies") / "killed"
    command = [sys.executable, str(ROOT / "training/compare.py"), *WHAT, "--study-dir", str(directory), *SHORT]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for(lambda: (directory / "cells/na-0/environment.json").exists())
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (directory / "cells/na-0/model.keras").exists()
    return directory


@pytest.fixture(scope="module")
def finished(killed):
    """The study after the same command with a broken module more; what was printed, and complained of."""
    arguments = ["--attention", "none", "na", "study_modules:Broken", *WHAT[3:], "--study-dir", killed, *SHORT]
    result = run("training/compare.py", *arguments, "--no-timings", check=False)
    assert result.returncode == 1
    return killed, result.stdout, result.stderr


def test_a_killed_study_goes_on_where_it_was(finished):
    directory, output, _ = finished
    assert "na-0 is being trained by another process: waiting for it." in output
    for cell in ("none-0", "na-0"):  # finished by the first program, and by the process that it left
        assert f"{cell} begins" not in output
        assert len(json.loads((directory / "cells" / cell / "environment.json").read_text())) == 1
    assert "4 of 6 cells finished, 0 running, 2 failed" in output


def test_failed_cells_are_reported_and_do_not_stop_the_rest(finished):
    directory, _, complaints = finished
    for seed in (0, 1):
        reason = f"study_modules-Broken-{seed} failed: RuntimeError: this module is broken on purpose"
        assert f"{reason} ({directory}/logs/study_modules-Broken-{seed}.log)" in complaints
    text = (directory / "report.md").read_text()
    assert "Not finished: study_modules-Broken-0, study_modules-Broken-1." in text


def test_each_cell_is_the_run_that_train_py_makes_alone(finished, tmp_path):
    directory, *_ = finished
    code, _ = train_here(tmp_path / "run", *SHORT, "--attention", "na", "--seed", 1)
    assert code == 0
    there = [row for row in rows_of(directory) if (row.pop("attention"), row.pop("seed")) == ("na", "1")]
    assert there == rows_of(tmp_path / "run")


def test_the_report_has_what_the_cells_have(finished):
    directory, output, _ = finished
    results = {(row["attention"], row["seed"]): 100 * float(row["validation_top1"]) for row in rows_of(directory)}
    with (directory / "summary.csv").open(newline="") as file:
        summary = {row["attention"]: row for row in csv.DictReader(file)}
    for name, row in summary.items():
        assert 100 * float(row["top1_mean"]) == pytest.approx((results[name, "0"] + results[name, "1"]) / 2)
    difference = sum(results["na", seed] - results["none", seed] for seed in "01") / 2
    assert 100 * float(summary["na"]["difference_mean"]) == pytest.approx(difference)
    text = (directory / "report.md").read_text()
    assert f"{difference:+.2f}" in text and f"{difference:+.2f}" in output
    assert "nothing can be significant with fewer than 6 seeds" in text
    for name in ("comparison.png", "curves.png"):
        assert (directory / name).read_bytes().startswith(b"\x89PNG")


def test_two_files_are_the_study(finished, tmp_path, capsys, monkeypatch):
    """Without the runs: the report is the same, and only cells are run that the files have not."""
    directory, *_ = finished
    for name in ("study.json", "history.csv"):
        shutil.copy(directory / name, tmp_path)
    assert compare.main(["--report", str(tmp_path)]) == 0
    assert (tmp_path / "summary.csv").read_text() == (directory / "summary.csv").read_text()
    started = []

    class Failing:
        returncode = 1

        def __init__(self, command, **options):
            started.append(command[-6:])

        def poll(self):
            return self.returncode

    monkeypatch.setattr(subprocess, "Popen", Failing)
    what = ["--attention", "none", "na", "--seeds", "0", "1", "2"]
    assert run_study([*what, "--study-dir", tmp_path, *SHORT, "--no-timings"]) == 1
    assert [command[:4] for command in started] == [["--attention", name, "--seed", "2"] for name in ("none", "na")]
    assert "na-2 failed: it said nothing" in capsys.readouterr().err


def test_the_costs_are_measured_in_the_end(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("study.costs.ROUNDS", 1)
    for name in ("study.json", "history.csv"):
        shutil.copy(finished[0] / name, tmp_path)
    assert run_study([*WHAT, "--study-dir", tmp_path, *SHORT]) == 0
    with (tmp_path / "costs.csv").open(newline="") as file:
        costs = {row["attention"]: row for row in csv.DictReader(file)}
    assert int(costs["na"]["parameters"]) - int(costs["none"]["parameters"]) == 2
    assert set(costs) == {"none", "na", "none again"} and float(costs["none"]["step_ratio"]) == 1
    assert (
        "million MACs" in capsys.readouterr().out and "an answer to one image" in (tmp_path / "report.md").read_text()
    )


def edit(path, text, other):
    content = path.read_text()
    assert text in content
    path.write_text(content.replace(text, other))


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (None, ["--epochs", "3"], "study of another recipe.*\n  epochs: 2 there, 3 here"),
        (None, ["--recipe", "resnet50-paper"], "study of another recipe"),
        (None, ["--precision", "bfloat16"], "precision: 'float32' there, 'bfloat16' here"),
        (("cells/na-1/history.csv", "\n2,", "\n2,1"), [], "na-1/history.csv is not what it was"),
        (("cells/na-1/recipe.json", '"attention": "na"', '"attention": "se"'), [], "na-1 is not a run of this study"),
        (("cells/none-0/data.json", '"images": 1437', '"images": 1438'), [], "none-0 is not a run.*\n.*1437 .*1438"),
        (("history.csv", "none,1,2,", "none,1,3,"), [], "epoch 3 of none-1 is not where it belongs"),
        (("history.csv", "none,1,", "gone,1,"), [], "gone-1, of which study.json knows nothing"),
        (("study.json", '"seeds"', '"sedes"'), [], "study.json lacks seeds"),
        (("study.json", "{", "["), [], "study.json is damaged"),
    ],
)
def test_what_is_not_this_study_is_refused_by_name(finished, tmp_path, change, arguments, message):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    if change:
        edit(copy / change[0], *change[1:])
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.name != "lock"}
    with pytest.raises(SystemExit) as stopped:
        run_study([*WHAT, "--study-dir", copy, *SHORT, *arguments])
    assert re.search(message, str(stopped.value), re.DOTALL), stopped.value
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.name != "lock"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attention", "none", "--seeds", "0"], "--study-dir is missing"),
        ([*WHAT, "0", "--study-dir", "s"], "--seeds: each once. Received: 0 1 0"),
        (["--attention", "na", "na", "--seeds", "0", "--study-dir", "s"], "--attention: each once. Received: na na"),
        (["--attention", "na", "sa", "--seeds", "0", "--study-dir", "s"], "attention must be one of"),
        (["--attention", "my_own:Gate", "--seeds", "0", "--study-dir", "s"], "my_own cannot be imported"),
        ([*WHAT, "--study-dir", "s", "--seed", "3"], "--seed is what a study decides itself"),
        ([*WHAT, "--study-dir", "s", "--run-dir", "r"], "--run-dir is what a study decides itself"),
        ([*WHAT, "--study-dir", "s", "--steps", "3"], "--steps is what a study decides itself"),
        ([*WHAT, "--study-dir", "s", "--epoch", "3"], "unrecognized arguments: --epoch 3"),
        ([*WHAT, "--study-dir", "s", "--epochs", "0"], "epochs must be at least 1"),
        ([*WHAT, "--study-dir", "s", "--jobs", "3", "--devices", "0", "1"], "--jobs 3 needs as many --devices"),
        ([*WHAT, "--study-dir", "s", "--devices", "1", "1"], "--devices: each once"),
        (["--attention", "na", "--seeds", "-1", "--study-dir", "s"], "--seeds must be between 0"),
        (["--report", "s", "--seeds", "1"], "--report stands alone"),
        (["--report", "s"], "no study with a finished run"),
        (["--report", "s", "--no-timings"], "--report stands alone"),
        ([*WHAT, "--study-dir", "s", "--base", "sa"], "--base must be a module of the study: none, na. Received: sa"),
        (["--attention", "none", "--seeds", "0", "--study-dir", "s", "--where", "a"], "are about modules"),
    ],
)
def test_bad_input_ends_before_anything_is_written(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run_study(arguments)
    assert message in f"{stopped.value} {capsys.readouterr().err}"
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_kept(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(SystemExit, match="not empty and holds no study"):
        run_study([*WHAT, "--study-dir", tmp_path, *SHORT])
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_the_cells_of_a_seed_stand_together():
    study = Study(ROOT / "nowhere")
    study.content = {"seeds": [0, 5], "attention": ["none", "my.own:Gate"]}
    assert study.cells == [Cell("none", 0), Cell("my.own:Gate", 0), Cell("none", 5), Cell("my.own:Gate", 5)]
    assert [cell.name for cell in study.cells[:2]] == ["none-0", "my.own-Gate-0"]


def test_modules_whose_folders_would_be_one_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--attention: own-Gate and own:Gate would share a folder"):
        Study(tmp_path / "new").begin({}, ["own:Gate", "own-Gate"], [0])


@pytest.mark.parametrize("folder", sorted((ROOT / "docs/studies").iterdir()), ids=lambda folder: folder.name)
def test_a_report_on_the_pages_is_that_of_its_numbers(folder):
    study = Study(folder)
    assert report.markdown(study, "none") == (folder / "report.md").read_text()


@pytest.mark.parametrize("folder", sorted((ROOT / "docs/studies").iterdir()), ids=lambda folder: folder.name)
@pytest.mark.parametrize("draw", [pictures.comparison, pictures.curves], ids=["comparison", "curves"])
def test_no_label_reaches_over_the_edge_of_its_picture(draw, folder):
    figure = draw(Study(folder), "none")
    figure.canvas.draw()
    labels = [label for axes in figure.axes for label in (axes.title, axes.xaxis.label, axes.yaxis.label)]
    labels = [label for label in labels if label.get_text()]
    boxes = [label.get_window_extent() for label in labels]
    inside = [figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and figure.bbox.y0 <= box.y0 for box in boxes]
    assert len(labels) >= 2
    assert all(inside), [label.get_text() for label, fits in zip(labels, inside, strict=True) if not fits]


def started(arguments, monkeypatch):
    """[(command, CUDA_VISIBLE_DEVICES, how many processes there were then)] of a study whose runs all fail."""
    found, alive = [], []

    class Failing:
        returncode = 1

        def __init__(self, command, env, **options):
            alive.append(self)
            found.append((command, env.get("CUDA_VISIBLE_DEVICES"), len(alive)))

        def poll(self):
            if self in alive:
                alive.remove(self)
            return self.returncode

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(subprocess, "Popen", Failing)
    monkeypatch.setattr("study.cells.EVERY", 0.0)
    assert run_study(arguments) == 1
    return found


@pytest.mark.parametrize(
    ("flags", "devices", "together"),
    [([], {None}, 1), (["--jobs", "2"], {None}, 2), (["--devices", "3", "5"], {"3", "5"}, 2)],
)
def test_so_many_runs_at_a_time_each_on_its_own_device(flags, devices, together, tmp_path, monkeypatch):
    found = started([*WHAT, "--study-dir", tmp_path / "study", *SHORT, *flags], monkeypatch)
    assert len(found) == 4
    assert {device for _, device, _ in found} == devices
    assert max(number for _, _, number in found) == together


def test_only_runs_with_a_module_are_told_where_and_how_it_begins(tmp_path, monkeypatch):
    network = ["--model", "keras.applications.MobileNetV2", "--recipe", "finetune", "--data-dir", tmp_path]
    where = ["--where", "block_1_project_BN", "--preserve"]
    found = started([*WHAT[:3], "--seeds", "0", "--study-dir", tmp_path / "study", *network, *where], monkeypatch)
    without, with_module = (command for command, *_ in found)
    assert "none" in without and not {"--where", "--preserve"} & {*without}
    assert "na" in with_module and {*where} <= {*with_module}


def test_with_keep_best_the_best_epoch_counts():
    study = Study(ROOT / "nowhere")
    study.content = {"recipe": {"keep_best": "top1"}}
    rows = [{"epoch": f"{epoch}", "validation_top1": value} for epoch, value in ((1, ".5"), (2, ".8"), (3, ".7"))]
    study.histories = {Cell("na", 0): rows}
    assert study.result(Cell("na", 0), "top1") == 0.8
    study.content = {"recipe": {"keep_best": None}}
    assert study.result(Cell("na", 0), "top1") == 0.7
