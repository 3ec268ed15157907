"""Asks every consumer about a version, each in a process of its own, and holds all answers to one rule.

Each consumer answers batches of one, two and n (protocol.py); what an answer must be is in answer_rules.py. A new
consumer is a file in this folder and a row in one of the two tables.
"""

import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import numpy as np

from consumers import answer_rules
from consumers.answer_rules import SMALLEST_SPREAD, TOLERANCE
from consumers.gates import Finding
from consumers.protocol import INPUT, SKIPPED

# Consumers of the SavedModel: module, and what must have answered (the server's gRPC is added where it was asked).
CONSUMERS = {
    "c_api": ("consumers.c_api", tuple(INPUT)),
    "python": ("consumers.python_loaders", tuple(f"{way}:{name}" for way in ("tf2", "tf1") for name in INPUT)),
    "server": ("consumers.model_server", tuple(f"rest:{name}" for name in INPUT)),
    "openvino": ("consumers.openvino_runtime", ("serving_default",)),
}
# Consumers of single files in a version, by their place.
FILE_CONSUMERS = {"tflite/*.tflite": "consumers.litert_runtime", "onnx/*.onnx": "consumers.onnx_runtime"}
FOLDER = pathlib.Path(__file__).parents[1]  # from which `python -m consumers.X` runs
TIMEOUT = 900  # seconds for one consumer; a large network on a slow machine needs a minute


class ConsumerError(Exception):
    """A consumer failed, or crashed; the message says how."""


class Skipped(Exception):
    """A consumer cannot run here; the message is its reason."""


def consume(module, artifact, reference):
    """Runs a consumer, a module below FOLDER; returns its (answers, description).

    Raises:
        Skipped, ConsumerError
    """
    with tempfile.TemporaryDirectory() as folder:
        answers = pathlib.Path(folder, "answers.npz")
        paths = [pathlib.Path(path).absolute() for path in (artifact, reference, answers)]
        options = {"cwd": FOLDER, "capture_output": True, "text": True, "errors": "replace", "timeout": TIMEOUT}
        try:
            result = subprocess.run([sys.executable, "-m", module, *paths], **options)
        except subprocess.TimeoutExpired as error:
            raise ConsumerError(f"no answer in {TIMEOUT} seconds") from error
        last = (result.stdout.splitlines() or [""])[-1]
        if result.returncode == SKIPPED:
            raise Skipped(last)
        if result.returncode < 0:
            name = signal.Signals(-result.returncode).name
            raise ConsumerError(f"crashed with {name}. {result.stderr[-500:]}")
        if result.returncode:
            raise ConsumerError(result.stderr.strip()[-1500:])
        with np.load(answers, allow_pickle=False) as file:
            return dict(file), json.loads(last)


def check_file(path, answers, reference):
    """({name: difference}, {name: numbers}, sentences) of a single file's answers."""
    kind = "float32" if path.suffix == ".onnx" else path.stem.removeprefix("model_")
    ours, expected = answers[answer_rules.answer_name(reference)], reference["probabilities"]
    ending = answer_rules.ending_of(reference)
    if kind == "float32":
        value = answer_rules.difference(ours, expected, answer_rules.float32_scale(expected, ending))
        return {path.name: value}, {}, [] if value <= TOLERANCE else [answer_rules.differs(value)]
    limits = json.loads(str(reference["limits"])) if "limits" in reference else {}
    if kind not in limits:
        kinds = ", ".join(("float32", *limits))
        return {}, {}, [f"expected model_KIND.tflite, KIND one of {kinds}, which the reference holds limits for"]
    numbers, sentences = answer_rules.check_reduced(limits[kind], ours, expected, ending)
    return {}, {path.name: numbers}, sentences


def tasks(version):
    """Everything to check: {name: (module, artifact, groups or None for a single file)}."""
    found = {name: (module, version, groups) for name, (module, groups) in CONSUMERS.items()}
    for pattern, module in FILE_CONSUMERS.items():
        found |= {path.name: (module, path, None) for path in sorted(version.glob(pattern))}
    return found


def run_consumers(jobs, reference_file):
    """Runs all consumers of `tasks`, some at a time; {name: concurrent.futures.Future of what `consume` gives}."""
    with concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count())) as pool:
        return {name: pool.submit(consume, module, path, reference_file) for name, (module, path, _) in jobs.items()}


def check_savedmodel(name, answers, groups, reference):
    """({consumer/group: difference}, {}, sentences) of a consumer's answers for the whole SavedModel."""
    groups += tuple(f"grpc:{group}" for group in INPUT if any(key.startswith("grpc:") for key in answers))
    differences, sentences = answer_rules.check_calls(answers, reference, groups)
    return {f"{name}/{group}": value for group, value in differences.items()}, {}, sentences


def check_reference(reference, spread):
    """A list with what makes agreement with the Keras model's answers worthless, or none."""
    probabilities, origin = reference["probabilities"], reference.get("origin", np.array("images"))
    if not np.isfinite(probabilities).all():
        return [Finding("The Keras model's answers are not finite numbers.")]
    if spread >= SMALLEST_SPREAD:
        return []
    sentence = (
        f"The Keras model's answers to the {len(probabilities)} {origin} that verification asks about differ by "
        f"{spread:.1e} only, so that agreement on them says nothing. Ask about images that it tells apart "
        "(export_model.py --sample-images DIR), or accept it (--accept equal-answers)."
    )
    return [Finding(sentence, "equal-answers")]


def verify(version, reference_file):
    """Asks every consumer about a version.

    Args:
        version: path of the folder with saved_model.pb.
        reference_file: path of REFERENCE.npz.

    Returns:
        (the JSON object, a list of gates.Finding, sentences about everything that is wrong).
    """
    with np.load(reference_file, allow_pickle=False) as file:
        reference = dict(file)
    spread = answer_rules.spread(reference["probabilities"])
    report = {"tolerance": TOLERANCE, "largest_difference": {}, "spread": spread}
    report |= {"reduced_precision": {}, "consumers": {}, "skipped": {}}
    found = check_reference(reference, spread)
    jobs = tasks(version)
    finished = run_consumers(jobs, reference_file)
    for name, (_, path, groups) in jobs.items():
        try:
            answers, report["consumers"][name] = finished[name].result()
        except Skipped as reason:
            report["skipped"][name] = str(reason)
            continue
        except ConsumerError as error:
            found.append(Finding(f"{name}: {error}", artifact=name))
            continue
        if groups is None:
            differences, numbers, sentences = check_file(path, answers, reference)
        else:
            differences, numbers, sentences = check_savedmodel(name, answers, groups, reference)
        report["largest_difference"] |= differences
        report["reduced_precision"] |= numbers
        found += [Finding(f"{name}: {text}", getattr(text, "gate", None), name) for text in sentences]
        parts = report["consumers"][name].pop("skipped", {})
        report["skipped"] |= {f"{name}/{part}": reason for part, reason in parts.items()}
    return report, found
