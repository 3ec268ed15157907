"""ResNet (He et al., arXiv 1512.03385) with an attention module in each block.

The geometry is PyTorch's "v1.5", which the authors trained: stride in the 3x3 convolution, explicit symmetric
padding, no convolution bias, batch norm with epsilon 1e-5 (13952522076/NANet, models/resnet/resnet_na4.py;
torchvision, models/resnet.py). keras.applications.ResNet50 differs in the first and third, so weights do not carry
over from it; layer names are the same.

The attention module stands after a block's last batch norm, before the addition, in every block; or, if it says so
(`replaces_convolution`, SelectiveKernel), in the place of the bottleneck's 3x3 convolution, batch norm and ReLU.
"""

from keras import layers as keras_layers

from na_keras.layers import get_attention, property_of
from na_keras.layers.initializers import torch_linear
from na_keras.models.named_seeds import NamedSeedLayers
from na_keras.models.shared import (
    BlockOptions,
    NetworkArguments,
    channel_axis,
    classification_head,
    convolution_norm,
    documented,
    finish,
    image_input,
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


def in_stages(attention, stages):
    """Attention in the blocks of some of a ResNet's stages only, as mmdetection has GC in the last three.

    >>> ResNet50(attention=in_stages("gc", (3, 4, 5)))

    Args:
        attention: a name in `na_keras.ATTENTION`, or a callable that takes `name=` and returns a layer.
        stages: numbers of those with modules, 2 to 5.

    Returns:
        A callable for a ResNet's `attention=` that returns None for the blocks of the other stages.

    Raises:
        ValueError: other numbers, or none at all; an unknown name.
    """
    factory, numbers = get_attention(attention), range(2, 2 + len(STAGES))
    if factory is None or not stages or not set(stages) <= set(numbers):
        raise ValueError(f"in_stages takes attention and stages of 2, 3, 4, 5. Received: {attention!r}, {stages!r}")
    beginnings = tuple(f"conv{number}_" for number in stages)

    def attended(*, name, **arguments):
        return factory(name=name, **arguments) if name.startswith(beginnings) else None

    attended.replaces_convolution = property_of(factory, "replaces_convolution")
    attended.has_batch_norm = property_of(factory, "has_batch_norm")
    return attended


def names_of(name):
    """Of the padding, the convolution and the batch norm."""
    return f"{name}_pad", f"{name}_conv", f"{name}_bn"


def residual_block(x, width, stride, bottleneck, name, options):
    """One residual block.

    Bottleneck: 1x1 to `width`, 3x3 with the stride, 1x1 to out = 4 * width; basic: two 3x3 of out = width, the
    first with the stride. Then attention, the shortcut's addition (projected where the shape changes), ReLU.
    Attention that replaces the 3x3 convolution is called as attention(strides=..., name=...). Where it returns None
    the block has none.

    Args:
        x: symbolic tensor (b, h, w, c).
        width, stride, bottleneck: as above.
        name: that the names of all layers begin with.
        options: a `BlockOptions`.

    Returns:
        Symbolic tensor (b, h / stride, w / stride, out).
    """
    layers, attention = options.layers, options.attention
    filters = EXPANSION * width if bottleneck else width
    # filters, kernel size, stride
    if bottleneck:
        plan = ((width, 1, 1), (width, 3, stride), (filters, 1, 1))
    else:
        plan = ((width, 3, stride), (filters, 3, 1))
    shortcut = x
    if stride > 1 or x.shape[channel_axis()] != filters:
        shortcut = convolution_norm(x, filters, 1, stride, names_of(f"{name}_0"), options)
    replaces = property_of(attention, "replaces_convolution")
    for order, (out, size, step) in enumerate(plan, start=1):
        if size == 3 and replaces and (module := attention(strides=step, name=f"{name}_attention")) is not None:
            x = module(x)
            continue
        x = convolution_norm(x, out, size, step, names_of(f"{name}_{order}"), options)
        if order < len(plan):
            x = layers.ReLU(name=f"{name}_{order}_relu")(x)
    if attention is not None and not replaces and (module := attention(name=f"{name}_attention")) is not None:
        x = module(x)
    x = layers.Add(name=f"{name}_add")([shortcut, x])
    return layers.ReLU(name=f"{name}_out")(x)


def resnet_stages(x, depth, attention=None, layers=keras_layers, synchronized=False):
    """Stem and four stages.

    Args:
        x: symbolic image tensor (b, h, w, c), normalised.
        depth: a key of `RESNET`.
        attention: None or a factory, called once a block as `attention(name=...)`, that returns a layer; with the
            class attribute `replaces_convolution` as `attention(strides=..., name=...)`, see `residual_block`.
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
    options = BlockOptions(attention, layers, synchronized)
    x = convolution_norm(x, 64, 7, 2, names_of("conv1"), options)
    x = layers.ReLU(name="conv1_relu")(x)
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)  # zeros are exact: x >= 0 here
    x = layers.MaxPooling2D(3, 2, name="pool1_pool")(x)
    outputs = {}
    for level, ((stage, width, stride), count) in enumerate(zip(STAGES, blocks, strict=True), start=2):
        for index in range(1, count + 1):
            step = stride if index == 1 else 1
            x = residual_block(x, width, step, bottleneck, f"{stage}_block{index}", options)
        x = outputs[f"C{level}"] = layers.Activation("linear", name=f"C{level}")(x)
    return outputs


def resnet(depth, arguments):
    """ResNet as a functional keras.Model.

    Args:
        depth: a key of `RESNET`.
        arguments: a `NetworkArguments`.
    """
    image, x = image_input(arguments)
    factory = arguments.attention_factory()
    layers = NamedSeedLayers(keras_layers)
    stages = resnet_stages(x, depth, factory, layers, arguments.synchronized_batch_norm)
    initial = torch_linear(stages["C5"].shape[channel_axis()])
    x = classification_head(stages["C5"], arguments, (initial, initial), layers)
    return finish(image, x, arguments, f"ResNet{depth}", lambda changed: resnet(depth, changed))


# The signatures are written out, for editors and for readers; `locals()` is the arguments by their names.


@documented()
def ResNet18(
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    name="resnet18",
    attention=None,
    include_preprocessing=True,
    synchronized_batch_norm=False,
):
    """ResNet18 with 8 basic blocks, as a functional keras.Model.

    The arguments mean what `na_keras.models.shared.ARGUMENTS` says; `help(ResNet18)` shows it.
    """
    return resnet(18, NetworkArguments(**locals()))


@documented()
def ResNet34(
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    name="resnet34",
    attention=None,
    include_preprocessing=True,
    synchronized_batch_norm=False,
):
    """ResNet34 with 16 basic blocks, as a functional keras.Model.

    The arguments mean what `na_keras.models.shared.ARGUMENTS` says; `help(ResNet34)` shows it.
    """
    return resnet(34, NetworkArguments(**locals()))


@documented()
def ResNet50(
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    name="resnet50",
    attention=None,
    include_preprocessing=True,
    synchronized_batch_norm=False,
):
    """ResNet50 with 16 bottleneck blocks, as a functional keras.Model.

    The arguments mean what `na_keras.models.shared.ARGUMENTS` says; `help(ResNet50)` shows it.
    """
    return resnet(50, NetworkArguments(**locals()))


@documented()
def ResNet101(
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    name="resnet101",
    attention=None,
    include_preprocessing=True,
    synchronized_batch_norm=False,
):
    """ResNet101 with 33 bottleneck blocks, as a functional keras.Model.

    The arguments mean what `na_keras.models.shared.ARGUMENTS` says; `help(ResNet101)` shows it.
    """
    return resnet(101, NetworkArguments(**locals()))


@documented()
def ResNet152(
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    name="resnet152",
    attention=None,
    include_preprocessing=True,
    synchronized_batch_norm=False,
):
    """ResNet152 with 50 bottleneck blocks, as a functional keras.Model.

    The arguments mean what `na_keras.models.shared.ARGUMENTS` says; `help(ResNet152)` shows it.
    """
    return resnet(152, NetworkArguments(**locals()))


@documented()
def NAResNet50(
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    name="na_resnet50",
    attention="na",
    include_preprocessing=True,
    synchronized_batch_norm=False,
):
    """ResNet50 with the paper's attention module in each of its 16 blocks, as a functional keras.Model.

    The arguments mean what `na_keras.models.shared.ARGUMENTS` says; `help(NAResNet50)` shows it.
    """
    return resnet(50, NetworkArguments(**locals()))
