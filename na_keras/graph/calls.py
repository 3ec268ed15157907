"""The graph of a functional Keras model: its calls in order, and a way to run them with a say in each.

A call is one use of a layer, of a model inside the model, or of a keras.ops operation; a shared layer has several. What
Keras keeps of this is private (`_keras_history`, `_inbound_nodes`, and `_flatten_layers` for the layers in a layer);
this is the one file that reads it, and tests/graph/test_calls.py holds it to that.
"""

from typing import NamedTuple

import keras


class Call(NamedTuple):
    """One use of an operation.

    Attributes:
        operation: a keras.layers.Layer (a model is one) or the object of a keras.ops function; has a `name`.
        args, kwargs: as they were given, with Keras tensors where tensors go.
        inputs, outputs: the Keras tensors among the arguments, and those returned.
    """

    operation: object
    args: tuple
    kwargs: dict
    inputs: list
    outputs: list


def has_own_code(model):
    """Whether a model's class, or the model itself, says what a call computes, instead of its graph of layers."""
    methods = (getattr(type(model), name) for name in ("call", "__call__"))
    modules = [getattr(method, "__module__", "") for method in methods]
    return "call" in vars(model) or any(module.partition(".")[0] != "keras" for module in modules)


def functional(model):
    """The model as a functional one with the same layers, or None if it has no graph, or does more than its graph says.

    Functional models are returned as they are. A Sequential that knows its input shape has a graph too; other models
    are Python code, and so is a subclass of a functional model with a `call()` of its own.
    """
    if not isinstance(model, keras.Model) or has_own_code(model):
        return None
    if isinstance(model, keras.Function):
        return model
    if isinstance(model, keras.Sequential) and model.built and model.layers:
        try:
            return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
        except (AttributeError, ValueError):  # built without a graph: one of its layers has none
            return None
    return None


def checked_functional(model, function):
    """`functional(model)`, for the function of this name.

    Raises:
        ValueError: the model has no graph, or does more than its graph says.
    """
    found = functional(model)
    if found is not None:
        return found
    reads = f"{function} needs a functional model, whose graph it reads. Received: {model!r}"
    if isinstance(model, keras.Model) and has_own_code(model) and hasattr(model, "inputs"):
        raise ValueError(
            f"{reads}, whose class has a call() of its own: what that does is in no graph. Write it as layers in the "
            "model; or, to leave it out, pass keras.Model(model.inputs, model.outputs)."
        )
    if isinstance(model, keras.Sequential):
        raise ValueError(f"{reads}. Give the Sequential an input shape: begin it with keras.Input(...).")
    raise ValueError(
        f"{reads}. Build the network as keras.Model(inputs, outputs), or pass the functional model inside yours."
    )


def models_of(model):
    """A functional model and those inside it, at any depth, each once; outer ones first."""
    found, waiting, seen = [], [model], set()
    while waiting:
        current = waiting.pop(0)
        found.append(current)
        for operation in (call.operation for call in calls_of(current)):
            if id(operation) not in seen and nested_model(operation):
                waiting.append(nested_model(operation))
            seen.add(id(operation))
    return found


def node_of(tensor):
    """Keras' record of the call that made a Keras tensor."""
    operation, index, _ = tensor._keras_history
    return operation._inbound_nodes[index]


def calls_of(model):
    """A functional model's calls from inputs to outputs, each after those it needs, always in the same order."""
    given = {id(tensor) for tensor in model.inputs}
    order, done = [], set()
    stack = [node_of(tensor) for tensor in reversed(model.outputs) if id(tensor) not in given]
    while stack:
        node = stack[-1]
        needed = [node_of(tensor) for tensor in node.input_tensors if id(tensor) not in given]
        waiting = [other for other in needed if id(other) not in done]
        if waiting:
            stack.extend(reversed(waiting))
            continue
        stack.pop()
        if id(node) not in done:
            done.add(id(node))
            arguments = node.arguments
            order.append(
                Call(node.operation, arguments.args, arguments.kwargs, node.input_tensors, list(node.output_tensors))
            )
    return order


def run_graph(model, inputs, call):
    """Runs a functional model's graph on other tensors, symbolic or not.

    Args:
        model: functional model.
        inputs: its inputs in any structure.
        call: function (operation, *args, **kwargs) -> output or outputs, asked in place of each operation.

    Returns:
        The model's outputs as a flat list.
    """
    values = {id(tensor): value for tensor, value in zip(model.inputs, keras.tree.flatten(inputs), strict=True)}
    calls = calls_of(model)
    last_use = {id(tensor): index for index, called in enumerate(calls) for tensor in called.inputs}
    last_use.update((id(tensor), len(calls)) for tensor in model.outputs)

    def value_of(argument):
        return values[id(argument)] if keras.backend.is_keras_tensor(argument) else argument

    for index, (operation, args, kwargs, taken, outputs) in enumerate(calls):
        args, kwargs = keras.tree.map_structure(value_of, (args, kwargs))
        returned = keras.tree.flatten(call(operation, *args, **kwargs))
        values.update(zip(map(id, outputs), returned, strict=True))
        del args, kwargs, returned
        for tensor in (*taken, *outputs):  # what nobody takes any more would fill the memory
            if last_use.get(id(tensor), index) == index:
                values.pop(id(tensor), None)
    return [values[id(tensor)] for tensor in model.outputs]


def flat_calls(model):
    """A functional model's calls, those of the models inside it in the place of these, with the shapes they have there.

    A model inside may have been built for images of any size; its own record has no sizes then, the result here has.

    Returns:
        List of `Call`; its tensors are new ones, and a tensor that one call returns is the one that another takes.
    """
    found = []

    def call(operation, *args, **kwargs):
        if inner := nested_model(operation):
            return keras.tree.pack_sequence_as(inner.output, run_graph(inner, args, call))
        outputs = operation.compute_output_spec(*args, **kwargs)
        inputs = [x for x in keras.tree.flatten((args, kwargs)) if keras.backend.is_keras_tensor(x)]
        found.append(Call(operation, args, kwargs, inputs, keras.tree.flatten(outputs)))
        return outputs

    run_graph(model, keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype), model.input), call)
    return found


def fresh_inputs(model, change_config=None):
    """New input layers' tensors, equal to the functional model's own, in the same structure.

    Args:
        model: functional model.
        change_config: None, or a function from an input layer's configuration to that of the new one.
    """

    def fresh(tensor):
        layer = node_of(tensor).operation
        config = layer.get_config()
        return type(layer).from_config(config if change_config is None else change_config(config)).output

    return keras.tree.map_structure(fresh, model.input)


def nested_model(operation):
    """The functional form of a model used as a layer; None for everything else."""
    return functional(operation) if isinstance(operation, keras.Model) else None


def sublayers(layer):
    """A layer and all layers in it, always in the same order."""
    return layer._flatten_layers()
