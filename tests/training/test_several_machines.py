"""Two machines, rehearsed as two processes on this one: equal to one device; the page's commands; SIGTERM on one."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from programs import ROOT
from small_training import largest_difference, weights_after
from tiny_network import FLAGS

from na_keras.data.digits import digits
from run_files.checkpoints import newest_first

# Added to the page's commands, for speed and to see that steps are done.
SMALL = f"{shlex.join(map(str, FLAGS))} --checkpoint-every=2"
MACHINES = ["localhost:23471", "localhost:23472"]


def test_two_machines_equal_one_device(tmp_path):
    script, processes = str(ROOT / "tests" / "helpers" / "train_on_replicas.py"), []
    for index in range(2):
        config = {"cluster": {"worker": MACHINES}, "task": {"type": "worker", "index": index}}
        command = [sys.executable, script, "0", str(tmp_path / f"{index}.npz")]
        environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment))
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    one_device, _ = weights_after(tf.distribute.get_strategy(), 20, 1)
    labels = [int(example["label"]) for example in digits("validation").examples(None)]
    for index in range(2):
        # Both know of every image of the evaluation, in the stored order.
        np.testing.assert_array_equal(np.load(tmp_path / f"{index}.npy"), labels)
        with np.load(tmp_path / f"{index}.npz") as weights:
            # Order of summation only, as with two replicas of one machine.
            assert largest_difference(list(weights.values()), one_device) < 1e-5


@pytest.fixture
def commands(tmp_path):
    """The page's two commands, where training/train.py knows the tiny network; a function that starts both."""
    page = (ROOT / "docs" / "several_machines.md").read_text("utf-8")
    (block,) = re.findall(r"<!-- machines -->\n```bash\n(.*?)```", page, re.DOTALL)
    lines = [line for line in block.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    assert len(lines) == 2 and all("TF_CONFIG=" in line for line in lines)
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "train.py").symlink_to(ROOT / "tests" / "helpers" / "tiny_network.py")
    folder = os.path.dirname(sys.executable)
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}

    def start(name):
        processes = []
        for index, line in enumerate(lines):
            with (tmp_path / f"{name}-{index}.txt").open("w") as output:
                processes.append(
                    subprocess.Popen(
                        ["bash", "-c", f"exec env {line} {SMALL}"], cwd=tmp_path, env=environment, stdout=output
                    )
                )
        return processes

    return start


def test_a_signal_to_one_machine_stops_both_and_the_same_commands_go_on(commands, tmp_path):
    processes = commands("first")
    run, chief, deadline = tmp_path / "runs" / "two_machines", tmp_path / "first-0.txt", time.monotonic() + 300
    while not newest_first(run / "checkpoints"):
        assert all(process.poll() is None for process in processes) and time.monotonic() < deadline
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=120) for process in processes] == [128 + signal.SIGTERM] * 2
    assert "Interrupted by SIGTERM; a checkpoint is written" in chief.read_text()
    assert not (run / "model.keras").exists()

    assert [process.wait(timeout=300) for process in commands("second")] == [0, 0]
    output = (tmp_path / "second-0.txt").read_text()
    assert "Resuming from" in output and "2 replica(s), global batch 64" in output and "Finished 1 epochs" in output
    assert (tmp_path / "second-1.txt").read_text() == ""  # one machine talks
    with (run / "history.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["examples"] == str(22 * 64) and (run / "model.keras").exists()
    assert len(json.loads((run / "environment.json").read_text())) == 2
