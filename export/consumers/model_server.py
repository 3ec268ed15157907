"""Consumer: TensorFlow Serving's `tensorflow_model_server`, asked by REST and by gRPC as clients ask it.

    python -m consumers.model_server VERSION REFERENCE.npz ANSWERS.npz      (from export/; see protocol.py)

The server is the one on PATH, or the command in the environment variable TENSORFLOW_MODEL_SERVER; in it, {base} stands
for the folder that holds the model, so that a container can be named:

    export TENSORFLOW_MODEL_SERVER='docker run --rm --init --network host -v {base}:{base}:ro
        --entrypoint tensorflow_model_server tensorflow/serving'

It is started on a copy of the version under the number 1, awaited, asked, and stopped. gRPC is skipped where
tensorflow-serving-api is not installed.
"""

import base64
import contextlib
import importlib.util
import json
import os
import pathlib
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import numpy as np

import serving_client
from consumers.protocol import Skip, answer_calls, run_consumer

PROGRAM = "tensorflow_model_server"
VARIABLE = "TENSORFLOW_MODEL_SERVER"
MODEL_NAME = "demo"
START_TIMEOUT = 180  # seconds until the model is available; a large one with warm-up needs some
ANSWER_TIMEOUT = 30  # seconds for one request; with all of them this program ends before verify.py loses patience
STOP_TIMEOUT = 20  # seconds between asking the server to stop and killing it


def server_command(base):
    """The command that starts a server, without its flags.

    Raises:
        Skip: there is none.
    """
    if VARIABLE in os.environ:
        return [part.replace("{base}", str(base)) for part in shlex.split(os.environ[VARIABLE])]
    if shutil.which(PROGRAM) is None:
        raise Skip(f"no {PROGRAM} on PATH, and {VARIABLE} names no other command")
    return [PROGRAM]


def server_version(command):
    """What the server says of itself, in one line."""
    result = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=ANSWER_TIMEOUT)
    return " ".join(result.stdout.split()) if result.returncode == 0 else f"{command[0]} without --version"


def free_ports(count):
    """Numbers of TCP ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in sockets]


def version_state(url):
    """(state, error message) of the model's version 1 as the server reports it; (None, why) before it answers."""
    try:
        with serving_client.open_url(urllib.request.Request(f"{url}/versions/1"), 5) as response:
            status = json.load(response)["model_version_status"][0]
    except urllib.error.HTTPError as error:
        return None, f"status {error.code}"
    except OSError as error:
        return None, str(error)
    return status["state"], status.get("status", {}).get("error_message", "")


def wait_until_available(process, url):
    """Returns when the server has loaded the model.

    Raises:
        RuntimeError: it ended, could not load the model, or took too long.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None:
        state, message = version_state(url)
        if state == "AVAILABLE":
            return
        if state in ("UNLOADING", "END"):
            raise RuntimeError(f"The server could not load the model: {message}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"The server had not loaded the model after {START_TIMEOUT} s: {state}, {message}")
        time.sleep(0.2)
    raise RuntimeError(f"The server ended with status {process.returncode} before it served the model.")


@contextlib.contextmanager
def running_server(version):
    """A server of a copy of `version`; yields (URL of the model, gRPC address, its version).

    Errors within get the end of the server's log.
    """
    with tempfile.TemporaryDirectory() as folder:
        base = pathlib.Path(folder, MODEL_NAME)
        command = server_command(base)
        runtime = server_version(command)
        # A copy, not a link: a container sees this folder only. Private folders of mkdtemp are opened for its user.
        shutil.copytree(version, base / "1")
        for path in (pathlib.Path(folder), base / "1"):
            path.chmod(0o755)
        grpc_port, rest_port = free_ports(2)
        flags = {"port": grpc_port, "rest_api_port": rest_port, "model_name": MODEL_NAME, "model_base_path": base}
        log = pathlib.Path(folder, "log")
        with log.open("wb") as output:
            command += [f"--{name}={value}" for name, value in flags.items()]
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        url = f"http://127.0.0.1:{rest_port}/v1/models/{MODEL_NAME}"
        try:
            wait_until_available(process, url)
            yield url, f"127.0.0.1:{grpc_port}", runtime
        except (RuntimeError, serving_client.ClientError) as error:
            raise RuntimeError(f"{error}\n{log.read_text(errors='replace')[-1000:]}") from error
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ask_rest(url):
    """predict(signature, inputs) by REST, in rows of JSON."""

    def predict(signature, inputs):
        (values,) = inputs.values()
        strings = values.dtype == object
        rows = [{"b64": base64.b64encode(value).decode()} for value in values] if strings else values.tolist()
        answers = serving_client.rest_predict(url, signature, rows, ANSWER_TIMEOUT)
        return {name: np.array([row[name] for row in answers]) for name in answers[0]}

    return predict


def ask_grpc(address):
    """predict(signature, inputs) by gRPC."""

    def predict(signature, inputs):
        values = {name: array.tolist() if array.dtype == object else array for name, array in inputs.items()}
        return serving_client.grpc_predict(address, MODEL_NAME, signature, values, ANSWER_TIMEOUT)

    return predict


def consume(path, reference):
    skipped = {}
    with running_server(path) as (url, address, runtime):
        answers = {"rest:" + key: value for key, value in answer_calls(ask_rest(url), reference).items()}
        if importlib.util.find_spec("tensorflow_serving") is None:
            skipped["grpc"] = "tensorflow-serving-api is not installed"
        else:
            answers |= {"grpc:" + key: value for key, value in answer_calls(ask_grpc(address), reference).items()}
    return answers, {"runtime": runtime, "skipped": skipped}


if __name__ == "__main__":
    run_consumer(consume)
