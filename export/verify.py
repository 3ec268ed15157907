"""Checks exported artifacts the way their users will run them: in a process of their own, where Keras does not exist.

    python export/verify.py VERSION_DIRECTORY REFERENCE.npz

REFERENCE.npz holds inputs and what the Keras model answers: `images` float32 (n, size, size, 3), `files` (n,) encoded
images of the same pixels, `probabilities` (n, classes) for the images and `file_probabilities` for the files. Prints a
JSON object with the largest difference of each artifact; exits with 1 if one is above the tolerance.
"""

import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

# Of a probability. Float32 programs differ by some 1e-5 in the logits of these networks, and a probability moves by
# less than its logit; a wrong weight, a missing normalisation or another crop makes 1e-2 or more.
TOLERANCE = 1e-4


def forbid_keras():
    """Makes `import keras` fail from here on, as on a server that has never heard of it."""
    if "keras" in sys.modules:
        raise RuntimeError("Keras is loaded already: run verify.py as a program.")
    sys.modules["keras"] = sys.modules["tf_keras"] = None


def check_savedmodel(path, reference):
    """The largest difference of each signature from the reference."""
    import tensorflow as tf

    signatures = tf.saved_model.load(str(path)).signatures
    answer = signatures["serving_default"](images=tf.constant(reference["images"]))
    differences = {"serving_default": np.abs(answer["probabilities"].numpy() - reference["probabilities"]).max()}
    answer = signatures["serve_bytes"](image_bytes=tf.constant(reference["files"].tolist()))
    expected = np.take_along_axis(reference["file_probabilities"], answer["classes"].numpy(), axis=1)
    best = -np.sort(-reference["file_probabilities"], axis=1)[:, : expected.shape[1]]
    scores = answer["scores"].numpy()
    # The scores belong to the classes named, and they are the best ones in order.
    differences["serve_bytes"] = max(np.abs(scores - expected).max(), np.abs(scores - best).max())
    return differences


def check_tflite(path, reference):
    """The largest difference of the TFLite file's probabilities from the reference."""
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(str(path)).get_signature_runner("serving_default")
    outputs = [run(images=image[None])["probabilities"] for image in reference["images"]]
    return np.abs(np.concatenate(outputs) - reference["probabilities"]).max()


def main(argv=None):
    version, reference = sys.argv[1:] if argv is None else argv
    forbid_keras()
    version = pathlib.Path(version)
    reference = np.load(reference, allow_pickle=False)
    differences = check_savedmodel(version, reference)
    for path in sorted((version / "tflite").glob("*.tflite")):
        differences[path.name] = check_tflite(path, reference)
    differences = {name: float(value) for name, value in differences.items()}
    print(json.dumps({"tolerance": TOLERANCE, "largest_difference": differences}))
    # Written so that a NaN fails.
    return 0 if all(value <= TOLERANCE for value in differences.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
