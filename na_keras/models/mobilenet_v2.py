"""MobileNetV2 (Sandler et al., arXiv 1801.04381) with an attention module in each block.

The geometry is PyTorch's, which the authors trained: explicit symmetric padding, batch norm with epsilon 1e-5,
dropout .2 before the classifier (13952522076/NANet, models/mobilenet/mobilenet_na.py; torchvision,
models/mobilenetv2.py). keras.applications.MobileNetV2 pads at the bottom and right and uses epsilon 1e-3, so weights
do not carry over from it; layer names are the same.

The attention module stands after a block's last batch norm, in all 17 blocks, inside the residual sum.
"""

from functools import partial

from keras import layers as keras_layers
from keras.initializers import RandomNormal, Zeros

from na_keras.layers import (
    CBAM,
    GatherExcite,
    GlobalContext,
    LinearContextTransform,
    SpatialGroupEnhance,
    SqueezeExcite,
    get_attention,
    property_of,
)
from na_keras.models.shared import (
    BlockSettings,
    ConvolutionNames,
    channel_axis,
    check_arguments,
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


def names(convolution, norm=None):
    """Names of a convolution and what belongs to it, as keras.applications has them."""
    return ConvolutionNames(f"{convolution}_pad", convolution, norm or f"{convolution}_BN")


def inverted_residual(x, expansion, filters, stride, name, settings):
    """Expand (1x1), filter (depthwise 3x3 with the stride), project (1x1, linear), attention, shortcut.

    (b, h, w, c) -> (b, h / stride, w / stride, filters). The shortcut exists where the shape does not change.
    """
    layers, shortcut = settings.layers, x
    if expansion > 1:
        x = convolution_norm(x, expansion * x.shape[channel_axis()], 1, 1, names(f"{name}_expand"), settings)
        x = layers.ReLU(6.0, name=f"{name}_expand_relu")(x)
    x = convolution_norm(x, None, 3, stride, names(f"{name}_depthwise"), settings)
    x = layers.ReLU(6.0, name=f"{name}_depthwise_relu")(x)
    x = convolution_norm(x, filters, 1, 1, names(f"{name}_project"), settings)
    if settings.attention is not None:
        x = settings.attention(name=f"{name}_attention")(x)
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
    settings = BlockSettings(attention, layers, synchronized)
    x = convolution_norm(x, scaled(STEM, alpha), 3, 2, names("Conv1", "bn_Conv1"), settings)
    x = layers.ReLU(6.0, name="Conv1_relu")(x)
    outputs, index = {}, 0
    for expansion, channels, blocks, stride, level in MOBILENET_V2:
        for step in [stride] + [1] * (blocks - 1):
            name = f"block_{index}" if index else "expanded_conv"
            filters = scaled(channels, alpha)
            x = inverted_residual(x, expansion, filters, step, name, settings)
            index += 1
        if level is not None:
            x = outputs[level] = layers.Activation("linear", name=level)(x)
    return outputs


# What `help` says of the arguments that ResNets do not have.
ALPHA_AND_DROPOUT = """\
    alpha: width multiplier; channels are rounded to multiples of 8, and the last convolution never has fewer than 1280.
    dropout_rate: before the classifier; the authors' and PyTorch's .2.
"""


@partial(documented, further_arguments=ALPHA_AND_DROPOUT)
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
    """MobileNetV2 as a functional keras.Model. Names of attention have this network's settings, `ATTENTION_SETTINGS`.

    Source: arXiv 1801.04381 in PyTorch's geometry; see the head of na_keras/models/mobilenet_v2.py.
    """
    check_arguments(include_top, weights, classes, pooling)
    if not alpha > 0:
        raise ValueError(f"alpha must be positive. Received: alpha={alpha}")
    image, x = image_input(input_shape, input_tensor, include_top, include_preprocessing)
    factory = get_attention(attention, ATTENTION_SETTINGS, synchronized=synchronized_batch_norm)
    x = mobilenet_v2_stages(x, alpha, factory, synchronized=synchronized_batch_norm)["C5"]
    settings = BlockSettings(synchronized=synchronized_batch_norm)
    x = convolution_norm(x, scaled(LAST, max(1.0, alpha)), 1, 1, names("Conv_1", "Conv_1_bn"), settings)
    x = keras_layers.ReLU(6.0, name="out_relu")(x)
    x = classification_head(
        x,
        include_top=include_top,
        pooling=pooling,
        classes=classes,
        classifier_activation=classifier_activation,
        initializers=(RandomNormal(stddev=0.01), Zeros()),  # the authors' and torchvision's
        dropout_rate=dropout_rate,
    )
    return finish(image, x, weights, name)


@partial(documented, further_arguments=ALPHA_AND_DROPOUT)
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
    """`MobileNetV2` with Normalization-Attention in each block, the network of the paper's Table 1.

    Source: arXiv 1801.04381 in PyTorch's geometry; see the head of na_keras/models/mobilenet_v2.py.
    """
    return MobileNetV2(**locals())  # the arguments: nothing else has a name here yet
