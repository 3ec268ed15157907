"""Which tensors of a functional model are feature maps, and where their channels are.

A map has rank 4 and comes from the images: through layers that know their data format (convolutions, pooling, batch
norm), and on through those that keep its axes (activations, additions, dropout). What a reshape or transposition
returns is a map again only after the next layer of the first kind: (batch, heads, n, d) of an attention is none. Maps
(batch, time, height, width, channels) are what TimeDistributed returns.

The data format is the layers' own, not the global setting, under which a loaded model need not have been built. Where
a layer has none, as a ReLU, it is that of the layers connected to it.
"""

import keras
from keras import layers

from na_keras.graph.calls import calls_of, models_of, nested_model, sublayers

FORMATS = ("channels_last", "channels_first")
NORMALIZATIONS = (layers.BatchNormalization, layers.LayerNormalization, layers.GroupNormalization)
# Layers and functions after which axis 1 is another than before
REARRANGING = {"Reshape", "Permute", "RepeatVector", "Transpose", "Moveaxis", "Swapaxes", "Einsum", "EinsumDense"}
REARRANGING |= {"Matmul", "Tensordot", "ExpandDims", "Squeeze", "Stack"}


def own_format(operation):
    """The data format that an operation is made for, or None."""
    if isinstance(operation, layers.Flatten):  # it has one, and takes whatever comes
        return None
    formats = {getattr(operation, "data_format", None)}
    if isinstance(operation, NORMALIZATIONS):
        axes = operation.axis if isinstance(operation.axis, list | tuple) else [operation.axis]
        formats = {"channels_first" if axis in (1, -3) else "channels_last" for axis in axes if axis in (1, 3, -1, -3)}
    elif isinstance(operation, layers.Layer) and not formats & set(FORMATS):
        formats = {getattr(inner, "data_format", None) for inner in sublayers(operation)}
    known = formats & set(FORMATS)
    return known.pop() if len(known) == 1 else None


def of_map_rank(tensors, operation=None):
    """Those of the tensors that may be maps, of the operation that returns them."""
    ranks = (4, 5) if isinstance(operation, layers.TimeDistributed) else (4,)
    return [tensor for tensor in tensors if len(tensor.shape) in ranks]


def find_maps(model, links, maps):
    """Follows the maps through a functional model, whose inputs are known.

    Args:
        model: functional model.
        links: list, to which pairs of ids of tensors with the same data format are added.
        maps: {id of a tensor that is a map: data format that it has by itself, or None}, which is added to.
    """
    for call in calls_of(model):
        incoming = [tensor for tensor in call.inputs if id(tensor) in maps]
        if inner := nested_model(call.operation):
            pairs = [
                (ours, theirs) for ours, theirs in zip(call.inputs, inner.inputs, strict=False) if ours in incoming
            ]
            maps.update((id(theirs), maps.get(id(theirs))) for _, theirs in pairs)
            find_maps(inner, links, maps)
            pairs += [pair for pair in zip(call.outputs, inner.outputs, strict=True) if id(pair[1]) in maps]
            maps.update((id(ours), maps.get(id(theirs))) for ours, theirs in pairs)
            links += [(id(ours), id(theirs)) for ours, theirs in pairs]
            continue
        known, outgoing = own_format(call.operation), of_map_rank(call.outputs, call.operation)
        keeps = incoming and type(call.operation).__name__ not in REARRANGING
        spatial = known and not isinstance(call.operation, layers.LayerNormalization)
        if not (keeps or spatial):
            continue
        if spatial:
            incoming = of_map_rank(call.inputs, call.operation)
        maps.update((id(tensor), known) for tensor in outgoing)
        maps.update((id(tensor), maps.get(id(tensor)) or known) for tensor in incoming)
        links += [(id(before), id(after)) for before in incoming for after in outgoing]


def feature_maps(model):
    """The feature maps of a functional model and the models inside it.

    Returns:
        {id of a Keras tensor: "channels_last" or "channels_first"}. Where no layer says, it is the global setting,
        `keras.config.image_data_format()`.
    """
    maps, links = {id(tensor): None for tensor in of_map_rank(model.inputs)}, []
    find_maps(model, links, maps)
    neighbours = {}
    for one, other in links:
        neighbours.setdefault(one, []).append(other)
        neighbours.setdefault(other, []).append(one)
    waiting = [tensor for tensor, known in maps.items() if known]
    while waiting:  # breadth first: the nearest layer that knows
        tensor = waiting.pop(0)
        for other in neighbours.get(tensor, ()):
            if maps[other] is None:
                maps[other] = maps[tensor]
                waiting.append(other)
    return {tensor: known or keras.config.image_data_format() for tensor, known in maps.items()}


def formats_of_operations(model):
    """{id of an operation: data format of its output} of all in a functional model that return one map of
    rank 4."""
    maps = feature_maps(model)
    calls = [call for current in models_of(model) for call in calls_of(current)]
    single = [call for call in calls if len(call.outputs) == 1 and id(call.outputs[0]) in maps]
    single = [call for call in single if len(call.outputs[0].shape) == 4]
    return {id(call.operation): maps[id(call.outputs[0])] for call in single}
