"""How a classifier ends: in probabilities that exclude each other, in independent ones, or in logits.

softmax    probabilities of classes of which an image has one; a row sums up to 1
sigmoid    independent probabilities, of classes of which an image may have any number; or one, yes or no
logits     scores before either; logarithms of probabilities are logits too
"""

import keras
import numpy as np

from na_keras.graph.scores import ACTIVATED, activation_at_end, flat_makers, is_keras_own, stands_after_squashing
from na_keras.networks.classifiers import with_classifier

ACTIVATIONS = ("softmax", "sigmoid", "none")
SUMS_TO_ONE = 0.02  # rows of probabilities in half precision


def random_answers(model):
    """The answers, float64 (2, classes), of a classifier to two images of random pixels 0..255."""
    shape = model.inputs[0].shape
    pixels = np.random.default_rng(0).uniform(0, 255, (2, *(side or 96 for side in shape[1:3]), shape[3]))
    outputs = keras.tree.flatten(model(pixels.astype("float32"), training=False))
    return keras.ops.convert_to_numpy(outputs[0]).astype("float64")


def ending(model, where=None):
    """What a functional classifier's answers are: "softmax", "sigmoid" or "logits".

    Args:
        model: one input, images (batch, height, width, channels); one output (batch, classes).
        where: what the model is called in messages; its name by default.

    Raises:
        ValueError: something that is not understood is done to probabilities; answers of NaN; numbers in 0..1 that do
            not sum up to 1, computed in a way that is not understood.
    """
    where = where or repr(model.name)
    name, operation = activation_at_end(model)
    if name in ("softmax", "sigmoid"):
        return name
    own = operation is not None and is_keras_own(operation)
    if name == "log-softmax" or own and isinstance(operation, ACTIVATED):
        activation = getattr(operation, "activation", keras.activations.linear)
        if name or activation is keras.activations.linear:
            return "logits"
    rows = random_answers(model)
    if not np.isfinite(rows).all():
        raise ValueError(f"Expected class probabilities or logits. {where} answers NaN to images of random pixels.")
    if (rows >= 0).all() and np.abs(rows.sum(1) - 1).max() < SUMS_TO_ONE:  # somebody's own way to write a softmax
        return "softmax"
    last = f"{operation.name!r}, a {type(operation).__name__}" if operation is not None else "no layer"
    if ((rows >= 0) & (rows <= 1)).all() or stands_after_squashing(model.outputs[0], flat_makers(model)):
        raise ValueError(
            f"Expected a network that ends in a softmax, in sigmoids or in logits. {where} ends in {last}; the answers "
            f"to two random images sum up to {rows[0].sum():.3g} and {rows[1].sum():.3g}. End it in a softmax or a "
            "sigmoid of Keras, or leave out what comes after it."
        )
    return "logits"


def appended(model, activation):
    """The functional model with an activation, a layer in float32, after its first output."""
    names, name = {layer.name for layer in model.layers}, activation
    while name in names:
        name = f"{name}_at_end"
    first = keras.layers.Activation(activation, dtype="float32", name=name)(model.outputs[0])
    return keras.Model(model.inputs[0], [first, *model.outputs[1:]], name=model.name)


def with_ending(model, where, activation):
    """A classifier that ends as asked for.

    Args:
        model: functional, one input; of several outputs the first is the classifier's answer.
        where: what the model is called in messages.
        activation: one of ACTIVATIONS, or None: as the network ends.

    Returns:
        (functional model with a list of outputs, its ending: "softmax", "sigmoid" or "logits").

    Raises:
        ValueError: logits, and nobody says what is to become of them; an activation that contradicts the network's own;
            as `ending`.
    """
    outputs = list(model.outputs)
    found = ending(keras.Model(model.inputs[0], outputs[0], name=model.name), where)
    if activation is None and found == "logits":
        raise ValueError(
            f"{where} ends in logits. Say by --activation what its answers are to be: softmax (an image is of one "
            "class), sigmoid (of any number of classes, or yes or no), or none (logits as they are)."
        )
    if activation == "none" and found != "logits":
        model, found = with_classifier(model, where, outputs[0].shape[-1], None), "logits"
    elif activation not in (None, "none", found):
        if found != "logits":
            raise ValueError(
                f"{where} ends in a {found}, and --activation {activation} contradicts it: leave that out."
            )
        model, found = appended(model, activation), activation
    return keras.Model(model.inputs[0], list(model.outputs), name=model.name), found
