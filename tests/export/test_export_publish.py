"""Publication of exports: killed, stopped and failing ones leave nothing to a server; two at a time get two numbers."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest
from programs import ROOT
from small_run import refuse

import export_model
from versions import publish, warmup

LIMITED = (
    "import resource, runpy, sys; limit = int(sys.argv.pop(1)); sys.argv[0] = 'export_model.py'\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)); sys.path.insert(0, 'export')\n"
    "runpy.run_path('export/export_model.py', run_name='__main__')"
)


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


def test_an_export_stopped_in_the_middle_leaves_nothing_to_a_server(model_file, tmp_path):
    untouched = existing_version(tmp_path)
    process = start("export/export_model.py", "--model", model_file, "--output", tmp_path)
    while not (left := list(tmp_path.glob("incoming-*/tflite"))):  # the SavedModel is complete, and nothing is checked
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    # What a process that is killed now would leave; no server takes it for a version.
    assert entries(tmp_path) == ["4", left[0].parent.name] and not left[0].parent.name.isdecimal()
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 143, error
    assert error.count("Stopped by SIGTERM.") == 1 and "Traceback" not in error.split("Stopped by")[-1]
    assert entries(tmp_path) == ["4"] and untouched()


@pytest.fixture
def stop_request():
    """A StopRequest that listens, while a test lasts."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    request = publish.StopRequest()
    request.listen()
    yield request
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_ctrl_c_stops_an_export_with_its_own_status(stop_request, model_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(warmup, "write_requests", lambda *arguments: signal.raise_signal(signal.SIGINT))
    untouched = existing_version(tmp_path)
    with pytest.raises(SystemExit) as error:
        export_model.main(["--model", str(model_file), "--output", str(tmp_path)], stop_request)
    assert error.value.code == 130 and "Stopped by SIGINT." in capsys.readouterr().err
    assert entries(tmp_path) == ["4"] and untouched()


def test_a_signal_that_a_destructor_swallows_is_not_lost(stop_request, model_file, tmp_path, monkeypatch, capsys):
    genuine = warmup.write_requests

    def swallow(*arguments):
        genuine(*arguments)
        try:
            signal.raise_signal(signal.SIGTERM)
        except publish.Stopped:
            pass  # as Python does in a destructor

    monkeypatch.setattr(warmup, "write_requests", swallow)
    with pytest.raises(SystemExit) as error:
        export_model.main(["--model", str(model_file), "--output", str(tmp_path)], stop_request)
    assert error.value.code == 143 and "Stopped by SIGTERM." in capsys.readouterr().err
    assert entries(tmp_path) == []


@pytest.mark.parametrize("limit", [250_000])  # bytes: the SavedModel fits, the warm-up requests do not
def test_a_full_disk_is_one_clear_line_and_leaves_everything_as_it_was(model_file, tmp_path, limit):
    untouched = existing_version(tmp_path / "out")
    arguments = ("--model", model_file, "--output", tmp_path / "out", "--warmup-batches", 16)
    process = start("-c", LIMITED, limit, *arguments)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    (line,) = [line for line in error.splitlines() if "nothing was published" in line]
    assert line.startswith("export_model.py: nothing was published; writing below") and "File too large" in line
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
