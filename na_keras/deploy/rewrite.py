"""The network as it ships: the same function of the image, with less work in it.

float32       whatever the training policy was: a mixed-precision graph does not convert to TFLite's builtin
              operations, and on a CPU it is slower, not faster
batch norm    folded into the convolution before it
NA            in the form that suits what runs it, and in ResNets computed from the narrow tensor before a block's
              last convolution; see attention_forms.py
"""

import keras
import numpy as np
from keras import layers

from na_keras import NormalizationAttention
from na_keras.deploy.attention_forms import FORMS, check_integer_safe, has_form
from na_keras.graph.calls import calls_of, checked_functional, fresh_inputs, nested_model, run_graph

HALF_PRECISION = ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16")
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


def float32_copy(model):
    """The same network with the same weights, built to compute in float32."""
    copy = type(model).from_config(with_float32(model.get_config()))
    copy.set_weights(model.get_weights())
    return copy


def folded(convolution, norm):
    """(kernel, bias) of a convolution that computes what `convolution` and then `norm`, at inference, compute."""
    array = lambda weight, default: default if weight is None else np.asarray(weight, "float64")  # noqa: E731
    scale = array(norm.gamma, 1.0) / np.sqrt(array(norm.moving_variance, None) + norm.epsilon)
    bias = (array(convolution.bias, 0.0) - array(norm.moving_mean, None)) * scale + array(norm.beta, 0.0)
    kernel = np.asarray(convolution.kernel, "float64")
    if isinstance(convolution, layers.DepthwiseConv2D):  # (k, k, channels, multiplier)
        scale = scale.reshape(kernel.shape[2:])
    return (kernel * scale).astype("float32"), bias.astype("float32")


class Plan:
    """What becomes of each layer of a functional model.

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
        attention = self.only_follower(norm, NormalizationAttention, once)
        pointwise = type(convolution) is layers.Conv2D and kernel.shape[:2] == convolution.strides == (1, 1)
        if attention is not None and has_form(attention.operation) and pointwise and convolution.groups == 1:
            if kernel.shape[2] < kernel.shape[3]:
                self.replaced[id(convolution)] = self.form(attention.operation, (kernel[0, 0], bias))
                self.dropped.add(id(attention.operation))
                self.counts["attention"] += 1
                self.counts["attention_projected"] += 1
                return
        with_bias = type(convolution).from_config({**convolution.get_config(), "use_bias": True})
        with_bias.build(call.inputs[0].shape)
        with_bias.set_weights([kernel, bias])
        self.replaced[id(convolution)] = with_bias

    def plan_attention(self, attention):
        """Puts the deploy form in the place of a NA layer."""
        if has_form(attention):
            self.replaced[id(attention)] = self.form(attention)
            self.counts["attention"] += 1
        elif self.form is FORMS["integer_safe"]:
            check_integer_safe(attention)


def deploy_copy(model, form="tensorflow"):
    """The network in deploy form.

    Args:
        model: functional Keras model, or a Sequential with a known input shape. It is left as it is.
        form: of NA, a key of FORMS: "tensorflow" for SavedModels, "tflite" for float TFLite files, "integer_safe" for
            quantized ones.

    Returns:
        (keras.Model with the same inputs and outputs, dictionary of counts: "batch_norm_folded", "attention", and of
        these "attention_projected"). Models inside the model are flattened into it.

    Raises:
        ValueError: the model has no graph to rewrite; or a NA layer has no integer-safe form.
    """
    source = checked_functional(float32_copy(model), "deploy_copy")
    plans, copies = [], {}

    def rewrite(functional, inputs):
        plan = Plan(functional, FORMS[form])
        plans.append(plan)

        def call(operation, *args, **kwargs):
            if id(operation) in plan.dropped:
                return args[0]
            if id(operation) in plan.replaced:
                return plan.replaced[id(operation)](args[0])
            inner = nested_model(operation)
            if inner is not None:
                return keras.tree.pack_sequence_as(inner.output, rewrite(inner, args[0]))
            if id(operation) not in copies:
                copies[id(operation)] = type(operation).from_config(operation.get_config())
            copied = copies[id(operation)]
            outputs = copied(*args, **kwargs)
            if isinstance(copied, layers.Layer):
                copied.set_weights(operation.get_weights())
            if isinstance(copied, layers.Normalization):
                copied.finalize_state()  # it computes with a form of its weights
            return outputs

        return run_graph(functional, inputs, call)

    inputs = fresh_inputs(source)
    outputs = keras.tree.pack_sequence_as(source.output, rewrite(source, inputs))
    counts = {name: sum(plan.counts[name] for plan in plans) for name in plans[0].counts}
    return keras.Model(inputs, outputs, name=source.name), counts
