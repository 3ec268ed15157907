"""A network of a name: built, filled with trained weights, modules put in, taking raw pixels, ending as asked for."""

import dataclasses
import inspect
import pathlib

import keras

from na_keras.files import sha256_of
from na_keras.graph.calls import sublayers
from na_keras.graph.insertion import insert_attention
from na_keras.layers import get_attention
from na_keras.model_files import training_record
from na_keras.models.shared import classifier_of
from na_keras.networks.classifiers import find_classifier, with_classifier
from na_keras.networks.files import image_model, of_one_tensor, square_side
from na_keras.networks.names import network_name, resolve_attention
from na_keras.networks.pixels import pixels_of_family, preprocessed, with_pixels
from na_keras.pretrained import (
    PRESERVED,
    KerasWeights,
    Notes,
    PlacedWeights,
    TorchWeights,
    changed_note,
    one_line,
    open_weights,
    start,
    weights_of,
)

IMAGENET = "imagenet"
HALF_PRECISION = {"float16", "bfloat16"}
# Arguments of builders that are decided here
DECIDED = {"input_shape", "input_tensor", "include_top", "weights", "classes", "classifier_activation", "pooling"}
DECIDED |= {"include_preprocessing"}


@dataclasses.dataclass(frozen=True)
class Network:
    """What a network is to be, as a recipe or a command line says it.

    Attributes:
        model: as in `network_name`.
        attention: None, a name in na_keras.ATTENTION, or `package.module:Class`.
        weights: None, "imagenet", a name or path as in `open_weights`.
        where: of the modules in a network that is not of this library, as in `insert_attention`; None: its rule.
        preserve: divide what fresh modules multiply by out of the layers before; None: with trained weights, where the
            modules can.
        pixels: what they mean to the network of a file that does not show it, a key of PIXELS.
        options: further arguments of the builder.

    Raises:
        ValueError: at construction, on a name that is none, and on what would have no effect.
    """

    model: str
    attention: str | None = None
    weights: str | None = None
    where: str | None = None
    preserve: bool | None = None
    pixels: str | None = None
    options: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        name, wrong = self.name, None
        if self.attention is None and (self.where or self.preserve is not None):
            wrong = "--where and --preserve are about attention modules: give --attention, or leave them out"
        elif name.kind == "ours" and self.where:
            wrong = f"--where is not for networks of this library: {name.text} has modules in every block. Leave it out"
        elif self.preserve is not None and not self.starts_trained:
            wrong = "--preserve is about trained weights, and there are none: give --weights, or leave it out"
        elif name.kind != "file" and self.pixels:
            wrong = f"--pixels is for files; {name.text} takes raw pixels, 0..255, in any case. Leave it out"
        elif name.kind == "file" and self.options:
            wrong = f"--model-options are arguments of a builder, and {name.text} is built already. Leave them out"
        elif name.kind == "applications" and (decided := DECIDED & set(self.options)):
            wrong = f"--model-options: {', '.join(sorted(decided))} is decided by the program. Leave it out"
        elif self.weights == IMAGENET and name.kind != "applications":
            wrong = (
                "--weights imagenet is of keras.applications, the authors of these networks published none: take "
                "torchvision-v1 or torchvision-v2, or a file"
            )
        if wrong:
            raise ValueError(f"{wrong}.")

    @property
    def name(self):
        """The `NetworkName`."""
        return network_name(self.model)

    @property
    def model_sha256(self):
        """Of the model's file; None of a name."""
        return sha256_of(self.name.path) if self.name.kind == "file" else None

    @property
    def starts_trained(self):
        """Whether there are weights to start from."""
        return self.weights is not None or self.name.kind == "file"


class Start:
    """The trained weights that a network starts from, opened and hashed once for all networks that are built.

    Attributes:
        weights: None, or what na_keras.pretrained has.
        digests: {"model_sha256": ..., "weights_sha256": ...}, without what there is not.
    """

    def __init__(self, network):
        """Opens what a `Network` names. Raises ValueError: no such weights, or no file of them that can be read."""
        name, self.weights, self.digests = network.name, None, {}
        if network.model_sha256:
            self.digests["model_sha256"] = network.model_sha256
        if network.weights == IMAGENET:
            self.weights = imagenet_weights(name, network.options)
        elif network.weights is not None:
            self.weights = open_weights(network.weights, name.text if name.kind == "ours" else None)
        if self.weights is not None:
            self.digests["weights_sha256"] = self.weights.sha256
        path = network.weights if "weights_sha256" in self.digests else network.model
        self.classifier = path, training_record(pathlib.Path(path).expanduser())[1]  # whose, and its class names

    def check_classes(self, class_names):
        """Compares labels.txt beside the weights' file, if there is one, with the classes that are to be trained.

        Returns:
            None, or a sentence: as many classes, but others.

        Raises:
            ValueError: the same classes in another order: each output would begin as another class.
        """
        path, names = self.classifier
        if names is None or len(names) != len(class_names) or list(names) == list(class_names):
            return None
        if sorted(names) == sorted(class_names):
            index = next(i for i, pair in enumerate(zip(names, class_names, strict=True)) if pair[0] != pair[1])
            raise ValueError(
                f"{path} knows the same classes in another order (labels.txt beside it): class {index} is "
                f"{names[index]} there and {class_names[index]} in the data. Name the folders so that they sort alike."
            )
        return f"The classifier begins as that of as many other classes: {path} knows {names[0]}, ... {names[-1]}."


def imagenet_weights(name, options):
    """Keras' own ImageNet weights of a network of keras.applications, from its cache or downloaded by it."""
    try:
        network = name.builder(weights=IMAGENET, **options)
    except Exception as error:  # get_file raises a plain Exception
        raise ValueError(f"{name.text} with weights imagenet: {one_line(error)}") from error
    arrays = {path: keras.ops.convert_to_numpy(value) for path, value in weights_of(network).items()}
    return KerasWeights(f"{name.text}, imagenet", arrays)


def from_file(network, size, classes, activation, notes):
    """A file's model for raw images, before modules; its classifier is that of the file, or fresh."""
    path = network.name.path
    model, pixels = image_model(path, network.pixels)
    side = square_side(model, path)
    if size != side and None not in (side, size) or size is None and side is not None:
        raise ValueError(
            f"{path} takes images of {side} x {side}: give --size {side} and no other --evaluation-size. "
            f"Received: {'several sizes' if size is None else size}"
        )
    half = {layer.compute_dtype for layer in sublayers(model)} & HALF_PRECISION
    wanted = {"float32": set()}.get(
        keras.config.dtype_policy().compute_dtype, {keras.config.dtype_policy().compute_dtype}
    )
    if half != wanted:
        raise ValueError(
            f"{path} computes in {' and '.join(sorted(half)) or 'float32'}: give --precision "
            f"{' '.join(sorted(half)) or 'float32'}. Received: {' '.join(wanted) or 'float32'}"
        )
    model = with_pixels(model, pixels, size)
    there = model.output_shape[-1]
    if classes not in (None, there):
        notes.append(f"The classifier is new: {path} is of {there} classes, the network has {classes}.")
    else:
        notes.ending = path, find_classifier(model, str(path)).activation
        notes += notes.change_of_ending(activation)
    return with_classifier(model, str(path), classes or there, "softmax")


def from_applications(network, size, classes):
    """A network of keras.applications for raw images, before modules; freshly initialised."""
    name, image = network.name, keras.Input((size, size, 3), name="images")
    unknown = set(network.options) - set(inspect.signature(name.builder).parameters)
    if unknown:
        raise ValueError(f"{name.text} does not take --model-options {', '.join(sorted(unknown))}.")
    x = preprocessed(image, pixels_of_family(name.builder))
    options = {"input_tensor": x, "input_shape": (size, size, 3), "classes": classes, "weights": None}
    try:
        return of_one_tensor(name.builder(**options, **network.options))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name.text} cannot be built for images of {size}: {one_line(error)}") from error


def build_foreign(network, size, classes, activation, synchronized, weights, notes):
    """`build` of a network that is not of this library."""

    def plain(classes):
        if network.name.kind == "file":
            return from_file(network, size, classes, activation, notes)
        return from_applications(network, size, classes)

    factory = get_attention(resolve_attention(network.attention), synchronized=synchronized)

    def inserted(model, preserve):
        return insert_attention(model, factory, network.where, preserve)

    model = plain(classes)
    if isinstance(weights, PlacedWeights):
        weights = weights.read(plain, factory and (lambda classes: inserted(plain(classes), False)))
    head = lambda model: find_classifier(model, network.model).head  # noqa: E731
    if isinstance(weights, TorchWeights):
        raise ValueError(
            f"{weights.label} is of PyTorch, whose names are known for this library's networks only: {network.model} "
            "may have the same names, but computes otherwise."
        )
    if weights is not None and factory:
        with_modules = inserted(model, False)
        names = new_names(with_modules, model)
        if weights.has_modules(names):
            notes += weights.fill(with_modules, head(with_modules))
            return with_classifier(with_modules, network.model, classes, activation, synchronized)
    if weights is not None:
        notes += weights.fill(model, head(model))
    fresh = set()
    if factory:
        trained = weights is not None or network.name.kind == "file"
        before, model = model, with_fresh_modules(model, inserted, network.preserve, notes if trained else None)
        fresh = new_names(model, before)
    model = with_classifier(model, network.model, classes, activation, synchronized)
    notes.modules += [layer for layer in sublayers(model) if layer.name in fresh and layer.weights]
    return model


def new_names(model, before):
    """Names of the layers that a model has, at any depth, and another one has not."""
    return {layer.name for layer in sublayers(model)} - {layer.name for layer in sublayers(before)}


def with_fresh_modules(model, insert, preserve, notes):
    """A model with fresh modules: with trained weights, if `notes` is a list, computing what it did where that can be.

    Args:
        model: functional.
        insert: function (model, preserve) -> the model with modules.
        preserve: as in `Network`.
        notes: list for a sentence of what became of them; None for a network that is not trained.
    """
    if notes is None:
        return insert(model, False)
    reason = "as --no-preserve says"
    if preserve is not False:
        try:
            changed = insert(model, True)
        except ValueError as error:  # insert_attention begins so what it says of preserving
            if preserve or not str(error).startswith("preserve=True"):
                raise
            reason = one_line(error).removeprefix("preserve=True").lstrip(": ")
        else:
            notes.append(PRESERVED)
            return changed
    notes.append(changed_note(reason))
    return insert(model, False)


def build(network, *, size, classes, activation=None, synchronized=False, weights=None, notes=None):
    """The network that a name means, for raw RGB images.

    Args:
        network: a `Network`.
        size: pixels of the images' sides; None leaves them open.
        classes: number of classes.
        activation: "softmax", "sigmoid", or None for logits.
        synchronized: batch statistics over all replicas of a tf.distribute strategy.
        weights: `Start.weights` to start from; None of a network whose weights are about to be replaced, as by a
            checkpoint. A file's own weights are there in any case.
        notes: `Notes`, or a list for the sentences alone, to which is added what is fresh.

    Returns:
        Functional keras.Model from images (batch, size, size, 3), raw pixels 0..255, to (batch, classes) float32. The
        current precision policy holds for what is built; a file computes as it did.

    Raises:
        ValueError: sizes, options, attention, weights or a file that do not go together; the message names them.
        TypeError: options that a builder of this library does not take.
    """
    found = Notes()
    if network.name.kind == "ours":
        model = build_own(network, size, classes, activation, synchronized, weights, found)
    else:
        model = build_foreign(network, size, classes, activation, synchronized, weights, found)
    if notes is not None:
        notes += found
    if isinstance(notes, Notes):
        notes.modules += found.modules
        notes.ending = found.ending
    return model


def build_own(network, size, classes, activation, synchronized, weights, notes):
    """`build` of a network of this library."""

    def own(modules, classes):
        return network.name.builder(
            input_shape=(size, size, 3),
            classes=classes,
            classifier_activation=activation,
            attention=resolve_attention(network.attention) if modules else None,
            synchronized_batch_norm=synchronized,
            **network.options,
        )

    model = own(True, classes)
    if weights is not None:
        twin = lambda modules, there: own(modules, there or classes)  # noqa: E731
        found = start(model, weights, classifier_of(model), twin, network.preserve)
        notes += found
        notes.modules += found.modules
    return model
