"""Reading a trained network back, with what its run directory says about it beside the file."""

import json
import pathlib
import re
import zipfile

import keras

import na_keras.layers  # noqa: F401  registers the layers that a file may hold


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
