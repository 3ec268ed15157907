"""What the pixels mean that a network takes, and the layers that make it of raw RGB, 0..255.

    raw     0..255 as they are
    tf      x / 127.5 - 1, in -1..1
    torch   (x / 255 - mean) / deviation with ImageNet's mean and deviation
    caffe   blue, green, red, each less its mean over ImageNet, in 0..255

The names are those of keras.applications.imagenet_utils.preprocess_input(mode=...).
"""

import keras
import numpy as np

from na_keras.graph.calls import calls_of, models_of, nested_model, run_graph
from na_keras.models.shared import IMAGENET_MEAN, IMAGENET_STANDARD_DEVIATION

CAFFE_MEAN = (123.68, 116.779, 103.939)  # red, green, blue
PIXELS = {
    "raw": lambda x: x,
    "tf": lambda x: x / 127.5 - 1,
    "torch": lambda x: (x - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STANDARD_DEVIATION),
    "caffe": lambda x: (x - np.array(CAFFE_MEAN))[..., ::-1],
}
BYTES = 50  # a constant of this size, or the inverse of one, is about pixels in 0..255
PASSIVE_LAYERS = ("Random", "Resizing", "Identity", "ZeroPadding")  # beginnings of class names
PASSIVE_OPERATIONS = ("Cast", "GetItem", "Stack", "Concatenate", "Flip", "Identity")
LIKELY = 8  # how far the statistics of other images may be off, as a factor and in deviations
MEANINGS = "raw (0..255), tf (-1..1), torch (ImageNet's mean and deviation) or caffe (BGR, less the mean)"


def preprocessed(image, pixels):
    """Raw images, a Keras tensor (batch, height, width, 3), as `pixels` says; float32 whatever the precision policy.

    Raises:
        ValueError: "torch" or "caffe", which are of three channels, for images of another number.
    """
    if pixels in ("torch", "caffe") and image.shape[-1] != 3:
        raise ValueError(f"pixels={pixels} is of red, green and blue. Received: images of shape {image.shape[1:]}")
    options = {"dtype": "float32", "name": f"{pixels}_preprocessing"}
    if pixels == "tf":
        return keras.layers.Rescaling(1 / 127.5, offset=-1.0, **options)(image)
    if pixels == "torch":
        variance = [deviation**2 for deviation in IMAGENET_STANDARD_DEVIATION]
        return keras.layers.Normalization(-1, IMAGENET_MEAN, variance, **options)(image)
    if pixels == "caffe":
        centred = keras.layers.Normalization(-1, CAFFE_MEAN, (1.0, 1.0, 1.0), **options)(image)
        return keras.ops.flip(centred, axis=-1)
    return image


def pixels_of_family(builder):
    """What the pixels mean to a network of keras.applications: its family's preprocess_input is tried on numbers.

    Raises:
        ValueError: that does none of the above.
    """
    family = builder.__module__.rpartition(".")[2]
    preprocess = getattr(getattr(keras.applications, family, None), "preprocess_input", None)
    x = np.arange(0, 252, 7, "float32").reshape(1, 4, 3, 3)
    for name, formula in PIXELS.items():
        if preprocess and np.allclose(preprocess(x.copy(), data_format="channels_last"), formula(x), atol=1e-3):
            return name
    raise ValueError(f"keras.applications.{family} says of its pixels nothing that is known here: {', '.join(PIXELS)}.")


def constants_of(call):
    """The numbers that an operation is given besides tensors, flat."""
    flat = [x for x in keras.tree.flatten((call.args, call.kwargs)) if not keras.backend.is_keras_tensor(x)]
    arrays = [keras.ops.convert_to_numpy(x) for x in flat if isinstance(x, int | float) or hasattr(x, "__array__")]
    return [float(number) for array in arrays for number in np.ravel(array)]


def is_about_bytes(call):
    """Whether a call makes of numbers in 0..255 what networks take; None if it does nothing to the numbers."""
    operation = call.operation
    if isinstance(operation, keras.layers.Rescaling):
        as_they_are = np.all(np.equal(operation.scale, 1)) and not np.any(operation.offset)  # somebody says so
        return bool(as_they_are or 0 < np.max(np.abs(operation.scale)) <= 1 / BYTES)
    if isinstance(operation, keras.layers.Normalization):
        mean = operation.mean if operation.mean is not None else 0.0
        return float(np.max(np.abs(keras.ops.convert_to_numpy(mean)))) >= BYTES
    if isinstance(operation, keras.layers.Layer):
        return None if type(operation).__name__.startswith(PASSIVE_LAYERS) else False
    if type(operation).__name__ in PASSIVE_OPERATIONS:
        return None
    sizes = [abs(number) for number in constants_of(call)]
    return any(size >= BYTES or 0 < size <= 1 / BYTES for size in sizes)


def shown_pixels(model):
    """ "raw" if a functional model shows that it takes 0..255, by the first thing it does to the numbers; else None.

    A Rescaling further inside says nothing about the model's own input: the network of a family may hold one, and yet
    be given images that are scaled already.
    """
    waiting, seen, found = [model.inputs[0]], set(), []
    while waiting:
        tensor = waiting.pop()
        for call in calls_of(model):
            if id(call.operation) in seen or not any(x is tensor for x in call.inputs):
                continue
            inner = nested_model(call.operation)
            verdict = is_about_bytes(call) if inner is None else shown_pixels(inner) == "raw"
            if verdict is None:
                waiting += call.outputs
                seen.add(id(call.operation))
            else:
                found.append(verdict)
    return "raw" if found and all(found) else None


def with_pixels(model, pixels, size):
    """The functional model, for raw images, which it shows by its first layer.

    Args:
        model: takes images (batch, height, width, channels); of several outputs all stay, as a list.
        pixels: what they mean to it, a key of PIXELS.
        size: pixels of the sides where the model leaves them open; None leaves them open.
    """
    sides = [side or size for side in model.input_shape[1:3]]
    said = pixels == "raw" and shown_pixels(model) == "raw"
    if said and tuple(sides) == tuple(model.input_shape[1:3]):
        return model
    image = keras.Input((*sides, model.input_shape[3]), name="images")
    x = preprocessed(image, pixels)
    if pixels == "raw" and not said:  # for whoever reads the file that is written of it
        x = keras.layers.Rescaling(1.0, dtype="float32", name="raw_preprocessing")(image)
    outputs = run_graph(model, x, lambda operation, *args, **kwargs: operation(*args, **kwargs))
    return keras.Model(image, outputs if len(outputs) > 1 else outputs[0], name=model.name)


class Reached(Exception):
    """The tensor that was waited for is here; the rest of the network need not run."""


def unlikely_range(model, images):
    """Whether images look as if they were not what a trained network takes.

    What comes to its first batch norm is compared with the mean and variance that are stored there: trained statistics
    and photographs of any kind agree within a small factor; pixels of another range are off by a hundred.

    Args:
        model: functional, takes raw images.
        images: uint8 (batch, height, width, 3).

    Returns:
        None if all is well or nothing can be said; else a sentence.
    """
    norms = (call.operation for inner in models_of(model) for call in calls_of(inner))
    norm = next((layer for layer in norms if isinstance(layer, keras.layers.BatchNormalization)), None)
    if norm is None:
        return None
    mean, variance = (keras.ops.convert_to_numpy(x) for x in (norm.moving_mean, norm.moving_variance))
    if not mean.any() and (variance == 1).all():  # never trained
        return None

    def call(operation, *args, **kwargs):
        if inner := nested_model(operation):
            return keras.tree.pack_sequence_as(inner.output, run_graph(inner, args, call))
        if operation is norm:
            raise Reached(args[0])
        return operation(*args, **kwargs)

    try:
        run_graph(model, keras.ops.convert_to_tensor(images, model.inputs[0].dtype), call)
    except Reached as reached:
        x = keras.ops.convert_to_numpy(reached.args[0]).astype("float64")
    axes = tuple(axis for axis in range(x.ndim) if axis != norm.axis % x.ndim)
    deviation = np.sqrt(variance + norm.epsilon)
    factor = float(np.median(x.std(axes) / deviation))
    shift = float(np.median(np.abs(x.mean(axes) - mean) / deviation))
    if 1 / LIKELY < factor < LIKELY and shift < LIKELY:
        return None
    return (
        f"What comes to {norm.name!r} varies {factor:.3g} times as much as what the network was trained with, and lies "
        f"{shift:.3g} deviations off: its pixels may mean something else."
    )
