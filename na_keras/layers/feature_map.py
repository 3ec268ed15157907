"""What the attention layers share: feature maps and their axes, float32 statistics, weights, checks of arguments.

Every module is a pure function of a feature map and of its weights, in keras.ops only, and a layer that holds the
weights and calls it. The functions work without a Keras layer around them (in a layer of tf_keras, say). Their weights
come in two forms:

    fully connected    (kernel (inputs, outputs), bias (outputs,) or None), or a callable that does the same
    convolution        kernel (k, k, inputs of a group, outputs), or a callable that does the same
    batch norm         a callable, because it updates its statistics in training; that mode is bound already

The layers here pass their sublayers as callables, which keeps what Keras made of these: their dtype, int8 weights after
`quantize`.

Statistics, softmax and gates are computed in float32 at least, whatever the mixed-precision policy; what leaves a
function is in the dtype of the features that it got.
"""

import numbers
import weakref

import keras
from keras import ops

# The variance of equal values is 0, where the derivative of the square root is infinite and XLA turns
# inf * 0 into NaN. Clipping far below epsilon**2 keeps the gradient finite and the value unchanged.
SMALLEST_VARIANCE = 1e-24


def axes(data_format):
    """The axis of the channels, and those of height and width."""
    return (3, (1, 2)) if data_format == "channels_last" else (1, (2, 3))


def to_channels_last(x, data_format):
    """x as (b, h, w, c). Convolutions run in this order: it is the only one that every device has them in."""
    return x if data_format == "channels_last" else ops.moveaxis(x, 1, 3)


def from_channels_last(x, data_format):
    """The inverse of `to_channels_last`."""
    return x if data_format == "channels_last" else ops.moveaxis(x, 3, 1)


def statistics_dtype_of(x):
    """float32, or float64 for an x of float64."""
    return keras.backend.result_type(x.dtype, "float32")


def for_statistics(x):
    """x in float32, or in float64 if it is."""
    return ops.cast(x, statistics_dtype_of(x))


def in_dtype_of(x, values):
    """`values` in the dtype of the features x, and floating if x holds integers: a gate must not become 0."""
    return ops.cast(values, keras.backend.result_type(x.dtype, float))


def mean_of_positions(x, data_format):
    """(b, c) in float32."""
    return ops.mean(for_statistics(x), axis=axes(data_format)[1])


def for_all_positions(values, data_format):
    """(b, c) -> (b, 1, 1, c) or (b, c, 1, 1)."""
    return ops.expand_dims(values, axes(data_format)[1])


def linear(x, weights):
    """Fully connected: x (..., inputs) -> (..., outputs). `weights` is (kernel, bias or None), or a callable."""
    if callable(weights):
        return weights(x)
    kernel, bias = weights
    x = ops.matmul(x, ops.cast(kernel, x.dtype))
    return x if bias is None else x + ops.cast(bias, x.dtype)


def convolve(x, kernel, strides=1, padding="valid", dilation_rate=1):
    """Convolution without bias: x (b, h, w, c) -> (b, h', w', outputs). A callable as `kernel` does all of it.

    With a kernel (k, k, inputs of a group, outputs) there are as many groups as its inputs fit into the channels.
    """
    if callable(kernel):
        return kernel(x)
    kernel = ops.cast(kernel, x.dtype)
    return ops.conv(x, kernel, strides, padding, data_format="channels_last", dilation_rate=dilation_rate)


def standard_deviation(variance):
    """The root of a variance, with gradient 0 where the variance is 0."""
    return ops.sqrt(ops.maximum(variance, SMALLEST_VARIANCE))


def sample_variance(x, axes, mean=None):
    """Variance over `axes`, kept with length 1, with divisor n - 1; of a single value it is 0. `mean`: if it is known,
    with those axes.
    """
    count = 1
    for axis in axes:
        count = count * ops.shape(x)[axis]
    mean = ops.mean(x, axis=axes, keepdims=True) if mean is None else mean
    total = ops.sum(ops.square(x - mean), axis=axes, keepdims=True)
    return total / ops.cast(ops.maximum(count - 1, 1), x.dtype)


def softmax(scores, axis):
    """Softmax; over an axis of length 1 all ones, where Keras would warn."""
    return ops.ones_like(scores) if scores.shape[axis] == 1 else ops.softmax(scores, axis=axis)


def flatten_positions(x):
    """(b, h, w, c) -> (b, h * w, c); height and width may be unknown, the batch may be empty."""
    batch, height, width, _ = ops.shape(x)
    return ops.reshape(x, (batch, height * width, x.shape[3]))  # not -1, which an empty batch leaves open


def check_positive_integer(name, value, reason):
    """Raises ValueError if `value` is not an integer of at least 1; True and 2.0 are not."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name} must be a positive integer: {reason}. Received: {name}={value!r}")


def check_positive_number(name, value, reason):
    """Raises ValueError if `value` is not a finite number above 0."""
    if isinstance(value, bool) or not (isinstance(value, numbers.Real) and 0 < value < float("inf")):
        raise ValueError(f"{name} must be a positive number: {reason}. Received: {name}={value!r}")


def check_groups(layer, channels, groups, smallest=1):
    """Raises ValueError if `channels` cannot be divided into `groups` equal parts of at least `smallest` channels."""
    if channels % groups == 0 and channels // groups >= smallest:
        return
    size, largest = f" of at least {smallest}" if smallest > 1 else "", channels // smallest
    advice = f"groups={largest_divisor(channels, min(groups, largest))} would do" if largest else "too few channels"
    raise ValueError(
        f"{layer} divides the channels into equal groups{size}: groups must divide them. "
        f"Received: {channels} channels, groups={groups}; {advice}"
    )


def check_reduction(layer, channels, reduction, features=1):
    """Raises ValueError if `channels` // `reduction` leaves fewer than `features`."""
    if channels // reduction < features:
        largest = channels // features
        advice = f"reduction={largest} would do" if largest else "too few channels"
        raise ValueError(
            f"{layer} reduces the channels to channels // reduction, of which {features} must remain. "
            f"Received: {channels} channels, reduction={reduction}; {advice}"
        )


def largest_divisor(number, limit):
    """The largest divisor of `number` that is at most `limit`."""
    return max(divisor for divisor in range(1, min(number, limit) + 1) if number % divisor == 0)


def precision_of(layer):
    """The arguments of a layer's constructor that say in what numbers it computes, as plain values."""
    config = layer.get_config()
    return {key: config[key] for key in ("dtype", "quantization_config") if config.get(key) is not None}


class FeatureMapLayer(keras.layers.Layer):
    """A layer on (batch, height, width, channels), or (batch, channels, height, width) with `"channels_first"`.

    Args:
        data_format: `"channels_last"` or `"channels_first"`; by default `keras.config.image_data_format()`.
        sublayer_dtypes: None; or, of the layers in this one that compute in other numbers than a fresh one's, as after
            `quantize("int8")`, {name: their `dtype` and `quantization_config`}. Files of saved models hold it.
        **kwargs: `name`, `dtype`, `trainable`.

    Raises:
        ValueError: at construction, an unknown data format; from a call, maps of integers; from `check_input`, a rank
            other than 4 or an unknown number of channels.
    """

    # What a network must know of a layer before it makes one; see `na_keras.layers.property_of`.
    replaces_convolution = False  # stands in the place of a block's 3x3 convolution, its batch norm and ReLU
    has_batch_norm = False  # takes `synchronized`
    constant_gate = {}  # arguments with which a fresh layer multiplies by a constant; None: no weights make it do so

    def __init__(self, data_format=None, sublayer_dtypes=None, **kwargs):
        super().__init__(**kwargs)
        self.data_format = keras.config.image_data_format() if data_format is None else data_format
        if self.data_format not in ("channels_last", "channels_first"):
            raise ValueError(f'data_format must be "channels_last" or "channels_first". Received: {data_format!r}')
        self._sublayer_dtypes = dict(sublayer_dtypes or {})
        # Weak, because Keras would save the weights under the name of a dictionary that it sees.
        self._sublayers, self._of_features = weakref.WeakValueDictionary(), []

    def __call__(self, x, *args, **kwargs):
        """Calls the layer on maps of floating type. An empty batch has an empty answer, and teaches batch norm nothing.

        Raises:
            ValueError: the maps hold integers or truth values.
        """
        dtype = keras.backend.standardize_dtype(x.dtype) if hasattr(x, "dtype") else "float32"
        if not keras.backend.is_float_dtype(dtype):
            raise ValueError(
                f"{type(self).__name__} expected a floating-point map. Received: dtype {dtype}; cast it: "
                f'keras.ops.cast(x, "{self.compute_dtype}")'
            )
        if len(getattr(x, "shape", ())) == 4 and x.shape[0] == 0:  # which not every backend's operations take
            options = {"training": False} if self.has_batch_norm else {}
            return super().__call__(ops.pad(x, ((0, 1), (0, 0), (0, 0), (0, 0))), **options)[:0]
        return super().__call__(x, *args, **kwargs)

    def sublayer(self, kind, name, input_shape, of_features=False, **options):
        """A new layer of the class `kind` inside this one, built, with its precision if a configuration has one for it.

        Args:
            kind: class of a Keras layer.
            name: unique in this layer.
            input_shape: to build it for.
            of_features: False: a fresh one computes in `statistics_dtype`. True: it has this layer's policy.
            **options: further arguments of `kind`.
        """
        if of_features:
            self._of_features.append(name)
        precision = keras.saving.deserialize_keras_object(self._sublayer_dtypes.get(name, {}))
        layer = kind(**{"dtype": self._default_policy(name), **precision, **options}, name=name)
        layer.build(input_shape)
        self._sublayers[name] = layer
        return layer

    def _default_policy(self, name):
        return self.dtype_policy if name in self._of_features else keras.dtype_policies.get(self.statistics_dtype)

    def check_input(self, input_shape):
        """The number of channels; fixes it for all later inputs."""
        if len(input_shape) != 4:
            raise ValueError(
                f"{type(self).__name__} takes a batch of feature maps, rank 4. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        channels = input_shape[self.channel_axis]
        if channels is None:
            raise ValueError(
                f"{type(self).__name__} needs to know the number of channels. Received: "
                f"input_shape={tuple(input_shape)}, data_format={self.data_format!r}"
            )
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={self.channel_axis: channels})
        return channels

    @property
    def channel_axis(self):
        """3 or 1."""
        return axes(self.data_format)[0]

    @property
    def position_axes(self):
        """The axes of height and width."""
        return axes(self.data_format)[1]

    @property
    def statistics_dtype(self):
        """float32 under any mixed-precision policy, float64 under that of float64."""
        return keras.backend.result_type(self.compute_dtype, "float32")

    def compute_output_shape(self, input_shape):
        """The input shape."""
        return input_shape

    def get_config(self):
        """All constructor arguments as plain values."""
        config = {**super().get_config(), "data_format": self.data_format}
        dtypes = dict(self._sublayer_dtypes)
        for name, layer in self._sublayers.items():
            dtypes[name] = precision_of(layer)
            if dtypes[name] == {"dtype": keras.dtype_policies.serialize(self._default_policy(name))}:
                del dtypes[name]
        return {**config, "sublayer_dtypes": dtypes} if dtypes else config
