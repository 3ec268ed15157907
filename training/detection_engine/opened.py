"""A trained detector, wherever it lies: a run, one of its checkpoints, an exported SavedModel."""

import dataclasses
import json
import pathlib

import tensorflow as tf

from detection_engine import evaluation
from na_keras.detection.model_garden import saved

SAVED_MODEL, MANIFEST = "saved_model.pb", "manifest.json"
SIGNATURE = "serve_bytes"  # of encoded images


@dataclasses.dataclass(frozen=True)
class OpenedDetector:
    """A detector and what evaluates it.

    Attributes:
        path: of its weights, or the SavedModel's folder.
        categories: {id: name}.
        evaluator: function (dataset.Split, batch size) -> an Evaluator or SavedModelEvaluator.
    """

    path: pathlib.Path
    categories: dict
    evaluator: object


def open_run(path):
    """The OpenedDetector of a run, its finished detector, or a checkpoint. Raises what saved.find and load raise."""
    description, weights = saved.find(path)
    detector = saved.load(description, weights)

    def evaluator(split, batch_size):
        return evaluation.Evaluator(detector.model, detector.config, tf.distribute.get_strategy(), split, batch_size)

    return OpenedDetector(weights, detector.categories, evaluator)


def open_exported(path):
    """The OpenedDetector of a SavedModel. Raises ValueError: it is none of export_detection.py."""
    manifest = path / MANIFEST
    content = json.loads(manifest.read_text("utf-8")) if manifest.exists() else {}
    if "categories" not in content:
        raise ValueError(f"{path} is no SavedModel of export_detection.py: no categories in {MANIFEST}.")
    signature = tf.saved_model.load(str(path)).signatures[SIGNATURE]

    def evaluator(split, batch_size):
        return evaluation.SavedModelEvaluator(signature, split, batch_size)

    return OpenedDetector(path, {number: name for number, name in content["categories"]}, evaluator)


def open_detector(path):
    """What `open_run` or `open_exported` returns, and raises."""
    return open_exported(path) if (path / SAVED_MODEL).exists() else open_run(path)
