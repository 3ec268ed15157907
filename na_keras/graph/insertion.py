"""Attention modules for networks that are not ours: a trained functional model, rebuilt with a module at chosen places.

    before:  ... -> bn3 --------------> add -> ...        x  = bn3(...)
    after:   ... -> bn3 -> attention -> add -> ...        x' = k * x for a fresh module of constant gate k

Where is said in insertion_points.py: by default at the authors' place, after the last normalisation of each residual
branch.

Weights and other state are copied, not shared (copying.py). A fresh NA multiplies by k = sigmoid(1) (gamma = 0, beta =
1), which changes what a trained network computes; `preserve=True` divides the weights that the normalisation multiplies
by (gamma and beta) by k. A sigmoid is never 1, but where it is 1/2 (NA with beta_initializer="zeros"; SE, CBAM, ECA)
the network stays the same to the bit. Modules whose fresh gate depends on the image begin with other weights then,
which their class has as `constant_gate`.
"""

import contextlib
import functools

import keras
import numpy as np

from na_keras.graph.calls import calls_of, checked_functional, models_of
from na_keras.graph.copying import ModelCopy
from na_keras.graph.feature_maps import NORMALIZATIONS, formats_of_operations
from na_keras.graph.insertion_points import find_insertion_points, sample_of
from na_keras.layers import get_attention, property_of

layers = keras.layers
# (layers whose output is linear in some weights, which these are, which others they may have)
SCALABLE = (
    (NORMALIZATIONS, ("gamma", "beta"), ("moving_mean", "moving_variance")),
    ((layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.DepthwiseConv2D, layers.Dense), ("kernel", "bias"), ()),
)
PROBES = ((1.0, 0.0), (10.0, 3.0))  # deviation and mean of the random inputs that a fresh module is tried on
UNKNOWN_SIZE = 8  # positions along an axis of unknown size, for these inputs
ROUNDING = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}


@contextlib.contextmanager
def settings_of(layer, data_format):
    """Keras' global precision policy and data format as a layer has them: new layers begin with the global ones."""
    earlier = keras.config.dtype_policy(), keras.config.image_data_format()
    keras.config.set_dtype_policy(layer.dtype_policy)
    keras.config.set_image_data_format(data_format or earlier[1])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(earlier[0])
        keras.config.set_image_data_format(earlier[1])


def make_module(factory, layer, name, x, data_format):
    """A module for the output x of a layer.

    Args:
        factory: takes `name=` and returns a layer.
        layer: of the original network.
        name: of the module.
        x: Keras tensor.
        data_format: of x, or None if it is no feature map.

    Raises:
        ValueError: it is no layer, does not take x, or does not keep the shape of x.
    """
    if not keras.backend.is_keras_tensor(x):
        raise ValueError(f"Modules go after layers with one output. Received: {layer.name!r}, which returns {x!r}")
    with settings_of(layer, data_format):
        module = factory(name=name)
    if not isinstance(module, layers.Layer):
        raise ValueError(f"attention must return a layer when called with name=. Received: {module!r}")
    try:
        y = module(x)
    except ValueError as error:
        raise ValueError(f"The module does not take the output of {layer.name!r}, {tuple(x.shape)}: {error}") from error
    if tuple(getattr(y, "shape", ())) != tuple(x.shape):
        raise ValueError(
            f"The module must return the shape of its input, {tuple(x.shape)} after {layer.name!r}. Received: {y!r}"
        )
    return module


def constant_gate(module, shape):
    """The number that a module multiplies its input by, measured on random inputs.

    Args:
        module: built layer.
        shape: of its input; None where a size is unknown.

    Returns:
        (k or None if it does something else, smallest and largest factor seen).
    """
    rng = np.random.default_rng(0)
    shape = [2, *(UNKNOWN_SIZE if size is None else size for size in shape[1:])]
    pairs = []
    for deviation, mean in PROBES:
        x = keras.ops.convert_to_tensor(rng.normal(mean, deviation, shape).astype("float32"), module.compute_dtype)
        y = keras.ops.convert_to_numpy(module(x)).astype("float64")
        pairs.append((keras.ops.convert_to_numpy(x).astype("float64"), y))
    k = sum((x * y).sum() for x, y in pairs) / sum((x * x).sum() for x, _ in pairs)
    # The gate is rounded once and the product once: two units in the last place, and as many for k itself.
    tolerance = 4 * ROUNDING.get(module.compute_dtype, ROUNDING["float32"])
    constant = all((np.abs(y - k * x) <= tolerance * np.abs(k * x)).all() for x, y in pairs)
    factors = np.concatenate([(y / np.where(x == 0, 1, x)).ravel() for x, y in pairs])
    return (k if constant else None), factors.min(), factors.max()


def with_constant_gate(factory):
    """The factory of this library's layers that start as a constant; arguments that it has been given stay."""
    arguments, given = property_of(factory, "constant_gate") or {}, getattr(factory, "keywords", {})
    missing = {name: value for name, value in arguments.items() if name not in given}
    return functools.partial(factory, **missing) if missing else factory


def way_to_a_constant(module):
    """What makes a fresh module multiply by a constant, or that nothing does, in a sentence."""
    name, arguments = type(module).__name__, property_of(type(module), "constant_gate")
    if not module.weights:
        return f"This {name} has no weights that could make it one."
    if arguments is None:
        return f"{name} is a convolution of its own with a ReLU at its end: no weights make it one."
    if arguments:
        listed = "".join(f', {key}="{value}"' for key, value in arguments.items())
        return f"functools.partial({name}{listed}) starts as one."
    return 'Choose initial weights with which it starts as one, or a module that does: attention="na".'


def scalable_weights(layer):
    """The weights that a layer's output is linear in, all together; or none."""
    weights = {weight.name: weight for weight in layer.weights}
    linear = getattr(layer, "activation", None) in (None, keras.activations.linear)
    for classes, scaled, others in SCALABLE:
        if isinstance(layer, classes) and scaled[0] in weights and linear and set(weights) <= {*scaled, *others}:
            return [weights[name] for name in scaled if name in weights]
    return []


def fold(layer, module, shape, others):
    """Divides a layer's output by the constant that the fresh module after it multiplies by, in the layer's weights.

    Args:
        layer: of the copy.
        module: after it, built.
        shape: of what is between them.
        others: names of layers that could take up a constant, for the message.

    Raises:
        ValueError: the module has no constant, or the layer no weights that its output is linear in.
    """
    k, low, high = constant_gate(module, shape)
    refusal = f"preserve=True: {type(module).__name__} after {layer.name!r} would change what the network computes"
    if k is None or k == 0:
        raise ValueError(
            f"{refusal}. A fresh one must multiply by a constant other than 0; on random inputs this one multiplies by "
            f"{low:.3g} to {high:.3g}. {way_to_a_constant(module)} Or use preserve=False and fine-tune."
        )
    if k == 1:
        return
    weights = scalable_weights(layer)
    if not weights:
        raise ValueError(
            f"{refusal}: it multiplies by {k:.6g}, and {layer.name!r} ({type(layer).__name__}) has no weights that "
            "take up the inverse. Choose a normalisation with scale=True, or a convolution or Dense without activation "
            f"(of those with feature maps, here: {sample_of(others) if others else 'none'}); or use preserve=False."
        )
    for weight in weights:
        value = keras.ops.convert_to_numpy(weight)
        weight.assign((value.astype("float64") / k).astype(value.dtype))


class Insertion(ModelCopy):
    """A copy of a network with the modules in it, one for each layer of `insertion_points`."""

    def __init__(self, insertion_points, factory, formats):
        super().__init__()
        self.insertion_points = {id(layer) for layer in insertion_points}
        self.factory, self.formats = factory, formats
        self.modules, self.shapes = {}, {}  # by id of the original layer

    def changes(self, model):
        """Whether a module goes somewhere into the model."""
        calls = (call for inner in models_of(model) for call in calls_of(inner))
        return any(id(call.operation) in self.insertion_points for call in calls)

    def after(self, operation, outputs, model):
        """The outputs, through the module if one goes after this operation."""
        key = id(operation)
        if key not in self.insertion_points:
            return outputs
        if key not in self.modules:
            taken = {call.operation.name for call in calls_of(model)}
            taken |= {module.name for module in self.modules.values()}
            name = f"{operation.name}_attention"
            while name in taken:
                name += "_"
            self.modules[key] = make_module(self.factory, operation, name, outputs, self.formats.get(key))
            self.shapes[key] = outputs.shape
        return self.modules[key](outputs)

    def fold_constants(self):
        """Divides the constant gate of each module out of the weights of the layer before it."""
        layers_here = [
            layer for layer in self.originals if isinstance(layer, layers.Layer) and id(layer) in self.formats
        ]
        others = [layer.name for layer in layers_here if scalable_weights(layer)]
        for key, module in self.modules.items():
            fold(self.copies[key], module, self.shapes[key], others)


def insert_attention(model, attention="na", where=None, preserve=False):
    """A copy of a trained network with attention modules in it.

    >>> model = keras.applications.MobileNetV2(weights=None)
    >>> len(insert_attention(model).layers) - len(model.layers)  # the residual additions of MobileNetV2
    10
    >>> len(insert_attention(model, where=r"project_BN$").layers) - len(model.layers)  # every block
    17

    Args:
        model: functional model, or a Sequential with a known input shape. Models inside it are entered too. It is left
            as it is.
        attention: a name in `na_keras.ATTENTION`, or a callable that takes `name=` and returns a layer; called once per
            insertion point, under the precision policy of the layer before and the data format of its output, which is
            that of the connected layers where it has none itself.
        where: None: after the last normalisation before each residual addition, as in the authors' code. A string: a
            regular expression, searched in layer names. A function of a layer: after each layer that it is true of.
            Additions without such a normalisation are left alone. For pre-activation networks such as
            keras.applications.ResNet50V2 there is none: say `where=r"_3_conv$"`.
        preserve: False: every weight is kept as it is, and fresh modules scale their branches (NA by sigmoid(1) =
            0.731). True: the new network computes what the old one does, in training mode too, up to rounding: the
            constant of each fresh module is divided out of the weights of the layer before it. This library's layers,
            by name, class or functools.partial, then begin with a constant gate: SE and CBAM with zeros in their last
            fully connected layer, ECA in its kernel, parametrised GE in its last scale, unless the partial has these
            arguments. What has no weights for it is refused: SimAM, GE without parameters, SK.

    Returns:
        A new functional keras.Model of the same name, inputs and outputs, not compiled. Its layers are copies with the
        same names and weights; Keras may list them in another order. `LAYER_attention` follows `LAYER` and feeds all
        that LAYER fed, outputs of the model included. A layer that is called several times has one module, called as
        often. New modules are trainable, also in a frozen model. Sequential models that a module goes into become
        functional.

    Raises:
        ValueError: the model has no graph, or a call() of its own; a layer that cannot be copied with its state, by
            name; no insertion point, with names of layers that there are; no such module, or one that does not fit;
            with `preserve=True`, a module without a constant gate, or one after a layer whose weights cannot take up
            the constant.
    """
    source = checked_functional(model, "insert_attention")
    factory = get_attention(attention)
    if factory is None:
        raise ValueError("attention must be a name in na_keras.ATTENTION or a layer factory. Received: None")
    factory = with_constant_gate(factory) if preserve else factory
    insertion = Insertion(find_insertion_points(source, where), factory, formats_of_operations(source))
    rebuilt = insertion.rebuild(source)
    insertion.copy_states()
    if preserve:
        insertion.fold_constants()
    return rebuilt
