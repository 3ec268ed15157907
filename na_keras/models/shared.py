"""What every network here shares: arguments and their documentation, input and normalisation, convolutions, the head.

Arguments follow keras.applications. The pixel statistics are ImageNet's as PyTorch's networks use them, scaled to
0..255: the authors trained with them, and weights trained in PyTorch expect them.
"""

import dataclasses
import inspect
import logging
import textwrap
import typing

import keras
import numpy as np
from keras import layers

from na_keras.layers import get_attention
from na_keras.layers.initializers import KAIMING_NORMAL, KAIMING_NORMAL_FAN_IN
from na_keras.pretrained import CLASSIFIER, check_source, open_weights, start

# Red, green, blue; of pixels in 0..255.
IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STANDARD_DEVIATION = (0.229 * 255, 0.224 * 255, 0.225 * 255)

LOGGER = logging.getLogger(__name__)
SMALLEST_SIZE = 32  # pixels; five halvings leave one position


def channel_axis():
    """The axis of the channels under the current `keras.config.image_data_format()`."""
    return -1 if keras.config.image_data_format() == "channels_last" else 1


# What the builders' arguments mean; `documented` puts into a builder's help those that it has.
ARGUMENTS = {
    "include_top": "end in global average pooling and a classifier.",
    "weights": 'None; `"torchvision-v1"` or `"torchvision-v2"`, torchvision\'s ImageNet weights (downloaded once into '
    "Keras' cache, read by PyTorch); or the path of a file: `.weights.h5`, `.h5` or `.keras` of Keras, `.pth`, "
    "`.safetensors` or `.npz` of PyTorch's names. A classifier of other `classes` stays fresh, and so do attention "
    "modules that the weights have not; what these begin with is divided out of the layer before, where it is a "
    'constant. A log message says so. `"imagenet"` raises: the authors published none.',
    "input_tensor": "Keras tensor to build on, instead of `input_shape`.",
    "input_shape": "one image's shape; by default (224, 224, 3), or (None, None, 3) without the top. Sides may be "
    "None, else at least 32 pixels.",
    "pooling": 'without the top: None (feature maps), `"avg"` or `"max"`.',
    "classes": "number of classes.",
    "classifier_activation": '`"softmax"`, or None for logits.',
    "name": "name of the model.",
    "attention": "None, a name in `na_keras.ATTENTION`, or a callable that takes `name=` and returns a layer, or None "
    "for a block without; called once per block.",
    "include_preprocessing": "take RGB images with values 0..255 (uint8 too) and normalise them with ImageNet's mean "
    "and deviation in the graph. False: the input is normalised already.",
    "synchronized_batch_norm": "batch statistics over all replicas of a tf.distribute strategy (TensorFlow only); also "
    "inside attention given by name. A callable decides for itself: `partial(CBAM, synchronized=True)`.",
}
RESULT = """\
Returns:
    keras.Model from (batch, height, width, 3) to (batch, classes) float32. Its layers `C2` .. `C5` are the
    stage outputs: `keras.Model(m.input, [m.get_layer(n).output for n in ("C3", "C4", "C5")])`.

Raises:
    ValueError: an argument that is none of the above; the message says what was expected."""


def documented(**own):
    """A decorator that completes a builder's docstring: its arguments in order, what it returns and raises.

    Args:
        **own: what arguments mean that `ARGUMENTS` does not have, or has for other networks.

    Raises:
        KeyError: an argument of the builder that nothing describes.
    """

    def complete(builder):
        meanings = ((name, (ARGUMENTS | own)[name]) for name in inspect.signature(builder).parameters)
        lines = [
            textwrap.fill(f"{name}: {meaning}", 112, initial_indent=" " * 4, subsequent_indent=" " * 8)
            for name, meaning in meanings
        ]
        builder.__doc__ = "\n\n".join([inspect.cleandoc(builder.__doc__ or ""), "\n".join(["Args:", *lines]), RESULT])
        return builder

    return complete


@dataclasses.dataclass(frozen=True)
class NetworkArguments:
    """The arguments that all builders share, as `ARGUMENTS` describes them.

    Raises:
        ValueError: at construction, on what could only fail later, or silently.
    """

    include_top: bool
    weights: typing.Any
    input_tensor: typing.Any
    input_shape: typing.Any
    pooling: typing.Any
    classes: int
    classifier_activation: typing.Any
    name: str
    attention: typing.Any
    include_preprocessing: bool
    synchronized_batch_norm: bool

    def __post_init__(self):
        weights, classes = self.weights, self.classes
        if isinstance(weights, str) and weights == "imagenet":
            raise ValueError(
                'weights="imagenet": the authors published no weights, and this library has none yet. Use None '
                '(random initialisation), "torchvision-v1" or "torchvision-v2", or the path of a file that fits this '
                "network."
            )
        if weights is not None:
            check_source(weights)
        if self.include_top and (not isinstance(classes, int) or classes < 1):
            raise ValueError(f"classes must be a positive integer. Received: classes={classes!r}")
        if self.pooling not in (None, "avg", "max"):
            raise ValueError(f'pooling must be None, "avg" or "max". Received: pooling={self.pooling!r}')

    def attention_factory(self, settings=()):
        """The layer factory that `attention` means, or None; `settings` and errors as in `get_attention`."""
        return get_attention(self.attention, settings, synchronized=self.synchronized_batch_norm)


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """What is the same in all blocks of one network.

    Attributes:
        attention: None, or a factory that is called as `attention(name=...)` and returns a layer.
        layers: namespace to take layers from, `keras.layers` or another implementation of it.
        synchronized: batch statistics over all replicas.
    """

    attention: typing.Callable | None = None
    layers: typing.Any = layers
    synchronized: bool = False


def convolution_norm(x, filters, size, stride, names, options):
    """Convolution without bias, padded as PyTorch pads it (both sides alike), and batch norm with PyTorch's constants.

    Args:
        x: symbolic tensor (b, h, w, c).
        filters: output channels; None: a depthwise convolution, with as many as come in.
        size, stride: of the kernel.
        names: of the padding (which a size of 1 has not), the convolution and the batch norm.
        options: a `BlockOptions`.

    Returns:
        Symbolic tensor (b, ceil(h / stride), ceil(w / stride), filters).
    """
    layers, (padding_name, convolution_name, norm_name) = options.layers, names
    if size > 1:
        x = layers.ZeroPadding2D(size // 2, name=padding_name)(x)
    plain = {"use_bias": False, "name": convolution_name}
    if filters is None:
        convolution = layers.DepthwiseConv2D(size, stride, depthwise_initializer=KAIMING_NORMAL_FAN_IN, **plain)
    else:
        convolution = layers.Conv2D(filters, size, stride, kernel_initializer=KAIMING_NORMAL, **plain)
    norm = layers.BatchNormalization(
        channel_axis(), momentum=0.9, epsilon=1e-5, synchronized=options.synchronized, name=norm_name
    )
    return norm(convolution(x))


def image_input(arguments):
    """The model's input and the first tensor of the network.

    Args:
        arguments: a `NetworkArguments`.

    Returns:
        (input tensor to build the model on, image tensor normalised if `include_preprocessing`).

    Raises:
        ValueError: a shape that is not 3 numbers, sides under 32 pixels, unknown channels, channels other than 3
            with `include_preprocessing`, an input tensor that disagrees with `input_shape`.
    """
    axis, input_tensor, input_shape = channel_axis(), arguments.input_tensor, arguments.input_shape
    if input_tensor is not None:
        if not keras.backend.is_keras_tensor(input_tensor):
            raise ValueError(
                f"input_tensor must be the output of keras.Input or of a layer. Received: {input_tensor!r}"
            )
        if input_shape is not None and tuple(input_shape) != tuple(input_tensor.shape[1:]):
            raise ValueError(
                "input_tensor and input_shape disagree: give one of them. Received: "
                f"input_tensor of shape {tuple(input_tensor.shape)}, input_shape={tuple(input_shape)}"
            )
        input_shape = tuple(input_tensor.shape[1:])
    if input_shape is None:
        side = 224 if arguments.include_top else None
        input_shape = (side, side, 3) if axis == -1 else (3, side, side)
    input_shape = tuple(input_shape)
    sides = input_shape[:2] if axis == -1 else input_shape[1:]
    if len(input_shape) != 3 or any(side is not None and side < SMALLEST_SIZE for side in sides):
        raise ValueError(
            f"input_shape must be one image's shape in {keras.config.image_data_format()} order, sides at least "
            f"{SMALLEST_SIZE} pixels or None. Received: input_shape={input_shape}"
        )
    channels = input_shape[2 if axis == -1 else 0]
    if channels is None:
        raise ValueError(f"The number of channels must be known. Received: input_shape={input_shape}")
    image = keras.Input(input_shape, name="images") if input_tensor is None else input_tensor
    if not arguments.include_preprocessing:
        return image, image
    if channels != 3:
        raise ValueError(
            "include_preprocessing=True normalises red, green and blue: give 3 channels, or normalise yourself "
            f"and pass include_preprocessing=False. Received: input_shape={input_shape}"
        )
    variance = [deviation**2 for deviation in IMAGENET_STANDARD_DEVIATION]
    # In float32 whatever the policy: 0..255 in half precision has little left below one.
    normalize = layers.Normalization(axis, IMAGENET_MEAN, variance, dtype="float32", name="normalization")
    return image, normalize(image)


def classification_head(x, arguments, initializers, layers, dropout_rate=0.0):
    """Global pooling, dropout and the classifier; or pooling alone, or nothing, as keras.applications does.

    The classifier computes in float32 whatever the policy: a softmax over 1000 classes in half precision loses
    the small probabilities that the loss is made of.

    Args:
        x: symbolic tensor (b, h, w, c).
        arguments: a `NetworkArguments`.
        initializers: configurations of those of the classifier's kernel and bias.
        layers: namespace to take layers from.
        dropout_rate: before the classifier; 0 makes no layer.

    Returns:
        Symbolic tensor (b, classes), or without the top (b, c) or x.
    """
    if not arguments.include_top:
        pools = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}
        pooling = arguments.pooling
        return pools[pooling](name=f"{pooling}_pool")(x) if pooling else x
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    if dropout_rate:
        x = layers.Dropout(dropout_rate, name="dropout")(x)
    kernel_initializer, bias_initializer = initializers
    return layers.Dense(
        arguments.classes,
        activation=arguments.classifier_activation,
        kernel_initializer=kernel_initializer,
        bias_initializer=bias_initializer,
        dtype="float32",
        name=CLASSIFIER,
    )(x)


def classifier_of(model):
    """The classifier of a network of this library, None without the top."""
    return next((layer for layer in model.layers if layer.name == CLASSIFIER), None)


def finish(image, x, arguments, network, rebuild):
    """The functional model from `image` to `x`, with the weights that `arguments.weights` names.

    Args:
        image, x: Keras tensors.
        arguments: a `NetworkArguments`.
        network: name of the network in na_keras.models.MODELS.
        rebuild: function of a `NetworkArguments` -> keras.Model, to read a file with that has no names in it.

    Raises:
        ValueError: weights that do not fit, by name; see na_keras.pretrained.
    """
    model = keras.Model(image, x, name=arguments.name)
    if arguments.weights is None:
        return model

    def twin(modules, classes):
        size = (None, None, image.shape[3]) if channel_axis() == -1 else (image.shape[1], None, None)
        changes = {"weights": None, "input_tensor": None, "input_shape": size, "classes": classes or arguments.classes}
        changes["include_top"] = arguments.include_top or classes is not None  # as the file has it
        return rebuild(dataclasses.replace(arguments, **changes, attention=arguments.attention if modules else None))

    for note in start(model, open_weights(arguments.weights, network), classifier_of(model), twin):
        LOGGER.warning("%s, weights %s: %s", arguments.name, arguments.weights, note)
    return model


def preprocess_input(x, data_format=None):
    """Normalises images for a network built with `include_preprocessing=False`.

    Networks built with the default `include_preprocessing=True` hold this normalisation as their first layer and
    take raw images: do not apply it twice.

    Args:
        x: array or tensor of any dtype, one or several RGB images with values 0..255: (h, w, 3), (batch, h, w, 3) or
            with more leading axes; (3, h, w) or (batch, 3, h, w) in channels_first. It is left as it is.
        data_format: `"channels_last"` or `"channels_first"`; by default `keras.config.image_data_format()`.

    Returns:
        (x / 255 - mean) / standard deviation with ImageNet's statistics, of the same shape; of x's dtype where that
        is floating, otherwise of `keras.config.floatx()`.

    Raises:
        ValueError: the shape is none of these (a grey image, or one with transparency), or not known.
    """
    data_format = data_format or keras.config.image_data_format()
    x = x if hasattr(x, "shape") else np.asarray(x)
    shape = None if getattr(x.shape, "rank", 0) is None else tuple(x.shape)  # TensorFlow's may be unknown
    expected, ranks, axis = {
        "channels_last": ("(..., height, width, 3)", range(3, 99), -1),
        "channels_first": ("(3, height, width) or (batch, 3, height, width)", (3, 4), -3),
    }.get(data_format, (None, (), 0))
    if expected is not None and (shape is None or len(shape) not in ranks or shape[axis] != 3):
        raise ValueError(
            f"preprocess_input takes RGB images {expected} in {data_format} order: repeat a grey channel three times, "
            f"leave out transparency. Received: shape {shape or 'unknown'}"
        )
    if isinstance(x, np.ndarray):
        x = x.copy()  # Keras' function writes into floating arrays
    elif not keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype)):
        x = keras.ops.cast(x, keras.config.floatx())
    return keras.applications.imagenet_utils.preprocess_input(x, data_format, mode="torch")


def decode_predictions(preds, top=5):
    """Names the likeliest ImageNet classes: keras.applications' function, which fetches the names once.

    Args:
        preds: float array (batch, 1000), probabilities in the usual order of ImageNet's classes.
        top: how many classes per image.

    Returns:
        For each image, a list of (WordNet id, name, score), best first.

    Raises:
        ValueError: `preds` is not (batch, 1000).
    """
    return keras.applications.imagenet_utils.decode_predictions(preds, top)
