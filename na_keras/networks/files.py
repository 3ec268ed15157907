"""The classifier in a `.keras` or `.h5` file: what its pixels mean, how large its images are, which output answers."""

import keras

from na_keras.graph.calls import checked_functional, functional, has_own_code
from na_keras.model_files import load_model
from na_keras.networks.endings import ending, with_ending
from na_keras.networks.pixels import MEANINGS, shown_pixels, with_pixels

READER = "A network that these programs take"


def of_one_tensor(model):
    """The same model with a tensor, not a list of one, as input and output: Keras warns where the other comes."""
    return keras.Model(model.inputs[0], model.outputs[0], name=model.name)


def meaning_of_pixels(model, path, pixels):
    """What pixels mean to a functional model of images: what it shows, or `pixels`.

    Raises:
        ValueError: it does not show it, and nobody says; or it shows otherwise.
    """
    shown = shown_pixels(model)
    if shown is None and pixels is None:
        raise ValueError(f"{path} does not show what its pixels mean. Say it by --pixels: {MEANINGS}.")
    if shown and pixels not in (None, shown):
        raise ValueError(
            f"{path} begins by scaling pixels of 0..255 itself, and --pixels {pixels} contradicts it: leave that out."
        )
    return shown or pixels


def named_outputs(model, path):
    """{name: tensor} of a functional model's outputs: the keys of a dictionary, or the names of the layers.

    Raises:
        ValueError: two of the same name.
    """
    if isinstance(model.output, dict):
        return dict(model.output)
    names = list(model.output_names)
    if len(set(names)) < len(names):
        raise ValueError(f"{path} has several outputs of one name: {', '.join(names)}. Give the model a dictionary.")
    return dict(zip(names, model.outputs, strict=True))


def choose_output(model, path, name=None):
    """{name: tensor} of a functional model's outputs, the classifier's answer first.

    Args:
        name: of that output; needed where there are several.

    Raises:
        ValueError: no output of that name; several, and no name; one that is not (batch, classes).
    """
    outputs = named_outputs(model, path)
    if name is None and len(outputs) > 1:
        raise ValueError(
            f"{path} has {len(outputs)} outputs: {', '.join(outputs)}. Say by --output-name which of them is the "
            "classifier's answer."
        )
    name = name or next(iter(outputs))
    if name not in outputs:
        raise ValueError(f"{path} has no output {name}. It has: {', '.join(outputs)}")
    if len(outputs[name].shape) != 2 or outputs[name].shape[-1] is None:
        raise ValueError(f"{path} must answer (batch, classes). Received: {outputs[name].shape} of {name}")
    return {name: outputs.pop(name), **outputs}


def image_model(path, pixels, loaded=None, output_name=None):
    """(functional model of a file, what pixels mean to it).

    Args:
        path: of the file.
        pixels: what they mean where the file does not show it.
        loaded: the file's model where it has been read already.
        output_name: which of several outputs is the answer. All are kept, as a list, the answer first; without a name
            there may be one only.

    Raises:
        ValueError: no functional classifier of one image, RGB or grey; pixels that the file does not show, and nobody
            says; or that it shows otherwise.
    """
    model = checked_functional(loaded or load_model(path), READER)
    if len(model.inputs) != 1:
        raise ValueError(
            f"{path} must be a classifier with one input. It has {len(model.inputs)}: "
            f"{', '.join(tensor.name for tensor in model.inputs)}."
        )
    shape = model.inputs[0].shape
    if len(shape) != 4 or shape[-1] not in (1, 3):
        raise ValueError(
            f"{path} must be a classifier of images (batch, height, width, 3), or 1 for grey ones. Received: {shape}"
        )
    outputs = list(choose_output(model, path, output_name).values())
    model = keras.Model(model.inputs[0], outputs if len(outputs) > 1 else outputs[0], name=model.name)
    return model, meaning_of_pixels(model, path, pixels)


def square_side(model, path):
    """Pixels of the sides of a model's images, None for any.

    Raises:
        ValueError: they are not square, or not RGB, as the images of training and evaluation are.
    """
    height, width, channels = model.input_shape[1:]
    if height != width or channels != 3:
        raise ValueError(
            f"{path} takes images {(height, width, channels)}: expected square RGB images (side, side, 3)."
        )
    return height


def own_shape(network):
    """(pixels of the sides, classes) of a file's model, None for what it leaves open; (None, None) of a name.

    Raises:
        FileNotFoundError, ValueError: as `open_classifier`.
    """
    if network.name.kind != "file":
        return None, None
    model, _ = image_model(network.name.path, network.pixels)
    return square_side(model, network.name.path), model.output_shape[-1]


def open_classifier(path, pixels=None, size=None):
    """The classifier of a `.keras` or `.h5` file, from raw images to probabilities: logits get a softmax.

    Args:
        path: of the file.
        pixels: what they mean where the file does not show it.
        size: pixels of the sides where the model leaves them open; None leaves them open.

    Raises:
        FileNotFoundError, ValueError: as `load_model`, `image_model` and `endings.ending`.
    """
    loaded = load_model(path)
    if functional(loaded) is None:  # code of its own, which nothing here looks into
        if not has_own_code(loaded) or not hasattr(loaded, "inputs"):
            checked_functional(loaded, READER)
        return loaded
    model, meaning = image_model(path, pixels, loaded)
    model = with_pixels(model, meaning, size)
    if ending(model, str(path)) == "logits":
        model, _ = with_ending(model, str(path), "softmax")
    return of_one_tensor(model)
