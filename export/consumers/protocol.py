"""What every consumer of an export is asked, and how a consumer program is run; see verify.py.

A consumer is a program: `python -m consumers.X ARTIFACT REFERENCE.npz ANSWERS.npz`, run from export/. REFERENCE.npz
holds `images` and `files` as in verify.py. It writes an array `SIGNATURE/FIRST:LAST/OUTPUT` per call and output to
ANSWERS.npz, and prints, as its last line, a JSON object with at least "runtime": what answered, with its version. A
consumer that cannot run on this machine exits with SKIPPED and prints the reason instead; every other exit status is a
failure, stderr says of what.
"""

import json
import os
import pathlib
import sys

import numpy as np

SKIPPED = 77  # the exit status that automake and meson take for "skipped"
INPUT = {
    "serving_default": ("images", "images"),
    "serve_bytes": ("image_bytes", "files"),
}  # (its name, in REFERENCE.npz)


class Skip(Exception):
    """This consumer cannot run on this machine; the message says why."""


def batches(count):
    """Slices of `count` inputs: a batch of one, one of two if there are so many, and all."""
    return sorted({(0, 1), (1, min(3, count)), (0, count)} - {(1, 1)})


def answer_calls(predict, reference, signatures=tuple(INPUT), outputs=None):
    """Calls `predict(signature, {input name: array})` for each batch; returns the arrays of ANSWERS.npz.

    Encoded images are arrays of `bytes` objects. `outputs` keeps these outputs only.
    """
    answers = {}
    for signature in signatures:
        name, key = INPUT[signature]
        values = reference[key].astype(object) if key == "files" else reference[key]
        for first, last in batches(len(values)):
            for output, array in predict(signature, {name: values[first:last]}).items():
                if outputs is None or output in outputs:
                    array = np.asarray(array)
                    # npz files hold no Python objects: strings become bytes of fixed length.
                    answers[f"{signature}/{first}:{last}/{output}"] = (
                        array.astype(bytes) if array.dtype == object else array
                    )
    return answers


def run_consumer(consume):
    """The main program of a consumer.

    Args:
        consume: function (artifact path, arrays of REFERENCE.npz) -> (answers, description), arrays and a dict as in
            this file's docstring; raises Skip.
    """
    artifact, reference, answers_file = sys.argv[1:]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with np.load(reference, allow_pickle=False) as file:
        reference = dict(file)
    try:
        answers, description = consume(pathlib.Path(artifact), reference)
    except Skip as reason:
        print(reason)
        sys.exit(SKIPPED)
    np.savez(answers_file, **answers)
    print(json.dumps(description))


def forbid_keras():
    """Makes `import keras` fail from here on, as on a server that has never heard of it."""
    if "keras" in sys.modules:
        raise RuntimeError("Keras is loaded already: run this as a program.")
    sys.modules["keras"] = sys.modules["tf_keras"] = None


def check_without_keras():
    """Raises RuntimeError if Keras was imported in spite of `forbid_keras`."""
    found = [name for name in sys.modules if name.split(".")[0] in ("keras", "tf_keras") and sys.modules[name]]
    if found:
        raise RuntimeError(f"This consumer must run without Keras. Found: {found[:5]}")
