"""The classifier at the end of a functional model, found and exchanged: other classes, logits or probabilities.

... -> pooling -> Dense(classes) -> Activation("softmax")          head: the Dense layer; tail: what activates it
... -> Conv2D(classes, 1) -> Reshape -> Softmax                    in models inside the model too
"""

import keras
from keras import layers

from na_keras.graph.calls import calls_of
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


def find_classifier(model, where):
    """The classifier of a functional model.

    Args:
        model: functional, one output (batch, classes).
        where: what the model is called in messages.

    Returns:
        (the layer, list of the operations after it that are activations, name of the activation in all).

    Raises:
        ValueError: it ends otherwise, or in another activation than softmax, sigmoid or none.
    """
    tensor, makers, tail = model.outputs[0], flat_makers(model), []
    while True:
        call = makers.get(id(tensor))
        operation = call.operation if call else None
        if type(operation) in SIZE_OF:
            break
        elif isinstance(operation, layers.Activation) or is_softmax(operation):
            tail.append(call)
            tensor = call.inputs[0]
        elif isinstance(operation, PASSIVE):
            tensor = call.inputs[0]
        else:
            raise ValueError(
                f"{where} must end in a Dense layer or a 1x1 convolution, and a softmax. Received: "
                f"{getattr(operation, 'name', None)!r}, a {type(operation).__name__}"
            )
    activations = [activation_of(call) for call in (call, *tail)]
    other = [name for name in activations if name != "linear"]
    if len(other) > 1 or not set(other) <= KNOWN:
        raise ValueError(
            f"{where} must end in a softmax, in sigmoids, or in logits. Received: {' and '.join(map(str, other))}"
        )
    return operation, [call.operation for call in tail], other[0] if other else "linear"


class ClassifierExchange(ModelCopy):
    """A copy of a model with another end. Arguments as of `with_classifier`."""

    def __init__(self, head, tail, classes, activation, synchronized):
        super().__init__(self.synchronize if synchronized else None)
        self.head, self.tail, self.classes, self.activation = head, tail, classes, activation or "linear"
        self.ends = {id(operation) for operation in (head, *tail)}
        self.replaced = getattr(head, SIZE_OF[type(head)]) != classes

    @staticmethod
    def synchronize(config):
        """A layer's configuration with batch statistics over all replicas, if it has any."""
        return {**config, "synchronized": True} if "synchronized" in config else config

    def changes(self, model):
        """Whether the classifier is in this model."""
        return any(id(call.operation) in self.ends for call in calls_of(model))

    def copy(self, operation):
        """The operation's copy; of the classifier and what activates it, the one asked for, in float32."""
        if id(operation) not in self.ends or id(operation) in self.copies:
            return super().copy(operation)
        if operation is self.head:
            activation = "linear" if self.tail else self.activation
            change = {SIZE_OF[type(operation)]: self.classes, "activation": activation, "dtype": "float32"}
            copied = copy_layer(operation, lambda config: {**config, **change})
            copied.activation = keras.activations.get(activation)  # copy_layer keeps the original's function
        else:
            activation = self.activation if operation is self.tail[-1] else "linear"
            last = layers.Activation(activation, dtype="float32", name=operation.name)
            copied = lambda x, *args, **kwargs: last(x)  # noqa: E731  a Softmax layer is given a mask
        self.copies[id(operation)] = copied
        if operation is self.head and not self.replaced:
            self.originals.append(operation)
        return copied


def with_classifier(model, where, classes, activation, synchronized=False):
    """A copy of a functional classifier that ends as asked for; everything else keeps its weights.

    Args:
        model: functional, one output (batch, classes).
        where: what the model is called in messages.
        classes: a number other than the model's makes the classifier a fresh one.
        activation: "softmax", "sigmoid", or None for logits.
        synchronized: batch statistics over all replicas, in every batch norm.

    Raises:
        ValueError: as `find_classifier`; a layer that cannot be copied.
    """
    head, tail, _ = find_classifier(model, where)
    exchange = ClassifierExchange(head, tail, classes, activation, synchronized)
    copied = exchange.rebuild(model)
    exchange.copy_states()
    return copied
