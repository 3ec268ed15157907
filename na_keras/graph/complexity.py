"""Parameters and operations of a network, for one image.

    count_parameters    numbers that training changes (batch norm's moving statistics are not among them)
    count_macs          multiply-accumulates of convolutions and fully connected layers
    paper_flops         what the paper's tables call FLOPs, by the counter of its code

The counter (13952522076/NANet, utils/flops_counter.py) visits PyTorch modules and adds up

    convolution        k * k * inputs / groups * outputs * positions, + outputs * positions with a bias
    fully connected    inputs * outputs
    batch norm         2 * numbers that come in; without scale and shift 1 *
    ReLU               numbers that go out; so ReLU6, LeakyReLU, ELU and PReLU
    pooling            numbers that come in
    upsampling         numbers that go out
    anything else      0: what PyTorch code does with functions and operators; softmax, sigmoid, layer norm

so it depends on what the reference programs have as modules. A mean over positions is a pooling module in ResNet's
head and in SE, CBAM, SK, SGE and GE (INFERRED, as the layer is), and a function in MobileNetV2's head, in GC and in
NA. Table 3 prints NA(mean) with 4.122 GFLOPs, which is the count with a function, and ours; the released code
(models/resnet/resnet_na3.py) has a pooling module there, which makes 4.127.
"""

import math
import re

from keras import layers

from na_keras import layers as attention_layers
from na_keras.graph.calls import checked_functional, flat_calls
from na_keras.graph.keras_operations import (
    LAYER_OPERATIONS,
    POOLING,
    batch_norm,
    convolution,
    fully_connected,
    pooling,
    relu,
    sides_and_channels,
)


def excitation(layer):
    """The two fully connected layers of SE and CBAM, and the ReLU between them."""
    return [fully_connected(layer.squeeze.kernel), relu(layer.squeeze.units), fully_connected(layer.excite.kernel)]


def normalization_attention(layer, sides, channels):
    """Functions; with Table 2's embedding, twice two convolutions on one channel with a ReLU between, and a pooling.

    The pooling, of the query's map, is INFERRED from the released code's total, 4.12252 GFLOPs.
    """
    if layer.embedding is None:
        return []
    positions = math.prod(sides)
    convolutions = [convolution(kernel, positions, biases=1) for pair in layer.embedding for kernel, _ in pair]
    return [*convolutions, relu(positions), relu(positions), pooling(positions)]


def squeeze_excite(layer, sides, channels):
    """Pooling and the excitation."""
    return [pooling(math.prod(sides) * channels), *excitation(layer)]


def cbam(layer, sides, channels):
    """Two poolings with an excitation after each; a convolution to one channel and its batch norm."""
    positions = math.prod(sides)
    return [
        *2 * squeeze_excite(layer, sides, channels),
        convolution(layer.spatial_conv.kernel, positions),
        batch_norm(positions),
    ]


def gather_excite(layer, sides, channels):
    """A pooling; or depthwise convolutions that halve the sides, each with batch norm."""
    if not layer.parametrized:
        return [pooling(math.prod(sides) * channels)]
    operations = []
    for depthwise in layer.steps[::2]:
        sides = [-(-side // 2) for side in sides]
        operations += [convolution(depthwise.kernel, math.prod(sides)), batch_norm(math.prod(sides) * channels)]
    return operations


def selective_kernel(layer, sides, channels):
    """A branch: convolution, batch norm, ReLU, pooling. Then two 1x1 convolutions; the ReLU between is a function."""
    positions = math.prod(-(-side // layer.strides) for side in sides)
    operations = []
    for branch in layer.convolutions:
        numbers = positions * branch.filters
        operations += [convolution(branch.kernel, positions), batch_norm(numbers), relu(numbers), pooling(numbers)]
    excite = fully_connected(layer.excite.kernel)
    return [*operations, fully_connected(layer.squeeze.kernel), batch_norm(layer.squeeze.units), excite]


def global_context(layer, sides, channels):
    """1x1 convolutions with biases: one to one channel at every position, two at one position."""
    positions, hidden = math.prod(sides), layer.squeeze.units
    return [
        (positions * channels, positions * (channels + 1)),
        (channels * hidden, (channels + 1) * hidden),
        relu(hidden),
        (channels * hidden, (hidden + 1) * channels),
    ]


def spatial_group_enhance(layer, sides, channels):
    """Pooling; the rest are functions."""
    return [pooling(math.prod(sides) * channels)]


# Of layers that are in no table of the paper we count the multiply-accumulates only.


def without_convolutions(layer, sides, channels):
    """Linear context transform and SimAM: nothing that is counted."""
    return [(0, None)]


def efficient_channel_attention(layer, sides, channels):
    """One convolution along the channels."""
    return [(math.prod(layer.kernel.shape) * channels, None)]


def style_recalibration(layer, sides, channels):
    """Each channel's mean and deviation, fully connected to one number."""
    return [(2 * channels, None)]


def non_local(layer, sides, channels):
    """The 1x1 convolutions, without the products between positions."""
    names = ("query", "key", "value", "project")
    kernels = [getattr(layer, name).kernel for name in names if hasattr(layer, name)]
    return [(sum(math.prod(kernel.shape) for kernel in kernels) * math.prod(sides), None)]


# class -> its operations, from (layer, sides of the map that comes in, its channels). A new attention layer is counted
# by a row here.
ATTENTION_OPERATIONS = {
    attention_layers.NormalizationAttention: normalization_attention,
    attention_layers.SqueezeExcite: squeeze_excite,
    attention_layers.GatherExcite: gather_excite,
    attention_layers.SelectiveKernel: selective_kernel,
    attention_layers.CBAM: cbam,
    attention_layers.GlobalContext: global_context,
    attention_layers.SpatialGroupEnhance: spatial_group_enhance,
    attention_layers.LinearContextTransform: without_convolutions,
    attention_layers.SimAM: without_convolutions,
    attention_layers.EfficientChannelAttention: efficient_channel_attention,
    attention_layers.StyleRecalibration: style_recalibration,
    attention_layers.NonLocal: non_local,
}


# Functions of keras.ops with multiply-accumulates that are not counted: their models are refused.
PRODUCTS = {"Conv", "ConvTranspose", "DepthwiseConv", "SeparableConv", "Matmul", "Dot", "Vdot", "Vecdot", "Inner"}
PRODUCTS |= {"Outer", "Einsum", "Tensordot", "Kron", "Correlate", "DotProductAttention"}
POOLED_BY_FUNCTION = ("out_relu",)  # the layer before MobileNetV2's head, whose mean is a function in PyTorch
# Of na_keras/detection, what are functions in mmdetection: F.interpolate and F.max_pool2d (necks/fpn.py), F.relu
# (anchor_heads/rpn_head.py). All other ReLUs there are modules.
FUNCTIONS_OF_MMDETECTION = re.compile(r"fpn_(up|pool)\d$|rpn_relu$")


def operations(call, makers):
    """The operations of one call of a layer or function.

    Args:
        call: of `flat_calls`.
        makers: {id of a tensor: the call that returned it}.

    Raises:
        ValueError: neither this library's layer nor a known one of Keras; the message has its name.
    """
    layer = call.operation
    incoming, outgoing = (tuple(tensors[0].shape[1:]) for tensors in (call.inputs, call.outputs))
    if type(layer) in ATTENTION_OPERATIONS:
        return ATTENTION_OPERATIONS[type(layer)](layer, *sides_and_channels(incoming, layer.data_format))
    if FUNCTIONS_OF_MMDETECTION.match(layer.name):
        return []
    if type(layer) in POOLING:
        before = makers.get(id(call.inputs[0]))
        if before is not None and before.operation.name in POOLED_BY_FUNCTION:
            return []
        if before is not None and isinstance(before.operation, layers.ZeroPadding2D):  # part of PyTorch's pooling
            incoming = tuple(before.inputs[0].shape[1:])
    if type(layer) in LAYER_OPERATIONS:
        return LAYER_OPERATIONS[type(layer)](layer, incoming, outgoing)
    of_keras = type(layer).__module__.partition(".")[0] == "keras"
    if of_keras and not isinstance(layer, layers.Layer) and type(layer).__name__ not in PRODUCTS:
        return []  # keras.ops: a function
    raise ValueError(
        f"Cannot count the operations of {layer.name!r}, a {type(layer).__name__}: its multiply-accumulates are not "
        "known. Known are this library's layers and Keras' "
        f"{', '.join(sorted(kind.__name__ for kind in LAYER_OPERATIONS))}; and functions of keras.ops without products."
    )


def all_operations(model):
    """(class name of the layer, multiply-accumulates, what the paper's counter adds) of everything in a model.

    Raises:
        ValueError: a model without a graph, unknown sizes of an input, or a layer that `operations` does not know.
    """
    source = checked_functional(model, "Counting operations")
    for tensor in source.inputs:
        if None in tensor.shape[1:]:
            raise ValueError(
                "Operations depend on the image's size: build the network with input_shape=(224, 224, 3), which is the "
                f"paper's. Received: input_shape={tuple(tensor.shape[1:])} for the input {tensor.name!r}"
            )
    found, makers = [], {}
    for call in flat_calls(source):
        found += [(type(call.operation).__name__, *counted) for counted in operations(call, makers)]
        makers.update((id(tensor), call) for tensor in call.outputs)
    return found


def count_parameters(model):
    """How many numbers training changes: the paper's parameter counts, not `model.count_params()`.

    Args:
        model: any built Keras model or layer. Frozen layers are not counted, and neither are the moving statistics of
            batch norm; a shared layer is counted once.

    Returns:
        Integer.
    """
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def count_macs(model):
    """Multiply-accumulates of all convolutions and fully connected layers, for one image.

    >>> count_macs(keras.applications.ResNet50(weights=None)) / 1e9  # stride in the 1x1 convolutions
    3.857973248

    Args:
        model: functional model, or a Sequential with a known input shape, with known sizes of its inputs:
            `input_shape=(224, 224, 3)` is the paper's. Models inside it are entered. Of this library's layers and
            Keras' usual ones; products of two maps, as in a non-local block's attention, are not counted.

    Returns:
        Integer.

    Raises:
        ValueError: a model without a graph, unknown sizes of an input, or a layer or function whose
            multiply-accumulates are not known; the message has its name. A new layer of this library is counted by a
            row in `ATTENTION_OPERATIONS`, na_keras/graph/complexity.py.
    """
    return sum(macs for _, macs, _ in all_operations(model))


def paper_flops(model):
    """What the counter of the paper's code makes of the network; the paper's GFLOPs are this / 1e9.

    Normalisation of pixels is outside the PyTorch networks and not counted. An activation that Keras has inside a layer
    counts as the module that it would be in PyTorch; a function of keras.ops as a function there: as nothing.

    Args:
        model: as in `count_macs`.

    Returns:
        Integer.

    Raises:
        ValueError: as `count_macs`; or attention that is in no table of the paper, whose modules are not known, and
            other layers of which it is not known what the counter sees.
    """
    total = 0
    for name, _, counted in all_operations(model):
        if counted is None:
            raise ValueError(
                f"{name} is in no table of the paper: what its counter would see of it is not known. Use count_macs."
            )
        total += counted
    return total
