"""serving_client.py against a SavedModel in process and stand-ins for TF Serving's interfaces on loopback."""

import contextlib
import http.server
import importlib.util
import pathlib
import socket
import subprocess
import sys
import threading
import time

import pytest
import tensorflow as tf
from small_run import LABELS, picture
from stand_in_server import BadRequest, rest_handler, start_grpc

import serving_client

needs_protos = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_serving") is None, reason="tensorflow-serving-api is not installed"
)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "photo.jpg"
    path.write_bytes(tf.io.encode_jpeg(picture()).numpy())
    return path


@pytest.fixture(scope="module")
def predict(exported):
    """The exported SavedModel itself as a function of signature and inputs."""
    signatures = tf.saved_model.load(str(exported / "1")).signatures

    def predict(signature, inputs):
        try:
            answer = signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
        except tf.errors.InvalidArgumentError as error:
            raise BadRequest(error.message) from error
        return {name: value.numpy() for name, value in answer.items()}

    return predict


@contextlib.contextmanager
def rest_server(predict, **options):
    """The URL of a model at a stand-in server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), rest_handler(predict, **options))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/models/demo"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def url(predict):
    with rest_server(predict) as url:
        yield url


@pytest.fixture(scope="module")
def grpc_address(predict):
    server, port = start_grpc(predict, "127.0.0.1:0")
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def pauses(monkeypatch):
    """The seconds for which the client would have waited."""
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.fixture
def damaged(photo, tmp_path):
    """A JPEG file without its second half."""
    path = tmp_path / "cut.jpg"
    path.write_bytes(photo.read_bytes()[:300])
    return path


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
    assert "letter.jpg is not an image of an accepted format: expected JPEG, PNG" in message
    assert "b'Dear Sir'" in message
    (tmp_path / "empty.png").touch()
    assert "received 0 bytes" in error_of("--saved-model", exported, "--image", tmp_path / "empty.png")
    sound = tmp_path / "sound.wav"
    sound.write_bytes(b"RIFF\x00\x00\x00\x00WAVEfmt ")
    assert "is not an image" in error_of("--saved-model", exported, "--image", sound)
    assert "No image at" in error_of("--saved-model", exported, "--image", tmp_path / "missing.jpg")


def ways(exported, url):
    """The arguments of each way to ask, but for gRPC."""
    return [("--saved-model", exported), ("--url", url)]


def check_culprit(way, photo, damaged, capsys):
    """The bad one of three images is named, the others are answered."""
    message = error_of(*way, "--retries", 0, "--top", 1, "--image", photo, damaged, photo)
    assert message.startswith(f"serving_client.py: {damaged}: ") and "Invalid JPEG data" in message
    assert len(message.splitlines()) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[0] == lines[2] == str(photo) and lines[1] == lines[3]
    message = error_of(*way, "--image", damaged)
    assert message.startswith(f"serving_client.py: {damaged}: ")


def test_one_bad_image_is_named_and_the_others_are_answered(exported, url, photo, damaged, capsys):
    for way in ways(exported, url):
        check_culprit(way, photo, damaged, capsys)
    assert "refused (400)" in error_of("--url", url, "--image", damaged)


@needs_protos
def test_grpc_gives_the_same_answers_and_errors(exported, url, grpc_address, photo, damaged, capsys):
    printed = []
    way = ("--grpc", grpc_address, "--model-name", "demo")
    for each in (*ways(exported, url), way):
        serving_client.main([*map(str, each), "--image", str(photo), str(photo)])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2] != ""
    check_culprit(way, photo, damaged, capsys)
    assert "INVALID_ARGUMENT" in error_of(*way, "--image", damaged)
    other = error_of("--grpc", grpc_address, "--model-name", "other", "--image", photo)
    assert "answered NOT_FOUND: Servable not found: other" in other


@needs_protos
def test_a_grpc_server_that_takes_longer_than_the_time_out_is_given_up(photo):
    given_up = threading.Event()

    def slow(signature, inputs):
        given_up.wait(60)
        raise BadRequest("late")

    server, port = start_grpc(slow, "127.0.0.1:0")
    try:
        late = error_of("--grpc", f"127.0.0.1:{port}", "--model-name", "demo", "--timeout", 0.2, "--image", photo)
    finally:
        given_up.set()
        server.stop(None).wait()
    assert "DEADLINE_EXCEEDED" in late


@needs_protos
def test_grpc_is_tried_again_while_no_server_is_there(photo, pauses):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # nobody listens there any more
    arguments = ("--grpc", f"127.0.0.1:{port}", "--model-name", "demo", "--retries", 2, "--image", photo)
    assert "answered UNAVAILABLE" in error_of(*arguments)
    assert pauses == [0.5, 1.0]


def test_without_its_packages_grpc_says_what_to_install(photo, monkeypatch):
    for name in ("tensorflow_serving", "tensorflow_serving.apis"):
        monkeypatch.setitem(sys.modules, name, None)
    message = error_of("--grpc", "localhost:1", "--model-name", "demo", "--image", photo)
    assert "pip install tensorflow-serving-api" in message and "REST" in message


def test_a_busy_server_is_asked_again(predict, photo, pauses, capsys):
    with rest_server(predict, busy=2) as url:
        serving_client.main(["--url", url, "--image", str(photo), "--top", "1"])
        out, err = capsys.readouterr()
        assert out.splitlines()[0] == str(photo)
        assert err.count("Trying again") == 2 and "Batch queue is full" in err
    assert pauses == [0.5, 1.0]
    with rest_server(predict, busy=9) as url:
        assert "refused (503)" in error_of("--url", url, "--retries", 1, "--image", photo)
    assert pauses == [0.5, 1.0, 0.5]


def test_only_what_may_pass_is_asked_again(url, photo, damaged, pauses):
    assert "No answer from http://127.0.0.1:9" in error_of("--url", "http://127.0.0.1:9/v1/models/x", "--image", photo)
    assert pauses == [0.5, 1.0, 2.0]
    pauses.clear()
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never answers
        silent = f"http://127.0.0.1:{server.getsockname()[1]}/v1/models/x"
        assert "timed out" in error_of("--url", silent, "--timeout", 0.2, "--image", photo)
    error_of("--url", url, "--image", damaged)
    error_of("--url", url + "x", "--image", photo)
    assert pauses == []


def test_the_rest_form_needs_the_standard_library_only(url, photo, tmp_path):
    copy = tmp_path / "client.py"
    copy.write_bytes(pathlib.Path(serving_client.__file__).read_bytes())
    # -S leaves out everything that was installed, -I the current folder.
    command = [sys.executable, "-I", "-S", str(copy), "--url", url, "--image", str(photo)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0 and result.stdout.splitlines()[0] == str(photo), result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--url", "x", "--timeout", "0"], "--timeout must be more than 0"),
        (["--url", "x", "--retries", "-1"], "--retries must be at least 0"),
        (["--url", "x", "--top", "0"], "--top must be at least 1"),
        (["--grpc", "x"], "--grpc and --model-name belong together"),
        (["--url", "x", "--model-name", "demo"], "--grpc and --model-name belong together"),
        (["--url", "x", "--grpc", "y"], "not allowed with argument"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        serving_client.main([*arguments, "--image", "photo.jpg"])
    assert message in capsys.readouterr().err


def test_servers_that_do_not_answer_are_clear_errors(url, photo, tmp_path):
    assert "refused (404)" in error_of("--url", url + "x", "--image", photo)
    other = url.replace("demo", "other")
    assert "not that of an exported classifier" in error_of("--url", other, "--image", photo)
    assert "No answer from localhost" in error_of("--url", "localhost:8501/v1/models/x", "--image", photo)
    with socket.create_server(("127.0.0.1", 0)) as server:  # not HTTP, as a gRPC port is not

        def greet():
            connection, _ = server.accept()
            with connection:
                connection.recv(10)
                connection.sendall(b"\x00\x00\x12\x04 not HTTP\r\n")

        threading.Thread(target=greet, daemon=True).start()
        port = server.getsockname()[1]
        assert "No answer from" in error_of(
            "--url", f"http://127.0.0.1:{port}/v1/models/x", "--retries", 0, "--image", photo
        )
    assert "No SavedModel in" in error_of("--saved-model", tmp_path, "--image", photo)
