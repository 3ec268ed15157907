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
    KAIMING_NORMAL,
    KAIMING_NORMAL_DEPTHWISE,
    channel_axis,
    check_arguments,
    classification_head,
    finish,
    image_input,
    variant,
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


def norm(x, name, layers, synchronized):
    """Batch norm with PyTorch's constants."""
    axis = channel_axis()
    return layers.BatchNormalization(axis, momentum=0.9, epsilon=1e-5, synchronized=synchronized, name=name)(x)


def convolution(x, filters, size, stride, name, layers):
    """Convolution without bias, padded on both sides alike."""
    if size > 1:
        x = layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
    return layers.Conv2D(filters, size, stride, use_bias=False, kernel_initializer=KAIMING_NORMAL, name=name)(x)


def depthwise(x, stride, name, layers):
    """Depthwise 3x3 convolution without bias, padded on both sides alike."""
    x = layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
    return layers.DepthwiseConv2D(3, stride, use_bias=False, depthwise_initializer=KAIMING_NORMAL_DEPTHWISE, name=name)(
        x
    )


def inverted_residual(x, expansion, filters, stride, attention, name, layers, synchronized):
    """Expand (1x1), filter (depthwise 3x3 with the stride), project (1x1, linear), attention, shortcut.

    (b, h, w, c) -> (b, h / stride, w / stride, filters). The shortcut exists where the shape does not change.
    """
    shortcut = x
    if expansion > 1:
        x = convolution(x, expansion * x.shape[channel_axis()], 1, 1, f"{name}_expand", layers)
        x = layers.ReLU(6.0, name=f"{name}_expand_relu")(norm(x, f"{name}_expand_BN", layers, synchronized))
    x = norm(depthwise(x, stride, f"{name}_depthwise", layers), f"{name}_depthwise_BN", layers, synchronized)
    x = layers.ReLU(6.0, name=f"{name}_depthwise_relu")(x)
    x = norm(convolution(x, filters, 1, 1, f"{name}_project", layers), f"{name}_project_BN", layers, synchronized)
    if attention is not None:
        x = attention(name=f"{name}_attention")(x)
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
    x = convolution(x, scaled(STEM, alpha), 3, 2, "Conv1", layers)
    x = layers.ReLU(6.0, name="Conv1_relu")(norm(x, "bn_Conv1", layers, synchronized))
    outputs, index = {}, 0
    for expansion, channels, blocks, stride, level in MOBILENET_V2:
        for step in [stride] + [1] * (blocks - 1):
            name = f"block_{index}" if index else "expanded_conv"
            filters = scaled(channels, alpha)
            x = inverted_residual(x, expansion, filters, step, attention, name, layers, synchronized)
            index += 1
        if level is not None:
            x = outputs[level] = layers.Activation("linear", name=level)(x)
    return outputs


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
    """MobileNetV2 as a functional keras.Model.

    Args:
        input_shape: one image's shape; by default (224, 224, 3), or (None, None, 3) without the top. Sides may be
            None, else at least 32.
        alpha: width multiplier; channels are rounded to multiples of 8, and the last convolution never has fewer
            than 1280.
        include_top: end in global average pooling, dropout and a classifier.
        weights: None, or the path of a `.weights.h5` file. `"imagenet"` raises: none are published.
        input_tensor: Keras tensor to build on, instead of `input_shape`.
        pooling: without the top: None (feature maps), `"avg"` or `"max"`.
        classes: number of classes.
        classifier_activation: `"softmax"`, or None for logits.
        name: name of the model.
        attention: None, a name in `na_keras.ATTENTION`, or a callable that takes `name=` and returns a layer;
            called once per block. Names have this network's settings: `ATTENTION_SETTINGS` at the head of this file.
        include_preprocessing: take RGB images with values 0..255 (uint8 too) and normalise them with ImageNet's
            mean and deviation in the graph. False: the input is normalised already.
        synchronized_batch_norm: batch statistics over all replicas of a tf.distribute strategy (TensorFlow only);
            also inside attention given by name. A callable decides for itself: `partial(CBAM, synchronized=True)`.
        dropout_rate: before the classifier; the authors' and PyTorch's .2.

    Returns:
        keras.Model from (batch, height, width, 3) to (batch, classes) float32. Its layers `C2` .. `C5` are the
        stage outputs: `keras.Model(m.input, [m.get_layer(n).output for n in ("C3", "C4", "C5")])`.

    Raises:
        ValueError: an argument that is none of the above; the message says what was expected.
    """
    check_arguments(include_top, weights, classes, pooling)
    if not alpha > 0:
        raise ValueError(f"alpha must be positive. Received: alpha={alpha}")
    image, x = image_input(input_shape, input_tensor, include_top, include_preprocessing)
    factory = get_attention(attention, ATTENTION_SETTINGS, synchronized=synchronized_batch_norm)
    x = mobilenet_v2_stages(x, alpha, factory, synchronized=synchronized_batch_norm)["C5"]
    x = convolution(x, scaled(LAST, max(1.0, alpha)), 1, 1, "Conv_1", keras_layers)
    x = norm(x, "Conv_1_bn", keras_layers, synchronized_batch_norm)
    x = keras_layers.ReLU(6.0, name="out_relu")(x)
    small = RandomNormal(stddev=0.01), Zeros()  # the authors' and torchvision's
    x = classification_head(x, include_top, pooling, classes, classifier_activation, dropout_rate, small)
    return finish(image, x, weights, name)


NAMobileNetV2 = variant(MobileNetV2, "NAMobileNetV2", name="na_mobilenetv2", attention="na")
