"""One process at a time trains in a run directory."""

import signal
import subprocess
import sys

import pytest
from tiny_network import train_here

from run_files.run_lock import RunLock

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone_even_by_kill_9(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    command = [sys.executable, "-c", HOLD, str(run / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        message, _ = train_here(run)
        assert "is being trained by another process. Wait until" in message
        assert [path.name for path in run.iterdir()] == ["lock"]
        with pytest.raises(BlockingIOError), RunLock(run) as lock:
            lock.take()
        holder.send_signal(signal.SIGKILL)
    with RunLock(run) as lock:
        lock.take()
        with pytest.raises(BlockingIOError, match=r"is being trained by process \d+ on .*\. Wait"):
            RunLock(run).take()
    with RunLock(run) as lock:
        lock.take()


def test_a_folder_without_a_lock_is_left_as_it_is(tmp_path):
    with RunLock(tmp_path) as lock:
        lock.take_existing()
    assert not list(tmp_path.iterdir())


def test_where_files_cannot_be_locked_a_person_is_warned(tmp_path, monkeypatch, capsys):
    def unsupported(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with RunLock(tmp_path) as lock:
        lock.take()
    assert "cannot be locked here" in capsys.readouterr().err
