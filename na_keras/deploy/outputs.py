"""What a classifier answers with, by name: `probabilities` or `logits`, and in SavedModels what else it computes.

A model's output is a tensor, which is then the probabilities, or a dictionary with one of the two names.
"""

import keras

ANSWERS = ("probabilities", "logits")
TOP = ("classes", "scores", "labels")  # of the best classes, in a SavedModel


def named(outputs):
    """{name: value} of a model's output, symbolic or not."""
    return dict(outputs) if isinstance(outputs, dict) else {ANSWERS[0]: outputs}


def answer_name(outputs):
    """The name of a classifier's answer among named outputs.

    Raises:
        ValueError: not one of ANSWERS, or both; another output has a name that a signature gives itself.
    """
    found = [name for name in ANSWERS if name in outputs]
    if len(found) != 1 or set(TOP) & set(outputs):
        raise ValueError(
            f"Expected a classifier that answers a tensor, or a dictionary with one of {', '.join(ANSWERS)} and other "
            f"outputs, not called {', '.join(TOP)}. Received: {', '.join(map(str, outputs))}"
        )
    return found[0]


def check_answer(model, alone=False):
    """(name, number of classes) of a classifier's answer.

    Args:
        model: Keras model.
        alone: whether there may be no further output.

    Raises:
        ValueError: see `answer_name`; or it is not (batch, classes).
    """
    output = getattr(model, "output", None)  # a model of Python code alone has none
    outputs = named(output)
    if any(not keras.backend.is_keras_tensor(tensor) for tensor in outputs.values()):
        raise ValueError(f"Expected a classifier with one input and one output. Received: {output}")
    name = answer_name(outputs)
    shape = tuple(outputs[name].shape)
    if len(shape) != 2 or shape[1] is None:
        raise ValueError(
            f"Expected a classifier that answers (batch, classes). Received: {model.input_shape} to {shape}"
        )
    if alone and len(outputs) > 1:
        raise ValueError(f"Expected a classifier with one output, {name}. Received: {', '.join(outputs)}")
    return name, shape[1]


def answer_alone(model):
    """The functional classifier without further outputs; the model itself where there are none."""
    if not isinstance(model.output, dict):
        return model
    name = answer_name(model.output)
    tensor = model.output[name]
    return keras.Model(model.inputs[0], tensor if name == ANSWERS[0] else {name: tensor}, name=model.name)
