"""What the layers of Keras cost: multiply-accumulates, and what the counter of the paper's code adds (complexity.py).

Every operation is a pair, (multiply-accumulates, what the counter adds); None: it is not known what the counter sees.
"""

import math

import keras
from keras import layers


def convolution(kernel, positions, biases=0):
    """Of a kernel (k, k, inputs / groups, outputs) or, depthwise, (k, k, channels, 1), at so many positions."""
    macs = math.prod(kernel.shape) * positions
    return macs, macs + biases * positions


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


def sides_and_channels(shape, data_format):
    """([h, w], c) of a feature map's shape, without the batch."""
    return (shape[:2], shape[2]) if data_format == "channels_last" else (shape[1:], shape[0])


# Of a Keras layer the operations are a function of (layer, shape that comes in, shape that goes out), without batches.

# Functions that are modules with a count in PyTorch: the counter knows ReLU, ReLU6, LeakyReLU, ELU and PReLU.
RELU_FUNCTIONS = {"relu", "relu6", "leaky_relu", "elu"}


def activation(function, numbers):
    """A layer's `activation`. What Keras does not know may be anything; we count it as free of multiplications."""
    name = getattr(function, "__name__", None)
    if getattr(keras.activations, str(name), None) is not function:
        return 0, None
    return relu(numbers) if name in RELU_FUNCTIONS else (0, 0)


def of_convolution(layer, incoming, outgoing):
    """Conv2D and DepthwiseConv2D, with their activation."""
    sides, channels = sides_and_channels(outgoing, layer.data_format)
    own = convolution(layer.kernel, math.prod(sides), channels if layer.use_bias else 0)
    return [own, activation(layer.activation, math.prod(outgoing))]


def of_separable_convolution(layer, incoming, outgoing):
    """Two convolutions, the first depthwise and without bias."""
    sides, channels = sides_and_channels(outgoing, layer.data_format)
    depthwise = convolution(layer.depthwise_kernel, math.prod(sides))
    pointwise = convolution(layer.pointwise_kernel, math.prod(sides), channels if layer.use_bias else 0)
    return [depthwise, pointwise, activation(layer.activation, math.prod(outgoing))]


def of_dense(layer, incoming, outgoing):
    """Dense; for more than one vector a time the counter multiplies the wrong axes."""
    macs, counted = fully_connected(layer.kernel)
    own = (macs * math.prod(incoming[:-1]), counted if len(incoming) == 1 else None)
    return [own, activation(layer.activation, math.prod(outgoing))]


def of_batch_norm(layer, incoming, outgoing):
    """Half of it without scale and shift, as PyTorch's affine=False."""
    return [batch_norm(math.prod(incoming)) if layer.scale or layer.center else (0, math.prod(incoming))]


def of_relu(layer, incoming, outgoing):
    """ReLU and its relatives."""
    return [relu(math.prod(outgoing))]


def of_pooling(layer, incoming, outgoing):
    """Of maps: the counter's AvgPool2d, MaxPool2d and their adaptive forms."""
    return [pooling(math.prod(incoming))]


def of_upsampling(layer, incoming, outgoing):
    """PyTorch's Upsample: numbers that go out."""
    return [(0, math.prod(outgoing))]


def of_activation(layer, incoming, outgoing):
    """The layer Activation."""
    return [activation(layer.activation, math.prod(outgoing))]


def of_nothing(layer, incoming, outgoing):
    """What the counter does not visit, without multiply-accumulates of its own."""
    return []


POOLING = (
    layers.MaxPooling2D,
    layers.AveragePooling2D,
    layers.GlobalMaxPooling2D,
    layers.GlobalAveragePooling2D,
)
RECTIFIERS = (layers.ReLU, layers.LeakyReLU, layers.ELU, layers.PReLU)
MERGING = (layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum)
NORMALIZING = (layers.LayerNormalization, layers.GroupNormalization, layers.UnitNormalization, layers.Softmax)
ARRANGING = (
    layers.Concatenate,
    layers.Flatten,
    layers.Reshape,
    layers.Permute,
    layers.RepeatVector,
    layers.ZeroPadding2D,
    layers.Cropping2D,
    layers.Identity,
)
OF_PIXELS = (layers.Normalization, layers.Rescaling, layers.Resizing, layers.CenterCrop)
IN_TRAINING = (
    layers.Dropout,
    layers.SpatialDropout2D,
    layers.AlphaDropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.ActivityRegularization,
    layers.RandomFlip,
    layers.RandomRotation,
    layers.RandomTranslation,
    layers.RandomZoom,
    layers.RandomContrast,
    layers.RandomBrightness,
)
# class -> its operations, from (layer, incoming, outgoing)
LAYER_OPERATIONS = {
    layers.Conv2D: of_convolution,
    layers.DepthwiseConv2D: of_convolution,
    layers.SeparableConv2D: of_separable_convolution,
    layers.Dense: of_dense,
    layers.BatchNormalization: of_batch_norm,
    layers.UpSampling2D: of_upsampling,
    layers.Activation: of_activation,
    **dict.fromkeys(RECTIFIERS, of_relu),
    **dict.fromkeys(POOLING, of_pooling),
    **dict.fromkeys((*MERGING, *NORMALIZING, *ARRANGING, *OF_PIXELS, *IN_TRAINING), of_nothing),
}
