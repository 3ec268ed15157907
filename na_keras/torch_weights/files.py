"""Reading named tensors from files, without running what a file says.

.npz                 numpy.savez of arrays; pickled objects are refused
.safetensors         8 bytes: length of the header, little-endian; the header, JSON: name -> dtype, shape, offsets;
                     the numbers. Small enough to be read here, and bfloat16, which numpy does not have, as float32
.pth, .pt, .pth.tar  torch.save of a state dict or checkpoint, by torch.load(weights_only=True); needs PyTorch. Of what
                     is no tensor argparse.Namespace is let in: torchvision's checkpoints hold their programs' arguments
"""

import argparse
import contextlib
import json
import math
import pathlib
import pickle
import re
import zipfile

import numpy as np

# name in safetensors' headers -> numpy's, little-endian; bfloat16 is the upper half of a float32
SAFETENSORS_DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U8": "|u1", "BOOL": "|b1"},
}


def safetensors_entry(name, entry, data):
    """One tensor of a .safetensors file as an array.

    Raises:
        ValueError: an entry that is not dtype, shape and offsets of just that many bytes within the data.
    """
    try:
        code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        dtype = np.dtype(SAFETENSORS_DTYPES[code])
        sound = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        sound = sound and begin + math.prod(shape) * dtype.itemsize == end <= len(data)
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise ValueError(
            f"its entry {name!r} is damaged: expected a dtype of {sorted(SAFETENSORS_DTYPES)}, a shape, and offsets "
            f"that fit both and the {len(data)} bytes of data. Received: {entry!r}"
        )
    array = np.frombuffer(data[begin:end], dtype).reshape(shape)
    return (array.astype("<u4") << 16).view("<f4") if code == "BF16" else array


def read_safetensors(path):
    """{name: array} of a .safetensors file."""
    content = memoryview(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise ValueError(f"it is cut off, or not a safetensors file: {len(content)} bytes do not hold its header.")
    try:
        header = json.loads(bytes(content[8 : 8 + length]))
    except ValueError as error:
        raise ValueError("its header is not JSON: it is damaged, or not a safetensors file.") from error
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object: it is not a safetensors file.")
    header.pop("__metadata__", None)
    data = content[8 + length :]
    return {name: safetensors_entry(name, entry, data) for name, entry in header.items()}


def read_npz(path):
    """{name: array} of a .npz file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        # The second: a lone array, .npy, is not opened and has no files.
        raise ValueError(f"it is not an archive of plain arrays, as numpy.savez writes it ({error}).") from error


def read_pth(path):
    """What torch.save wrote, if it is made of tensors and containers only."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"Reading {path} needs PyTorch: pip install torch. Or, where PyTorch is, write a file that needs none: "
            "numpy.savez('weights.npz', **{name: value.cpu().numpy() for name, value in model.state_dict().items()})"
        ) from error
    try:
        allowed = getattr(torch.serialization, "safe_globals", None)  # PyTorch 2.5
        with allowed([argparse.Namespace]) if allowed else contextlib.nullcontext():  # attributes, no code
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, LookupError, TypeError, ValueError) as error:
        # torch.load has no error of its own: what it meets in a damaged file depends on where the damage is.
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = found[1] if found else str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            "it holds something other than tensors, or is damaged; nothing in it was executed. Where you trust it, "
            "write its tensors alone: of a network, torch.save(model.state_dict(), 'weights.pth'); of a checkpoint, "
            f"torch.save(torch.load({path.name!r}, weights_only=False)['model'], 'weights.pth'), or ['state_dict']. "
            f"PyTorch stopped at: {reason}"
        ) from error


READERS = {".npz": read_npz, ".safetensors": read_safetensors, ".pth": read_pth, ".pt": read_pth}
READERS[".pth.tar"] = read_pth  # as NANet and the programs that follow PyTorch's ImageNet example name checkpoints


def read_tensors(path):
    """What a file of tensors holds, by its ending; `READERS` lists them.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a .pth or .pt file, and PyTorch is not installed.
        ValueError: another ending, or a file that is damaged or holds more than tensors.
    """
    path = pathlib.Path(path)
    reader = next((reader for ending, reader in READERS.items() if path.name.endswith(ending)), None)
    if reader is None:
        raise ValueError(f"Expected a file named {', '.join('*' + ending for ending in READERS)}. Received: {path}")
    if not path.is_file():
        raise FileNotFoundError(f"No file of weights at {path}.")
    try:
        return reader(path)
    except ValueError as error:
        raise ValueError(f"Cannot read {path}: {error}") from error
