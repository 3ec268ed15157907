"""Publication of exports: killed, stopped and failing ones leave nothing to a server; two at a time get two numbers."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest
from programs import ROOT
from small_run import make_run, refuse

import export_model
from versions import publish

LIMITED = (
    "import resource, runpy, sys; limit = int(sys.argv.pop(1)); sys.argv[0] = 'export_model.py'\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)); sys.path.insert(0, 'export')\n"
    "runpy.run_path('export/export_model.py', run_name='__main__')"
)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run")


def start(*arguments):
    """An export as a process of its own."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def existing_version(folder):
    """A base folder with a version in it, and a function that tells whether it is untouched."""
    (folder / "4").mkdir(parents=True)
    (folder / "4" / "manifest.json").write_text("{}")
    return lambda: (folder / "4" / "manifest.json").read_text() == "{}"


def test_exports_stopped_in_the_middle_leave_nothing_to_a_server(model_file, tmp_path, capsys):
    signals = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
    folders = {number: tmp_path / number.name for number in signals}
    untouched = {number: existing_version(folder) for number, folder in folders.items()}
    running = {
        number: start("export/export_model.py", "--model", model_file, "--output", folder)
        for number, folder in folders.items()
    }
    for number, process in running.items():
        while not list(folders[number].glob("incoming-*/tflite")):  # the SavedModel is complete, and nothing is checked
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        process.send_signal(number)
    for number, process in running.items():
        _, error = process.communicate(timeout=120)
        assert process.returncode == signals[number], error
        assert "Traceback" not in error.split("Stopped by")[-1]
        assert untouched[number]()
        left = [name for name in entries(folders[number]) if name != "4"]
        assert all(name.startswith("incoming-") for name in left)
        # Only a process that had no time to clean up leaves something, and no server takes it for a version.
        assert len(left) == (number == signal.SIGKILL)
    killed = folders[signal.SIGKILL]
    export_model.main(["--model", str(model_file), "--output", str(killed)])
    (left,) = killed.glob("incoming-*")
    assert f"{left} is being written by another export, or was left by one that was killed" in capsys.readouterr().out
    assert entries(killed) == ["4", "5", left.name]


def test_a_signal_that_a_destructor_swallows_is_not_lost(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(publish, "received", [])
    with publish.incoming_version(tmp_path) as folder, pytest.raises(SystemExit):
        try:
            publish.stop(signal.SIGTERM, None)
        except SystemExit:
            pass  # as Python does in a destructor
        publish.release(folder)
    assert entries(tmp_path) == [] and "Stopped by SIGTERM" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [250_000])  # bytes: the SavedModel fits, the warm-up requests do not
def test_a_full_disk_is_one_clear_line_and_leaves_everything_as_it_was(model_file, tmp_path, limit):
    untouched = existing_version(tmp_path / "out")
    arguments = ("--model", model_file, "--output", tmp_path / "out", "--warmup-batches", 16)
    process = start("-c", LIMITED, limit, *arguments)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    (line,) = [line for line in error.splitlines() if "export_model.py" in line]
    assert "nothing was published; writing below" in line and "File too large" in line
    assert "Traceback" not in error
    assert entries(tmp_path / "out") == ["4"] and untouched()


def test_two_exports_at_a_time_get_two_numbers(tmp_path, monkeypatch):
    """The second export takes its number between the first one's choice of a number and its renaming."""
    genuine = pathlib.Path.rename

    def rename_after_another_export(self, target):
        monkeypatch.setattr(pathlib.Path, "rename", genuine)
        with publish.incoming_version(tmp_path) as second:
            (second / "manifest.json").write_text("second")
            assert publish.release(second) == tmp_path / "1"
        return genuine(self, target)

    with publish.incoming_version(tmp_path) as first:
        (first / "manifest.json").write_text("first")
        monkeypatch.setattr(pathlib.Path, "rename", rename_after_another_export)
        assert publish.release(first) == tmp_path / "2"
    assert {name: (tmp_path / name / "manifest.json").read_text() for name in entries(tmp_path)} == {
        "1": "second",
        "2": "first",
    }


def test_a_renaming_that_fails_for_another_reason_is_an_error(tmp_path, monkeypatch):
    def refused(self, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "rename", refused)
    with pytest.raises(PermissionError), publish.incoming_version(tmp_path) as folder:
        publish.release(folder)
    assert entries(tmp_path) == []


def test_versions_are_counted_as_numbers(tmp_path):
    for name in ("9", "10", "²"):
        (tmp_path / name).mkdir()
    with publish.incoming_version(tmp_path) as folder:
        (folder / "file").touch()
        assert publish.release(folder).name == "11"


def test_folders_that_cannot_be_written_are_refused_before_the_model_is_read(tmp_path):
    (tmp_path / "file").touch()
    missing = tmp_path / "missing.keras"
    for output in (tmp_path / "file" / "below", pathlib.Path("/proc/exported/demo")):
        assert f"Cannot write to {output}" in (message := refuse(missing, output))
        assert "Choose another --output" in message and "\n" not in message
    assert entries(tmp_path) == ["file"]


def test_batches_of_warmup_requests_are_checked(tmp_path, capsys):
    assert refuse(tmp_path / "any.keras", tmp_path / "out", "--warmup-batches", 1, 0) == "2"
    assert "--warmup-batches must be from 1 to 1024. Received: [1, 0]" in capsys.readouterr().err
