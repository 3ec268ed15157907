"""When a consumer's answers are those of the Keras model; NumPy only, one rule for all consumers.

The reference holds the Keras model's `probabilities` (n, classes) for `images`, its `file_probabilities` for `files`,
and the `labels` (classes,). What they are says its `ending`:

    softmax    probabilities that sum up to 1, where it says nothing
    sigmoid    independent probabilities; of one class, yes is what is at least one half
    logits     no probabilities; the output of that name

Differences are relative to the largest probability of the reference, because the probabilities of 1000 undecided
classes are all about .001. For float32 artifacts they are also relative to its largest logit, because float32 programs
differ in the logits, in proportion to the largest one; and a probability moves by no more, relatively, than its logit.
Those of logits, and of further outputs of the network (`other/NAME` in the reference), are relative to the largest.
"""

import json

import numpy as np

from consumers.gates import Finding
from consumers.protocol import batches

TOLERANCE = 1e-4  # of the largest logit; float32 programs of these networks differ by some 1e-5 of it
SMALLEST_PROBABILITY = 1e-30  # the least that a logit is computed from
SMALLEST_DOUBT = 2.0**-24  # the least that float32 tells from 0 beside 1
# How far answers must differ between images, for agreement to say something: a network that has not learned anything
# agrees with every other one.
SMALLEST_SPREAD = 100 * TOLERANCE

UNASKED = {}  # {consumer: why it is not asked}
TOP = {"classes", "scores", "labels"}
EXPECTED = {"serving_default": "probabilities", "serve_bytes": "file_probabilities"}
OTHER = "other/"  # before the names of further outputs, in the reference


def ending_of(reference):
    """What the reference's answers are: "softmax", "sigmoid" or "logits"."""
    return str(reference.get("ending", "softmax"))


def answer_name(reference):
    """The name of the output that holds the answers."""
    return "logits" if ending_of(reference) == "logits" else "probabilities"


def outputs_of(reference, signature):
    """The names of what a signature answers."""
    if signature != "serving_default":
        return TOP
    return {answer_name(reference), *TOP, *(key.removeprefix(OTHER) for key in reference if key.startswith(OTHER))}


def float32_scale(reference, ending="softmax"):
    """What float32 differences from these answers are measured in: of probabilities the largest of them, times the
    largest logit; of logits the largest.

    Logits of a softmax are known up to a constant per image, so they are those whose mean is zero; if the largest is
    below 1, it counts as 1.
    """
    if ending == "logits":
        return largest(reference)
    values = reference.astype("float64")
    logits = np.log(np.maximum(values, SMALLEST_PROBABILITY))
    if ending == "sigmoid":
        logits -= np.log(np.maximum(1 - values, SMALLEST_DOUBT))
    else:
        logits -= logits.mean(axis=1, keepdims=True)
    return float(reference.max() * np.maximum(1, np.abs(logits).max()))


def largest(values):
    """The largest number, whatever its sign; 1 of zeros alone."""
    return float(np.abs(values).max()) or 1.0


def difference(ours, expected, scale):
    """The largest difference, divided by `scale`; infinite if the shapes differ."""
    return float(np.abs(ours - expected).max() / scale) if ours.shape == expected.shape else float("inf")


def spread(probabilities):
    """How far the answers to different images are apart, relative to the largest probability, or logit."""
    return float(np.ptp(probabilities, axis=0).max() / largest(probabilities))


def decoded(array):
    """Strings as Python text; runtimes give them as UTF-8 bytes or as text."""
    return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array


def check_top(answer, expected, labels, scale):
    """The best classes of an answer against the probabilities `expected` (batch, classes).

    Returns:
        (the scores' largest difference divided by `scale`, a list of sentences): the scores belong to the classes
        named, they are the best ones in order, and the labels are those classes'.
    """
    classes, scores, names = answer["classes"], answer["scores"], decoded(answer["labels"])
    k = classes.shape[-1]
    shapes = {name: array.shape for name, array in answer.items() if name in TOP}
    if set(shapes.values()) != {(len(expected), k)} or not 1 <= k <= expected.shape[1]:
        return float("inf"), [f"outputs have the shapes {shapes} for {len(expected)} images"]
    if classes.dtype.kind != "i" or classes.min() < 0 or classes.max() >= expected.shape[1]:
        return float("inf"), [f"classes are {classes.dtype}s from {classes.min()} to {classes.max()}"]
    best = -np.sort(-expected, axis=1)[:, :k]
    largest = max(difference(scores, values, scale) for values in (np.take_along_axis(expected, classes, axis=1), best))
    wrong = np.argwhere(names != labels[classes])
    if not len(wrong):
        return largest, []
    at = tuple(wrong[0])
    return largest, [f"class {classes[at]} is called {str(names[at])!r}, expected {str(labels[classes[at]])!r}"]


def differs(value, name=""):
    """The Finding that a float32 artifact's answers differ by `value`; a number may be accepted, NaN may not."""
    return Finding(f"{name} differs by {value:.1e}".strip(), "float-difference" if np.isfinite(value) else None)


def check_calls(answers, reference, groups):
    """Answers of a whole SavedModel, keys as in protocol.py, against the reference.

    Args:
        groups: what must have answered: a signature's name, or PREFIX:SIGNATURE for one way of several to ask it.

    Returns:
        ({group: largest difference}, a list of sentences about everything that is wrong).
    """
    differences, found = {}, []
    for group in groups:
        signature = group.rsplit(":", 1)[-1]
        differences[group] = 0.0
        probabilities, outputs = reference[EXPECTED[signature]], outputs_of(reference, signature)
        scale = float32_scale(probabilities, ending_of(reference))
        for first, last in batches(len(probabilities)):
            call = f"{group}/{first}:{last}"
            answer = {name: answers[f"{call}/{name}"] for name in outputs if f"{call}/{name}" in answers}
            if missing := sorted(outputs - set(answer)):
                differences[group] = float("inf")
                found.append(f"{call} lacks {', '.join(missing)}")
                continue
            expected = probabilities[first:last]
            values, sentences = check_top(answer, expected, reference["labels"], scale)
            for name in outputs - TOP:
                others = reference.get(OTHER + name)
                part = (expected, scale) if others is None else (others[first:last], largest(others))
                values = np.maximum(values, difference(answer[name], *part))
            differences[group] = float(np.maximum(differences[group], values))  # NaN stays NaN
            found += [f"{call}: {sentence}" for sentence in sentences]
        if not differences[group] <= TOLERANCE:
            found.append(differs(differences[group], group))
    return differences, found


def decisions(values, ending):
    """The class that each row of answers is for; of one class, whether it is that."""
    if values.shape[1] > 1:
        return values.argmax(1)
    return values[:, 0] >= (0 if ending == "logits" else 0.5)


def compare_reduced(ours, reference, ending="softmax"):
    """How a file of reduced precision agrees: largest difference relative to the largest probability, correlation, and
    equal best classes as a share.
    """
    constant = np.ptp(ours) == 0  # which correlates with nothing
    return {
        "largest_difference": difference(ours, reference, largest(reference)),
        "correlation": 0.0 if constant else float(np.corrcoef(ours.ravel(), reference.ravel())[0, 1]),
        "top1_agreement": float((decisions(ours, ending) == decisions(reference, ending)).mean()),
    }


def check_reduced(limits, ours, reference, ending="softmax"):
    """(numbers, sentences) on the probabilities of a file of reduced precision.

    Args:
        limits: (largest difference relative to the largest probability, smallest correlation) that is not yet refused.
        ours, reference: the file's probabilities and the Keras model's, (n, classes).
        ending: what they are; see the head of this file.
    """
    if ours.shape != reference.shape:
        return {}, [f"answers have the shape {ours.shape}, expected {reference.shape}"]
    if not np.isfinite(ours).all():
        return {}, ["answers are not finite"]
    numbers, (most, least) = compare_reduced(ours, reference, ending), limits
    found = []
    if not numbers["largest_difference"] <= most:
        found.append(f"differs by {numbers['largest_difference']:.1e}, more than {most}")
    if not numbers["correlation"] >= least:
        found.append(f"correlates by {numbers['correlation']:.3f} only, expected {least}")
    if not spread(ours) >= SMALLEST_SPREAD:
        found.append("says the same of every image")
    return numbers, [Finding(sentence, "reduced-precision") for sentence in found]


def measure(reference):
    """What the report says of the reference itself."""
    return {"spread": spread(reference["probabilities"])}


def kind_of(path):
    """The kind of a single file, by its name."""
    return "float32" if path.suffix == ".onnx" else path.stem.removeprefix("model_")


def limits_of(reference):
    """{kind of file: how far it may be from the reference}."""
    return json.loads(str(reference["limits"])) if "limits" in reference else {}


def unknown_kind(limits):
    """A sentence on a file whose kind has no limits."""
    kinds = ", ".join(("float32", *limits))
    return f"expected model_KIND.tflite, KIND one of {kinds}, which the reference holds limits for"


def check_file(path, answers, reference):
    """({name: difference}, {name: numbers}, sentences) of a single file's answers."""
    kind = kind_of(path)
    ours, expected = answers[answer_name(reference)], reference["probabilities"]
    ending = ending_of(reference)
    if kind == "float32":
        value = difference(ours, expected, float32_scale(expected, ending))
        return {path.name: value}, {}, [] if value <= TOLERANCE else [differs(value)]
    limits = limits_of(reference)
    if kind not in limits:
        return {}, {}, [unknown_kind(limits)]
    numbers, sentences = check_reduced(limits[kind], ours, expected, ending)
    return {}, {path.name: numbers}, sentences


def check_reference(reference):
    """A list with what makes agreement with the Keras model's answers worthless, or none."""
    probabilities, origin = reference["probabilities"], reference.get("origin", np.array("images"))
    apart = spread(probabilities)
    if not np.isfinite(probabilities).all():
        return [Finding("The Keras model's answers are not finite numbers.")]
    if apart >= SMALLEST_SPREAD:
        return []
    sentence = (
        f"The Keras model's answers to the {len(probabilities)} {origin} that verification asks about differ by "
        f"{apart:.1e} only, so that agreement on them says nothing. Ask about images that it tells apart "
        "(export_model.py --sample-images DIR), or accept it (--accept equal-answers)."
    )
    return [Finding(sentence, "equal-answers")]
