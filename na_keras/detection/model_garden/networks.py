"""The parts of a detector as tf_keras objects with the interfaces that Model Garden's detectors expect.

    Backbone        images -> {"2": C2, ..., "5": C5}, with `output_specs`
    Pyramid         {"3": C3, ...} -> {"3": P3, ..., "7": P7}, with `output_specs`
    RetinaNetHead   {"3": P3, ...} -> (classes, boxes, {}), each {level: tensor}
    ProposalHead    {"2": P2, ...} -> (objectness, boxes), each {level: tensor}
    BoxHead         regions (batch, n, 7, 7, c) -> (classes (batch, n, classes + 1), boxes (batch, n, 4))

Level l is "l" in Model Garden, "Cl" and "Pl" in the paper and here.
"""

import tf_keras
from tf_keras import layers as tf_layers

from na_keras.detection.feature_pyramid import feature_pyramid
from na_keras.detection.heads import REGION_SIZE, box_head, proposal_head, retinanet_head
from na_keras.detection.model_garden.attention_layers import get_attention
from na_keras.models.resnet import STAGES, in_stages, resnet_stages


class FixedBatchNormalization(tf_layers.BatchNormalization):
    """Batch norm with its stored statistics in training too, scale and offset trained: mmdetection's `norm_eval`."""

    def call(self, inputs, training=None):
        """Normalises as in inference."""
        return super().call(inputs, training=False)


class RegularizedLayers:
    """The namespace tf_keras.layers, with weight decay on kernels and a choice of batch norm.

    Args:
        regularizer: of the kernels of convolutions and fully connected layers, or None.
        fixed_batch_norm: `FixedBatchNormalization` instead of Keras'.
    """

    def __init__(self, regularizer=None, fixed_batch_norm=False):
        self.regularizer, self.fixed_batch_norm = regularizer, fixed_batch_norm

    def __getattr__(self, name):
        layer = getattr(tf_layers, name)
        if name in ("Conv2D", "Dense"):
            return lambda *args, **options: layer(*args, kernel_regularizer=self.regularizer, **options)
        if name == "BatchNormalization" and self.fixed_batch_norm:
            return FixedBatchNormalization
        return layer


def specifications(maps):
    """{level: TensorShape} of {level: tensor}."""
    return {level: tensor.get_shape() for level, tensor in maps.items()}


def numbered(maps):
    """{"P3": tensor} -> {"3": tensor}."""
    return {name[1:]: tensor for name, tensor in maps.items()}


def inputs_of(specs):
    """{level: tf_keras.Input} of {level: TensorShape}."""
    return {level: tf_keras.Input(shape[1:]) for level, shape in specs.items()}


class WithSpecifications(tf_keras.Model):
    """A functional model from one or several tensors to {level: tensor}, with `output_specs`."""

    def __init__(self, inputs, maps, name):
        super().__init__(inputs=inputs, outputs=maps, name=name)
        self._output_specs = specifications(maps)

    @property
    def output_specs(self):
        """{level: TensorShape}, which the next part is built for."""
        return self._output_specs


def attended(get_attention, options):
    """The factory of a backbone's attention: of `get_attention`, in the stages that its options name; or None."""
    factory = get_attention(options.attention)
    return factory and in_stages(factory, tuple(options.attention_stages))


def backbone(image_shape, options, layers=tf_layers):
    """ResNet with attention.

    Args:
        image_shape: (height, width, 3), multiples of 32; images are normalised.
        options: configurations.AttentionResNet.
        layers: namespace to take layers from.

    Returns:
        tf_keras.Model whose layers have the names of na_keras' ResNet.
    """
    image = tf_keras.Input(image_shape)
    maps = resnet_stages(image, options.model_id, attended(get_attention, options), layers=layers)
    model = WithSpecifications(image, numbered(maps), f"resnet{options.model_id}")
    stages = [stage for stage, *_ in STAGES[: options.frozen_stages]]
    frozen = ("conv1_", *(f"{stage}_" for stage in stages)) if stages else ()
    for layer in model.layers:
        if layer.name.startswith(frozen):
            layer.trainable = False
    return model


def pyramid(specs, levels, filters=256, extra="convolution", layers=tf_layers):
    """The feature pyramid on a backbone with these `output_specs`; arguments as of `feature_pyramid`."""
    inputs = inputs_of(specs)
    maps = feature_pyramid({f"C{level}": x for level, x in inputs.items()}, levels, filters, extra, layers)
    return WithSpecifications(inputs, numbered(maps), "pyramid")


class Head(tf_layers.Layer):
    """A functional network as a layer."""

    def __init__(self, inputs, outputs, name):
        super().__init__(name=name)
        self.network = tf_keras.Model(inputs, outputs, name=f"{name}_network")
        self.built = True


class RetinaNetHead(Head):
    """`retinanet_head` on a pyramid with these `output_specs`; options as there."""

    def __init__(self, specs, classes, **options):
        inputs = inputs_of(specs)
        super().__init__(inputs, retinanet_head(inputs, classes, **options), "retinanet_head")

    def call(self, maps):
        """(logits, boxes, no attributes)."""
        return (*self.network(maps), {})


class ProposalHead(Head):
    """`proposal_head` on a pyramid with these `output_specs`; options as there."""

    def __init__(self, specs, **options):
        inputs = inputs_of(specs)
        super().__init__(inputs, proposal_head(inputs, **options), "rpn_head")

    def call(self, maps):
        """(logits, boxes)."""
        return self.network(maps)


class BoxHead(Head):
    """`box_head` of one stage of the cascade on regions with `channels` channels; options as there."""

    def __init__(self, channels, classes, stage, **options):
        regions = tf_keras.Input((REGION_SIZE, REGION_SIZE, channels))
        super().__init__(regions, box_head(regions, classes, stage, **options), f"box_head{stage}")

    def call(self, regions):
        """(batch, n, 7, 7, c) -> (logits (batch, n, classes + 1), boxes (batch, n, 4))."""
        shape = tf_keras.backend.shape(regions)
        classes, boxes = self.network(tf_keras.backend.reshape(regions, (-1, *regions.shape[2:])))
        return tuple(tf_keras.backend.reshape(x, (shape[0], shape[1], x.shape[-1])) for x in (classes, boxes))
