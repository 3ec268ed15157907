"""Where attention modules go in a network that is not ours: layers of a functional model, found by rule or by name.

The rule is the place in the authors' ResNet (13952522076/NANet, models/resnet/resnet_na4.py; the paper does not say):
after the last normalisation of each residual branch. Of the tensors that an addition sums up, the shortcut is the one
with the fewest operations of its own; the others are residual branches:

    x -> conv -> bn -> relu -> conv -> bn -+-> add        5 operations of its own: the branch, and its last norm
    x ------------> conv -> bn ------------+              2: the shortcut, here with a projection

From the addition a branch is followed back through layers without weights that keep the shape (dropout, activations).
"""

import math
import re

from keras import Model, layers

from na_keras.graph.calls import calls_of, models_of
from na_keras.graph.feature_maps import NORMALIZATIONS, formats_of_operations

MERGING = (layers.Add, layers.Average, layers.Maximum, layers.Minimum, layers.Multiply, layers.Subtract)


def is_addition(operation):
    """Whether it is an Add layer or keras.ops.add, as `a + b` of Keras tensors is."""
    in_ops = type(operation).__name__ == "Add" and not isinstance(operation, layers.Layer)
    return isinstance(operation, layers.Add) or in_ops


def may_add(call):
    """Whether a call may add maps where no graph shows it: a layer with code of its own on several of one shape."""
    operation, shapes = call.operation, {tuple(tensor.shape) for tensor in (*call.inputs, *call.outputs)}
    unknown = isinstance(operation, layers.Layer) and not isinstance(operation, (Model, *MERGING))
    return unknown and len(call.inputs) > 1 and len(shapes) == 1


def residual_branches(model, adds=lambda call: is_addition(call.operation)):
    """The tensors that additions add to a shortcut, in the order of the graph, and the call that made each tensor.

    Args:
        model: functional model.
        adds: function of a call: whether it is such an addition.
    """
    maker, ancestors, found = {}, {}, []
    for index, call in enumerate(calls_of(model)):
        before = [ancestors.get(id(tensor), 0) for tensor in call.inputs]
        if adds(call) and len(before) > 1:
            own = []  # operations on the way to this summand alone
            for summand in range(len(before)):
                elsewhere = 0
                for other in before[:summand] + before[summand + 1 :]:
                    elsewhere |= other
                own.append((before[summand] & ~elsewhere).bit_count())
            found += [tensor for tensor, count in zip(call.inputs, own, strict=True) if count > min(own)]
        reached = 1 << index  # a set of calls, as bits
        for earlier in before:
            reached |= earlier
        for tensor in call.outputs:
            maker[id(tensor)], ancestors[id(tensor)] = call, reached
    return found, maker


def last_normalization(tensor, maker):
    """The normalisation of feature maps at the end of a branch, or None."""
    while call := maker.get(id(tensor)):
        operation = call.operation
        if isinstance(operation, NORMALIZATIONS):
            return operation if len(tensor.shape) == 4 else None
        weightless = not getattr(operation, "weights", None) and not isinstance(operation, Model)
        if not (weightless and len(call.inputs) == 1 and call.inputs[0].shape == tensor.shape):
            return None
        (tensor,) = call.inputs
    return None


def find_insertion_points(model, where):
    """The layers after which the modules go, without repetition.

    Args:
        model: functional model.
        where: as in `insert_attention`.

    Returns:
        List of layers of the model and of models inside it.

    Raises:
        ValueError: there is none, or `where` is not a regular expression.
    """
    if where is None:
        return residual_insertion_points(model)
    if isinstance(where, str):
        try:
            pattern = re.compile(where)
        except re.error as error:
            raise ValueError(f"where={where!r} is not a regular expression: {error}") from error
    elif not callable(where):
        raise ValueError(
            "where must be None, a regular expression searched in layer names, or a function of a layer. "
            f"Received: {where!r}"
        )
    candidates = {
        id(call.operation): call.operation
        for current in models_of(model)
        for call in calls_of(current)
        if isinstance(call.operation, layers.Layer)
    }.values()
    found = [layer for layer in candidates if (where(layer) if callable(where) else pattern.search(layer.name))]
    if not found:
        raise ValueError(
            f"where={where!r} matches none of the {len(candidates)} layers of {model.name!r}. Some of their names: "
            f"{sample_of([layer.name for layer in candidates])}"
        )
    return found


def residual_insertion_points(model):
    """`find_insertion_points` for `where=None`."""
    found, before_additions = {}, []
    for current in models_of(model):
        branches, maker = residual_branches(current)
        for tensor in branches:
            before_additions += [maker[id(tensor)].operation] if id(tensor) in maker else []
            if (layer := last_normalization(tensor, maker)) is not None:
                found[id(layer)] = layer
    if not found:
        raise ValueError(
            f"In {model.name!r} no normalisation of feature maps stands before a residual addition. "
            f"{advice_on_where(model, before_additions)}"
        )
    return list(found.values())


def advice_on_where(model, before_additions):
    """What to give as `where=` instead, in sentences; only what a module can follow is named."""
    formats = formats_of_operations(model)
    calls = [call for current in models_of(model) for call in calls_of(current)]
    calls = [call for call in calls if id(call.operation) in formats and not is_one_position(call.outputs[0])]
    operations = [call.operation for call in calls]
    names = [operation.name for operation in operations if isinstance(operation, layers.Layer)]
    if not names:
        return "It has no layer that returns feature maps, (batch, height, width, channels), which the modules take."
    inside = [call.operation for call in calls if may_add(call)]
    if not before_additions and inside:
        branches = [residual_branches(current, may_add) for current in models_of(model)]
        before_additions = [maker[id(x)].operation for found, maker in branches for x in found if id(x) in maker]
    before = [operation.name for operation in before_additions if operation.name in names]
    seen = f"Before those there is: {sample_of(before)}" if before else "The graph has no such addition"
    if before and inside:
        kinds = ", ".join(sorted({type(operation).__name__ for operation in inside}))
        seen = f"Additions may be inside of {kinds}, where they are not seen. {seen}"
    pattern = f"^{re.escape((before or names)[-1])}$"
    return (
        f'{seen}; say where the modules go: where="{pattern}", for one, is a regular expression searched in layer '
        f"names. Layers with feature maps: {sample_of(names)}"
    )


def is_one_position(tensor):
    """Whether a feature map has one position only, in either data format; at its end a network may have such."""
    return 1 in (math.prod(size or 2 for size in sides) for sides in (tensor.shape[1:3], tensor.shape[2:]))


def sample_of(names, count=8):
    """A few of the names, evenly from the whole list, as text for a message."""
    names = list(dict.fromkeys(names))
    step = -(-len(names) // count)
    return ", ".join(names[::step]) + (", ..." if step > 1 else "")
