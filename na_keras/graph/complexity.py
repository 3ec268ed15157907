"""Parameters and operations of a network, for one image.

    count_parameters    numbers that training changes (batch norm's moving statistics are not among them)
    count_macs          multiply-accumulates of convolutions and fully connected layers
    paper_flops         what the paper's tables call FLOPs, by the counter of its code

The counter (13952522076/NANet, utils/flops_counter.py) visits PyTorch modules and adds up

    convolution        k * k * inputs / groups * outputs * positions, + outputs * positions with a bias
    fully connected    inputs * outputs
    batch norm         2 * numbers that come in
    ReLU, ReLU6        numbers that go out
    pooling            numbers that come in
    anything else      0: what PyTorch code does with functions and operators; softmax, sigmoid, layer norm

so it depends on what the reference programs have as modules. A mean over positions is a pooling module in ResNet's
head and in SE, CBAM, SK, SGE and GE (INFERRED, as the layer is), and a function in MobileNetV2's head, in GC and in
NA. Table 3 prints NA(mean) with 4.122 GFLOPs, which is the count with a function, and ours; the released code
(models/resnet/resnet_na3.py) has a pooling module there, which makes 4.127.
"""

import math

import keras

from na_keras import layers as attention_layers

# Every operation is a pair: (multiply-accumulates, what the paper's counter adds).


def convolution(kernel, positions, bias=False):
    """Of a kernel (k, k, inputs / groups, outputs) or, depthwise, (k, k, channels, 1), at so many positions."""
    macs = math.prod(kernel.shape) * positions
    return macs, macs + (kernel.shape[-1] * positions if bias else 0)


def fully_connected(kernel):
    """Of a kernel (inputs, outputs). The counter leaves out the bias."""
    return math.prod(kernel.shape), math.prod(kernel.shape)


def batch_norm(numbers):
    """On so many numbers."""
    return 0, 2 * numbers


def relu(numbers):
    """On so many numbers."""
    return 0, numbers


def pooling(numbers):
    """Over so many numbers."""
    return 0, numbers


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
    convolutions = [convolution(kernel, positions, bias=True) for pair in layer.embedding for kernel, _ in pair]
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


# class -> its operations, from (layer, sides of the map that comes in, its channels)
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
POOLING_LAYERS = (keras.layers.MaxPooling2D, keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D)
POOLED_BY_FUNCTION = ("out_relu",)  # the layer before MobileNetV2's head, whose mean is a function in PyTorch


def sides_and_channels(shape, data_format):
    """([h, w], c) of a batch of feature maps."""
    return (shape[1:3], shape[3]) if data_format == "channels_last" else (shape[2:4], shape[1])


def operations(layer, incoming, outgoing):
    """The operations of one use of a layer in a functional model, from one symbolic tensor to another.

    Raises:
        ValueError: a layer with weights that is not one of this library's networks.
    """
    if type(layer) in ATTENTION_OPERATIONS:
        return ATTENTION_OPERATIONS[type(layer)](layer, *sides_and_channels(incoming.shape, layer.data_format))
    if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
        sides, _ = sides_and_channels(outgoing.shape, layer.data_format)
        return [convolution(layer.kernel, math.prod(sides), layer.use_bias)]
    if isinstance(layer, keras.layers.Dense) and len(incoming.shape) == 2:
        return [fully_connected(layer.kernel)]
    if isinstance(layer, keras.layers.BatchNormalization):
        return [batch_norm(math.prod(incoming.shape[1:]))]
    if isinstance(layer, keras.layers.ReLU):
        return [relu(math.prod(outgoing.shape[1:]))]
    if isinstance(layer, POOLING_LAYERS):
        history = incoming._keras_history
        before = history.operation
        if before.name in POOLED_BY_FUNCTION:
            return []
        if isinstance(before, keras.layers.ZeroPadding2D):  # a part of PyTorch's pooling
            incoming = before._inbound_nodes[history.node_index].input_tensors[0]
        return [pooling(math.prod(incoming.shape[1:]))]
    if getattr(layer, "weights", None):  # functions of keras.ops are nodes too, without weights
        raise ValueError(
            f"Cannot count the operations of {layer.name!r}: expected the layers of this library's networks. "
            f"Received: a {type(layer).__name__}; of a model inside a model, count the inner one."
        )
    return []


def all_operations(model):
    """(class name of the layer, multiply-accumulates, what the paper's counter adds) of everything in a model.

    Raises:
        ValueError: unknown sides of the input, or a layer that `operations` does not know.
    """
    if any(side is None for side in model.input_shape[1:]):
        raise ValueError(
            "Operations depend on the image's size: build the network with input_shape=(224, 224, 3), which is the "
            f"paper's. Received: input_shape={model.input_shape[1:]}"
        )
    return [
        (type(node.operation).__name__, *operation)
        for nodes in model._nodes_by_depth.values()  # a node is one use of a layer
        for node in nodes
        if node.input_tensors  # an input layer's has none
        for operation in operations(node.operation, node.input_tensors[0], node.outputs[0])
    ]


def count_parameters(model):
    """How many numbers training changes. The paper's parameter counts are these, not `model.count_params()`."""
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def count_macs(model):
    """Multiply-accumulates of all convolutions and fully connected layers, for one image.

    Args:
        model: a functional network of this library with known sides: `input_shape=(224, 224, 3)` is the paper's.

    Raises:
        ValueError: unknown sides, or a layer with weights that is not of this library's networks.
    """
    return sum(macs for _, macs, _ in all_operations(model))


def paper_flops(model):
    """What the counter of the paper's code makes of the network; the paper's GFLOPs are this / 1e9.

    Normalisation of pixels is outside the PyTorch networks and not counted.

    Args:
        model: as in `count_macs`.

    Raises:
        ValueError: as `count_macs`; or attention that is in no table of the paper, whose modules are not known.
    """
    total = 0
    for name, _, counted in all_operations(model):
        if counted is None:
            raise ValueError(
                f"{name} is in no table of the paper: what its counter would see of it is not known. Use count_macs."
            )
        total += counted
    return total
