"""A classifier as it ships: raw pixels in; probabilities or logits out, under that name, and what else it answers."""

import dataclasses

import keras

from na_keras.graph.calls import checked_functional
from na_keras.model_files import load_model
from na_keras.networks.build import Start, build
from na_keras.networks.endings import with_ending
from na_keras.networks.files import choose_output, image_model
from na_keras.networks.pixels import with_pixels
from na_keras.pretrained import one_line

RESERVED = {"probabilities", "logits", "classes", "scores", "labels"}  # outputs that an export has of its own
IMAGENET_CLASSES, USUAL_SIZE = 1000, 224


@dataclasses.dataclass(frozen=True)
class Exported:
    """A classifier that is to be exported.

    Attributes:
        model: functional, from raw images (batch, height, width, channels) to {"probabilities": (batch, classes)} or
            {"logits": ...}, and further outputs by their names.
        ending: "softmax", "sigmoid" or "logits".
        pixels: what they meant to the network before it took raw ones; see networks.PIXELS.
        digests: SHA-256 of the model's file and of the weights, as of `Start`.
    """

    model: keras.Model
    ending: str
    pixels: str
    digests: dict

    @property
    def answer(self):
        """The name of the classifier's output."""
        return "logits" if self.ending == "logits" else "probabilities"

    @property
    def classes(self):
        """How many numbers it answers."""
        return self.model.output[self.answer].shape[-1]

    def with_both(self):
        """The classifier of one sigmoid, yes or no, as one of two classes: its probabilities become (1 - p, p)."""
        outputs = dict(self.model.output)
        yes = outputs["probabilities"]
        outputs["probabilities"] = keras.ops.concatenate([1.0 - yes, yes], axis=-1)
        model = keras.Model(self.model.inputs[0], outputs, name=self.model.name)
        return dataclasses.replace(self, model=model, ending="softmax")


def as_exported(model, names, where, activation, pixels, digests):
    """`Exported` of a functional model for raw images, whose outputs have these names, the answer's first."""
    if taken := RESERVED & set(names[1:]):
        raise ValueError(f"{where} has an output {taken.pop()!r}, a name that an export gives itself: rename it.")
    model, found = with_ending(model, where, activation)
    answer = "logits" if found == "logits" else "probabilities"
    outputs = dict(zip((answer, *names[1:]), model.outputs, strict=True))
    return Exported(keras.Model(model.inputs[0], outputs, name=model.name), found, pixels, digests)


def from_file(network, activation, output_name):
    """`open_exported` of a file."""
    path = network.name.path
    if network.weights or network.attention:
        raise ValueError(
            f"--weights and --attention are of a network's name, and {path} has its own: make another file of it with "
            "training/make_model.py, and export that."
        )
    loaded = checked_functional(load_model(path), "An export")
    model, pixels = image_model(path, network.pixels, loaded, output_name)
    names = list(choose_output(loaded, path, output_name))
    digests = {"model_sha256": network.model_sha256}
    return as_exported(with_pixels(model, pixels, None), names, str(path), activation, pixels, digests)


def from_name(network, activation, size, classes):
    """`open_exported` of a name, with weights."""
    name = network.name
    if network.weights is None:
        raise ValueError(
            f"--model {network.model} names a network without weights, and an export of random numbers is of no use. "
            "Give --weights: imagenet (of keras.applications), torchvision-v1 or torchvision-v2 (of this library's "
            "networks), or a file; or the path of a trained .keras file as --model."
        )
    start, notes = Start(network), []
    try:
        model = build(
            network,
            size=size or USUAL_SIZE,
            classes=classes or IMAGENET_CLASSES,
            activation=None if activation == "none" else activation or "softmax",
            weights=start.weights,
            notes=notes,
        )
    except TypeError as error:  # options that a builder of this library does not take
        raise ValueError(f"{name.text}: {one_line(error)}") from error
    if notes:
        raise ValueError(
            f"Expected weights of the whole network, as an untrained part is of no use in an export. {' '.join(notes)} "
            f"Received: --weights {network.weights} for {classes or IMAGENET_CLASSES} classes (as many as --labels "
            f"names, {IMAGENET_CLASSES} without it)."
        )
    return as_exported(model, ["answer"], name.text, activation, "raw", start.digests)


def open_exported(network, *, activation=None, output_name=None, size=None, classes=None):
    """The classifier that a name or a file means, ready to be exported.

    Args:
        network: a `Network`; of a name with weights.
        activation: of networks.ACTIVATIONS, what the answers are to be; None: as the network ends.
        output_name: of a file with several outputs, which of them is the classifier's answer.
        size: pixels of the sides, of a name (default: 224).
        classes: of a name (default: ImageNet's 1000).

    Raises:
        FileNotFoundError, ValueError: a name without weights, or weights that leave a part untrained; a file that is no
            functional classifier of images, does not show what its pixels mean, or has several outputs and nobody says
            which; logits, and nobody says what becomes of them.
    """
    if network.name.kind == "file":
        return from_file(network, activation, output_name)
    if output_name:
        raise ValueError(f"--output-name is of a file with several outputs; {network.name.text} has one. Leave it out.")
    return from_name(network, activation, size, classes)
