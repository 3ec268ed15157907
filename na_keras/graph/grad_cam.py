"""Grad-CAM (Selvaraju et al., arXiv 1610.02391), the heat maps of the paper's Figure 2.

    a_k = mean over positions of dy / dA_k         (eq. 1: A_k is channel k of a layer's output, y the class's score)
    L   = max(0, sum over k of a_k * A_k)          (eq. 2)

The score y is the one before the softmax or sigmoid (scores.py); which layers have maps is in feature_maps.py.
The graph is run call by call, into models inside the model, with the layer's output replaced by a tensor to
differentiate by: nothing is rebuilt. Where a network ends in global pooling and one linear layer, L is CAM's positive
part / number of positions.
"""

import functools
import numbers
from typing import NamedTuple

import keras
import numpy as np

from na_keras.graph.calls import calls_of, checked_functional, nested_model, run_graph
from na_keras.graph.feature_maps import feature_maps
from na_keras.graph.scores import check_scores, replacements_for_scores


def gradient(function, x):
    """The gradient of a scalar function of a tensor, on whichever backend Keras runs."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            y = function(x)
        return tape.gradient(y, x, unconnected_gradients="zero")
    if backend == "jax":
        import jax

        return jax.grad(function)(x)
    if backend == "torch":
        import torch

        x = x.detach().requires_grad_()
        (found,) = torch.autograd.grad(function(x), x, allow_unused=True)
        return torch.zeros_like(x) if found is None else found
    raise ValueError(f"grad_cam works on Keras' backends tensorflow, jax and torch. Received: {backend}")


def listing(model, prefix=""):
    """[(path, call)] of a functional model in order; what is inside a nested model stands before it, as model/layer."""
    found = []
    for call in calls_of(model):
        if inner := nested_model(call.operation):
            found += listing(inner, f"{prefix}{call.operation.name}/")
        found.append((prefix + call.operation.name, call))
    return found


def positions(tensor, data_format):
    """Height times width of a feature map's tensor; None: unknown."""
    height, width = tensor.shape[-3:-1] if data_format == "channels_last" else tensor.shape[-2:]
    return None if height is None or width is None else height * width


class Target(NamedTuple):
    """The operation whose output the maps are of, and where the channels of that are."""

    operation: object
    data_format: str


def find_layer(model, layer, data_format):
    """The `Target`; see `grad_cam`.

    Raises:
        ValueError: there is no such layer, or several; it is called several times; it has no feature maps.
    """
    formats, entries = feature_maps(model), listing(model)
    if data_format is not None:
        formats = dict.fromkeys(formats, data_format)
    of_maps = [(path, call.outputs[0]) for path, call in entries if len(call.outputs) == 1]
    of_maps = [(path, tensor) for path, tensor in of_maps if id(tensor) in formats]
    several = [path for path, tensor in of_maps if positions(tensor, formats[id(tensor)]) != 1]
    if not several and layer is None:
        raise ValueError(f"{model.name!r} has no layer whose output is feature maps of more than one position.")
    layer = several[-1] if layer is None else layer
    matches = [(path, call) for path, call in entries if path == layer]
    matches = matches or [(path, call) for path, call in entries if path.endswith(f"/{layer}")]
    last = f"Its last layers with feature maps: {', '.join(several[-5:])}"
    if not matches:
        raise ValueError(f"{model.name!r} has no layer {layer!r} between input and output. {last}")
    if len(matches) > 1:
        raise ValueError(
            f"Expected a layer that is called once. {layer!r} stands for several calls: "
            f"{', '.join(path for path, _ in matches)}. Layers of nested models are named as model/layer."
        )
    ((path, call),) = matches
    if len(call.outputs) != 1 or len(call.outputs[0].shape) < 4:
        raise ValueError(
            f"Grad-CAM needs feature maps, rank 4. {path!r} returns {[tuple(x.shape) for x in call.outputs]}. {last}"
        )
    found = formats.get(id(call.outputs[0]), data_format)
    if found is None:
        raise ValueError(
            f"{path!r} returns {tuple(call.outputs[0].shape)}, and no layer before it says which axes are height and "
            f"width: say data_format=, if these are feature maps. {last}"
        )
    return Target(call.operation, found)


def make_forward(model, target, replaced):
    """function(inputs, maps=None) -> (output of the target operation, scores), with `maps` in place of that output.

    Args:
        model: functional model.
        target: operation.
        replaced: {id of an operation: function to call instead}.
    """

    def forward(inputs, maps=None):
        seen = []

        def call(operation, *args, **kwargs):
            if inner := nested_model(operation):
                output = run_graph(inner, args, call)
            else:
                output = replaced.get(id(operation), operation)(*args, **kwargs)
            if operation is not target:
                return output
            seen.extend(keras.tree.flatten(output))
            return output if maps is None else maps

        (scores,) = run_graph(model, inputs, call)
        return seen[0], scores

    return forward


def in_order(images, model):
    """What `grad_cam` takes as images, as a list in the order of the model's inputs."""
    names = [tensor.name for tensor in model.inputs]
    if isinstance(images, dict):
        return [images[name] for name in names] if set(images) == set(names) else keras.tree.flatten(images)
    return list(images) if len(names) > 1 and isinstance(images, list | tuple) else [images]


def check_images(images, model):
    """All inputs of the model as tensors, and which one the images are.

    Returns:
        (list of tensors in the order of `model.inputs`, index of the images among them).

    Raises:
        ValueError: other inputs or shapes than the model's; none or several that may be images.
    """
    shapes = [tuple(tensor.shape) for tensor in model.inputs]
    candidates = [index for index, shape in enumerate(shapes) if len(shape) in (4, 5)]
    if len(candidates) != 1:
        raise ValueError(f"Expected a classifier of images: one input of rank 4 (or 5, with time). Received: {shapes}")
    given = in_order(images, model)
    if len(given) != len(shapes):
        raise ValueError(f"Expected {len(shapes)} inputs of shapes {shapes}, in a list. Received: {len(given)}")
    batch = np.shape(given[candidates[0]])[:1]
    for index, (value, expected) in enumerate(zip(given, shapes, strict=True)):
        received = tuple(np.shape(value))
        fits = len(received) == len(expected) and all(
            size is None or size == given for size, given in zip(expected[1:], received[1:], strict=True)
        )
        if not fits or received[0] == 0 or received[:1] != batch:
            what = "images" if index == candidates[0] else f"{model.inputs[index].name!r}, one per image"
            hint = " Give one image as a batch, images[None]." if len(received) == len(expected) - 1 else ""
            raise ValueError(f"Expected a batch of {what} of shape {expected}. Received: shape {received}.{hint}")
    tensors = [keras.ops.convert_to_tensor(value, own.dtype) for value, own in zip(given, model.inputs, strict=True)]
    return tensors, candidates[0]


def check_classes(classes, batch, count):
    """A class index per image; None stays None.

    Raises:
        ValueError: something else than an integer, or one per image; an index that is not one of `count` classes.
    """
    if classes is None:
        return None
    wrong = f"classes must be None, a class index, or one index per image. Received: {classes!r}"
    try:
        chosen = np.asarray(keras.ops.convert_to_numpy(classes))
    except (TypeError, ValueError) as error:
        raise ValueError(wrong) from error
    if chosen.dtype.kind not in "iu" or chosen.ndim > 1:
        raise ValueError(wrong)
    outside = [index for index in chosen.ravel() if not 0 <= index < count]
    if outside:
        raise ValueError(f"The network has classes 0 to {count - 1}. Received: class {outside[0]}")
    if chosen.ndim and len(chosen) != batch:
        raise ValueError(f"Expected one class per image, {batch}. Received: {len(chosen)} classes")
    return np.broadcast_to(chosen.astype("int64"), (batch,))


def heat_of_batch(forward, inputs, classes, data_format, check):
    """Equations 1 and 2 for one batch.

    Args:
        forward: of `make_forward`.
        inputs: list of tensors.
        classes: NumPy integers, one per image, or None for the best. Of one score, 0 is its negative.
        data_format: of the target's output.
        check: function of the scores, which may refuse them.

    Returns:
        NumPy float32 (batch, h, w), or (batch, time, h, w).
    """
    maps, scores = forward(inputs)
    values = np.asarray(keras.ops.convert_to_numpy(scores), "float32")
    check(values)
    if values.shape[1] == 1:
        classes = (values[:, 0] > 0) if classes is None else classes
        chosen = np.where(classes, 1.0, -1.0)[:, None]
    else:
        classes = values.argmax(-1) if classes is None else classes
        chosen = classes[:, None] == np.arange(values.shape[1])
    chosen = keras.ops.convert_to_tensor(chosen.astype("float32"))  # (batch, classes)

    def score(replaced):
        return keras.ops.sum(keras.ops.cast(forward(inputs, replaced)[1], "float32") * chosen)

    slopes, maps = (keras.ops.convert_to_numpy(x).astype("float64") for x in (gradient(score, maps), maps))
    channel_axis, position_axes = (-1, (-3, -2)) if data_format == "channels_last" else (-3, (-2, -1))
    weights = slopes.mean(axis=position_axes, keepdims=True)  # eq. 1
    return np.maximum((weights * maps).sum(axis=channel_axis), 0).astype("float32")  # eq. 2


def scaled_to(heat, size):
    """Heat maps resized to (height, width) and divided by their maxima; a map of zeros stays one."""
    leading = heat.shape[:-2]
    heat = heat.reshape(-1, *heat.shape[-2:], 1)
    heat = keras.ops.image.resize(heat, tuple(size), "bilinear", data_format="channels_last")
    heat = np.maximum(keras.ops.convert_to_numpy(heat)[..., 0], 0)
    largest = heat.max(axis=(1, 2), keepdims=True)
    return (heat / np.where(largest > 0, largest, 1)).reshape(*leading, *size)


def grad_cam(model, images, classes=None, layer=None, scaled=False, data_format=None, *, batch_size=4):
    """Which positions of the images speak for a class: Grad-CAM's heat maps.

    Source: Selvaraju et al., arXiv 1610.02391, equations 1 and 2; Figure 2 of the NA paper.

    >>> model = keras.applications.MobileNetV2(weights=None)
    >>> grad_cam(model, np.zeros((2, 224, 224, 3)), classes=[3, 7]).shape
    (2, 7, 7)

    Args:
        model: functional model or built Sequential, with models inside it if need be, from images to one score or
            probability per class, (batch, classes). It is run in inference mode and left as it is. Other inputs beside
            the images, as metadata, are constants to the maps.
        images: array (batch, height, width, channels), or channels first, as the model takes them; (batch, time, ...)
            for a model that takes its images in TimeDistributed. For a model of more inputs, all of them: a list in the
            model's order, or a dictionary by their names.
        classes: None: the class with the best score, for each image. An index for all images, or one per image, in an
            array, a list or a tensor. Of a network with one unit, 1 is the class that the unit stands for and 0 the
            other one, whose score is the negative.
        layer: whose output the maps are of. None: the last one with feature maps of more than one position, as in the
            paper. A name; in a model inside the model, `"inner"` or, where that is ambiguous, `"model/inner"`.
        scaled: False: the maps L of equation 2, at the layer's resolution. True: resized to the images (bilinear) and
            divided by their maxima, to lay over the images; a map of zeros stays one.
        data_format: of the layer's output and the images, `"channels_last"` or `"channels_first"`. None: as the layers
            before and after have it.
        batch_size: images that are computed at a time, which bounds the memory: for 16 images of a 224 x 224 ResNet50
            a process takes less with 4 than `predict` does for maps of the last layer, and half as much again for those
            of the first (docs/status.md).

    Returns:
        NumPy float32 (batch, h, w), not negative; with `scaled=True` (batch, height, width) with values in [0, 1]; with
        time after the batch if the layer's output has it. Scores are taken before a softmax, log-softmax or sigmoid at
        the model's end, however it is written, also if what follows only keeps the values; other endings are
        differentiated as they are.

    Raises:
        ValueError: the model has no graph, several outputs, or not one input of images; scores that cannot be told
            from probabilities; images of another shape; a class that the model does not have; a layer that is not
            there, is called several times or has no feature maps.
    """
    source = checked_functional(model, "grad_cam")
    shapes = [tuple(tensor.shape) for tensor in source.inputs], [tuple(tensor.shape) for tensor in source.outputs]
    if len(shapes[1]) != 1 or len(shapes[1][0]) != 2:
        raise ValueError(
            f"Expected a classifier: images to one output (batch, classes). Received: {shapes[0]} to {shapes[1]}. Of "
            "several outputs, choose one: keras.Model(model.input, model.outputs[0])."
        )
    if data_format not in (None, "channels_last", "channels_first"):
        raise ValueError(f'data_format must be "channels_last" or "channels_first". Received: {data_format!r}')
    if isinstance(batch_size, bool) or not isinstance(batch_size, numbers.Integral) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive number of images. Received: {batch_size!r}")
    inputs, index = check_images(images, source)
    batch = inputs[0].shape[0]
    classes = check_classes(classes, batch, max(2, shapes[1][0][1]))
    target = find_layer(source, layer, data_format)
    replaced, last = replacements_for_scores(source)
    forward = make_forward(source, target.operation, replaced)
    check = functools.partial(check_scores, source, None if replaced else last)
    heat = []
    for start in range(0, batch, batch_size):
        part = slice(start, start + batch_size)
        part_classes = None if classes is None else classes[part]
        heat.append(heat_of_batch(forward, [x[part] for x in inputs], part_classes, target.data_format, check))
    heat = np.concatenate(heat)
    if not scaled:
        return heat
    image_format = data_format or feature_maps(source).get(id(source.inputs[index]), target.data_format)
    size = inputs[index].shape[-3:-1] if image_format == "channels_last" else inputs[index].shape[-2:]
    return scaled_to(heat, size)
