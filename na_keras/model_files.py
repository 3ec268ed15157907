"""Reading a trained network back, with what its run directory says about it beside the file."""

import json
import pathlib
import zipfile

import keras

import na_keras.layers  # noqa: F401  registers the layers that a file may hold


def load_model(path):
    """The model of a `.keras` file, without its optimizer.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is not Keras' format.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No model file at {path}. Expected the path of a .keras file, as training writes it.")
    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    if path.suffix != ".keras" or "config.json" not in names:
        raise ValueError(
            f"{path} is not a Keras model file. Expected a file named *.keras, written by model.save(); "
            f"received {path.stat().st_size} bytes that are not one."
        )
    return keras.saving.load_model(path, compile=False)


def training_record(path):
    """What the run directory around a model file says.

    Returns:
        (recipe as a dictionary, class names as a list); each None where the folder does not hold it.
    """
    folder = pathlib.Path(path).parent
    recipe, labels = folder / "recipe.json", folder / "labels.txt"
    return (
        json.loads(recipe.read_text()) if recipe.exists() else None,
        labels.read_text().splitlines() if labels.exists() else None,
    )
