"""ResNet (He et al., arXiv 1512.03385) with an attention module in each block.

The geometry is PyTorch's "v1.5", which the authors trained: stride in the 3x3 convolution, explicit symmetric
padding, no convolution bias, batch norm with epsilon 1e-5 (13952522076/NANet, models/resnet/resnet_na4.py;
torchvision, models/resnet.py). keras.applications.ResNet50 differs in the first and third, so weights do not carry
over from it; layer names are the same.

The attention module stands after a block's last batch norm, before the addition, in every block; or, if it says so
(`replaces_convolution`, SelectiveKernel), in the place of the bottleneck's 3x3 convolution, batch norm and ReLU.
"""

from keras import layers as keras_layers
from keras.initializers import RandomUniform

from na_keras.layers import get_attention, property_of
from na_keras.models.shared import (
    KAIMING_NORMAL,
    channel_axis,
    check_arguments,
    classification_head,
    finish,
    image_input,
    variant,
)

# depth: (blocks in conv2 .. conv5, bottleneck blocks?)
RESNET = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}

# stage: (name, width, stride of its first block)     output of ResNet50 for a 224 x 224 image
STAGES = (
    ("conv2", 64, 1),  # C2    56 x 56 x  256
    ("conv3", 128, 2),  # C3    28 x 28 x  512
    ("conv4", 256, 2),  # C4    14 x 14 x 1024
    ("conv5", 512, 2),  # C5     7 x  7 x 2048
)
EXPANSION = 4  # output channels of a bottleneck block / its width


def convolution_norm(x, filters, size, stride, name, layers, synchronized):
    """Convolution without bias, padded as PyTorch pads it (both sides alike), and batch norm."""
    if size > 1:
        x = layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
    convolution = layers.Conv2D(
        filters, size, stride, use_bias=False, kernel_initializer=KAIMING_NORMAL, name=f"{name}_conv"
    )
    norm = layers.BatchNormalization(
        channel_axis(), momentum=0.9, epsilon=1e-5, synchronized=synchronized, name=f"{name}_bn"
    )
    return norm(convolution(x))


def block(x, width, stride, bottleneck, attention, name, layers, synchronized):
    """One residual block: (b, h, w, c) -> (b, h / stride, w / stride, out).

    Bottleneck: 1x1 to `width`, 3x3 with the stride, 1x1 to out = 4 * width; basic: two 3x3 of out = width, the
    first with the stride. Then attention, the shortcut's addition (projected where the shape changes), ReLU.
    Attention that replaces the 3x3 convolution is called as attention(strides=..., name=...).
    """
    filters = EXPANSION * width if bottleneck else width
    # filters, kernel size, stride
    if bottleneck:
        plan = ((width, 1, 1), (width, 3, stride), (filters, 1, 1))
    else:
        plan = ((width, 3, stride), (filters, 3, 1))
    shortcut = x
    if stride > 1 or x.shape[channel_axis()] != filters:
        shortcut = convolution_norm(x, filters, 1, stride, f"{name}_0", layers, synchronized)
    replaces = property_of(attention, "replaces_convolution")
    for order, (out, size, step) in enumerate(plan, start=1):
        if size == 3 and replaces:
            x = attention(strides=step, name=f"{name}_attention")(x)
            continue
        x = convolution_norm(x, out, size, step, f"{name}_{order}", layers, synchronized)
        if order < len(plan):
            x = layers.ReLU(name=f"{name}_{order}_relu")(x)
    if attention is not None and not replaces:
        x = attention(name=f"{name}_attention")(x)
    x = layers.Add(name=f"{name}_add")([shortcut, x])
    return layers.ReLU(name=f"{name}_out")(x)


def resnet_stages(x, depth, attention=None, layers=keras_layers, synchronized=False):
    """Stem and four stages.

    Args:
        x: symbolic image tensor (b, h, w, c), normalised.
        depth: a key of `RESNET`.
        attention: None or a factory, called once a block as `attention(name=...)`, that returns a layer; with the
            class attribute `replaces_convolution` as `attention(strides=..., name=...)`, see `block`.
        layers: namespace to take layers from; another implementation of Keras' layers builds the same graph.
        synchronized: batch statistics over all replicas.

    Returns:
        {"C2": tensor, ..., "C5": tensor} with strides 4, 8, 16 and 32. Layers of these names pass the tensors
        through, so that `model.get_layer("C4").output` is stage 4's output in any ResNet, loaded ones too.

    Raises:
        ValueError: attention that replaces the bottleneck's 3x3 convolution, at a depth without bottlenecks.
    """
    blocks, bottleneck = RESNET[depth]
    if property_of(attention, "replaces_convolution") and not bottleneck:
        raise ValueError(
            f"This attention replaces the 3x3 convolution of a bottleneck block, and ResNet{depth} has none: use "
            f"ResNet50, 101 or 152, or another attention. Received: attention={attention!r}"
        )
    x = convolution_norm(x, 64, 7, 2, "conv1", layers, synchronized)
    x = layers.ReLU(name="conv1_relu")(x)
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)  # zeros are exact: x >= 0 here
    x = layers.MaxPooling2D(3, 2, name="pool1_pool")(x)
    outputs = {}
    for level, ((stage, width, stride), count) in enumerate(zip(STAGES, blocks, strict=True), start=2):
        for index in range(1, count + 1):
            step = stride if index == 1 else 1
            x = block(x, width, step, bottleneck, attention, f"{stage}_block{index}", layers, synchronized)
        x = outputs[f"C{level}"] = layers.Activation("linear", name=f"C{level}")(x)
    return outputs


def resnet(
    depth,
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    name="resnet",
    attention=None,
    include_preprocessing=True,
    synchronized_batch_norm=False,
):
    """ResNet as a functional keras.Model.

    Args:
        depth: a key of `RESNET`; the named builders fix it.
        include_top: end in global average pooling and a classifier.
        weights: None, or the path of a `.weights.h5` file. `"imagenet"` raises: none are published.
        input_tensor: Keras tensor to build on, instead of `input_shape`.
        input_shape: one image's shape; by default (224, 224, 3), or (None, None, 3) without the top. Sides may be
            None, else at least 32.
        pooling: without the top: None (feature maps), `"avg"` or `"max"`.
        classes: number of classes.
        classifier_activation: `"softmax"`, or None for logits.
        name: name of the model.
        attention: None, a name in `na_keras.ATTENTION`, or a callable that takes `name=` and returns a layer;
            called once per block.
        include_preprocessing: take RGB images with values 0..255 (uint8 too) and normalise them with ImageNet's
            mean and deviation in the graph. False: the input is normalised already.
        synchronized_batch_norm: batch statistics over all replicas of a tf.distribute strategy (TensorFlow only);
            also inside attention given by name. A callable decides for itself: `partial(CBAM, synchronized=True)`.

    Returns:
        keras.Model from (batch, height, width, 3) to (batch, classes) float32. Its layers `C2` .. `C5` are the
        stage outputs: `keras.Model(m.input, [m.get_layer(n).output for n in ("C3", "C4", "C5")])`.

    Raises:
        ValueError: an argument that is none of the above; the message says what was expected.
    """
    check_arguments(include_top, weights, classes, pooling)
    image, x = image_input(input_shape, input_tensor, include_top, include_preprocessing)
    factory = get_attention(attention, synchronized=synchronized_batch_norm)
    stages = resnet_stages(x, depth, factory, synchronized=synchronized_batch_norm)
    # torch.nn.Linear's default: both uniform within 1 / sqrt(inputs)
    bound = stages["C5"].shape[channel_axis()] ** -0.5
    linear = RandomUniform(-bound, bound), RandomUniform(-bound, bound)
    x = classification_head(stages["C5"], include_top, pooling, classes, classifier_activation, 0.0, linear)
    return finish(image, x, weights, name)


ResNet18 = variant(resnet, "ResNet18", fixed={"depth": 18}, name="resnet18")
ResNet34 = variant(resnet, "ResNet34", fixed={"depth": 34}, name="resnet34")
ResNet50 = variant(resnet, "ResNet50", fixed={"depth": 50}, name="resnet50")
ResNet101 = variant(resnet, "ResNet101", fixed={"depth": 101}, name="resnet101")
ResNet152 = variant(resnet, "ResNet152", fixed={"depth": 152}, name="resnet152")
NAResNet50 = variant(resnet, "NAResNet50", fixed={"depth": 50}, name="na_resnet50", attention="na")
