"""Asks every consumer about a version, each in a process of its own, and holds all answers to one rule.

Each consumer answers batches of one, two and n (protocol.py); what an answer must be is in answer_rules.py for
classifiers and in detection_rules.py for detectors, two modules with the same functions. A new consumer is a file in
this folder and a row in one of the two tables.
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

from consumers import answer_rules, detection_rules
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


def rules_for(reference):
    """The module that says when answers are right, by what the reference holds."""
    return detection_rules if detection_rules.is_detectors(reference) else answer_rules


def check_savedmodel(name, answers, groups, reference):
    """({consumer/group: difference}, {}, sentences) of a consumer's answers for the whole SavedModel."""
    groups += tuple(f"grpc:{group}" for group in INPUT if any(key.startswith("grpc:") for key in answers))
    differences, sentences = rules_for(reference).check_calls(answers, reference, groups)
    return {f"{name}/{group}": value for group, value in differences.items()}, {}, sentences


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
    rules = rules_for(reference)
    report = {"tolerance": rules.TOLERANCE, "largest_difference": {}, **rules.measure(reference)}
    report |= {"reduced_precision": {}, "consumers": {}, "skipped": dict(rules.UNASKED)}
    found = rules.check_reference(reference)
    jobs = {name: job for name, job in tasks(version).items() if name not in rules.UNASKED}
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
            differences, numbers, sentences = rules.check_file(path, answers, reference)
        else:
            differences, numbers, sentences = check_savedmodel(name, answers, groups, reference)
        report["largest_difference"] |= differences
        report["reduced_precision"] |= numbers
        found += [Finding(f"{name}: {text}", getattr(text, "gate", None), name) for text in sentences]
        parts = report["consumers"][name].pop("skipped", {})
        report["skipped"] |= {f"{name}/{part}": reason for part, reason in parts.items()}
    return report, found
