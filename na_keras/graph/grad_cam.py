"""Grad-CAM (Selvaraju et al., arXiv 1610.02391), the heat maps of the paper's Figure 2.

    a_k = mean over positions of dy / dA_k         (eq. 1: A_k is channel k of a layer's output, y the class's score)
    L   = max(0, sum over k of a_k * A_k)          (eq. 2)

The score y is the one before the softmax: a last Dense or convolution with softmax or sigmoid is computed without it.
The graph is run call by call, into models inside the model, with the layer's output replaced by a tensor to
differentiate by: nothing is rebuilt. Where a network ends in global pooling and one linear layer, L is CAM's positive
part / number of positions.
"""

import numbers

import keras
import numpy as np

from na_keras.graph.calls import calls_of, checked_functional, nested_model, run_graph

SQUASHING = ("softmax", "log_softmax", "sigmoid")


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


def positions(call, data_format):
    """Height times width of a call's feature maps (None: unknown); 0 if its output is something else."""
    if len(call.outputs) != 1 or len(call.outputs[0].shape) != 4:
        return 0
    shape = call.outputs[0].shape
    height, width = shape[1:3] if data_format == "channels_last" else shape[2:]
    return None if height is None or width is None else height * width


def find_layer(model, layer, data_format):
    """The operation whose output the map is of; see `grad_cam`.

    Raises:
        ValueError: there is no such layer, or several; it is called several times; it has no feature maps.
    """
    entries = listing(model)
    paths = {path: call for path, call in entries if positions(call, data_format) not in (0, 1)}
    if not paths:
        raise ValueError(f"{model.name!r} has no layer whose output is feature maps of more than one position.")
    if layer is None:
        layer = list(paths)[-1]
    matches = [(path, call) for path, call in entries if path == layer]
    matches = matches or [(path, call) for path, call in entries if path.endswith(f"/{layer}")]
    if not matches:
        raise ValueError(
            f"{model.name!r} has no layer {layer!r} between input and output. Its last layers with feature maps: "
            f"{', '.join(list(paths)[-5:])}"
        )
    if len(matches) > 1:
        raise ValueError(
            f"Expected a layer that is called once. {layer!r} stands for several calls: "
            f"{', '.join(path for path, _ in matches)}. Layers of nested models are named as model/layer."
        )
    ((path, call),) = matches
    if positions(call, data_format) == 0:
        raise ValueError(
            f"Grad-CAM needs feature maps, rank 4. {path!r} returns {[tuple(x.shape) for x in call.outputs]}. The last "
            f"layers with feature maps: {', '.join(list(paths)[-5:])}"
        )
    return call.operation


def last_operation(model):
    """The operation that makes a functional model's output, seen through nested models and linear activations."""
    (tensor,) = model.outputs
    while True:
        maker = {id(output): call for call in calls_of(model) for output in call.outputs}
        call = maker.get(id(tensor))
        if call is None:
            return None
        operation = call.operation
        if inner := nested_model(operation):
            model, tensor = inner, inner.outputs[[id(output) for output in call.outputs].index(id(tensor))]
        elif isinstance(operation, keras.layers.Identity) or (
            isinstance(operation, keras.layers.Activation) and operation.activation is keras.activations.linear
        ):
            (tensor,) = call.inputs
        else:
            return operation


def before_squashing(operation):
    """Function of an operation's arguments: its output without its softmax, log-softmax or sigmoid, if it has one."""
    if isinstance(operation, keras.layers.Softmax) or type(operation).__name__.lower() in ("softmax", "logsoftmax"):
        return lambda x, *args, **kwargs: x
    activation = getattr(getattr(operation, "activation", None), "__name__", None)
    if activation not in SQUASHING or not isinstance(operation, keras.layers.Layer):
        return operation
    if isinstance(operation, keras.layers.Activation):
        return lambda x, *args, **kwargs: x
    linear = type(operation).from_config({**operation.get_config(), "activation": "linear"})

    def scores(x, *args, **kwargs):
        if not linear.built:
            linear.build(x.shape)
            linear.set_weights(operation.get_weights())
        return linear(x, *args, **kwargs)

    return scores


def make_forward(model, target):
    """function(images, maps=None) -> (output of the target operation, scores), with `maps` in place of that output."""
    last = last_operation(model)
    score = before_squashing(last) if last is not None else None

    def forward(images, maps=None):
        seen = []

        def call(operation, *args, **kwargs):
            if inner := nested_model(operation):
                output = run_graph(inner, args, call)
            else:
                output = (score if operation is last else operation)(*args, **kwargs)
            if operation is not target:
                return output
            seen.extend(keras.tree.flatten(output))
            return output if maps is None else maps

        (scores,) = run_graph(model, images, call)
        return seen[0], scores

    return forward


def check_images(images, model):
    """The images as a tensor of the input's dtype.

    Raises:
        ValueError: another shape than the model's input.
    """
    (expected,) = (tuple(tensor.shape) for tensor in model.inputs)
    received = tuple(np.shape(images))
    fits = len(received) == len(expected) and all(
        size is None or size == given for size, given in zip(expected[1:], received[1:], strict=True)
    )
    if not fits or received[0] == 0:
        hint = " Give one image as a batch, images[None]." if len(received) == len(expected) - 1 else ""
        raise ValueError(f"Expected a batch of images of shape {expected}. Received: shape {received}.{hint}")
    return keras.ops.convert_to_tensor(images, model.inputs[0].dtype)


def check_classes(classes, batch, count):
    """A class index per image; None stays None.

    Raises:
        ValueError: something else than an integer, or one per image; an index that is not one of `count` classes.
    """
    if classes is None:
        return None
    chosen = [classes] * batch if np.ndim(classes) == 0 else list(classes)
    for index in chosen:
        if isinstance(index, bool | np.bool_) or not isinstance(index, numbers.Integral):
            raise ValueError(f"classes must be None, a class index, or one index per image. Received: {classes!r}")
        if not 0 <= index < count:
            raise ValueError(f"The network has classes 0 to {count - 1}. Received: class {index}")
    if len(chosen) != batch:
        raise ValueError(f"Expected one class per image, {batch}. Received: {len(chosen)} classes")
    return np.array(chosen, "int64")


def grad_cam(model, images, classes=None, layer=None, scaled=False, data_format=None):
    """Which positions of the images speak for a class: Grad-CAM's heat maps.

    Source: Selvaraju et al., arXiv 1610.02391, equations 1 and 2; Figure 2 of the NA paper.

    >>> model = keras.applications.MobileNetV2(weights=None)
    >>> grad_cam(model, np.zeros((2, 224, 224, 3)), classes=[3, 7]).shape
    (2, 7, 7)

    Args:
        model: functional model or built Sequential, with models inside it if need be, from images to one score or
            probability per class, (batch, classes). It is run in inference mode and left as it is.
        images: array (batch, height, width, channels), or channels first, as the model takes them.
        classes: None: the class with the best score, for each image. An index for all images, or one per image.
        layer: whose output the maps are of. None: the last one with feature maps of more than one position, as in the
            paper. A name; in a model inside the model, `"inner"` or, where that is ambiguous, `"model/inner"`.
        scaled: False: the maps L of equation 2, at the layer's resolution. True: resized to the images (bilinear) and
            divided by their maxima, to lay over the images; a map of zeros stays one.
        data_format: of the layer's output and the images, `"channels_last"` or `"channels_first"`; by default
            `keras.config.image_data_format()`.

    Returns:
        NumPy float32 (batch, h, w), not negative; with `scaled=True` (batch, height, width) with values in [0, 1].
        Scores are taken before a softmax or sigmoid at the model's end; other endings are differentiated as they are.

    Raises:
        ValueError: the model has no graph, or several inputs or outputs; images of another shape; a class that the
            model does not have; a layer that is not there, is called several times or has no feature maps.
    """
    source = checked_functional(model, "grad_cam")
    shapes = [tuple(tensor.shape) for tensor in source.inputs], [tuple(tensor.shape) for tensor in source.outputs]
    if [len(side) for side in shapes] != [1, 1] or len(shapes[1][0]) != 2:
        raise ValueError(
            f"Expected a classifier: one input, one output (batch, classes). Received: {shapes[0]} to {shapes[1]}. Of "
            "several outputs, choose one: keras.Model(model.input, model.outputs[0])."
        )
    data_format = keras.config.image_data_format() if data_format is None else data_format
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(f'data_format must be "channels_last" or "channels_first". Received: {data_format!r}')
    images = check_images(images, source)
    classes = check_classes(classes, images.shape[0], shapes[1][0][1])
    forward = make_forward(source, find_layer(source, layer, data_format))
    maps, scores = forward(images)
    if classes is None:
        classes = keras.ops.convert_to_numpy(scores).argmax(-1)
    chosen = keras.ops.one_hot(classes, scores.shape[-1], dtype="float32")  # (batch, classes)

    def score(replaced):
        return keras.ops.sum(keras.ops.cast(forward(images, replaced)[1], "float32") * chosen)

    slopes, maps = (keras.ops.convert_to_numpy(x).astype("float64") for x in (gradient(score, maps), maps))
    channel_axis, position_axes = (3, (1, 2)) if data_format == "channels_last" else (1, (2, 3))
    weights = slopes.mean(axis=position_axes, keepdims=True)  # eq. 1
    heat = np.maximum((weights * maps).sum(axis=channel_axis), 0).astype("float32")  # eq. 2
    if not scaled:
        return heat
    size = images.shape[1:3] if data_format == "channels_last" else images.shape[2:]
    heat = keras.ops.image.resize(heat[..., None], tuple(size), "bilinear", data_format="channels_last")
    heat = np.maximum(keras.ops.convert_to_numpy(heat)[..., 0], 0)
    largest = heat.max(axis=(1, 2), keepdims=True)
    return heat / np.where(largest > 0, largest, 1)
