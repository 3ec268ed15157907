"""Checks exported artifacts the way their users will run them: in a process of their own, where Keras does not exist.

    python export/verify.py VERSION_DIRECTORY REFERENCE.npz

REFERENCE.npz holds inputs and what the Keras model answers: `images` float32 (n, size, size, 3) and their
`probabilities` (n, classes), `files` (n,) encoded images of any size and their `file_probabilities`, and the `labels`.
Prints a JSON object with the largest difference of each artifact, relative to the largest probability of the reference;
exits with 1 if one is above the tolerance, a label is wrong, or the network says the same of every image.
"""

import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

# Float32 programs differ by some 1e-5 in the logits of these networks, and a probability moves by less, relatively,
# than twice its logit.
TOLERANCE = 1e-4
# How far the reference's answers must differ between images, for agreement to say something: a network that has not
# learned anything agrees with every other one.
SMALLEST_SPREAD = 100 * TOLERANCE


def forbid_keras():
    """Makes `import keras` fail from here on, as on a server that has never heard of it."""
    if "keras" in sys.modules:
        raise RuntimeError("Keras is loaded already: run verify.py as a program.")
    sys.modules["keras"] = sys.modules["tf_keras"] = None


def difference(ours, reference):
    """The largest difference, relative to the largest probability of the reference."""
    return float(np.abs(ours - reference).max() / reference.max())


def failures(differences, spread):
    """What is wrong, as sentences; none if the artifacts may be published."""
    found = [f"{name} differs by {value:.1e}" for name, value in differences.items() if not value <= TOLERANCE]
    if not spread >= SMALLEST_SPREAD:
        found.append(
            f"the network's answers to different images differ by {spread:.1e} only, so that agreement says nothing; "
            "has it been trained?"
        )
    return found


def check_savedmodel(path, reference):
    """The largest difference of each signature from the reference; infinite where labels are wrong."""
    import tensorflow as tf

    signatures = tf.saved_model.load(str(path)).signatures
    answer = signatures["serving_default"](images=tf.constant(reference["images"]))
    differences = {"serving_default": difference(answer["probabilities"].numpy(), reference["probabilities"])}
    answer = signatures["serve_bytes"](image_bytes=tf.constant(reference["files"].tolist()))
    expected = np.take_along_axis(reference["file_probabilities"], answer["classes"].numpy(), axis=1)
    best = -np.sort(-reference["file_probabilities"], axis=1)[:, : expected.shape[1]]
    scores = answer["scores"].numpy()
    # The scores belong to the classes named, they are the best ones in order, and the labels are those classes'.
    differences["serve_bytes"] = max(difference(scores, expected), difference(scores, best))
    if (
        np.char.decode(answer["labels"].numpy().astype(bytes), "utf-8") != reference["labels"][answer["classes"]]
    ).any():
        differences["serve_bytes"] = float("inf")
    return differences


def check_tflite(path, reference):
    """The largest difference of the TFLite file's probabilities from the reference."""
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(str(path)).get_signature_runner("serving_default")
    outputs = [run(images=image[None].astype("float32"))["probabilities"] for image in reference["images"]]
    return difference(np.concatenate(outputs), reference["probabilities"])


def main(argv=None):
    version, reference = sys.argv[1:] if argv is None else argv
    forbid_keras()
    version = pathlib.Path(version)
    reference = np.load(reference, allow_pickle=False)
    differences = check_savedmodel(version, reference)
    for path in sorted((version / "tflite").glob("*.tflite")):
        differences[path.name] = check_tflite(path, reference)
    spread = float(np.ptp(reference["probabilities"], axis=0).max() / reference["probabilities"].max())
    print(json.dumps({"tolerance": TOLERANCE, "largest_difference": differences, "spread": spread}))
    for failure in (found := failures(differences, spread)):
        print(failure, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
