"""Reading a trained network back, with what its run directory says about it beside the file."""

import json
import pathlib
import re
import zipfile

import keras
import numpy as np

import na_keras.layers  # noqa: F401  registers the layers that a file may hold
from na_keras.graph.calls import checked_functional, flat_calls, functional, has_own_code
from na_keras.graph.scores import ACTIVATED, activation_at_end, function_of, is_keras_own, is_weightless, probe

# Layers that give pixels another range, whatever their weights; Rescaling(1.0) says that there is nothing to do.
NORMALIZING = (keras.layers.Normalization, keras.layers.Rescaling, keras.layers.BatchNormalization)
NORMALIZING += (keras.layers.LayerNormalization, keras.layers.GroupNormalization, keras.layers.UnitNormalization)


def unknown_class(path, error):
    """The error for a file with a class that is not registered, made of Keras' own; None of another error."""
    unknown = re.search(r"Could not locate (?:class|function) '(\w+)'|Unknown (?:layer|object): '?(\w+)", str(error))
    if not unknown:
        return None
    return ValueError(
        f"{path} holds {unknown[1] or unknown[2]}, which is not registered here. Import the module that defines it, "
        "with @keras.saving.register_keras_serializable, before loading the file."
    )


def load_h5(path):
    """`load_model` of an `.h5` file."""
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # h5py and Keras raise whatever they meet in a damaged file
        text = " ".join(str(error).split())
        raise unknown_class(path, error) or ValueError(f"{path} cannot be read as a Keras model: {text}") from error


def load_model(path):
    """The model of a `.keras` file, or of an `.h5` file as Keras 2 wrote it, without its optimizer.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is not Keras' format, or holds a class that is not registered in this process.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No model file at {path}. Expected the path of a .keras file, as training writes it.")
    if path.suffix == ".h5":
        return load_h5(path)
    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    if path.suffix != ".keras" or "config.json" not in names:
        raise ValueError(
            f"{path} is not a Keras model file. Expected a file named *.keras, written by model.save(); "
            f"received {path.stat().st_size} bytes that are not one."
        )
    try:
        return keras.saving.load_model(path, compile=False)
    except TypeError as error:
        if (unknown := unknown_class(path, error)) is None:
            raise
        raise unknown from error


def check_classifier(model):
    """Checks that a model maps raw RGB images to class probabilities, as the programs here expect.

    Models inside the model are looked into. What a class with code of its own computes is not.

    Returns:
        The model as a functional one of the same layers, from one tensor to one tensor where they stood in dictionaries
        or lists; a model with code of its own as it is.

    Raises:
        ValueError: another number of inputs or outputs, other shapes, no softmax at the end, nothing that normalises
            before the first convolution; or a model without a graph.
    """
    graph = functional(model)
    if graph is None:
        if not has_own_code(model) or not hasattr(model, "inputs"):
            checked_functional(model, "This program")
        return model
    for role, tensors in (("input", graph.inputs), ("output", graph.outputs)):
        if len(tensors) != 1:
            raise ValueError(
                f"Expected a classifier with one {role}. {model.name!r} has {len(tensors)}: "
                f"{', '.join(tensor.name for tensor in tensors)}. Pass keras.Model(input, output) with one of each."
            )
    shape, answer = graph.inputs[0].shape, graph.outputs[0].shape
    if len(shape) != 4 or shape[-1] != 3:
        raise ValueError(f"Expected a classifier of images (batch, height, width, 3). Received: {shape} to {answer}")
    if len(answer) != 2:
        raise ValueError(f"Expected class probabilities (batch, classes). Received: {shape} to {answer}")
    check_softmax(graph)
    check_normalization(graph)
    plain = all(keras.backend.is_keras_tensor(side) for side in (graph.input, graph.output))
    return graph if plain else keras.Model(graph.inputs[0], graph.outputs[0], name=model.name)


def check_softmax(graph):
    """Raises ValueError unless a functional classifier's answers are probabilities that sum up to 1."""
    name, operation = activation_at_end(graph)
    if name == "softmax":
        return
    if name is None and operation is not None:  # somebody's own way to write a softmax: its numbers tell
        shape = graph.inputs[0].shape
        pixels = np.random.default_rng(0).uniform(0, 255, (2, *(side or 96 for side in shape[1:3]), 3))
        rows = keras.ops.convert_to_numpy(keras.tree.flatten(graph(pixels.astype("float32"), training=False))[0])
        rows = rows.astype("float64")
        if not np.isfinite(rows).all():
            raise ValueError(f"Expected class probabilities. {graph.name!r} answers NaN to images of random pixels.")
        if (rows >= 0).all() and np.abs(rows.sum(1) - 1).max() < 0.02:
            return
        activation = getattr(getattr(operation, "activation", None), "__name__", "no softmax")
        name = f"{activation}; the answers to two random images sum up to {rows[0].sum():.3g} and {rows[1].sum():.3g},"
    raise ValueError(
        f"Expected a network that ends in a softmax. Received: {name} in "
        f"{operation.name if operation else 'no layer'}. Append keras.layers.Softmax() to scores."
    )


def changes_pixels(call):
    """Whether a weightless call makes other numbers of an image: not by padding, resizing, flipping, channel order."""
    found = probe(function_of(call), call.inputs[0].shape, call.inputs[0].dtype, probabilities=False)
    if found is None:
        return False
    before, after = (np.sort(values, axis=None) for values in found)
    return bool(np.abs(after - before).max() > 0.02 * np.abs(before).max())


def check_normalization(graph):
    """Raises ValueError where the images of a functional classifier reach a convolution as they are."""
    calls = flat_calls(graph)
    raw = {id(tensor) for tensor in graph_inputs(calls)}
    for call in calls:
        if not any(id(tensor) in raw for tensor in call.inputs) or isinstance(call.operation, NORMALIZING):
            continue
        if isinstance(call.operation, ACTIVATED) and is_keras_own(call.operation):
            raise ValueError(
                "Expected a network that takes pixels 0..255 and normalises them itself: build it with "
                "include_preprocessing=True, or begin it with a Normalization or Rescaling layer. Received: the pixels "
                f"reach {call.operation.name!r}, a {type(call.operation).__name__}, as they are. If it was trained so, "
                "on pixels 0..255, begin it with keras.layers.Rescaling(1.0)."
            )
        if is_weightless(call) and not changes_pixels(call):
            raw |= {id(tensor) for tensor in call.outputs}


def graph_inputs(calls):
    """The tensors among the inputs of `flat_calls` that no call returns."""
    made = {id(tensor) for call in calls for tensor in call.outputs}
    return [tensor for call in calls for tensor in call.inputs if id(tensor) not in made]


def read_labels(path):
    """The class names of a file, one a line, in UTF-8; a byte-order mark and Windows' line ends are no part of them.

    Raises:
        ValueError: an empty line, or bytes that are not UTF-8; with the file and the line.
    """
    path = pathlib.Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}. Save it as UTF-8.") from error
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise ValueError(f"{path}: expected a class name in each line. Line {number} of {len(lines)} is empty.")
    return lines


def training_record(path):
    """What the run directory around a model file says.

    Returns:
        (recipe as a dictionary, class names as a list); each None where the folder does not hold it. A recipe of before
        there was `exif_orientation` says False: photographs were taken as they are stored.
    """
    folder = pathlib.Path(path).parent
    recipe, labels = folder / "recipe.json", folder / "labels.txt"
    return (
        {"exif_orientation": False, **json.loads(recipe.read_text("utf-8"))} if recipe.exists() else None,
        read_labels(labels) if labels.exists() else None,
    )
