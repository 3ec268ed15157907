"""A network of this library that starts from trained weights, with attention modules that the weights need not know.

Fresh modules change what a trained network computes: NA multiplies each branch by k = sigmoid(1) = 0.731. Where a fresh
module is such a constant, the scale and shift of the batch norm before it are divided by k, so that the network begins
as what it was trained to be. Networks that are not of this library have `insert_attention(..., preserve=True)` for it.
"""

import keras

from na_keras.graph.calls import calls_of, node_of
from na_keras.graph.insertion import constant_gate
from na_keras.pretrained.weights import Notes, PlacedWeights

PRESERVED = (
    "The attention modules are fresh; what they multiply by is divided out of the layers before them, so that the "
    "network computes what it did without them."
)


def changed_note(reason):
    """The sentence about fresh modules that change the network."""
    return f"The attention modules are fresh and change what the network computes: {reason.rstrip('.')}."


def modules_of(network):
    """The attention modules of a network of this library; their names end in "attention"."""
    return [layer for layer in network.layers if layer.name.endswith("attention")]


def begun_constant(module, shape):
    """A module of the same configuration that multiplies by a constant when it is fresh, as its class says how; None
    where no weights do that.
    """
    arguments = getattr(module, "constant_gate", None)
    if not arguments or not module.weights:
        return None
    fresh = type(module).from_config({**module.get_config(), **arguments})
    fresh.build(shape)
    return fresh


def divide_out(network):
    """Divides the constants of all fresh modules out of the batch norms before them; modules whose class knows how to
    begin as a constant (SE, CBAM, ECA) begin so.

    Returns:
        None, or why that cannot be; nothing is changed then.
    """
    modules, plan = {id(module) for module in modules_of(network)}, []
    for call in calls_of(network):
        if id(call.operation) not in modules:
            continue
        module, before = call.operation, node_of(call.inputs[0]).operation
        if getattr(module, "replaces_convolution", False):
            return f"{module.name!r} takes the place of trained convolutions"
        if not isinstance(before, keras.layers.BatchNormalization) or not (before.scale and before.center):
            return f"{before.name!r} before {module.name!r} is no batch norm with scale and shift"
        shape, weights = call.inputs[0].shape, None
        # A few positions tell as much as all of them, in a hundredth of the time.
        few = tuple(size if axis == before.axis % len(shape) else None for axis, size in enumerate(shape))
        k, low, high = constant_gate(module, few)
        if k is None and (constant := begun_constant(module, shape)):
            (k, _, _), weights = constant_gate(constant, few), constant.get_weights()
        if k is None or k == 0:
            return f"a fresh {type(module).__name__} multiplies by {low:.3g} to {high:.3g}, which depends on the image"
        plan.append((before, k, module, weights))
    for before, k, module, weights in plan:
        if weights is not None:
            module.set_weights(weights)
        for weight in (before.gamma, before.beta):
            value = keras.ops.convert_to_numpy(weight)
            weight.assign((value.astype("float64") / k).astype(value.dtype))
    return None


def start(network, weights, head=None, twin=None, preserve=None):
    """Fills a network of this library with trained weights.

    Args:
        network: from a builder; changed.
        weights: from `open_weights`.
        head: its classifier, a layer, which may be of other classes than the weights; None for none.
        twin: function (with modules?, classes) -> the same network otherwise, which reads a `.weights.h5` file.
        preserve: for modules that the weights have not: True or None: divide what fresh ones multiply by out of the
            layers before them, None only where that can be; False: do not.

    Returns:
        `Notes`.

    Raises:
        ValueError: the weights do not fit, by name, and nothing is changed; with preserve=True, modules that do not
            begin as a constant.
    """
    modules = modules_of(network)
    if isinstance(weights, PlacedWeights):
        weights = weights.read(lambda c: twin(False, c), (lambda c: twin(True, c)) if modules else None)
    fresh = () if weights.has_modules([module.name for module in modules]) else modules
    notes = weights.fill(network, head, fresh)
    if not fresh:
        return Notes(notes)
    reason = "as --no-preserve says" if preserve is False else divide_out(network)
    if reason and preserve:
        raise ValueError(f"preserve: {reason}. Leave it out, or take attention that starts as a constant, as na does.")
    return Notes([*notes, changed_note(reason) if reason else PRESERVED], fresh)
