"""A network's scores: its output before the softmax or sigmoid, however that is written.

What an operation at the end does is seen from what it does to numbers, not from its name: a softmax is a layer, a
layer's activation, an operation, a Lambda, TensorFlow's own. From the output backwards,

    keeps the values         identity, reshape, flatten, dropout, cast, times a positive number: looked through
    softmax, log-softmax,    left out; so is what was looked through, but for the shape
    sigmoid
    anything else            the scores are its output, unless a softmax or sigmoid stands before it

and what cannot be understood is refused: near 0 and 1 the gradients of probabilities vanish.
"""

import inspect
import warnings

import keras
import numpy as np
from keras import layers, ops

from na_keras.graph.calls import calls_of, nested_model
from na_keras.graph.copying import copy_layer, copy_state

# Keras' layers that compute something linear and then their activation
ACTIVATED = (layers.Dense, layers.EinsumDense, layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.DepthwiseConv2D)
ACTIVATED += (layers.SeparableConv2D, layers.Conv2DTranspose)
POOLING = (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D, layers.AveragePooling2D, layers.MaxPooling2D)
ROUNDING = 2e-2  # of the largest number, for probes in half precision; what else an operation does is far larger


class ScoresNotFound(ValueError):
    """The scores before the softmax or sigmoid cannot be told."""

    def __init__(self, model, operation, reason):
        super().__init__(
            f"grad_cam takes scores before the softmax or sigmoid. {model.name!r} ends in {operation.name!r}, a "
            f"{type(operation).__name__}: {reason} End the network in a Dense with activation=, a Softmax or an "
            "Activation layer; or give the network up to its scores, keras.Model(model.input, scores)."
        )


def probe(function, shape, dtype, probabilities):
    """(x, function(x)) of random numbers, flattened to one row an example; None if it does not take them alone.

    Args:
        function: of one tensor, an operation or an activation.
        shape: of the tensor; unknown sizes are taken as 3.
        dtype: of the tensor.
        probabilities: x in (0, 1), as what follows a softmax gets; otherwise normally distributed.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(0, 2, [2, *(3 if size is None else size for size in shape[1:])]).astype("float32")
    if probabilities:
        x = 1 / (1 + np.exp(-x))
    try:
        with warnings.catch_warnings():  # Keras warns of a softmax of one number
            warnings.simplefilter("ignore")
            y = ops.convert_to_numpy(function(ops.cast(ops.convert_to_tensor(x), dtype)))
    except Exception:  # somebody else's function, on numbers that it may not be made for
        return None
    y = np.asarray(y, "float32")
    return (x, y.reshape(2, -1)) if y.shape[:1] == (2,) and y.size == x.size else None


def scale_of(function, shape, dtype):
    """The positive number that a function multiplies the values with that it gets, in any shape; None for others."""
    found = probe(function, shape, dtype, probabilities=True)
    if found is None:
        return None
    x, y = found[0].reshape(2, -1), found[1]
    factor = (x * y).sum() / (x * x).sum()
    return factor if factor > 0 and np.abs(y - factor * x).max() <= ROUNDING * np.abs(y).max() else None


def squashing(function, shape, dtype):
    """The name of what a function is: "softmax", "log-softmax", both over the last axis, "sigmoid", or None."""
    found = probe(function, shape, dtype, probabilities=False)
    if found is None:
        return None
    x, y = found
    known = [("sigmoid", 1 / (1 + np.exp(-x)))]
    for form in (x, x.reshape(2, -1)):  # the second: (b, c, 1, 1), over the classes
        exponentials = np.exp(form)
        softmax = exponentials / exponentials.sum(-1, keepdims=True)
        known += [("softmax", softmax), ("log-softmax", np.log(softmax))] if form.shape[-1] > 1 else []
    for name, values in known:
        expected = values.reshape(2, -1)
        if np.abs(y - expected).max() <= ROUNDING * np.abs(expected).max():
            return name
    return None


def function_of(call):
    """A call with one tensor among its arguments as a function of that one, at inference."""
    is_layer = isinstance(call.operation, layers.Layer)
    has_training = is_layer and "training" in inspect.signature(call.operation.call).parameters

    def function(x):
        replace = lambda value: x if keras.backend.is_keras_tensor(value) else value  # noqa: E731
        args, kwargs = keras.tree.map_structure(replace, (call.args, call.kwargs))
        return call.operation(*args, **{**kwargs, "training": False} if has_training else kwargs)

    return function


def is_keras_own(operation):
    """Whether it is Keras who says what an operation computes; not so for a Lambda."""
    own = getattr(type(operation).call, "__module__", "").partition(".")[0] == "keras"
    return own and not isinstance(operation, layers.Lambda | keras.Model)


def activation_of(operation):
    """The function that a layer applies to its linear part, or None."""
    is_activated = isinstance(operation, ACTIVATED) and is_keras_own(operation)
    return operation.activation if is_activated else None


def is_weightless(call):
    """Whether a call has one input and its operation no weights, so that numbers can be tried on it."""
    return not getattr(call.operation, "weights", None) and len(call.inputs) == 1


def squashing_of(call):
    """What a call ends in: "softmax", "log-softmax", "sigmoid", or None."""
    if not call.inputs:
        return None
    if activation := activation_of(call.operation):
        return squashing(activation, call.outputs[0].shape, call.outputs[0].dtype)
    return squashing(function_of(call), call.inputs[0].shape, call.inputs[0].dtype) if is_weightless(call) else None


def scale_of_call(call):
    """The positive number that a call multiplies the values of its input with; None if it does anything else."""
    return scale_of(function_of(call), call.inputs[0].shape, call.inputs[0].dtype) if is_weightless(call) else None


def stands_after_squashing(tensor, makers):
    """Whether a softmax or sigmoid stands before a tensor without weights or pooling between."""
    waiting, seen = [tensor], set()
    while waiting:
        call = makers.get(id(waiting.pop()))
        if call is None or id(call.operation) in seen:
            continue
        seen.add(id(call.operation))
        if squashing_of(call):
            return True
        if not getattr(call.operation, "weights", None) and not isinstance(call.operation, POOLING):
            waiting += call.inputs
    return False


def without_activation(operation):
    """Function of an operation's arguments: what it returns before its activation."""
    linear = copy_layer(operation)
    linear.activation = keras.activations.linear

    def scores(x, *args, **kwargs):
        if not linear.built:
            linear.build(x.shape)
            copy_state(operation, linear)
        return linear(x, *args, **kwargs)

    return scores


def reshaped_to(shape):
    """Function of an operation's arguments: the first, in another shape."""
    return lambda x, *args, **kwargs: ops.reshape(x, (-1, *shape[1:]))


def flat_makers(model):
    """{id of a tensor: the call that returned it}, in the model and the models inside it; a model's output is that of
    its last layer."""
    makers = {}
    for call in calls_of(model):
        if inner := nested_model(call.operation):
            makers |= flat_makers(inner)
            for ours, theirs in zip(call.outputs, inner.outputs, strict=True):
                if id(theirs) in makers:
                    makers[id(ours)] = makers[id(theirs)]
            makers.update(
                (id(theirs), makers.get(id(ours))) for ours, theirs in zip(call.inputs, inner.inputs, strict=True)
            )
        else:
            makers.update((id(tensor), call) for tensor in call.outputs)
    return makers


def activation_at_end(model):
    """What a functional model with one output ends in, seen through what keeps the values, models inside it too.

    Returns:
        ("softmax", "log-softmax", "sigmoid", or None for anything else; the operation, None without any).
    """
    makers, operation = flat_makers(model), None
    (tensor,) = model.outputs
    while (call := makers.get(id(tensor))) is not None:
        operation = call.operation
        if name := squashing_of(call):
            return name, operation
        scale = scale_of_call(call)
        if scale is None or abs(scale - 1) > ROUNDING:
            break
        (tensor,) = call.inputs
    return None, operation


def replacements_for_scores(model):
    """What to compute in the place of a network's last operations, so that its output is the scores.

    Args:
        model: functional model with one output.

    Returns:
        ({id of an operation: function of its arguments}, the operation that the scores come from, or None).

    Raises:
        ScoresNotFound: a softmax or sigmoid stands before something that is neither of the kinds above, or in an
            operation that is called several times.
    """
    makers, replaced = flat_makers(model), {}
    (tensor,) = model.outputs
    while (call := makers.get(id(tensor))) is not None:
        operation = call.operation
        if squashing_of(call):
            shape = call.outputs[0].shape
            is_layer = activation_of(operation) is not None
            replaced[id(operation)] = without_activation(operation) if is_layer else reshaped_to(shape)
            check_called_once(model, replaced, makers)
            return replaced, operation
        if scale_of_call(call) is not None:
            replaced[id(operation)] = reshaped_to(call.outputs[0].shape)
            (tensor,) = call.inputs
            continue
        pooled = isinstance(operation, POOLING) or getattr(operation, "weights", None)
        if not pooled and any(stands_after_squashing(tensor, makers) for tensor in call.inputs):
            raise ScoresNotFound(
                model, operation, "what it does to the softmax or sigmoid before it is not understood."
            )
        return {}, operation
    return {}, None


def check_called_once(model, replaced, makers):
    """Raises ScoresNotFound if an operation that is replaced at the end is called elsewhere too."""
    calls = {id(call): call.operation for call in makers.values() if call is not None}
    uses = [id(operation) for operation in calls.values()]
    for operation in calls.values():
        if id(operation) in replaced and uses.count(id(operation)) > 1:
            raise ScoresNotFound(model, operation, "it is called several times.")


def check_scores(model, operation, scores):
    """Refuses scores that are still probabilities.

    Args:
        model: for the message.
        operation: that the scores come from, or None.
        scores: NumPy (batch, classes).

    Raises:
        ScoresNotFound: the rows sum up to 1, or their exponentials do; or one number in (0, 1), of a class that is not
            Keras'.
    """
    if operation is None:
        return
    scores = scores.astype("float64")
    if scores.shape[1] == 1:
        found = not is_keras_own(operation) and ((scores > 0) & (scores < 1)).all()
    else:
        of_softmax = (scores >= 0).all() and np.abs(scores.sum(1) - 1).max() < ROUNDING
        found = of_softmax or ((scores <= 0).all() and np.abs(np.exp(scores).sum(1) - 1).max() < ROUNDING)
    if found:
        raise ScoresNotFound(
            model, operation, "its output is probabilities, which it computes in a way not understood."
        )
