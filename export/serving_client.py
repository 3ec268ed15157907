"""Asks an exported model what is on an image: through TF Serving's REST interface, or in this process.

    python export/serving_client.py --saved-model exported/demo --image photo.jpg
    python export/serving_client.py --url http://localhost:8501/v1/models/demo --image photo.jpg other.png

The REST form needs Python's standard library only: copy this file to wherever the client runs.
"""

import argparse
import base64
import http.client
import json
import os
import pathlib
import sys
import urllib.error
import urllib.request

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

SIGNATURE = "serve_bytes"
# How the formats that the exported graph decodes begin; WebP has its name behind a length.
MAGIC = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "GIF": b"GIF8", "BMP": b"BM"}


class ClientError(Exception):
    """Something the person at the command line can mend; the message says what."""


def read_image(path):
    """The bytes of an image file, checked for a known beginning.

    Raises:
        ClientError: no such file, an empty one, or none of the known formats.
    """
    if not path.is_file():
        raise ClientError(f"No image at {path}.")
    data = path.read_bytes()
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    if not webp and not any(data.startswith(magic) for magic in MAGIC.values()):
        raise ClientError(
            f"{path} is not an image: expected {', '.join(MAGIC)} or WebP; "
            f"received {len(data)} bytes, the first {data[:8]!r}."
        )
    return data


def from_rest(url, images, timeout):
    """One answer {"classes", "scores", "labels"} per image, from TF Serving's REST interface.

    Args:
        url: of the model, http://HOST:8501/v1/models/NAME, optionally with /versions/N.
        images: pairs (path, encoded image as bytes).
        timeout: seconds.
    """
    body = {
        "signature_name": SIGNATURE,
        "instances": [{"b64": base64.b64encode(data).decode()} for _, data in images],
    }
    request = urllib.request.Request(
        f"{url.rstrip('/')}:predict", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        raise ClientError(
            f"The server refused ({error.code}): {error.read().decode(errors='replace')[:500]}"
        ) from error
    # No connection, a time-out; an answer that is not HTTP, cut or not JSON; a bad URL.
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ClientError(f"No answer from {url}: {error!r}") from error
    predictions = answer.get("predictions") if isinstance(answer, dict) else None
    fits = isinstance(predictions, list) and len(predictions) == len(images)
    if not fits or not all(isinstance(row, dict) and {"labels", "scores"} <= set(row) for row in predictions):
        raise ClientError(f"The answer from {url} is not that of an exported classifier: {str(answer)[:300]}")
    return predictions


def newest_version(path):
    """The version folder to load: `path` itself, or the highest number in it, as a server chooses."""
    if (path / "saved_model.pb").exists():
        return path
    versions = [child for child in path.glob("*") if child.name.isdigit() and (child / "saved_model.pb").exists()]
    if not versions:
        raise ClientError(f"No SavedModel in {path}: expected saved_model.pb there or in a numbered folder.")
    return max(versions, key=lambda child: int(child.name))


def from_saved_model(path, images):
    """The same answers from a SavedModel run in this process; `images` as in `from_rest`."""
    import tensorflow as tf

    signatures = tf.saved_model.load(str(newest_version(path))).signatures
    if SIGNATURE not in signatures:
        raise ClientError(f"{path} has no signature {SIGNATURE}: expected an export of export_model.py.")
    answers = []
    for name, data in images:  # one by one: an image that does not decode is named
        try:
            answer = signatures[SIGNATURE](image_bytes=tf.constant([data]))
        except tf.errors.InvalidArgumentError as error:
            cause = next((line for line in error.message.splitlines() if "Invalid" in line or "format" in line), "")
            raise ClientError(f"{name} could not be decoded. {cause}") from error
        answers.append(
            {
                "classes": answer["classes"][0].numpy().tolist(),
                "scores": answer["scores"][0].numpy().tolist(),
                "labels": [label.decode() for label in answer["labels"][0].numpy()],
            }
        )
    return answers


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--saved-model", type=pathlib.Path, help="an export's folder, or one version in it")
    where.add_argument("--url", help="of the model at a server: http://HOST:8501/v1/models/NAME")
    parser.add_argument("--image", type=pathlib.Path, nargs="+", required=True, help="image files")
    parser.add_argument("--top", type=int, default=3, help="classes to print (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=30.0, help="seconds to wait for a server (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    if arguments.top < 1:
        parser.error(f"--top must be at least 1. Received: {arguments.top}")
    return arguments


def main(argv=None):
    arguments = parse_arguments(argv)
    try:
        images = [(path, read_image(path)) for path in arguments.image]
        if arguments.url:
            answers = from_rest(arguments.url, images, arguments.timeout)
        else:
            answers = from_saved_model(arguments.saved_model, images)
    except ClientError as error:
        sys.exit(f"serving_client.py: {error}")
    for path, answer in zip(arguments.image, answers, strict=True):
        print(path)
        best = list(zip(answer["labels"], answer["scores"], strict=True))[: arguments.top]
        for label, score in best:
            print(f"  {100 * score:5.1f} %  {label}")


if __name__ == "__main__":
    main()
