"""Copies of layers and functional models: of the same configuration and state, or refused with the layer's name.

A Keras layer is more than its configuration and its weights: a vocabulary is a file beside them (assets), an adapted
Normalization computes with constants made of its weights, an activation may be a function that Keras cannot name. The
copies here are made as Keras saves and loads a model, by the hooks that are there for it,

    from_config(get_config())                      what the constructor was given
    save_assets(folder), load_assets(folder)       vocabularies, lookup tables
    save_own_variables, load_own_variables         weights, and what is computed of them

for a layer and all layers in it, but without files of weights and without registration: classes and functions are
those of the original. Of a Lambda's arguments one, `_output_shape`, is private: its configuration has only the code of
that function.
"""

import tempfile
import types

import keras

from na_keras.graph.calls import checked_functional, fresh_inputs, nested_model, run_graph, sublayers


def refusal(layer, reason):
    """The error for a layer that cannot be copied."""
    return ValueError(
        f"Cannot copy {layer.name!r}, a {type(layer).__name__}: {reason} Give its class a get_config() that returns "
        "all arguments of its constructor, and use functions with a name; state that is no weight needs save_assets() "
        "and load_assets(), as in a saved model."
    )


def first_line(error):
    """The beginning of an exception's text, with its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def own_functions(layer, config):
    """{attribute: function} of the constructor's arguments that are functions, as an activation is."""
    return {key: value for key, value in vars(layer).items() if key in config and isinstance(value, types.FunctionType)}


def own_objects(layer):
    """{name: class or function} of everything in a layer that its configuration may refer to by name."""
    found = {}
    for inner in sublayers(layer):
        for value in [inner, *vars(inner).values()]:
            named = value if isinstance(value, types.FunctionType) else type(value)
            if named.__module__.partition(".")[0] not in ("builtins", "keras"):
                found[named.__name__] = named
    return found


def from_own_config(layer, config):
    """An object of the same class and configuration."""
    if isinstance(layer, keras.layers.Lambda):  # the functions themselves: their code alone lacks the names in it
        given = {"function": layer.function, "arguments": layer.arguments, "mask": layer.mask}
        return type(layer)(**{**config, **given, "output_shape": layer._output_shape})
    scope = own_objects(layer) if isinstance(layer, keras.layers.Layer) else {}
    with keras.saving.custom_object_scope(scope):
        return type(layer).from_config(config)


def has_assets(layer):
    """Whether a layer has files beside its weights."""
    return hasattr(layer, "save_assets")


def transfer(original, copied):
    """Weights, what is computed of them, and assets, of a layer itself, without the layers in it."""
    store = {}
    original.save_own_variables(store)
    copied.load_own_variables({name: keras.ops.convert_to_numpy(value) for name, value in store.items()})
    if has_assets(original):
        with tempfile.TemporaryDirectory() as folder:
            original.save_assets(folder)
            copied.load_assets(folder)


def copy_layer(operation, change_config=None):
    """A new layer or keras.ops operation of the same configuration, with its assets; `copy_state` completes it.

    Args:
        operation: layer, model that is used as a layer, or operation, which stays as it is.
        change_config: None, or a function from its configuration to that of the copy, for example with other dtypes.

    Returns:
        Object of the same class, not built. Functions in it, such as the activation or a Lambda's, are the original's.

    Raises:
        ValueError: it has no configuration from which it can be made; the message has its name.
    """
    try:
        config = operation.get_config()
    except Exception as error:
        raise refusal(operation, f"its get_config() fails with {first_line(error)}.") from error
    config = config if change_config is None else change_config(config)
    try:
        copied = from_own_config(operation, config)
        if isinstance(operation, keras.layers.Layer):
            for ours, theirs in zip(sublayers(operation), sublayers(copied), strict=False):
                for key, function in own_functions(ours, ours.get_config()).items():
                    setattr(theirs, key, function)  # Keras takes its own of the same name
                if has_assets(ours) and type(ours) is type(theirs):
                    transfer(ours, theirs)  # a vocabulary decides the shape of the first call's output
    except Exception as error:
        raise refusal(operation, f"its from_config() fails with {first_line(error)}.") from error
    return copied


def copy_state(original, copied):
    """Gives a copy, now built, the weights, assets and adapted state of the original.

    Args:
        original: layer, or model that is used as a layer.
        copied: what `copy_layer` made of it, after its first call.

    Raises:
        ValueError: the copy has other layers or weights in it; the message has the layer's name.
    """
    ours, theirs = sublayers(original), sublayers(copied)
    if [type(layer) for layer in ours] != [type(layer) for layer in theirs]:
        raise refusal(original, f"it has {len(ours) - 1} layers in it, and the copy {len(theirs) - 1}.")
    try:
        for layer, target in zip(ours, theirs, strict=True):
            transfer(layer, target)
    except Exception as error:
        raise refusal(original, f"its state does not fit the copy: {first_line(error)}.") from error


class ModelCopy:
    """Copies of a model's layers, each made once however often and however deep it is called.

    A subclass changes the graph: `after` is asked for the outputs of every call.
    """

    def __init__(self, change_config=None):
        self.change_config = change_config
        self.copies = {}  # by id of the original
        self.originals = []

    def after(self, operation, outputs, model):
        """What follows a call of the original's operation in its model; here the outputs of the copy's, as they are."""
        return outputs

    def changes(self, model):
        """Whether a functional model becomes another one than of the same layers."""
        return False

    def rebuild(self, model):
        """The functional model once more."""

        def call(operation, *args, **kwargs):
            return self.after(operation, self.copy(operation)(*args, **kwargs), model)

        inputs = fresh_inputs(model, self.change_config)
        outputs = keras.tree.pack_sequence_as(model.output, run_graph(model, inputs, call))
        return keras.Model(inputs, outputs, name=model.name)

    def copy(self, operation):
        """A layer or operation of the same configuration; its state comes later, when it is built."""
        if id(operation) not in self.copies:
            inner = nested_model(operation)
            if isinstance(operation, keras.Sequential) and inner and not self.changes(inner):
                copied = keras.models.clone_model(operation, clone_function=self.copy)
            elif inner:
                copied = self.rebuild(inner)
            else:
                copied = copy_layer(operation, self.change_config)
            self.copies[id(operation)] = copied
            self.originals.append(operation)
        return self.copies[id(operation)]

    def copy_states(self):
        """Gives the copies the originals' weights and other state."""
        for original in self.originals:
            if isinstance(original, keras.layers.Layer) and not nested_model(original):
                copy_state(original, self.copies[id(original)])


def copy_model(model, change_config=None):
    """A copy of a model with all its state, for a change of every layer's configuration.

    Args:
        model: functional model, or a Sequential with a known input shape; it is left as it is.
        change_config: as in `copy_layer`.

    Returns:
        Functional keras.Model of the same graph, names and state, not compiled. Models in it are copied likewise.

    Raises:
        ValueError: the model has no graph, or a layer that cannot be copied with its state.
    """
    copying = ModelCopy(change_config)
    copied = copying.rebuild(checked_functional(model, "copy_model"))
    copying.copy_states()
    return copied
