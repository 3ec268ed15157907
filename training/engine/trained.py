"""Opens whatever a trained network is kept in, to be evaluated: a .keras file, a run's checkpoint, an export."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from engine.training_state import make_model
from na_keras import model_files
from na_keras.data import recorded_splits
from na_keras.graph.calls import functional
from na_keras.model_files import training_record
from na_keras.networks import Network, Start, build, ending, open_classifier
from na_keras.pretrained import refresh
from run_files import checkpoints, data_record, run_directory

# By what an exported version's answers are; logits are what the data is.
MULTI_LABEL = {"softmax": False, "sigmoid": True, "logits": None}


@dataclasses.dataclass
class Trained:
    """A network to evaluate.

    Attributes:
        predict: function of uint8 images (batch, size, size, 3) that returns float32 (batch, classes).
        from_logits: whether these are logits, not probabilities.
        multi_label: whether they are of each class by itself; None where nothing says it, of logits and
            of models with code of their own: then the data does.
        classes, size: what it takes and gives.
        class_names: in the order of its outputs; None where nothing says them.
        dataset, resize: what it was trained on, and the shorter side before the crop; None where nothing says so.
        exif_orientation: whether photographs were turned upright for it; yes where nothing says so.
        path: where it was found.
        splits: of the dataset, as na_keras.data.load_source takes them.
    """

    predict: Callable
    from_logits: bool
    multi_label: bool | None
    classes: int
    size: int
    dataset: str | None
    resize: int | None
    exif_orientation: bool
    path: pathlib.Path
    class_names: list[str] | None = None
    splits: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError(
                f"{self.path} has {self.classes} classes, and labels.txt beside it {len(self.class_names)} names."
            )


def read_labels(folder):
    """The class names in a run's or an exported version's folder; None if it holds none."""
    labels = folder / run_directory.LABELS
    return model_files.read_labels(labels) if labels.exists() else None


def exported_labels(version):
    """The same of an exported version; None also where the exporter knew no names and numbered the classes."""
    names = read_labels(version)
    return None if names == [str(index) for index in range(len(names or ()))] else names


def open_keras_file(path, pixels=None):
    """A .keras or .h5 file, with recipe.json beside it if it is still in its run directory."""
    model = open_classifier(path, pixels)
    shape = model.input_shape
    if shape[1] is None or shape[1] != shape[2] or shape[3] != 3:
        raise ValueError(f"Expected a network of square RGB images of a known size. Received: {shape}")
    multi_label = None if functional(model) is None else ending(model, str(path)) == "sigmoid"
    recipe, class_names = training_record(path)
    pixels = [(recipe or {}).get(key) for key in ("dataset", "evaluation_resize")]
    pixels.append(recipe["exif_orientation"] if recipe else True)
    predict = lambda images: model(images, training=False)  # noqa: E731
    splits = recorded_splits(recipe or {})
    return Trained(predict, False, multi_label, model.output_shape[-1], shape[1], *pixels, path, class_names, splits)


def open_checkpoint(directory, path=None):
    """The newest readable checkpoint of a run directory, or the one at `path`.

    Raises:
        CheckpointError: there is none that can be read.
    """
    recipe, execution = run_directory.stored_recipe(directory)
    if execution.get("model_sha256") != recipe.network.model_sha256:
        raise ValueError(f"{recipe.model} is not the file any more that the run in {directory} started from.")
    class_names = read_labels(directory)
    classes = len(class_names)
    size = recipe.resolved_evaluation_size
    model = make_model(recipe, classes, False, size, execution["precision"])
    # Of the two networks in a checkpoint the one that training evaluates.
    name = "model" if recipe.ema_decay is None else "averaged"
    variables = tf.train.Checkpoint(**{name: [variable.value for variable in model.variables]})
    if path is None:
        path = checkpoints.restore(variables, directory / run_directory.CHECKPOINTS, partial=True)
        if path is None:
            raise checkpoints.CheckpointError(f"{directory} holds no checkpoint yet.")
    else:
        checkpoints.read(variables, path, partial=True)
    refresh(model)
    predict = lambda images: model(images, training=False)  # noqa: E731
    pixels = recipe.dataset, recipe.evaluation_resize, recipe.exif_orientation
    answers = True, data_record.is_multi_label(data_record.read(directory)), classes
    return Trained(predict, *answers, size, *pixels, path, class_names, recipe.splits)


def open_saved_model(path):
    """A version that export_model.py wrote, by its signature serving_default; needs no Keras."""
    loaded = tf.saved_model.load(str(path))
    signature = loaded.signatures.get("serving_default")
    inputs = {} if signature is None else signature.structured_input_signature[1]
    outputs = {} if signature is None else signature.structured_outputs
    answer = next((name for name in ("probabilities", "logits") if name in outputs), None)
    if set(inputs) != {"images"} or answer is None:
        raise ValueError(
            "Expected a SavedModel with the signature serving_default(images) -> probabilities or logits. "
            f"Received: {inputs} -> {sorted(outputs)}"
        )
    ending = check_exported(path, inputs["images"].shape)
    size, classes = inputs["images"].shape[1], outputs[answer].shape[-1]

    def predict(images, keep_alive=loaded):  # a signature does not hold its variables
        return signature(images=tf.cast(images, inputs["images"].dtype))[answer]

    answers = answer == "logits", MULTI_LABEL[ending], classes
    return Trained(predict, *answers, size, None, *exported_pixels(path), path, exported_labels(path))


def open_tflite(path):
    """A TFLite file that export_model.py wrote, run by LiteRT image by image; needs the extra `export`."""
    from na_keras.deploy.tflite.runner import Runner

    try:
        runner = Runner(path)
    except ImportError as error:
        raise ValueError(str(error)) from error
    if len(runner.input_shape) != 4 or [len(shape) for shape in runner.output_shapes] != [2]:
        raise ValueError(
            f"Expected one image in and probabilities out. Received: {runner.input_shape} and {runner.output_shapes}"
        )
    version = path.parents[1]
    ending = check_exported(version, runner.input_shape)
    classes, size = runner.output_shapes[0][1], runner.input_shape[1]

    def predict(images):
        answers = tf.numpy_function(
            lambda batch: np.concatenate([runner(image[None]) for image in batch]), [images], tf.float32
        )
        return tf.ensure_shape(answers, (None, classes))

    answers, pixels = (ending == "logits", MULTI_LABEL[ending], classes), exported_pixels(version)
    return Trained(predict, *answers, size, None, *pixels, path, exported_labels(version))


def check_exported(version, shape):
    """What an exported version's answers are: "softmax", "sigmoid" or "logits"; the first where its manifest does not
    say.

    Raises:
        ValueError: images that are not evaluated here.
    """
    manifest = version / "manifest.json"
    answer = json.loads(manifest.read_text("utf-8")).get("answer", {}) if manifest.exists() else {}
    if shape[1] != shape[2] or shape[3] != 3:
        raise ValueError(f"Expected a network of square RGB images. Received: {tuple(shape)} of {version}")
    return answer.get("ending", "softmax")


def exported_pixels(version):
    """(the shorter side before the crop, exif_orientation) from the manifest of an exported version; (None, True)
    without one.
    """
    manifest = version / "manifest.json"
    if not manifest.exists():
        return None, True
    recorded = json.loads(manifest.read_text("utf-8"))["preprocessing"]
    return recorded["resize"], recorded.get("exif_orientation", False)  # exports before it was recorded did not turn


def open_named(name, weights, size=None):
    """A network by its name, with weights of ImageNet.

    Raises:
        ValueError: no such network; no weights, or those of a file, which does not say how many classes it has.
    """
    network = Network(name, weights=weights)
    if weights not in ("imagenet", "torchvision-v1", "torchvision-v2"):
        raise ValueError(
            f"--model {name} names a network without weights. Give --weights imagenet (of keras.applications), "
            "torchvision-v1 or torchvision-v2 (of this library's), or the path of a model; of weights in a file, "
            "python training/make_model.py makes one."
        )
    size = size or 224
    model = build(network, size=size, classes=1000, activation="softmax", weights=Start(network).weights)
    predict = lambda images: model(images, training=False)  # noqa: E731
    return Trained(predict, False, False, 1000, size, None, None, True, pathlib.Path(name))


def open_trained(path, pixels=None, weights=None, size=None):
    """The network at `path`: a .keras, .h5 or .tflite file, a run directory, a checkpoint's folder in it, or a
    SavedModel's; or, if nothing is there, the network of that name.

    Args:
        path: pathlib.Path or text.
        pixels: what they mean to a .keras or .h5 file that does not show it.
        weights, size: of a name, see `open_named`.

    Raises:
        FileNotFoundError: nothing is there, and it is no name.
        ValueError: something else is there.
        CheckpointError: a run directory without a readable checkpoint.
    """
    path = pathlib.Path(path)
    if not path.exists() and path.suffix not in (".keras", ".h5", ".tflite"):
        if len(path.parts) > 1:
            raise FileNotFoundError(f"There is nothing at {path}.")
        return open_named(str(path), weights, size)
    if weights or size or pixels and path.suffix not in (".keras", ".h5"):
        raise ValueError(
            f"--weights and --size are of a network's name, --pixels of a .keras or .h5 file: not of {path}"
        )
    if (path / "saved_model.pb").exists():
        return open_saved_model(path)
    if (path / run_directory.RECIPE).exists():
        return open_checkpoint(path)
    if (path / "state.index").exists() and (path.parents[1] / run_directory.RECIPE).exists():
        return open_checkpoint(path.parents[1], path)
    if path.is_dir():
        raise ValueError(
            f"{path} holds neither {run_directory.RECIPE} (a run), nor state.index inside of a run (a checkpoint), nor "
            "saved_model.pb (an exported version, for example exported/demo/1)."
        )
    if path.suffix == ".tflite" and path.exists():
        return open_tflite(path)
    return open_keras_file(path, pixels)
