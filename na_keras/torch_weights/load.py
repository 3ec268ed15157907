"""Weights from PyTorch into this library's networks, and back.

    load_torch_weights(model, "resnet50.pth")         also .safetensors, .npz, or a dictionary of arrays or tensors
    to_torch_state_dict(model)                        -> {PyTorch's name: array}

Names and layouts are in names.py, files in files.py. Loading is all or nothing: every tensor has its place
and every weight its tensor, in the right shape, before the first is assigned.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

import keras
import numpy as np

from na_keras.torch_weights.files import read_tensors
from na_keras.torch_weights.names import (
    ATTENTION_WEIGHTS,
    named_weights,
    to_keras,
    to_torch,
    torch_shape,
    without_timm_names,
)

# torch.nn.DataParallel's and AveragedModel's, torch.compile's, and what programs call the network inside theirs
WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "network.", "student.", "encoder.")
CHECKPOINT_KEYS = ("state_dict", "model")  # where training programs keep the state dict: NANet, torchvision
IGNORED = ("num_batches_tracked", "n_averaged")  # of batch norm; of torch.optim.swa_utils.AveragedModel
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
    state = {name: value for name, value in state.items() if name.rpartition(".")[2] not in IGNORED}
    while wrapper := next((w for w in WRAPPERS if state and all(name.startswith(w) for name in state)), None):
        state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return without_timm_names(state)


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


MODULE_NAMES = {alias for aliases, _ in ATTENTION_WEIGHTS.values() for alias in aliases if alias}
SELECTIVE_KERNEL = {"conv2g", "bn2g", "conv_fc1", "bn_fc1", "conv_fc2"}  # has no module of its own


def module_of(name):
    """The attention module that a weight's name is of, "" of none: "se"."""
    return next((part for part in name.split(".") if part in MODULE_NAMES | SELECTIVE_KERNEL), "")


def modules(names):
    """The names of attention modules in weights' names: {"se"}."""
    return {"sk" if module in SELECTIVE_KERNEL else module for module in map(module_of, names) if module}


def common_prefix(names, expected):
    """A first part of some names without which they are expected ones, or None: a network within another model."""
    prefixes = dict.fromkeys(name.partition(".")[0] for name in names)
    return next((p for p in prefixes if {name.removeprefix(f"{p}.") for name in names} & expected), None)


def likely_fix(mismatch, classifier, expected):
    """What to do, in one sentence.

    Args:
        mismatch: `Mismatch`.
        classifier: its name in PyTorch.
        expected: all names that the network's weights may have.
    """
    missing, unexpected = mismatch.missing, mismatch.unexpected
    theirs, ours = modules(unexpected), modules(missing)
    if any(name.startswith("conv1.0.") for name in unexpected):
        return (
            "The file's network has a deep stem, conv1.0 and more, as resnet50d, ecaresnet50d and ecaresnet50t of "
            "timm: that is another network, and none of this library."
        )
    if any(".downsample.2." in name for name in unexpected):
        return (
            "The file's network averages before the convolutions of its shortcuts, which are downsample.1 and not "
            "downsample.0, as ecaresnetlight of timm: that is another network, and none of this library."
        )
    if prefix := common_prefix(unexpected, expected):
        return (
            f"Names fit without {prefix + '.'!r} at their beginning: give the part alone, {{name.removeprefix("
            f"{prefix + '.'!r}): value for name, value in state.items() if name.startswith({prefix + '.'!r})}}."
        )
    if not mismatch.found:
        return (
            "No name fits: the file is of another network, or of another program than torchvision, timm, NANet or "
            "PytorchInsight; rename its tensors to those that to_torch_state_dict(model) lists."
        )
    if theirs or ours:
        there = f"has {', '.join(sorted(theirs))} modules" if theirs else "has no attention modules"
        here = f"expects {', '.join(sorted(ours))}" if ours else "has none that these fit"
        return (
            f"The file {there} and this network {here}: build it with the attention= that the file was trained with; "
            'or load the trunk and leave the modules as they are, attention="fresh".'
        )
    if {*missing, *unexpected, *mismatch.misshapen} <= {f"{classifier}.weight", f"{classifier}.bias"}:
        return "Only the classifier differs: skip_classifier=True loads the rest, or build with the file's classes=."
    return "The file is of another depth, width or variant: build the network that it was trained with."


class Mismatch(NamedTuple):
    """What of a state dict has its weight and what has not.

    Attributes:
        found: {name in the state dict: `NamedWeight`}, in the right shape or not.
        missing: names of weights that the state dict has none for.
        unexpected: names in the state dict that are no weight's.
        misshapen: {name: message} of other shapes.
    """

    found: dict
    missing: list
    unexpected: list
    misshapen: dict

    def problems(self):
        """One line of text for each kind that there is."""
        missing, unexpected, misshapen = self.missing, self.unexpected, self.misshapen
        lines = [f"{len(missing)} tensors missing: {listed(missing)}"] if missing else []
        lines += [f"{len(unexpected)} tensors without a place: {listed(unexpected)}"] if unexpected else []
        return lines + (
            [f"{len(misshapen)} tensors of another shape: {listed(misshapen.values())}"] if misshapen else []
        )


def match(weights, state):
    """The `Mismatch` of a network's weights and a state dict."""
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
    return Mismatch(found, missing, [name for name in state if name not in found], misshapen)


def load_torch_weights(model, state_dict_or_path, skip_classifier=False, *, attention="load"):
    """Loads weights that were trained in PyTorch into a network of this library.

    The names are torchvision's (`layer1.0.conv1.weight`, `features.3.conv.0.0.weight`), with NANet's, PytorchInsight's,
    ECANet's or, for GE, our own in the attention modules; names.py has them all. timm's of resnet50, seresnet50 and
    mobilenetv2_100 are taken too. Every tensor of the file is used, but for batch norms' `num_batches_tracked` and an
    average's `n_averaged`, which have no counterpart in Keras. A prefix on all names, as `module.`, `model.` or
    `backbone.`, is taken off. The networks' logits equal PyTorch's on the same pixels; those begin as 0..255 here
    unless the network was built with `include_preprocessing=False`.

    Args:
        model: a ResNet or MobileNetV2 of this library, with attention None, "na", "na_paper", "na_embedding",
            "na_mean", "se", "eca", "ge", "sk", "cbam", "gc" or "sge".
        state_dict_or_path: a dictionary from names to numpy arrays or PyTorch's tensors; or the path of a `.npz`,
            `.safetensors`, `.pth`, `.pt` or `.pth.tar` file of one. The last three need PyTorch, whose safe loading
            executes nothing of the file. A checkpoint may hold the dictionary under "state_dict" or "model".
        skip_classifier: leave the network's classifier as it is, whatever the file has there: for other classes, or a
            file without one. A network with `include_top=False` has none to load.
        attention: "load": the attention modules' weights too. "fresh": leave the network's modules as they are,
            whatever the file has there: for the weights of a network without them.

    Raises:
        ValueError: tensors that are missing, left over or of another shape (the message names them and the likely
            fix); a model that is not of this library; a file that holds something else; another `attention`. The
            network is unchanged.
        FileNotFoundError, ImportError: no such file; a `.pth` file and no PyTorch.
        TypeError: neither a dictionary nor a path.
    """
    if attention not in ("load", "fresh"):
        raise ValueError(f'attention must be "load" or "fresh". Received: {attention!r}')
    weights, classifier = named_weights(model)
    state = state_dict_of(state_dict_or_path)
    if attention == "fresh":
        weights = [weight for weight in weights if not weight.of_attention]
        state = {name: value for name, value in state.items() if not module_of(name)}
    top = [f"{classifier}.weight", f"{classifier}.bias"]
    if skip_classifier or not any(weight.names[0] in top for weight in weights):
        weights = [weight for weight in weights if weight.names[0] not in top]
        state = {name: value for name, value in state.items() if name not in top}
    mismatch = match(weights, state)
    if problems := mismatch.problems():
        fix = likely_fix(mismatch, classifier, {name for weight in weights for name in weight.names})
        raise ValueError(
            f"The state dict does not fit {model.name!r}, which expects {len(weights)} tensors; nothing was loaded.\n  "
            + "\n  ".join([*problems, fix])
        )
    found = mismatch.found
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
