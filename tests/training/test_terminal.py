"""What a person sees of the training programs: help at once, plain progress in files, no chatter, no lost errors."""

import io
import os
import pathlib
import subprocess
import sys

import pytest
from programs import ROOT

import progress
import recipe_fields
import recipes
import terminal
import train


@pytest.mark.parametrize("program", ["evaluate", "figures", "tables", "throughput", "train"])
def test_help_comes_before_tensorflow_and_keras(program):
    code = (
        f"import sys, runpy; sys.argv = ['{program}.py', '--help']; sys.path.insert(0, 'training')\n"
        f"try: runpy.run_path('training/{program}.py', run_name='__main__')\n"
        "except SystemExit: assert not {'keras', 'tensorflow', 'na_keras', 'numpy'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "usage:" in result.stdout and not result.stderr


def test_help_explains_every_field_of_a_recipe(capsys):
    with pytest.raises(SystemExit):
        train.parse_arguments(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, field in recipes.Recipe.__dataclass_fields__.items():
        assert f"--{name.replace('_', '-')}" in text and len(field.metadata["help"]) > 8, name
        explained = " ".join(recipe_fields.help_text(field).split()).replace("- ", "-")
        assert explained in text.replace("- ", "-"), name
    assert "fields of the recipe: loss" in text and "(between 0 and 10)" in text


def test_progress_in_a_file_is_a_line_now_and_then(monkeypatch):
    clock = iter(range(0, 10_000, 10))  # each update is 10 seconds after the one before
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    stage = progress.Progress(10, "steps", stream=stream)
    for done in range(3, 11):  # a resumed epoch
        stage.update(done, {"loss": 0.5})
    assert stream.getvalue().splitlines() == [
        "    5/10 steps, 30 s, about 50 s left, loss 0.5000",
        "    8/10 steps, 60 s, about 20 s left, loss 0.5000",
        "    10/10 steps, 80 s, loss 0.5000",
    ]


def test_only_chatter_is_dropped_from_standard_error(capfd):
    with terminal.standard_error_without(terminal.INFORMATION.match):
        os.write(2, b"I0000 00:00:17.2  1 port.cc:153] oneDNN is on\nF0000 00:00:17.2 no AVX\nplain\n")
    assert capfd.readouterr().err.splitlines() == ["F0000 00:00:17.2 no AVX", "plain"]
    assert terminal.NO_GPU.match(b"E0000 00:00:1795645199.5   14879 cuda_platform.cc:52] failed call to cuInit: X\n")


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = train.parse_arguments(["--run-dir=~/run", "--data-dir=~"])
    assert (arguments.run_dir, arguments.data_dir) == (tmp_path / "run", tmp_path)
    assert terminal.named_path("NA=~/x") == ("NA", pathlib.Path(tmp_path, "x"))


def test_a_run_needs_only_the_packages_of_its_dataset():
    needed = lambda *flags: set(train.needed_modules(train.parse_arguments(flags)))  # noqa: E731
    assert "sklearn" in needed() and "tensorflow_datasets" not in needed()
    assert needed("--recipe=resnet50-paper") == {"matplotlib", "tensorboard", "tensorflow_datasets"}
    assert needed("--dataset=folder") == {"matplotlib", "tensorboard"}
