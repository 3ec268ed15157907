"""A trained detector, wherever it lies: a run, one of its checkpoints, an exported SavedModel."""

import dataclasses
import json
import pathlib

import tensorflow as tf

from detection_engine import dataset, evaluation, loop, network, recipes
from run_files import checkpoints, run_directory

SAVED_MODEL, MANIFEST = "saved_model.pb", "manifest.json"


@dataclasses.dataclass(frozen=True)
class OpenedDetector:
    """A detector of a run.

    Attributes:
        path: of the checkpoint.
        recipe, config, model: of the run.
        categories: {id: name}.
    """

    path: pathlib.Path
    recipe: recipes.DetectionRecipe
    config: object
    model: object
    categories: dict

    def evaluator(self, split, batch_size):
        """An Evaluator of it."""
        strategy = tf.distribute.get_strategy()
        return evaluation.Evaluator(self.model, self.config, strategy, split, batch_size)


@dataclasses.dataclass(frozen=True)
class ExportedDetector:
    """A SavedModel that export/export_detection.py wrote: `path`, `signature` of encoded images, `categories`."""

    path: pathlib.Path
    signature: object
    categories: dict

    def evaluator(self, split, batch_size):
        """An Evaluator of it."""
        return evaluation.SavedModelEvaluator(self.signature, split, batch_size)


def stored_recipe(directory):
    """The DetectionRecipe of a run. Raises ValueError: it is no run of a detector."""
    stored = run_directory.read_recipe(directory, recipes.BEFORE)
    names = {field.name for field in dataclasses.fields(recipes.DetectionRecipe)}
    if not {"detector", "longer_size"} <= set(stored):
        raise ValueError(f"{directory} is no run of train_detection.py; training/evaluate.py evaluates classifiers.")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
    return recipes.DetectionRecipe(**{name: value for name, value in values.items() if name in names})


def weights_of(path):
    """(the run's directory, prefix of the checkpoint) of a run, of its finished detector, or of a checkpoint.

    Raises:
        FileNotFoundError: nothing of that kind is there.
    """
    if (path / run_directory.RECIPE).exists():
        if (path / loop.MODEL).exists():
            return path, path / loop.MODEL / loop.WEIGHTS
        newest = checkpoints.newest_first(path / run_directory.CHECKPOINTS)
        if newest:
            return path, newest[0] / "state"
        raise FileNotFoundError(f"{path} holds no checkpoint yet.")
    for directory, prefix in ((path.parent, path / loop.WEIGHTS), (path.parent.parent, path / "state")):
        if prefix.with_name(prefix.name + ".index").exists() and (directory / run_directory.RECIPE).exists():
            return directory, prefix
    raise FileNotFoundError(
        f"{path} must be a run of train_detection.py, its folder {loop.MODEL}, one of its checkpoints, or a SavedModel "
        "of export_detection.py."
    )


def open_run(path):
    """The OpenedDetector of a run, its finished detector, or a checkpoint.

    Raises:
        FileNotFoundError: nothing of that kind is there.
        ValueError: it is no run of a detector.
        CheckpointError: the checkpoint is damaged.
    """
    directory, prefix = weights_of(path)
    recipe, categories = stored_recipe(directory), dataset.read_categories(directory)
    config = network.task_config(recipe, categories)
    _, model = network.make_model(recipe, config)
    try:
        status = tf.train.Checkpoint(model=model).read(str(prefix))
        status.assert_existing_objects_matched().expect_partial()
    except checkpoints.UNREADABLE as error:
        raise checkpoints.CheckpointError(f"{prefix} is damaged: {error}") from error
    return OpenedDetector(prefix, recipe, config, model, categories)


def open_exported(path):
    """The ExportedDetector of a SavedModel. Raises ValueError: it is none of export_detection.py."""
    manifest = path / MANIFEST
    content = json.loads(manifest.read_text("utf-8")) if manifest.exists() else {}
    if "categories" not in content:
        raise ValueError(f"{path} is no SavedModel of export_detection.py: no categories in {MANIFEST}.")
    loaded = tf.saved_model.load(str(path))
    return ExportedDetector(
        path, loaded.signatures["encoded"], {number: name for number, name in content["categories"]}
    )


def open_detector(path):
    """What `open_run` or `open_exported` returns, and raises."""
    return open_exported(path) if (path / SAVED_MODEL).exists() else open_run(path)
