"""The network as it ships: the same function of the image, with less work in it.

float32       whatever the training policy was: a mixed-precision graph does not convert to TFLite's builtin
              operations, and on a CPU it is slower, not faster
batch norm    folded into the convolution before it
NA            in the form that suits what runs it, and in ResNets computed from the narrow tensor before a block's
              last convolution; see attention_forms.py
SE, ECA       in float from that narrow tensor too; see mean_gates.py
"""

import functools

import keras
import numpy as np
from keras import layers

from na_keras import NormalizationAttention
from na_keras.deploy.attention_forms import FORMS, check_integer_safe, has_form
from na_keras.deploy.mean_gates import MEAN_GATES
from na_keras.graph.calls import calls_of, checked_functional, fresh_inputs, nested_model, run_graph
from na_keras.graph.copying import copy_layer, copy_model, copy_state

HALF_PRECISION = ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16")
# Layers that do nothing at inference, by their exact class. Some are younger than the oldest Keras that is taken.
INACTIVE_NAMES = (
    "Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D GaussianDropout GaussianNoise AlphaDropout "
)
INACTIVE_NAMES += "ActivityRegularization RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast "
INACTIVE_NAMES += "RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHue "
INACTIVE_NAMES += "RandomInvert RandomPerspective RandomPosterization RandomRotation RandomSaturation RandomSharpness "
INACTIVE_NAMES += "RandomShear RandomTranslation RandomZoom"
INACTIVE = tuple(getattr(layers, name) for name in INACTIVE_NAMES.split() if hasattr(layers, name))
CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D)  # that batch norm is folded into; not their subclasses


def with_float32(config):
    """A copy of a Keras configuration in which every dtype and dtype policy of floating type is float32."""
    if isinstance(config, dict):
        config = {key: with_float32(value) for key, value in config.items()}
        if config.get("class_name") == "DTypePolicy":
            config["config"] = {**config["config"], "name": "float32"}
        if config.get("dtype") in HALF_PRECISION:
            config["dtype"] = "float32"
        return config
    if isinstance(config, list | tuple):
        return type(config)(with_float32(value) for value in config)
    return config


def mentions_other_precision(config):
    """Whether `with_float32` would change a configuration."""
    if isinstance(config, dict):
        other_policy = config.get("class_name") == "DTypePolicy" and config["config"].get("name") != "float32"
        half = config.get("dtype") in HALF_PRECISION
        return other_policy or half or any(map(mentions_other_precision, config.values()))
    return isinstance(config, list | tuple) and any(map(mentions_other_precision, config))


def float32_copy(model):
    """The same network with the same state, built to compute in float32; see `copy_model`."""
    return copy_model(model, with_float32)


def in_float32(model):
    """The model itself if all of it computes in float32, else its `float32_copy`."""
    try:
        config = model.get_config()
    except Exception:  # a layer has none: copying says which
        return float32_copy(model)
    return float32_copy(model) if mentions_other_precision(config) else model


def in_float64(weight, default):
    """The values of a layer's weight, or `default` where it has none."""
    return default if weight is None else np.asarray(weight, "float64")


def folded(convolution, norm):
    """(kernel, bias) of a convolution that computes what `convolution` and then `norm`, at inference, compute."""
    scale = in_float64(norm.gamma, 1.0) / np.sqrt(in_float64(norm.moving_variance, 1.0) + norm.epsilon)
    bias = in_float64(convolution.bias, 0.0) - in_float64(norm.moving_mean, 0.0)
    bias = bias * scale + in_float64(norm.beta, 0.0)
    kernel = in_float64(convolution.kernel, None)
    if isinstance(convolution, layers.DepthwiseConv2D):  # (k, k, channels, multiplier)
        scale = scale.reshape(kernel.shape[2:])
    return (kernel * scale).astype("float32"), bias.astype("float32")


class Replacements:
    """What becomes of each layer of a functional model.

    Args:
        model: the functional model.
        form: class of NA's form, of FORMS.

    Attributes:
        replaced: {id of a layer: function of its input}.
        dropped: ids of the layers whose work another one does.
        counts: how many batch norms were folded, NA rewritten, and of these projected.
    """

    def __init__(self, model, form):
        self.replaced, self.dropped = {}, set()
        self.counts = {"batch_norm_folded": 0, "attention": 0, "attention_projected": 0}
        self.form = form
        calls = calls_of(model)
        uses = [id(call.operation) for call in calls]
        once = {use for use in uses if uses.count(use) == 1}
        self.followers = {}
        for call in calls:
            for tensor in call.inputs:
                self.followers.setdefault(id(tensor), []).append(call)
        for tensor in model.outputs:
            self.followers.setdefault(id(tensor), []).append(None)
        for call in calls:
            if type(call.operation) in CONVOLUTIONS and id(call.operation) in once:
                self.plan_convolution(call, once)
            elif isinstance(call.operation, NormalizationAttention) and id(call.operation) in once - self.dropped:
                self.plan_attention(call.operation)

    def only_follower(self, call, kind, once):
        """The one call that takes this call's output, if its operation is of this kind and called nowhere else."""
        followers = self.followers.get(id(call.outputs[0]), [])
        (follower,) = followers if len(followers) == 1 else (None,)
        fits = follower is not None and type(follower.operation) is kind and id(follower.operation) in once
        return follower if fits else None

    def plan_convolution(self, call, once):
        """Folds the batch norm after a convolution, and the convolution into NA after that if that saves work."""
        convolution = call.operation
        norm = self.only_follower(call, layers.BatchNormalization, once)
        channel_axis = {"channels_last": 3, "channels_first": 1}[convolution.data_format]
        if convolution.activation is not keras.activations.linear or norm is None:
            return
        if norm.operation.axis % 4 != channel_axis:
            return
        kernel, bias = folded(convolution, norm.operation)
        self.dropped.add(id(norm.operation))
        self.counts["batch_norm_folded"] += 1
        pointwise = type(convolution) is layers.Conv2D and kernel.shape[:2] == convolution.strides == (1, 1)
        if pointwise and convolution.groups == 1 and channel_axis == 3:
            attention = self.attention_after(norm, kernel[0, 0], call.outputs[0].shape, once)
            if attention is not None:
                self.replaced[id(convolution)] = attention(convolution=(kernel[0, 0], bias))
                return
        with_bias = type(convolution).from_config({**convolution.get_config(), "use_bias": True})
        with_bias.build(call.inputs[0].shape)
        with_bias.set_weights([kernel, bias])
        self.replaced[id(convolution)] = with_bias

    def attention_after(self, norm, kernel, shape, once):
        """Its form that takes the convolution in, function of `convolution`, where that saves work; else None.

        Args:
            norm: call of the batch norm.
            kernel, shape: of the convolution before, (c, filters), and of what it makes.
        """
        if (call := self.only_follower(norm, NormalizationAttention, once)) is not None:
            form, fits = self.form, has_form(call.operation) and self.form.takes(kernel, shape)
            make = functools.partial(form, call.operation)
        else:
            kinds = MEAN_GATES if self.form is not FORMS["integer_safe"] else {}
            found = [(self.only_follower(norm, kind, once), form) for kind, form in kinds.items()]
            call, form = next(((call, form) for call, form in found if call is not None), (None, None))
            fits = call is not None and form.takes(call.operation, kernel, shape)
            make = fits and functools.partial(form, call.operation)
        if not fits:
            return None
        self.dropped.add(id(call.operation))
        self.counts["attention"] += 1
        self.counts["attention_projected"] += 1
        return make

    def plan_attention(self, attention):
        """Puts the deploy form in the place of a NA layer."""
        if has_form(attention):
            self.replaced[id(attention)] = self.form(attention)
            self.counts["attention"] += 1
        elif self.form is FORMS["integer_safe"]:
            check_integer_safe(attention)


class Rewriter:
    """Builds the deploy copy of a network.

    Args:
        form: of NA, a key of FORMS.
        copy_layer: function of a layer or operation that is neither folded nor replaced; returns what takes its place.

    Attributes:
        counts: as `deploy_copy` returns them, so far.
    """

    def __init__(self, form, copy_layer):
        self.form, self.copy_layer = FORMS[form], copy_layer
        self.copies = {}  # {id of a layer: its copy}; a shared layer stays one
        self.counts = {"batch_norm_folded": 0, "attention": 0, "attention_projected": 0}

    def rewrite(self, model, inputs):
        """Runs a functional model's graph on new inputs, symbolic tensors; returns its outputs as a flat list."""
        replacements = Replacements(model, self.form)
        for name, count in replacements.counts.items():
            self.counts[name] += count

        def call(operation, *args, **kwargs):
            if id(operation) in replacements.dropped or type(operation) in INACTIVE:
                return args[0]
            if id(operation) in replacements.replaced:
                return replacements.replaced[id(operation)](args[0])
            inner = nested_model(operation)
            if inner is not None:
                return keras.tree.pack_sequence_as(inner.output, self.rewrite(inner, args[0]))
            if isinstance(operation, keras.Function):
                checked_functional(operation, "deploy_copy")  # which says why it is none: code of its own
            return self.call_copy(operation, *args, **kwargs)

        return run_graph(model, inputs, call)

    def call_copy(self, operation, *args, **kwargs):
        """Calls the copy of a layer or operation, with the layer's state."""
        first = id(operation) not in self.copies
        if first:
            self.copies[id(operation)] = self.copy_layer(operation)
        copied = self.copies[id(operation)]
        outputs = copied(*args, **kwargs)
        if first and isinstance(copied, layers.Layer) and type(copied) is type(operation):
            copy_state(operation, copied)
        return outputs


def is_deploy_copy(model):
    """Whether `deploy_copy` made this model."""
    return getattr(model, "deploy_form", None) is not None


def rewritten(model, form, copy_layer=copy_layer):
    """As `deploy_copy`, with another way to copy the layers that stay; see Rewriter."""
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}. Received: {form!r}")
    if is_deploy_copy(model):
        raise ValueError(f"Expected a trained network. Received: {model.name}, which is a deploy copy already.")
    source = checked_functional(model, "deploy_copy")
    source = checked_functional(in_float32(source), "deploy_copy")
    rewriter = Rewriter(form, copy_layer)
    inputs = fresh_inputs(source)
    outputs = keras.tree.pack_sequence_as(source.output, rewriter.rewrite(source, inputs))
    copy = keras.Model(inputs, outputs, name=source.name)
    copy.deploy_form = form
    return copy, rewriter.counts


def deploy_copy(model, form="tensorflow"):
    """The network in deploy form: the same function of the image, with less work in it.

    Everything computes in float32, whatever the training policy was; each batch norm is folded into the convolution
    before it, where that is the same function; NA takes the form that suits what runs it. Layers of your own stay what
    they are: they are copied with their state, as `insert_attention` copies them. Keras' dropout, noise and random
    augmentation, which do nothing at inference, are left out.

    Args:
        model: functional Keras model, or a Sequential with a known input shape. It is left as it is.
        form: form of NA: "tensorflow" for SavedModels and ONNX, "tflite" for float TFLite files, "integer_safe" for
            quantized ones (attention_forms.py).

    Returns:
        (keras.Model with the same inputs and outputs, dictionary of counts: "batch_norm_folded", "attention", and of
        these "attention_projected"). Models inside the model are flattened into it. A deploy copy is for writing files:
        it cannot be saved as a .keras file.

    Raises:
        ValueError: an unknown form; the model is a deploy copy already, or has no graph to rewrite: a subclass of
            keras.Model, whose code no copy would have; a layer that cannot be copied, by name; or a NA layer has no
            integer-safe form.
    """
    return rewritten(model, form)


def in_deploy_form(model, form):
    """A deploy copy as it is; the `deploy_copy` of any other model."""
    return model if is_deploy_copy(model) else deploy_copy(model, form)[0]
