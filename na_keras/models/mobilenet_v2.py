"""MobileNetV2 (Sandler et al., arXiv 1801.04381) with an attention module in each block.

The geometry is PyTorch's, which the authors trained: explicit symmetric padding, batch norm with epsilon 1e-5,
dropout .2 before the classifier (13952522076/NANet, models/mobilenet/mobilenet_na.py; torchvision,
models/mobilenetv2.py). keras.applications.MobileNetV2 pads at the bottom and right and uses epsilon 1e-3, so weights
do not carry over from it; layer names are the same.

The attention module stands after a block's last batch norm, in all 17 blocks, inside the residual sum.
"""

from functools import partial

from keras import layers as keras_layers

from na_keras.layers import (
    CBAM,
    GatherExcite,
    GlobalContext,
    LinearContextTransform,
    SpatialGroupEnhance,
    SqueezeExcite,
    property_of,
)
from na_keras.models.named_seeds import NamedSeedLayers
from na_keras.models.shared import (
    ARGUMENTS,
    BlockOptions,
    NetworkArguments,
    channel_axis,
    classification_head,
    convolution_norm,
    documented,
    finish,
    image_input,
)

# expansion, channels, blocks, stride of the first block, level at its end     output for a 224 x 224 image
MOBILENET_V2 = (
    (1, 16, 1, 1, None),  # 112 x 112 x  16
    (6, 24, 2, 2, "C2"),  #  56 x  56 x  24
    (6, 32, 3, 2, "C3"),  #  28 x  28 x  32
    (6, 64, 4, 2, None),  #  14 x  14 x  64
    (6, 96, 3, 1, "C4"),  #  14 x  14 x  96
    (6, 160, 3, 2, None),  #   7 x   7 x 160
    (6, 320, 1, 1, "C5"),  #   7 x   7 x 320
)
STEM, LAST = 32, 1280  # channels of the first and the last convolution

# What names in `na_keras.ATTENTION` mean here, where that is not ResNet's setting. The first three are rows of Table 1
# without published code, INFERRED from its parameter and operation counts: no other setting of placement, reduction,
# biases and rounding that we tried gives them. The others are in no table: with ResNet's settings the 16 channels of
# the first block, or 8 with a small alpha, could not be divided.
ATTENTION_SETTINGS = {
    "se": partial(SqueezeExcite, reduction=8),
    "ge": partial(GatherExcite, extent=8, parametrized=True),
    "cbam": partial(CBAM, reduction=8),
    "gc": partial(GlobalContext, reduction=4),
    "sge": partial(SpatialGroupEnhance, groups=8),
    "lct": partial(LinearContextTransform, groups=4),
}


def scaled(channels, alpha, divisor=8):
    """`channels` * alpha to the nearest multiple of 8, but never below 90 % of the product (the paper's rule)."""
    rounded = max(divisor, int(channels * alpha + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels * alpha else rounded


def names_of(name, norm_name=None):
    """Of the padding, the convolution and the batch norm."""
    return f"{name}_pad", name, norm_name or f"{name}_BN"


def inverted_residual(x, expansion, filters, stride, name, options):
    """Expand (1x1), filter (depthwise 3x3 with the stride), project (1x1, linear), attention, shortcut.

    The shortcut exists where the shape does not change.

    Args:
        x: symbolic tensor (b, h, w, c).
        expansion: channels between the 1x1 convolutions / c.
        filters: output channels.
        stride: of the depthwise convolution.
        name: that the names of all layers begin with.
        options: a `BlockOptions`.

    Returns:
        Symbolic tensor (b, h / stride, w / stride, filters).
    """
    layers, shortcut = options.layers, x
    if expansion > 1:
        width = expansion * x.shape[channel_axis()]
        x = convolution_norm(x, width, 1, 1, names_of(f"{name}_expand"), options)
        x = layers.ReLU(6.0, name=f"{name}_expand_relu")(x)
    x = convolution_norm(x, None, 3, stride, names_of(f"{name}_depthwise"), options)
    x = layers.ReLU(6.0, name=f"{name}_depthwise_relu")(x)
    x = convolution_norm(x, filters, 1, 1, names_of(f"{name}_project"), options)
    if options.attention is not None and (module := options.attention(name=f"{name}_attention")) is not None:
        x = module(x)
    if stride == 1 and shortcut.shape[channel_axis()] == filters:
        x = layers.Add(name=f"{name}_add")([shortcut, x])
    return x


def mobilenet_v2_stages(x, alpha=1.0, attention=None, layers=keras_layers, synchronized=False):
    """Stem and 17 blocks.

    Args:
        x: symbolic image tensor (b, h, w, c), normalised.
        alpha: width multiplier.
        attention, layers, synchronized: as in `resnet_stages`.

    Returns:
        {"C2": tensor, ..., "C5": tensor} with strides 4, 8, 16 and 32: the last block output of each resolution,
        passed through by layers of these names.

    Raises:
        ValueError: attention that replaces a bottleneck's 3x3 convolution: these blocks have none.
    """
    if property_of(attention, "replaces_convolution"):
        raise ValueError(
            "This attention replaces the 3x3 convolution of a ResNet's bottleneck. MobileNetV2's 3x3 convolutions "
            f"are depthwise, and no table of the paper replaces them: use another. Received: attention={attention!r}"
        )
    options = BlockOptions(attention, layers, synchronized)
    x = convolution_norm(x, scaled(STEM, alpha), 3, 2, names_of("Conv1", "bn_Conv1"), options)
    x = layers.ReLU(6.0, name="Conv1_relu")(x)
    outputs, index = {}, 0
    for expansion, channels, blocks, stride, level in MOBILENET_V2:
        for step in [stride] + [1] * (blocks - 1):
            name = f"block_{index}" if index else "expanded_conv"
            filters = scaled(channels, alpha)
            x = inverted_residual(x, expansion, filters, step, name, options)
            index += 1
        if level is not None:
            x = outputs[level] = layers.Activation("linear", name=level)(x)
    return outputs


def mobilenet_v2(alpha, dropout_rate, **arguments):
    """MobileNetV2 as a functional keras.Model.

    Args:
        alpha, dropout_rate: see `OWN_ARGUMENTS`.
        **arguments: the fields of `NetworkArguments`.

    Raises:
        ValueError: an alpha that is not positive, and as `NetworkArguments`.
    """
    arguments = NetworkArguments(**arguments)
    if not alpha > 0:
        raise ValueError(f"alpha must be positive. Received: alpha={alpha}")
    image, x = image_input(arguments)
    factory, synchronized = arguments.attention_factory(ATTENTION_SETTINGS), arguments.synchronized_batch_norm
    layers = NamedSeedLayers(keras_layers)
    x = mobilenet_v2_stages(x, alpha, factory, layers, synchronized)["C5"]
    options, names = BlockOptions(layers=layers, synchronized=synchronized), names_of("Conv_1", "Conv_1_bn")
    x = convolution_norm(x, scaled(LAST, max(1.0, alpha)), 1, 1, names, options)
    x = layers.ReLU(6.0, name="out_relu")(x)
    # The authors' and torchvision's.
    small = {"class_name": "RandomNormal", "config": {"stddev": 0.01}}, "zeros"
    x = classification_head(x, arguments, small, layers, dropout_rate)
    rebuild = lambda changed: mobilenet_v2(alpha, dropout_rate, **vars(changed))  # noqa: E731
    return finish(image, x, arguments, "MobileNetV2", rebuild)


OWN_ARGUMENTS = {
    "alpha": "width multiplier, a positive number; channels are rounded to multiples of 8, and the last convolution "
    "never has fewer than 1280.",
    "include_top": "end in global average pooling, dropout and a classifier.",
    "attention": ARGUMENTS["attention"]
    + " Names have this network's settings: `na_keras.models.mobilenet_v2.ATTENTION_SETTINGS`.",
    "dropout_rate": "before the classifier; the authors' and PyTorch's .2.",
}

# The signatures are written out, for editors and for readers; `locals()` is the arguments by their names.


@documented(**OWN_ARGUMENTS)
def MobileNetV2(
    input_shape=None,
    alpha=1.0,
    include_top=True,
    weights=None,
    input_tensor=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    name="mobilenetv2",
    attention=None,
    include_preprocessing=True,
    synchronized_batch_norm=False,
    dropout_rate=0.2,
):
    """MobileNetV2 with 17 inverted residual blocks, as a functional keras.Model.

    The arguments mean what `OWN_ARGUMENTS` says, and else `na_keras.models.shared.ARGUMENTS`; `help(MobileNetV2)` shows
    it.
    """
    return mobilenet_v2(**locals())


@documented(**OWN_ARGUMENTS)
def NAMobileNetV2(
    input_shape=None,
    alpha=1.0,
    include_top=True,
    weights=None,
    input_tensor=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    name="na_mobilenetv2",
    attention="na",
    include_preprocessing=True,
    synchronized_batch_norm=False,
    dropout_rate=0.2,
):
    """MobileNetV2 with the paper's attention module in each of its 17 blocks, as a functional keras.Model.

    The arguments mean what `OWN_ARGUMENTS` says, and else `na_keras.models.shared.ARGUMENTS`; `help(NAMobileNetV2)`
    shows it.
    """
    return mobilenet_v2(**locals())
