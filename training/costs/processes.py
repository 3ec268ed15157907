"""Starting worker.py, each time in a process of its own: what one has compiled or allocated, the next has not."""

import json
import os
import pathlib
import subprocess
import sys

WORKER = pathlib.Path(__file__).parent / "worker.py"
ENGINES = {"tensorflow": "tensorflow", "xla": "tensorflow", "jax": "jax"}  # and their Keras backend


def run_worker(job):
    """What one process of costs/worker.py measured.

    Raises:
        RuntimeError: it failed; with the last line that it wrote.
    """
    environment = {**os.environ, "KERAS_BACKEND": ENGINES[job["engine"]]}
    command = [sys.executable, str(WORKER), json.dumps(job)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"ended with {result.returncode}"]
        raise RuntimeError(f"{job['what']}, {job['engine']}: {lines[-1]}")
    return json.loads(result.stdout.splitlines()[-1])
