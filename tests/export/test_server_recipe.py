"""The server commands of docs/serving.md and export/serving/*.config fit each other and a real export.

The server behind them is the stand-in of stand_in_server.py: that tensorflow_model_server accepts the files has been
read in its documentation and protos, not run.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request

import pytest
import stand_in_server
from programs import ROOT

import serving_client
from consumers import model_server

CONFIGS = ROOT / "export" / "serving"
PAGE, SIGNATURES = ROOT / "docs" / "serving.md", ROOT / "docs" / "export.md"


def command_of(name):
    """The words of the command below <!-- name --> in docs/serving.md, $PWD left as it is."""
    text = PAGE.read_text("utf-8")
    block = re.search(rf"<!-- {name} -->\n```bash\n(.*?)```", text, re.DOTALL)
    assert block, f"{PAGE} has no block <!-- {name} -->"
    return shlex.split(block[1].replace("\\\n", " "))


def flags_of(words):
    return dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word)


def parse(text):
    """A message in protocol buffer text format as {field: [values]}; the subset that the configs use."""
    text = re.sub(r"#.*", "", text)
    tokens = iter(re.findall(r'[A-Za-z_]\w*|-?\d+|"[^"]*"|[{}:]', text))

    def message(end):
        fields = {}
        for name in tokens:
            if name == end:
                return fields
            assert re.fullmatch(r"[a-z_]\w*", name), name
            token = next(tokens)
            value = message("}") if token == "{" else json.loads(next(tokens))
            assert token in ("{", ":"), (name, token)
            fields.setdefault(name, []).append(value)
        assert end is None, "a message is not closed"
        return fields

    return message(None)


@pytest.fixture(scope="module")
def checkout(exported, tmp_path_factory):
    """A folder with exported/demo, as the page's commands have it."""
    folder = tmp_path_factory.mktemp("recipe")
    shutil.copytree(exported, folder / "exported" / "demo")
    return folder


def test_the_model_config_names_the_model_and_its_place_in_the_container():
    (config,) = parse((CONFIGS / "models.config").read_text())["model_config_list"][0]["config"]
    assert config == {"name": ["demo"], "base_path": ["/models/demo"], "model_platform": ["tensorflow"]}
    words = command_of("serve-container")
    assert words[:3] == ["docker", "run", "--rm"]
    options = list(zip(words, words[1:], strict=False))
    assert [port for option, port in options if option == "-p"] == ["8500:8500", "8501:8501"]  # the image's ports
    mounts = dict(volume.split(":")[1::-1] for option, volume in options if option == "-v")
    assert mounts == {"/models/demo": "$PWD/exported/demo", "/config": "$PWD/export/serving"}
    assert config["base_path"][0] in mounts
    text = PAGE.read_text("utf-8")
    paths = re.findall(r"--(?:model_config_file|batching_parameters_file)=(/config/[\w.]+)", text)
    assert sorted(set(paths)) == ["/config/batching.config", "/config/models.config"]
    assert all((CONFIGS / path.removeprefix("/config/")).is_file() for path in paths)


def test_the_server_parses_the_model_config():
    """With the server's own protos; they do not come with the batching parameters."""
    pytest.importorskip("tensorflow_serving", reason="tensorflow-serving-api is not installed")
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    message = model_server_config_pb2.ModelServerConfig()
    text_format.Parse((CONFIGS / "models.config").read_text(), message)
    (config,) = message.model_config_list.config
    assert (config.name, config.base_path) == ("demo", "/models/demo")


def test_batching_sizes_are_what_the_server_requires():
    """session_bundle_config.proto: increasing, and the last is the largest batch."""
    batching = parse((CONFIGS / "batching.config").read_text())
    wrapped = {"max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"}
    assert set(batching) == wrapped | {"allowed_batch_sizes"}
    values = {name: batching[name][0]["value"][0] for name in wrapped}
    sizes = batching["allowed_batch_sizes"]
    assert sizes == sorted(set(sizes)) and sizes[0] == 1 and sizes[-1] == values["max_batch_size"]
    assert min(values.values()) >= 1


def test_the_commands_of_the_page_work_on_an_export(checkout, tmp_path, monkeypatch):
    """Literally, but for the ports, which may be taken on this machine."""
    monkeypatch.setenv("PATH", str(stand_in_server.install(tmp_path / "bin").parent), prepend=os.pathsep)
    grpc_port, rest_port = model_server.free_ports(2)

    def with_ports(name):
        words = command_of(name)
        words = [word.replace("8500", str(grpc_port)).replace("8501", str(rest_port)) for word in words]
        assert [word for word in command_of(name) if re.search("850[01]", word)] != []
        return [word.replace("$PWD", str(checkout)) for word in words]

    server = subprocess.Popen(with_ports("serve"))
    try:
        url = f"http://localhost:{rest_port}/v1/models/demo/versions/1"
        for _ in range(300):
            try:
                with urllib.request.urlopen(url) as response:
                    assert json.load(response)["model_version_status"][0]["state"] == "AVAILABLE"
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.1)
        names = ["ask"] + ["ask-grpc"] * (importlib.util.find_spec("tensorflow_serving") is not None)
        for name in names:
            program, *arguments = with_ports(name)
            assert program == "python"
            result = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
            assert result.stdout.startswith("docs/digit.jpg\n") and "%" in result.stdout
    finally:
        server.terminate()
        server.wait()


def test_the_pages_and_the_client_name_the_signatures_of_the_export(exported):
    from consumers.c_api import SavedModel, load_library

    with SavedModel(load_library(), exported / "1") as model:
        signatures = model.signatures
    inputs, outputs = signatures[serving_client.SIGNATURE]
    assert set(inputs) == {serving_client.INPUT} and set(outputs) >= set(serving_client.CLASSES)
    text = SIGNATURES.read_text("utf-8")
    for signature, (inputs, outputs) in signatures.items():
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{signature}` |"))
        assert {f"`{name}`" for name in (*inputs, *outputs)} <= set(re.findall(r"`\w+`", row))
    flags = flags_of(command_of("serve"))
    assert flags["model_base_path"] == "$PWD/exported/demo" and flags["model_name"] == "demo"
    grpc_words = command_of("ask-grpc")
    assert grpc_words[grpc_words.index("--model-name") + 1] == flags["model_name"]
    assert f"/v1/models/{flags['model_name']}" in " ".join(command_of("ask"))
