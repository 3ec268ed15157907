"""Asks an exported model what is on an image: a server by REST or gRPC, or a SavedModel in this process.

    python export/serving_client.py --saved-model exported/demo --image photo.jpg
    python export/serving_client.py --url http://localhost:8501/v1/models/demo --image photo.jpg other.png
    python export/serving_client.py --grpc localhost:8500 --model-name demo --image photo.jpg

The REST form needs Python's standard library only: copy this file to wherever the client runs. gRPC needs
tensorflow-serving-api. All images travel as one request. A server refuses a request as a whole if one of its images
does not decode; then they are asked about one by one, so that the others are answered and the bad one is named.

Scores are printed in per cent where they are probabilities, all in 0..1; of a model that answers logits (--activation
none of the export) as they are. Of a detector (export_detection.py) each box is a line: name, score, left, top, right
and bottom in pixels of the file as it is stored.
"""

import argparse
import base64
import http.client
import ipaddress
import json
import os
import pathlib
import re
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

SIGNATURE, INPUT = "serve_bytes", "image_bytes"
CLASSES = ("classes", "scores", "labels")  # of a classifier
BOXES = ("num_detections", "detection_boxes", "detection_scores", "detection_labels")  # of a detector
# The formats that the exported graph decodes: each begins with these bytes at these places. A copy of SIGNATURES in
# na_keras/data/image_headers.py, because this file imports nothing; a test holds them equal.
SIGNATURES = {
    "JPEG": ((0, b"\xff\xd8\xff"),),
    "PNG": ((0, b"\x89PNG\r\n\x1a\n"),),
    "GIF": ((0, b"GIF8"),),
    "BMP": ((0, b"BM"),),
    "WebP": ((0, b"RIFF"), (8, b"WEBP")),
}
# What TensorFlow writes while it starts: information and warnings; the error of a machine without a GPU driver.
START_MESSAGE = re.compile(rb"[IW]\d{4} \d\d:|WARNING: All log messages before absl::InitializeLog\(\)")
NO_DRIVER = re.compile(rb"E\d{4} .*failed call to cuInit")
FIRST_PAUSE = 0.5  # seconds before the first repetition; each later one waits twice as long


class ClientError(Exception):
    """Something the person at the command line can mend; the message says what."""


class Refused(ClientError):
    """The request itself is wrong, in the server's or the model's eyes: 400 or INVALID_ARGUMENT."""


class Unavailable(ClientError):
    """No server there now: no connection, 503 or UNAVAILABLE; the same request may succeed later."""


def read_image(path):
    """The bytes of an image file, checked for a known beginning.

    Raises:
        ClientError: no such file, an empty one, or none of the known formats.
    """
    if not path.is_file():
        raise ClientError(f"No image at {path}.")
    data = path.read_bytes()
    begins = lambda signature: all(data[start : start + len(magic)] == magic for start, magic in signature)  # noqa: E731
    if not any(map(begins, SIGNATURES.values())):
        raise ClientError(
            f"{path} is not an image of an accepted format: expected {', '.join(SIGNATURES)}; "
            f"received {len(data)} bytes, the first {data[:8]!r}."
        )
    return data


def shorten(message):
    """A server's message on one line, its first 500 characters."""
    return " ".join(message.split())[:500]


def is_loopback(host):
    """Whether a host's name or address is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def open_url(request, timeout):
    """As urllib.request.urlopen; what goes to this machine itself goes through no proxy (`http_proxy`), which would
    look for the server on another."""
    if not is_loopback(urllib.parse.urlsplit(request.full_url).hostname):
        return urllib.request.urlopen(request, timeout=timeout)
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout)


def kind_of(answer):
    """The names of the outputs that an answer is printed from, CLASSES or BOXES; None if it has neither."""
    return next((names for names in (CLASSES, BOXES) if set(names) <= set(answer)), None)


def rest_predict(url, signature, instances, timeout):
    """The rows of a server's answer, one {output: value} for each instance.

    Args:
        url: of the model, http://HOST:8501/v1/models/NAME, optionally with /versions/N.
        signature: its name.
        instances: values of the signature's only input as JSON has them; bytes as {"b64": text}.
        timeout: seconds.

    Raises:
        ClientError: Refused, Unavailable, or an answer that is none.
    """
    body = json.dumps({"signature_name": signature, "instances": instances}).encode()
    request = f"{url.rstrip('/')}:predict"
    try:
        request = urllib.request.Request(request, body, {"Content-Type": "application/json"})
        with open_url(request, timeout) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        kind = {400: Refused, 503: Unavailable}.get(error.code, ClientError)
        raise kind(f"The server refused ({error.code}): {shorten(error.read().decode(errors='replace'))}") from error
    # No connection, a time-out; an answer that is not HTTP, cut or not JSON; a bad URL.
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        kind = Unavailable if isinstance(cause, ConnectionError) else ClientError
        raise kind(f"No answer from {url}: {error!r}") from error
    rows = answer.get("predictions") if isinstance(answer, dict) else None
    fits = isinstance(rows, list) and len(rows) == len(instances)
    if not fits or not all(isinstance(row, dict) and kind_of(row) for row in rows):
        raise ClientError(
            f"The answer from {url} is not that of an exported classifier or detector: {str(answer)[:300]}"
        )
    return rows


def grpc_predict(address, model_name, signature, inputs, timeout):
    """A server's answer over gRPC, {output: array}.

    Args:
        address: HOST:PORT.
        model_name: the name under which the server has the model.
        signature: its name.
        inputs: {input name: array, or list of bytes}.
        timeout: seconds.

    Raises:
        ClientError: Refused, Unavailable, another status, or the packages are missing.
    """
    try:
        import grpc

        tf = import_tensorflow("serving_client.py")
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
    except ImportError as error:
        raise ClientError(
            f"gRPC needs tensorflow-serving-api: pip install tensorflow-serving-api. REST (--url) does not. ({error})"
        ) from error
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model_name, signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    if is_loopback(address.rpartition(":")[0].strip("[]")):
        unlimited.append(("grpc.enable_http_proxy", 0))
    with grpc.insecure_channel(address, options=unlimited) as channel:
        try:
            response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=timeout)
        except grpc.RpcError as error:
            code = error.code()
            kinds = {grpc.StatusCode.INVALID_ARGUMENT: Refused, grpc.StatusCode.UNAVAILABLE: Unavailable}
            raise kinds.get(code, ClientError)(f"{address} answered {code.name}: {shorten(error.details())}") from error
    return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}


def as_rows(answer):
    """{output: array} of a batch as one {output: value} for each image, strings as text."""
    names = kind_of(answer)
    if names is None:
        expected = " or ".join(", ".join(each) for each in (CLASSES, BOXES))
        raise ClientError(f"Expected the outputs {expected}. Received: {', '.join(sorted(answer))}")
    columns = {name: answer[name].tolist() for name in names}
    columns[names[-1]] = [[label.decode() for label in row] for row in columns[names[-1]]]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def from_rest(url, images, timeout):
    """One answer, {name: value} with the names of CLASSES or BOXES, per encoded image (bytes), by REST; see
    `rest_predict`."""
    return rest_predict(url, SIGNATURE, [{"b64": base64.b64encode(data).decode()} for data in images], timeout)


def from_grpc(address, model_name, images, timeout):
    """The same by gRPC; see `grpc_predict`."""
    return as_rows(grpc_predict(address, model_name, SIGNATURE, {INPUT: images}, timeout))


def import_tensorflow(program):
    """The module tensorflow, imported without its start-up messages; everything else that it writes is passed on.

    They come before TensorFlow knows TF_CPP_MIN_LOG_LEVEL; a level below 2, which asks for them, shows them. Where the
    error about a missing GPU driver is among them, `program` says in a line that it computes on the CPU; None is for a
    program that computes nothing, and does not look for a GPU.
    """
    if "tensorflow" in sys.modules or os.environ["TF_CPP_MIN_LOG_LEVEL"] < "2":
        import tensorflow as tf

        return tf
    sys.stderr.flush()
    standard_error, lines = os.dup(2), []
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            import tensorflow as tf

            no_gpu = program is not None and not tf.config.list_physical_devices("GPU")
        finally:
            sys.stderr.flush()
            os.dup2(standard_error, 2)
            os.close(standard_error)
            held.seek(0)
            lines = [line for line in held if not START_MESSAGE.match(line)]
            others = [line for line in lines if program is None or not NO_DRIVER.match(line)]
            os.write(2, b"".join(others))
    if no_gpu and others != lines:
        print(f"{program}: TensorFlow found no GPU; it computes on the CPU.", file=sys.stderr)
    return tf


def newest_version(path):
    """The version folder to load: `path` itself, or the highest number in it, as a server chooses."""
    if (path / "saved_model.pb").exists():
        return path
    versions = [child for child in path.glob("*") if child.name.isdigit() and (child / "saved_model.pb").exists()]
    if not versions:
        raise ClientError(f"No SavedModel in {path}: expected saved_model.pb there or in a numbered folder.")
    return max(versions, key=lambda child: int(child.name))


def load_saved_model(path):
    """A function from encoded images to answers as in `from_rest`, computed in this process."""
    tf = import_tensorflow("serving_client.py")
    signatures = tf.saved_model.load(str(newest_version(path))).signatures
    if SIGNATURE not in signatures:
        raise ClientError(
            f"{path} has no signature {SIGNATURE}: expected an export of export_model.py or export_detection.py."
        )

    def ask(images):
        try:
            answer = signatures[SIGNATURE](**{INPUT: tf.constant(images)})
        except tf.errors.InvalidArgumentError as error:
            telling = ("Invalid", "format", "assertion failed")
            lines = [line for line in error.message.splitlines() if any(word in line for word in telling)]
            raise Refused(f"The image could not be decoded. {lines[0] if lines else error.message[:300]}") from error
        return as_rows({name: value.numpy() for name, value in answer.items()})

    return ask


def with_retries(ask, retries):
    """`ask`, repeated up to `retries` times while the server is not available, after pauses that double.

    Time-outs are not repeated: a server that is too slow would get slower.
    """

    def ask_again(images):
        for attempt in range(retries):
            try:
                return ask(images)
            except Unavailable as error:
                pause = FIRST_PAUSE * 2**attempt
                print(f"{error}\nTrying again in {pause:g} s", file=sys.stderr)
                time.sleep(pause)
        return ask(images)

    return ask_again


def score_text(scores):
    """A function from a score to its text: per cent if all of an answer's scores are in 0..1, as probabilities are."""
    probabilities = all(0 <= score <= 1 for score in scores)
    return (lambda score: f"{100 * score:5.1f} %") if probabilities else (lambda score: f"{score:7.3f}")


def class_lines(answer, top):
    """A line for each of the best classes: score and name."""
    best = list(zip(answer["labels"], answer["scores"], strict=True))[:top]
    text = score_text(answer["scores"])
    return [f"  {text(score)}  {label}" for label, score in best]


def box_lines(answer, lowest_score):
    """A line for each box: name, score, and left, top, right, bottom in pixels of the file as it is stored."""
    count = int(answer["num_detections"])
    columns = ([*answer[name][:count]] for name in ("detection_labels", "detection_scores", "detection_boxes"))
    found = [row for row in zip(*columns, strict=True) if row[1] >= lowest_score]
    width = max((len(label) for label, *_ in found), default=0)
    return [
        f"  {label:{width}}  {100 * score:5.1f} %  {left:7.1f} {top:7.1f} {right:7.1f} {bottom:7.1f}"
        for label, score, (top, left, bottom, right) in found
    ] or [f"  nothing with a score of at least {lowest_score:g}"]


def answer_each(ask, images):
    """One answer for each image; where `ask` refuses the batch, they are asked one by one.

    Returns:
        a list with an answer, or the Refused that the image got, for each image.
    """
    try:
        return ask(images)
    except Refused as error:
        if len(images) == 1:
            return [error]
    return [answer for image in images for answer in answer_each(ask, [image])]


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--saved-model", type=pathlib.Path, help="an export's folder, or one version in it")
    where.add_argument("--url", help="of the model at a server: http://HOST:8501/v1/models/NAME")
    where.add_argument("--grpc", metavar="HOST:PORT", help="of a server's gRPC interface, usually port 8500")
    add = parser.add_argument
    add("--model-name", help="with --grpc: the model's name at the server")
    add("--image", type=pathlib.Path, nargs="+", required=True, help="image files")
    add("--top", type=int, default=3, help="classes to print, of a classifier (default: %(default)s)")
    add(
        "--lowest-score",
        type=float,
        default=0.3,
        help="of the boxes to print, of a detector: 0..1 (default: %(default)s)",
    )
    add("--timeout", type=float, default=30.0, help="seconds to wait for each answer (default: %(default)s)")
    add("--retries", type=int, default=3, help="repetitions while there is no server (default: %(default)s)")
    arguments = parser.parse_args(argv)
    for name, least in (("top", 1), ("retries", 0)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name} must be at least {least}. Received: {getattr(arguments, name)}")
    if not arguments.timeout > 0:
        parser.error(f"--timeout must be more than 0 seconds. Received: {arguments.timeout}")
    if bool(arguments.grpc) != bool(arguments.model_name):
        parser.error("--grpc and --model-name belong together (with --url the name is part of the URL).")
    return arguments


def choose_way(arguments):
    """The function from encoded images to answers that the command line asks for."""
    if arguments.url:
        return with_retries(lambda images: from_rest(arguments.url, images, arguments.timeout), arguments.retries)
    if arguments.grpc:
        ask = lambda images: from_grpc(arguments.grpc, arguments.model_name, images, arguments.timeout)  # noqa: E731
        return with_retries(ask, arguments.retries)
    return load_saved_model(arguments.saved_model)


def main(argv=None):
    arguments = parse_arguments(argv)
    try:
        images = [read_image(path) for path in arguments.image]
        answers = answer_each(choose_way(arguments), images)
    except ClientError as error:
        sys.exit(f"serving_client.py: {error}")
    refused = []
    for path, answer in zip(arguments.image, answers, strict=True):
        if isinstance(answer, Refused):
            refused.append(f"serving_client.py: {path}: {answer}")
            continue
        print(path)
        lines = (
            class_lines(answer, arguments.top)
            if kind_of(answer) == CLASSES
            else box_lines(answer, arguments.lowest_score)
        )
        print(*lines, sep="\n")
    if refused:
        sys.exit("\n".join(refused))


if __name__ == "__main__":
    main()
