"""Weights from PyTorch into this library's networks, and back.

    load_torch_weights(model, "resnet50.pth")         also .safetensors, .npz, or a dictionary of arrays or tensors
    to_torch_state_dict(model)                        -> {PyTorch's name: array}

Names and layouts are in names.py, files in files.py. Loading is all or nothing: every tensor has its place
and every weight its tensor, in the right shape, before the first is assigned.
"""

import os
from collections.abc import Mapping

import keras
import numpy as np

from na_keras.torch_weights.files import read_tensors
from na_keras.torch_weights.names import ATTENTION_WEIGHTS, named_weights, to_keras, to_torch, torch_shape

WRAPPERS = ("module.", "_orig_mod.")  # torch.nn.DataParallel's and torch.compile's
CHECKPOINT_KEYS = ("state_dict", "model")  # where training programs keep the state dict: NANet, torchvision
IGNORED = "num_batches_tracked"
SHOWN = 5  # names of a kind in a message


def state_dict_of(source):
    """{name: array or tensor} of what `load_torch_weights` takes, wrappers off.

    Raises:
        TypeError: neither a mapping nor a path. ValueError: names or values that are not those of tensors.
    """
    state = read_tensors(source) if isinstance(source, str | os.PathLike) else source
    if isinstance(state, Mapping):
        state = next((state[key] for key in CHECKPOINT_KEYS if isinstance(state.get(key), Mapping)), state)
    elif state is source:
        raise TypeError(f"Expected a state dict or the path of a file. Received: {type(source).__name__}")
    else:
        raise ValueError(f"Expected {source} to hold a state dict, name -> tensor. Received: {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(name, str) or not hasattr(value, "shape"):
            raise ValueError(
                "Expected a state dict, name -> tensor: save model.state_dict(), or a dictionary with it under "
                f"{' or '.join(map(repr, CHECKPOINT_KEYS))}. Received, among others: {name!r} -> {type(value).__name__}"
            )
    state = dict(state)
    while wrapper := next((w for w in WRAPPERS if state and all(name.startswith(w) for name in state)), None):
        state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return {name: value for name, value in state.items() if name.rpartition(".")[2] != IGNORED}


def as_array(name, value):
    """A tensor or array of floating-point numbers as a numpy array."""
    if hasattr(value, "detach"):  # PyTorch's
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    array = np.asarray(value)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise ValueError(f"Expected floating-point numbers in {name!r}. Received: {array.dtype}")
    return array


def listed(names):
    """The first few names, and how many more."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def modules(names):
    """The names of attention modules in weights' names: {"se"}. SK has none and is known by its second branch."""
    known = {alias for aliases, _ in ATTENTION_WEIGHTS.values() for alias in aliases if alias} | {"conv2g"}
    return {part for name in names for part in name.split(".") if part in known}


def likely_fix(missing, unexpected, misshapen, classifier, matched):
    """What to do, in one sentence."""
    theirs, ours = modules(unexpected), modules(missing)
    if not matched:
        return (
            "No name fits: the file is of another network, or of another program than torchvision, NANet or "
            "PytorchInsight; rename its tensors to those that to_torch_state_dict(model) lists."
        )
    if theirs or ours:
        there = f"has {', '.join(sorted(theirs))} modules" if theirs else "has no attention modules"
        here = f"expects {', '.join(sorted(ours))}" if ours else "has no place for them"
        return f"The file {there} and this network {here}: build it with the attention= that the file was trained with."
    if {*missing, *unexpected, *misshapen} <= {f"{classifier}.weight", f"{classifier}.bias"}:
        return "Only the classifier differs: skip_classifier=True loads the rest, or build with the file's classes=."
    return "The file is of another depth, width or variant: build the network that it was trained with."


def load_torch_weights(model, state_dict_or_path, skip_classifier=False):
    """Loads weights that were trained in PyTorch into a network of this library.

    The names are torchvision's (`layer1.0.conv1.weight`, `features.3.conv.0.0.weight`), with NANet's, PytorchInsight's
    or, for GE and NA's embedding, our own in the attention modules; names.py has them all. Every tensor of the
    file is used, but for batch norms' `num_batches_tracked`, which have no counterpart in Keras. A prefix `module.` on
    all names is taken off. The networks' logits equal PyTorch's on the same pixels; those begin as 0..255 here unless
    the network was built with `include_preprocessing=False`.

    Args:
        model: a ResNet or MobileNetV2 of this library, with attention None, "na", "na_paper", "na_embedding",
            "na_mean", "se", "ge", "sk", "cbam", "gc" or "sge".
        state_dict_or_path: a dictionary from names to numpy arrays or PyTorch's tensors; or the path of a `.npz`,
            `.safetensors`, `.pth` or `.pt` file of one. The last two need PyTorch, whose safe loading executes nothing
            of the file. A checkpoint may hold the dictionary under "state_dict" or "model".
        skip_classifier: leave the network's classifier as it is, whatever the file has there: for other classes, or a
            file without one. A network with `include_top=False` has none to load.

    Raises:
        ValueError: tensors that are missing, left over or of another shape (the message names them and the likely
            fix); a model that is not of this library; a file that holds something else. The network is unchanged.
        FileNotFoundError, ImportError: no such file; a `.pth` file and no PyTorch.
        TypeError: neither a dictionary nor a path.
    """
    weights, classifier = named_weights(model)
    state = state_dict_of(state_dict_or_path)
    top = [f"{classifier}.weight", f"{classifier}.bias"]
    if skip_classifier or not any(weight.names[0] in top for weight in weights):
        weights = [weight for weight in weights if weight.names[0] not in top]
        state = {name: value for name, value in state.items() if name not in top}
    missing, misshapen, found = [], {}, {}
    for weight in weights:
        name = next((name for name in weight.names if name in state), None)
        if name is None:
            missing.append(weight.names[0])
            continue
        found[name] = weight
        expected, received = torch_shape(weight.variable.shape, weight.layout), tuple(state[name].shape)
        if received != expected:
            misshapen[name] = f"{name}: {expected} expected, {received} received"
    unexpected = [name for name in state if name not in found]
    if missing or unexpected or misshapen:
        problems = [f"{len(missing)} tensors missing: {listed(missing)}"] if missing else []
        problems += [f"{len(unexpected)} tensors without a place: {listed(unexpected)}"] if unexpected else []
        problems += [f"{len(misshapen)} tensors of another shape: {listed(misshapen.values())}"] if misshapen else []
        fix = likely_fix(missing, unexpected, list(misshapen), classifier, len(found))
        raise ValueError(
            f"The state dict does not fit {model.name!r}, which expects {len(weights)} tensors; nothing was loaded.\n  "
            + "\n  ".join([*problems, fix])
        )
    arrays = [
        to_keras(as_array(name, state[name]), weight.variable.shape, weight.layout) for name, weight in found.items()
    ]
    for weight, array in zip(found.values(), arrays, strict=True):
        weight.variable.assign(array)


def to_torch_state_dict(model):
    """The weights of a network of this library under PyTorch's names, in PyTorch's layouts.

    >>> import numpy as np
    >>> from na_keras import NAMobileNetV2
    >>> state = to_torch_state_dict(NAMobileNetV2(alpha=0.35, input_shape=(32, 32, 3)))
    >>> state["features.1.na.weight2"].shape
    (1,)

    `np.savez("weights.npz", **state)` writes it; in PyTorch,
    `module.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})` reads it.

    Args:
        model: as in `load_torch_weights`.

    Returns:
        {name: numpy array}, float32 for weights in float32; without batch norms' `num_batches_tracked`, which PyTorch
        does not ask for in a plain dictionary.

    Raises:
        ValueError: as in `load_torch_weights`.
    """
    weights, _ = named_weights(model)
    return {
        weight.names[0]: np.ascontiguousarray(to_torch(keras.ops.convert_to_numpy(weight.variable), weight.layout))
        for weight in weights
    }
