"""Trained weights as something that a network can be filled with, whatever file they come from.

    .pth .pt .pth.tar .npz .safetensors    PyTorch's names, for the networks of this library: TorchWeights
    .keras                                 a saved model: KerasWeights
    .h5                                    a saved model, or weights, of Keras 2 and 3, by the names in it: KerasWeights
    .weights.h5                            weights by place, of the same network only: PlacedWeights

A network is filled as a whole or not at all. Two things may differ, and come back as sentences for the user: a
classifier of other classes stays fresh, and so do attention modules that the weights know nothing of (start.py).
"""

import collections
import hashlib
import json
import pathlib
import re

import keras
import numpy as np

from na_keras.files import sha256_of
from na_keras.graph.calls import sublayers
from na_keras.model_files import load_model
from na_keras.pretrained import torchvision
from na_keras.torch_weights.files import READERS
from na_keras.torch_weights.load import listed, load_torch_weights, modules, state_dict_of
from na_keras.torch_weights.names import named_weights


def one_line(error):
    """An exception's text on one line."""
    return " ".join(str(error).split())


def refresh(model):
    """Adapted Normalization layers compute with constants made of their weights: makes them anew, after a change."""
    for layer in sublayers(model):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def by_path(pairs):
    """{path of a weight: value}; a path that occurs again, in two models inside the model, is numbered."""
    found = {}
    for path, value in pairs:
        count = sum(key.partition("#")[0] == path for key in found) if path in found else 0
        found[f"{path}#{count}" if count else path] = value
    return found


def automatic_names():
    """What Keras calls layers that nobody named, without the number: {"conv2d", "batch_normalization", ...}."""
    return {snake_case(name) for name in dir(keras.layers) if name[0].isupper()}


def snake_case(name):
    """A class's name as Keras writes it: "batch_normalization"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", "_", name).lower()


def counted(kinds):
    """How many there are of each kind of layer, without those that networks with equal weights may differ in."""
    count = collections.Counter(kinds)
    for name in ("input_layer", "normalization", "rescaling", "dropout"):
        del count[name]
    return count


def renumbered(weights):
    """The same weights with automatic layer names numbered in the order of the network: Keras counts the layers of a
    process, so that the same network is "conv2d_1" here and "conv2d_95" there.
    """
    automatic, numbers, renamed = automatic_names(), {}, {}
    for path, value in weights.items():
        layer, slash, rest = path.partition("/")
        base = re.sub(r"_\d+$", "", layer)
        if base in automatic:
            known = numbers.setdefault(base, {})
            layer = f"{base}#{known.setdefault(layer, len(known))}"
        renamed[layer + slash + rest] = value
    return renamed


def weights_of(model):
    """{path: variable} of a model's weights, in the order of the model."""
    return by_path((variable.path, variable) for variable in model.weights)


def classifier_note(there, here):
    """What a replaced classifier is told as."""
    return f"The classifier is new: the weights are of {there} classes, the network has {here}."


CLASSIFIER = "predictions"  # name of the layer in the networks of this library, and in keras.applications

# Of a layer's configuration, what weights are trained with and do not show: networks of different geometry may have the
# same names and shapes, as MobileNetV2 here and in keras.applications.
GEOMETRY = ("epsilon", "strides", "padding", "dilation_rate", "groups", "data_format")


def geometry_of(configs):
    """{layer's name: what of its configuration weights depend on} of the configurations of layers."""
    return {
        config["name"]: json.loads(json.dumps({key: config[key] for key in GEOMETRY if key in config}))
        for config in configs
        if "name" in config
    }


class Notes(list):
    """Sentences that say what of a network is fresh.

    Attributes:
        modules: the attention modules that are, layers of the network.
        ending: (file, "softmax", "sigmoid" or "linear") of a file whose classifier is kept; None without one.
    """

    def __init__(self, sentences=(), modules=()):
        super().__init__(sentences)
        self.modules, self.ending = list(modules), None

    def change_of_ending(self, activation):
        """[sentence] where the file ended in other probabilities than the network; [] otherwise."""
        ends = {
            "softmax": ("a softmax", "exclude each other"),
            "sigmoid": ("sigmoids", "do not exclude each other"),
        }
        path, before = self.ending or (None, None)
        if before not in ends or activation not in ends or before == activation:
            return []
        there, classes = ends[before]
        return [f"{path} ends in {there}, of classes that {classes}; the network in {ends[activation][0]}."]


class KerasWeights:
    """Weights under their paths in Keras, "layer/weight".

    Attributes:
        label: what they are called in messages.
        arrays: {path: numpy array}.
        sha256: of the file, or of the arrays where there is none.
        geometry: from `geometry_of` the layers that they are of; None where nothing says it.
    """

    def __init__(self, label, arrays, sha256=None, geometry=None):
        self.label, self.arrays, self.sha256, self.geometry = label, arrays, sha256, geometry
        if sha256 is None:
            digest = hashlib.sha256()
            for path, array in sorted(arrays.items()):
                digest.update(path.encode() + np.ascontiguousarray(array).tobytes())
            self.sha256 = digest.hexdigest()

    def has_modules(self, names):
        """Whether there are weights of layers of these names."""
        return any(path.rpartition("/")[0].split("/")[0] in names for path in self.arrays)

    def check_geometry(self, network):
        """Raises ValueError if a layer of the same name computes otherwise."""
        # Padding by a layer of its own depends on the image's size in keras.applications.
        here = geometry_of(layer.get_config() for layer in network.layers if layer.weights)
        for name, there in (self.geometry or {}).items():
            for key, value in there.items():
                if key in here.get(name, {}) and here[name][key] != value:
                    raise ValueError(
                        f"{self.label} is of another network with the same names: {name!r} has {key}={value} there and "
                        f"{here[name][key]} in {network.name!r}; nothing was loaded."
                    )

    def fill(self, network, head, fresh=()):
        """Assigns every weight, in this network.

        Args:
            network: keras.Model.
            head: its classifier, a layer, which may be of other classes; None: it ends before one, and those weights
                are not needed.
            fresh: layers that the weights have nothing for, which stay as they are.

        Returns:
            Sentences that say what of the classifier was left as it is.

        Raises:
            ValueError: weights that are missing, left over or of another shape, by name; nothing is changed then.
        """
        self.check_geometry(network)
        ignored = {id(variable) for layer in fresh for variable in layer.weights}
        own = {path: place for path, place in weights_of(network).items() if id(place) not in ignored}
        head_weights = [] if head is None else [id(variable) for variable in head.weights]
        needed = lambda path: head is not None or path.partition("/")[0] != CLASSIFIER  # noqa: E731
        arrays, problems = {path: array for path, array in self.arrays.items() if needed(path)}, None
        for rename in (dict, renumbered):
            places, found = rename(own), rename(arrays)
            replaced = [path for path, place in places.items() if id(place) in head_weights]
            replaced = replaced if other_classes(replaced, places, found) else []
            trunk = {path: place for path, place in places.items() if path not in replaced}
            now = mismatches(trunk, {path: array for path, array in found.items() if path not in replaced})
            if not now:
                break
            problems = problems or now
        else:
            raise ValueError(f"{self.label} does not fit {network.name!r}; nothing was loaded: {'; '.join(problems)}.")
        for path, place in trunk.items():
            place.assign(found[path])
        refresh(network)
        if not replaced:
            return []
        there = found[replaced[0]].shape[-1] if replaced[0] in found else "other"
        return [classifier_note(there, places[replaced[0]].shape[-1])]


def other_classes(head, places, found):
    """Whether a classifier's weights are of another number of classes, or none are there; `head` are its paths."""
    if not head:
        return False
    if not any(path in found for path in head):
        return True
    shapes = [(tuple(places[path].shape), tuple(found[path].shape)) for path in head if path in found]
    alike = all(len(here) == len(there) and here[:-1] == there[:-1] for here, there in shapes)
    return alike and len(shapes) == len(head) and any(here != there for here, there in shapes)


def mismatches(places, found):
    """What keeps arrays from their places, one text for each kind; empty if nothing does."""
    missing = [path for path in places if path not in found]
    unexpected = [path for path in found if path not in places]
    misshapen = [
        f"{path}: {tuple(place.shape)} expected, {tuple(found[path].shape)} received"
        for path, place in places.items()
        if path in found and tuple(place.shape) != tuple(found[path].shape)
    ]
    kinds = (("missing", missing), ("without a place", unexpected), ("of another shape", misshapen))
    return [f"{len(names)} weights {kind}: {listed(names)}" for kind, names in kinds if names]


class TorchWeights:
    """A state dict of PyTorch's, for the networks of this library. Attributes and methods as of `KerasWeights`."""

    def __init__(self, label, state, sha256):
        self.label, self.state, self.sha256 = label, state, sha256

    def has_modules(self, names):
        """Whether the state dict has weights of attention modules; what they are called here is no matter."""
        return bool(modules(self.state))

    def fill(self, network, head, fresh=()):
        """As `KerasWeights.fill`."""
        weights, classifier = named_weights(network)
        name = f"{classifier}.weight"
        here = next((tuple(weight.variable.shape)[-1] for weight in weights if weight.names[0] == name), None)
        there = self.state[name].shape[0] if name in self.state else None
        try:
            attention = "fresh" if fresh else "load"
            load_torch_weights(network, self.state, skip_classifier=here != there, attention=attention)
        except ValueError as error:
            raise ValueError(f"{self.label}: {one_line(error)}") from error
        return [classifier_note(there or "no", here)] if here is not None and here != there else []


class PlacedWeights:
    """A `.weights.h5` file: weights by their place in a network, which only the same network can read."""

    def __init__(self, path):
        self.label, self.path, self.sha256 = str(path), path, sha256_of(path)

    def contents(self):
        """(shapes of all floating-point arrays, sorted; how many layers there are of each kind; classes of the last
        Dense layer of the model itself, or None).

        Raises:
            ValueError: it is no such file.
        """
        import h5py

        shapes = []

        def visit(name, item):
            if isinstance(item, h5py.Dataset) and item.dtype.kind not in "iu" and not name.startswith("optimizer"):
                shapes.append(tuple(item.shape))

        try:
            with h5py.File(self.path) as file:
                file.visititems(visit)
                layers = file.get("layers", {})
                dense = [name for name in layers if re.fullmatch(r"dense(_\d+)?", name)]
                last = max(dense, key=lambda name: int(name.partition("_")[2] or 0), default=None)
                kinds = counted(re.sub(r"_\d+$", "", name) for name in layers)
                return sorted(shapes), kinds, int(layers[last]["vars/0"].shape[-1]) if last else None
        except (OSError, KeyError) as error:
            raise ValueError(f"{self.label} cannot be read as weights that Keras saved: {one_line(error)}") from error

    def read(self, *networks):
        """`KerasWeights` of the file, read by the first of the networks that has its shapes.

        Args:
            *networks: functions (classes, or None for those wanted) -> keras.Model; or None, for none.

        Raises:
            ValueError: it is of none of them. Keras itself would skip what it finds no place for.
        """
        shapes, kinds, classes = self.contents()
        for make in filter(None, networks):
            network = make(classes)
            own = [variable for variable in network.weights if keras.backend.is_float_dtype(variable.dtype)]
            alike = counted(snake_case(type(layer).__name__) for layer in network.layers) == kinds
            if alike and sorted(tuple(variable.shape) for variable in own) == shapes:
                network.load_weights(self.path)
                arrays = {path: keras.ops.convert_to_numpy(value) for path, value in weights_of(network).items()}
                return KerasWeights(self.label, arrays, self.sha256)
        raise ValueError(
            f"{self.label} does not fit {network.name!r}; nothing was loaded: its {len(shapes)} arrays are of another "
            f"network, which has {len(own)}, of other shapes, or in other layers. Build the one that was saved."
        )


def layer_configs(config):
    """The configurations of all layers in a model's, at any depth."""
    for layer in config.get("layers", ()) if isinstance(config, dict) else ():
        inner = layer.get("config", {}) if isinstance(layer, dict) else {}
        yield inner
        yield from layer_configs(inner)


def read_h5(path):
    """({path: array}, geometry or None) of a `.h5` file as Keras 2 wrote it, of a model or of weights."""
    import h5py

    try:
        with h5py.File(path) as file:
            group = file["model_weights"] if "model_weights" in file else file
            if "layer_names" not in group.attrs:
                raise ValueError(
                    f"{path} holds no layer names. Expected a model or weights that Keras wrote by model.save('x.h5') "
                    "or save_weights('x.h5'); weights in today's format are named *.weights.h5."
                )
            names = [
                [layer, name] for layer in group.attrs["layer_names"] for name in group[layer].attrs["weight_names"]
            ]
            text = lambda name: name.decode() if isinstance(name, bytes) else str(name)  # noqa: E731
            arrays = by_path((text(name).removesuffix(":0"), np.array(group[layer][name])) for layer, name in names)
            config = json.loads(file.attrs["model_config"]) if "model_config" in file.attrs else None
            return arrays, config and geometry_of(layer_configs(config["config"]))
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as Keras' HDF5: {one_line(error)}") from error


def check_source(source):
    """Raises ValueError if `source` is neither a name of weights nor the path of a file of a kind that is read."""
    endings = (".keras", ".h5", ".weights.h5", *READERS)
    path = pathlib.Path(source).expanduser()
    if source not in torchvision.FILES and not (path.is_file() and path.name.endswith(endings)):
        raise ValueError(
            f"weights must be {', '.join(torchvision.FILES)} (for networks of this library), imagenet (for "
            f"keras.applications), or the path of a file named {', '.join('*' + ending for ending in endings)}. "
            f"{'Received' if path.exists() else 'No file at'}: {source}"
        )


def open_weights(source, network=None):
    """Trained weights by name or path.

    Args:
        source: "torchvision-v1", "torchvision-v2", or the path of a file.
        network: name in na_keras.models.MODELS, None for a network that is not of this library.

    Returns:
        What `start` takes.

    Raises:
        ValueError: no such weights or file; a file that is damaged, is none of the kinds above, needs PyTorch, or has
            not the hash that its name promises; a download that failed.
    """
    check_source(source)
    if source in torchvision.FILES:
        if network is None:
            raise ValueError(f'weights="{source}" are for {", ".join(torchvision.FILES[source])} of this library.')
        path = torchvision.fetch(source, network)
    else:
        path = pathlib.Path(source).expanduser()
    if path.name.endswith(".weights.h5"):
        return PlacedWeights(path)
    sha256 = sha256_of(path)
    if path.suffix == ".h5":
        arrays, geometry = read_h5(path)
        if geometry is None and network is not None:
            raise ValueError(
                f"{path} does not say what network its weights are of; {network} cannot be told from others."
            )
        return KerasWeights(str(path), arrays, sha256, geometry)
    if path.suffix == ".keras":
        model = load_model(path)
        arrays = {name: keras.ops.convert_to_numpy(value) for name, value in weights_of(model).items()}
        return KerasWeights(str(path), arrays, sha256, geometry_of(layer_configs(model.get_config())))
    torchvision.check_digits(path, sha256)
    try:
        return TorchWeights(str(path), state_dict_of(path), sha256)
    except ImportError as error:
        raise ValueError(one_line(error)) from error
