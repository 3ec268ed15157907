"""The classifier at the end of a functional model, found and exchanged: other classes, logits or probabilities.

... -> pooling -> Dense(classes) -> Activation("softmax")          head: the Dense layer; tail: what activates it
... -> Conv2D(classes, 1) -> Reshape -> Softmax                    in models inside the model too
"""

from typing import NamedTuple

import keras
from keras import layers

from na_keras.graph.calls import calls_of, nested_model, run_graph
from na_keras.graph.copying import ModelCopy, copy_layer
from na_keras.graph.scores import flat_makers, squashing_of

SIZE_OF = {layers.Dense: "units", layers.Conv2D: "filters"}
PASSIVE = (layers.Flatten, layers.Reshape, layers.Dropout, layers.GlobalAveragePooling2D, layers.Identity)
KNOWN = {"softmax", "sigmoid", "linear"}


def is_softmax(operation):
    """Whether it is Keras' softmax, as a layer or as an operation."""
    return isinstance(operation, layers.Softmax) or type(operation).__name__ == "Softmax"


def activation_of(call):
    """The activation that a call is or ends in: "softmax", "sigmoid", "linear", or another one's name; what it computes
    counts."""
    activation = getattr(call.operation, "activation", keras.activations.linear)
    if not is_softmax(call.operation) and activation in (None, keras.activations.linear):
        return "linear"
    return squashing_of(call) or getattr(activation, "__name__", "something else")


class Classifier(NamedTuple):
    """The end of a network.

    Attributes:
        head: the Dense layer or 1x1 convolution.
        after: the operations after it, the last first.
        tail: those of them that are activations.
        activation: name of the activation in all: "softmax", "sigmoid" or "linear".
    """

    head: keras.layers.Layer
    after: list
    tail: list
    activation: str


def find_classifier(model, where):
    """The `Classifier` of a functional model.

    Args:
        model: functional, one output (batch, classes).
        where: what the model is called in messages.

    Raises:
        ValueError: it ends otherwise, or in another activation than softmax, sigmoid or none.
    """
    tensor, makers, after, tail = model.outputs[0], flat_makers(model), [], []
    while True:
        call = makers.get(id(tensor))
        operation = call.operation if call else None
        if type(operation) in SIZE_OF:
            break
        elif isinstance(operation, layers.Activation) or is_softmax(operation):
            tail.append(call)
        elif not isinstance(operation, PASSIVE):
            raise ValueError(
                f"{where} must end in a Dense layer or a 1x1 convolution, and a softmax. Received: "
                f"{getattr(operation, 'name', None)!r}, a {type(operation).__name__}"
            )
        after.append(operation)
        tensor = call.inputs[0]
    activations = [activation_of(call) for call in (call, *tail)]
    other = [name for name in activations if name != "linear"]
    if len(other) > 1 or not set(other) <= KNOWN:
        raise ValueError(
            f"{where} must end in a softmax, in sigmoids, or in logits. Received: {' and '.join(map(str, other))}"
        )
    return Classifier(operation, after, [call.operation for call in tail], other[0] if other else "linear")


def reshape_for(old, new, where):
    """A change of a Reshape layer's configuration from `old` to `new` classes; (2, 5) of 10 classes is refused."""

    def change(config):
        shape = list(config["target_shape"])
        if old in shape:
            shape[len(shape) - 1 - shape[::-1].index(old)] = new
        elif -1 not in shape:
            raise ValueError(
                f"{where} has {old} classes, which its layer {config['name']!r} brings into the shape {tuple(shape)}; "
                f"for {new} classes that cannot be told. End it in a Dense layer"
            )
        return {**config, "target_shape": tuple(shape)}

    return change


class ClassifierExchange(ModelCopy):
    """A copy of a model with another end. `classifier`: its `Classifier`; the rest as of `with_classifier`."""

    def __init__(self, classifier, where, classes, activation, synchronized):
        super().__init__(self.synchronize if synchronized else None)
        self.head, self.tail = classifier.head, classifier.tail
        self.classes, self.activation = classes, activation or "linear"
        self.ends = {id(operation) for operation in (self.head, *self.tail)}
        old = getattr(self.head, SIZE_OF[type(self.head)])
        self.replaced = old != classes
        self.behind = {id(operation) for operation in classifier.after} if self.replaced else set()
        self.reshape = reshape_for(old, classes, where)

    @staticmethod
    def synchronize(config):
        """A layer's configuration with batch statistics over all replicas, if it has any."""
        return {**config, "synchronized": True} if "synchronized" in config else config

    def changes(self, model):
        """Whether the classifier is in this model."""
        return any(id(call.operation) in self.ends for call in calls_of(model))

    def is_behind(self, operation):
        """Whether an operation, or all of a model's, is given other classes than it was made for."""
        inner = nested_model(operation)
        if inner:
            return all(self.is_behind(call.operation) for call in calls_of(inner))
        return id(operation) in self.behind

    def end_of(self, operation):
        """What takes an operation's place that depends on the classes or the activation; None for the others."""
        if (inner := nested_model(operation)) and self.is_behind(operation):  # its input has the shape of before
            call = lambda operation, *args, **kwargs: self.copy(operation)(*args, **kwargs)  # noqa: E731
            return lambda x, *args, **kwargs: keras.tree.pack_sequence_as(inner.output, run_graph(inner, x, call))
        if operation is self.head:
            activation = "linear" if self.tail else self.activation
            change = {SIZE_OF[type(operation)]: self.classes, "activation": activation, "dtype": "float32"}
            copied = copy_layer(operation, lambda config: {**config, **change})
            copied.activation = keras.activations.get(activation)  # copy_layer keeps the original's function
            return copied
        if id(operation) in self.ends:
            activation = self.activation if operation is self.tail[-1] else "linear"
            last = layers.Activation(activation, dtype="float32", name=operation.name)
            return lambda x, *args, **kwargs: last(x)  # a Softmax layer is given a mask
        if isinstance(operation, layers.Reshape) and self.is_behind(operation):
            return copy_layer(operation, self.reshape)
        return None

    def copy(self, operation):
        """The operation's copy; of the classifier and what activates it, the one asked for, in float32."""
        if id(operation) not in self.copies and (end := self.end_of(operation)) is not None:
            self.copies[id(operation)] = end
            if operation is self.head and not self.replaced:
                self.originals.append(operation)
        return super().copy(operation)


def with_classifier(model, where, classes, activation, synchronized=False):
    """A copy of a functional classifier that ends as asked for; everything else keeps its weights.

    Args:
        model: functional, one output (batch, classes).
        where: what the model is called in messages.
        classes: a number other than the model's makes the classifier a fresh one.
        activation: "softmax", "sigmoid", or None for logits.
        synchronized: batch statistics over all replicas, in every batch norm.

    Raises:
        ValueError: as `find_classifier`; a layer that cannot be copied; other classes where a Reshape after the
            classifier splits them.
    """
    exchange = ClassifierExchange(find_classifier(model, where), where, classes, activation, synchronized)
    copied = exchange.rebuild(model)
    exchange.copy_states()
    return copied
