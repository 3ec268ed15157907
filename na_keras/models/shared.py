"""What every network here shares around its own blocks: input and normalisation, the head, weights.

Arguments follow keras.applications. The pixel statistics are ImageNet's as PyTorch's networks use them, scaled to
0..255: the authors trained with them, and weights trained in PyTorch expect them.
"""

import inspect
import pathlib

import keras
import numpy as np
from keras import layers

# Red, green, blue; of pixels in 0..255.
IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STANDARD_DEVIATION = (0.229 * 255, 0.224 * 255, 0.225 * 255)

# torch.nn.init.kaiming_normal_(mode="fan_out"), as a configuration that any implementation of Keras' layers takes.
KAIMING_NORMAL = {
    "class_name": "VarianceScaling",
    "config": {"scale": 2.0, "mode": "fan_out", "distribution": "untruncated_normal"},
}
# PyTorch counts 9 * channels as a depthwise kernel's fan-out; in Keras that number is its fan-in.
KAIMING_NORMAL_DEPTHWISE = {
    "class_name": "VarianceScaling",
    "config": {"scale": 2.0, "mode": "fan_in", "distribution": "untruncated_normal"},
}

SMALLEST_SIZE = 32  # pixels; five halvings leave one position


def channel_axis():
    """The axis of the channels under the current `keras.config.image_data_format()`."""
    return -1 if keras.config.image_data_format() == "channels_last" else 1


def check_arguments(include_top, weights, classes, pooling):
    """Raises ValueError on what could only fail later, or silently."""
    if weights == "imagenet":
        raise ValueError(
            'weights="imagenet": the authors published no weights, and this library has none yet. Use None '
            "(random initialisation) or the path of a .weights.h5 file that fits this network."
        )
    if weights is not None and not pathlib.Path(weights).is_file():
        raise ValueError(f"weights must be None or the path of a .weights.h5 file. No file at: {weights}")
    if include_top and (not isinstance(classes, int) or classes < 1):
        raise ValueError(f"classes must be a positive integer. Received: classes={classes!r}")
    if pooling not in (None, "avg", "max"):
        raise ValueError(f'pooling must be None, "avg" or "max". Received: pooling={pooling!r}')


def image_input(input_shape, input_tensor, include_top, include_preprocessing):
    """The model's input and the first tensor of the network.

    Returns:
        (input tensor to build the model on, image tensor normalised if `include_preprocessing`).

    Raises:
        ValueError: a shape that is not 3 numbers, sides under 32 pixels, unknown channels, channels other than 3
            with `include_preprocessing`, an input tensor that disagrees with `input_shape`.
    """
    axis = channel_axis()
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
        side = 224 if include_top else None
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
    if not include_preprocessing:
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


def classification_head(x, include_top, pooling, classes, classifier_activation, dropout_rate, initializers):
    """Global pooling, dropout and the classifier; or pooling alone, or nothing, as keras.applications does.

    The classifier computes in float32 whatever the policy: a softmax over 1000 classes in half precision loses
    the small probabilities that the loss is made of.
    """
    if not include_top:
        pools = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}
        return pools[pooling](name=f"{pooling}_pool")(x) if pooling else x
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    if dropout_rate:
        x = layers.Dropout(dropout_rate, name="dropout")(x)
    kernel_initializer, bias_initializer = initializers
    return layers.Dense(
        classes,
        activation=classifier_activation,
        kernel_initializer=kernel_initializer,
        bias_initializer=bias_initializer,
        dtype="float32",
        name="predictions",
    )(x)


def finish(image, x, weights, name):
    """The functional model from `image` to `x`, with the weights of the file `weights` if one is given."""
    model = keras.Model(image, x, name=name)
    if weights is not None:
        model.load_weights(weights)
    return model


def variant(builder, function_name, fixed=(), **defaults):
    """A named form of a builder: some arguments fixed, some with other defaults; signature and help() to match."""
    fixed = dict(fixed)
    parameters = [
        parameter.replace(default=defaults.get(parameter.name, parameter.default))
        for parameter in inspect.signature(builder).parameters.values()
        if parameter.name not in fixed
    ]
    signature = inspect.Signature(parameters)

    def build(*args, **kwargs):
        return builder(**{**fixed, **defaults, **signature.bind(*args, **kwargs).arguments})

    settings = ", ".join(f"{key}={value!r}" for key, value in {**fixed, **defaults}.items())
    build.__name__ = build.__qualname__ = function_name
    build.__module__ = builder.__module__
    build.__signature__ = signature
    build.__doc__ = f"`{builder.__name__}` with {settings}.\n\n    {builder.__doc__}"
    return build


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
