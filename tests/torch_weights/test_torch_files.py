"""Files of weights from PyTorch: .npz and .safetensors are read, damage is named, and nothing in them is executed."""

import json
import pickle
import sys
import zipfile

import numpy as np
import pytest
from small_networks import assert_same_weights, randomize

from na_keras import load_torch_weights, to_torch_state_dict


def write_safetensors(path, state, **changes):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, array in state.items():
        begin, data = len(data), data + array.tobytes()
        code = {"float32": "F32", "float16": "F16", "int64": "I64", "uint16": "BF16"}[array.dtype.name]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [begin, len(data)]}
    header |= changes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_npz_and_safetensors_hold_the_same(network, fresh, state, tmp_path):
    np.savez(tmp_path / "weights.npz", **state)
    load_torch_weights(fresh, tmp_path / "weights.npz")
    assert_same_weights(network, fresh)
    counted = {**state, "features.0.1.num_batches_tracked": np.array(5)}
    randomize(fresh, seed=3)
    load_torch_weights(fresh, str(write_safetensors(tmp_path / "weights.safetensors", counted)))
    assert_same_weights(network, fresh)


def test_half_precision_in_files_is_widened(fresh, state, tmp_path):
    half = {name: array.astype("float16") for name, array in state.items()}
    load_torch_weights(fresh, write_safetensors(tmp_path / "half.safetensors", half))
    name = "features.2.conv.0.0.weight"
    np.testing.assert_array_equal(to_torch_state_dict(fresh)[name], half[name].astype("float32"))
    upper = {name: (array.view("uint32") >> 16).astype("uint16") for name, array in state.items()}
    load_torch_weights(fresh, write_safetensors(tmp_path / "bfloat16.safetensors", upper))
    np.testing.assert_allclose(to_torch_state_dict(fresh)[name], state[name], rtol=2**-7)  # 8 bits, cut off


class Trap:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_in_npz_are_never_executed(unloaded, tmp_path):
    trap = tmp_path / "sprung"
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(Trap(trap)))
    np.savez(tmp_path / "objects.npz", conv1=np.array([Trap(trap)], dtype=object))
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    with zipfile.ZipFile(tmp_path / "texts.npz", "w") as archive:
        archive.writestr("conv1.npy", "not an array")
    for name, message in (
        ("plain", "Cannot read .*plain.npz: it is not an archive of plain arrays"),
        ("objects", "Cannot read .*objects.npz"),
        ("array", "Cannot read .*array.npz"),
        ("texts", "Expected a state dict.*'conv1' -> bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            load_torch_weights(unloaded, tmp_path / f"{name}.npz")
    assert not trap.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "entry 'w' is damaged"),
        ({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}, "entry 'w' is damaged"),
        ({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, "the 12 bytes of data"),
        ({"w": {"dtype": "F8", "shape": [12], "data_offsets": [0, 12]}}, "expected a dtype of .*'F32'"),
        ({"w": {"dtype": "F32", "shape": 3}}, "entry 'w' is damaged"),
        ({"w": "F32"}, "entry 'w' is damaged"),
    ],
)
def test_damaged_safetensors_are_refused(changes, message, unloaded, tmp_path):
    path = write_safetensors(tmp_path / "bad.safetensors", {"w": np.ones(3, "float32")}, **changes)
    with pytest.raises(ValueError, match=f"Cannot read .*bad.safetensors: .*{message}"):
        load_torch_weights(unloaded, path)


def test_files_that_are_no_safetensors_are_refused(unloaded, tmp_path):
    path = tmp_path / "bad.safetensors"
    for content, message in (
        (b"short", "cut off"),
        (b"\xff" * 40, "cut off"),
        ((4).to_bytes(8, "little") + b"{{{{", "not JSON"),
        ((2).to_bytes(8, "little") + b"[]", "not a JSON object"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_torch_weights(unloaded, path)


def test_paths_that_cannot_be_read_are_refused(unloaded, tmp_path):
    with pytest.raises(FileNotFoundError, match="No file of weights at"):
        load_torch_weights(unloaded, tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"\*.npz, \*.safetensors, \*.pth, \*.pt, \*.pth.tar. Received: .*w.h5"):
        load_torch_weights(unloaded, tmp_path / "w.h5")


def test_without_pytorch_pth_says_what_to_do(unloaded, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pth").write_bytes(b"")
    with pytest.raises(ImportError, match="pip install torch. Or, .*numpy.savez"):
        load_torch_weights(unloaded, tmp_path / "w.pth")
