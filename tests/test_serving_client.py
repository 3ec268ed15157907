"""serving_client.py against a SavedModel in process and a stand-in for TF Serving's REST interface on loopback."""

import base64
import http.server
import json
import socket
import threading

import pytest
import tensorflow as tf

import export_model
import serving_client
from test_export import LABELS, make_run, picture


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    path = make_run(folder / "run")
    export_model.main(["--model", str(path), "--output", str(folder / "model")])
    return folder / "model"


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "photo.jpg"
    path.write_bytes(tf.io.encode_jpeg(picture()).numpy())
    return path


@pytest.fixture(scope="module")
def url(exported):
    """The documented row format of POST /v1/models/NAME:predict, answered by the exported SavedModel itself."""
    signatures = tf.saved_model.load(str(exported / "1")).signatures

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/v1/models/other:predict":
                return self.answer(200, {"predictions": [[0.5, 0.5]]})
            if self.path != "/v1/models/demo:predict":
                return self.answer(404, {"error": f"Servable not found for request: {self.path}"})
            images = [base64.b64decode(instance["b64"]) for instance in request["instances"]]
            try:
                answer = signatures[request["signature_name"]](image_bytes=tf.constant(images))
            except tf.errors.InvalidArgumentError as error:
                return self.answer(400, {"error": error.message})
            columns = {name: value.numpy().tolist() for name, value in answer.items()}
            columns["labels"] = [[label.decode() for label in row] for row in columns["labels"]]
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            self.answer(200, {"predictions": rows})

        def answer(self, code, content):
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/models/demo"
    server.shutdown()
    server.server_close()


def error_of(*arguments):
    with pytest.raises(SystemExit) as error:
        serving_client.main([str(argument) for argument in arguments])
    return str(error.value.code)


def test_both_ways_print_the_same_answer(exported, url, photo, capsys):
    serving_client.main(["--saved-model", str(exported), "--image", str(photo), "--top", "2"])
    in_process = capsys.readouterr().out
    serving_client.main(["--url", url, "--image", str(photo), "--top", "2"])
    assert capsys.readouterr().out == in_process
    title, first, second = in_process.splitlines()
    assert title == str(photo)
    scores = [float(line.split("%")[0]) for line in (first, second)]
    assert scores[0] >= scores[1]
    assert first.split()[-1] in LABELS


def test_several_images_are_one_request(url, photo, capsys):
    serving_client.main(["--url", url, "--image", str(photo), str(photo), "--top", "1"])
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_the_newest_version_is_the_highest_number(tmp_path):
    for name in ("9", "10", "incoming-x", "readme"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").touch()
    assert serving_client.newest_version(tmp_path).name == "10"
    assert serving_client.newest_version(tmp_path / "9").name == "9"


def test_what_is_not_an_image_is_refused_by_name(exported, tmp_path):
    text = tmp_path / "letter.jpg"
    text.write_text("Dear Sir or Madam")
    message = error_of("--saved-model", exported, "--image", text)
    assert "letter.jpg is not an image: expected JPEG, PNG" in message and "b'Dear Sir'" in message
    (tmp_path / "empty.png").touch()
    assert "received 0 bytes" in error_of("--saved-model", exported, "--image", tmp_path / "empty.png")
    sound = tmp_path / "sound.wav"
    sound.write_bytes(b"RIFF\x00\x00\x00\x00WAVEfmt ")
    assert "is not an image" in error_of("--saved-model", exported, "--image", sound)
    assert "No image at" in error_of("--saved-model", exported, "--image", tmp_path / "missing.jpg")


def test_a_truncated_image_is_a_clear_error(exported, url, photo, tmp_path):
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(photo.read_bytes()[:300])
    message = error_of("--saved-model", exported, "--image", photo, cut)
    assert "cut.jpg could not be decoded" in message and "Invalid JPEG data" in message
    assert "refused (400)" in error_of("--url", url, "--image", cut)


def test_servers_that_do_not_answer_are_clear_errors(url, photo, tmp_path):
    assert "refused (404)" in error_of("--url", url + "x", "--image", photo)
    other = url.replace("demo", "other")
    assert "not that of an exported classifier" in error_of("--url", other, "--image", photo)
    assert "No answer from http://127.0.0.1:9" in error_of("--url", "http://127.0.0.1:9/v1/models/x", "--image", photo)
    assert "No answer from localhost" in error_of("--url", "localhost:8501/v1/models/x", "--image", photo)
    with socket.create_server(("127.0.0.1", 0)) as server:  # not HTTP, as a gRPC port is not

        def greet():
            connection, _ = server.accept()
            with connection:
                connection.recv(10)
                connection.sendall(b"\x00\x00\x12\x04 not HTTP\r\n")

        threading.Thread(target=greet, daemon=True).start()
        port = server.getsockname()[1]
        assert "No answer from" in error_of("--url", f"http://127.0.0.1:{port}/v1/models/x", "--image", photo)
    assert "No SavedModel in" in error_of("--saved-model", tmp_path, "--image", photo)
