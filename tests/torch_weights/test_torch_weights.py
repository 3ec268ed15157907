"""Weights from PyTorch and back: the names, every error, and nothing half-loaded. No PyTorch is needed here."""

import functools
import json
import pickle
import sys
import zipfile

import keras
import numpy as np
import pytest

import na_keras
from na_keras import MobileNetV2, ResNet18, ResNet50, load_torch_weights, to_torch_state_dict

SMALL = {"input_shape": (32, 32, 3), "classes": 4}
thin = functools.partial(MobileNetV2, alpha=0.35, **SMALL)


def randomize(model, seed=0):
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(rng.uniform(0.1, 1, weight.shape))
    return model


def assert_same_weights(model, other):
    assert len(model.weights) == len(other.weights)
    for ours, theirs in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs), ours.path)


@pytest.fixture(scope="module")
def network():
    return randomize(thin(attention="se"))


@pytest.fixture(scope="module")
def state(network):
    return to_torch_state_dict(network)


@pytest.fixture(scope="module")
def unloaded():
    """For what cannot be loaded."""
    return thin(attention="se")


@pytest.fixture
def fresh():
    return thin(attention="se")


NETWORKS = [(ResNet50, "sk"), *((ResNet18, name) for name in (None, "na", "na_embedding", "se", "cbam", "gc", "sge"))]
NETWORKS += [(thin, name) for name in (None, "na", "na_embedding", "ge", "cbam", "gc", "sge")]


@pytest.mark.parametrize(("builder", "attention"), NETWORKS)
def test_there_and_back_is_the_same_network(builder, attention):
    build = functools.partial(builder, attention=attention, **({} if builder is thin else SMALL))
    model, other = randomize(build()), build()
    state = to_torch_state_dict(model)
    assert len(state) == len(model.weights)
    assert all(array.flags.c_contiguous and array.dtype == np.float32 for array in state.values())
    load_torch_weights(other, state)
    assert_same_weights(model, other)


# Names and shapes as the reference programs' state dicts have them, for the full networks.
KNOWN = {
    (ResNet50, None): {
        "conv1.weight": (64, 3, 7, 7),
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer4.2.bn3.running_var": (2048,),
        "layer3.0.downsample.0.weight": (1024, 512, 1, 1),
        "layer3.0.downsample.1.bias": (1024,),
        "fc.weight": (1000, 2048),
    },
    (ResNet50, "na"): {"layer1.0.na.weight2": (1,), "layer4.2.na.bias2": (1,)},
    (ResNet50, "se"): {"layer1.0.se.fc.0.weight": (16, 256), "layer1.0.se.fc.2.weight": (256, 16)},
    (ResNet50, "sk"): {
        "layer1.0.conv2.weight": (64, 64, 3, 3),
        "layer1.0.conv2g.weight": (64, 2, 3, 3),
        "layer1.0.bn2g.running_mean": (64,),
        "layer1.0.conv_fc1.weight": (4, 64, 1, 1),
        "layer1.0.bn_fc1.weight": (4,),
        "layer1.0.conv_fc2.weight": (128, 4, 1, 1),
    },
    (ResNet50, "cbam"): {
        "layer2.1.cbam.ChannelGate.mlp.1.weight": (32, 512),
        "layer2.1.cbam.ChannelGate.mlp.3.bias": (512,),
        "layer2.1.cbam.SpatialGate.spatial.conv.weight": (1, 2, 7, 7),
        "layer2.1.cbam.SpatialGate.spatial.bn.running_mean": (1,),
    },
    (ResNet50, "gc"): {
        "layer1.0.gc.conv_mask.weight": (1, 256, 1, 1),
        "layer1.0.gc.channel_add_conv.0.weight": (16, 256, 1, 1),
        "layer1.0.gc.channel_add_conv.1.weight": (16, 1, 1),
    },
    (ResNet50, "sge"): {"layer1.0.sge.weight": (1, 64, 1, 1)},
    (MobileNetV2, "na"): {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.1.conv.2.running_mean": (16,),
        "features.3.conv.0.0.weight": (144, 24, 1, 1),
        "features.3.conv.1.0.weight": (144, 1, 3, 3),
        "features.17.conv.3.bias": (320,),
        "features.17.na.weight2": (1,),
        "features.18.0.weight": (1280, 320, 1, 1),
        "classifier.1.weight": (1000, 1280),
    },
}


@pytest.mark.parametrize(("builder", "attention"), KNOWN)
def test_names_and_shapes_are_the_reference_programs(builder, attention):
    state = to_torch_state_dict(builder(attention=attention, input_shape=(32, 32, 3)))
    known = KNOWN[builder, attention]
    assert {name: state[name].shape for name in known if name in state} == known


def test_a_loaded_kernel_lies_as_pytorch_means_it(fresh, state):
    load_torch_weights(fresh, state)
    expand, depthwise = fresh.get_layer("block_1_expand").kernel, fresh.get_layer("block_1_depthwise").kernel
    assert expand[0, 0, 2, 5] == state["features.2.conv.0.0.weight"][5, 2, 0, 0]
    assert depthwise[0, 2, 7, 0] == state["features.2.conv.1.0.weight"][7, 0, 0, 2]
    assert fresh.get_layer("predictions").kernel[7, 3] == state["classifier.1.weight"][3, 7]


def test_wrappers_counters_checkpoints_and_aliases_are_understood(network, fresh, state):
    wrapped = {f"module.{name}": array.astype("float64") for name, array in state.items()}
    wrapped["module.features.0.1.num_batches_tracked"] = np.array(7)
    load_torch_weights(fresh, {"epoch": 3, "state_dict": wrapped, "optimizer": {}})
    assert_same_weights(network, fresh)
    model = randomize(thin(attention="gc"))
    other = thin(attention="gc")
    load_torch_weights(
        other, {name.replace(".gc.", ".context_block."): a for name, a in to_torch_state_dict(model).items()}
    )
    assert_same_weights(model, other)


PREFIXES = ("module.", "model.", "backbone.", "net.", "student.", "model._orig_mod.module.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_network_inside_another_is_found_by_its_prefix(prefix, network, fresh, state):
    averaged = {"n_averaged": np.array(7), **{prefix + name: array for name, array in state.items()}}
    load_torch_weights(fresh, averaged)  # torch.optim.swa_utils.AveragedModel's counter stands outside
    assert_same_weights(network, fresh)


def test_beside_another_network_the_prefix_is_said(unloaded, state):
    both = {**{f"student.{n}": a for n, a in state.items()}, **{f"teacher.{n}": a for n, a in state.items()}}
    with pytest.raises(
        ValueError, match=r"(?s)Names fit without 'student.'.*name.removeprefix.'student.'.: value for name"
    ):
        load_torch_weights(unloaded, both)


def timm_mobilenet_v2(state):
    """A state dict of torchvision's names under timm's."""
    table = {"features.0.0": "conv_stem", "features.0.1": "bn1", "features.18.0": "conv_head", "features.18.1": "bn2"}
    table["classifier.1"] = "classifier"
    numbers = iter(range(1, 18))
    for stage, repeats in enumerate((1, 2, 3, 4, 3, 3, 1)):
        for index in range(repeats):
            block, timm = f"features.{next(numbers)}.conv", f"blocks.{stage}.{index}"
            names = ["conv_dw", "bn1", "conv_pw", "bn2"] if stage == 0 else ["conv_pw", "bn1", "conv_dw", "bn2"]
            names += [] if stage == 0 else ["conv_pwl", "bn3"]
            places = ["0.0", "0.1", "1", "2"] if stage == 0 else ["0.0", "0.1", "1.0", "1.1", "2", "3"]
            table |= {f"{block}.{place}": f"{timm}.{name}" for place, name in zip(places, names, strict=True)}
    return {f"{table[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": array for name, array in state.items()}


def test_timms_mobilenet_v2_is_read():
    model, other = randomize(thin()), thin()
    renamed = timm_mobilenet_v2(to_torch_state_dict(model))
    assert {"blocks.1.0.conv_pw.weight", "blocks.6.0.bn3.running_mean", "conv_head.weight"} <= set(renamed)
    load_torch_weights(other, renamed)
    assert_same_weights(model, other)


def test_timms_squeeze_and_excitation_is_read():
    model, other = (ResNet18(attention="se", **SMALL) for _ in range(2))
    renamed = {}
    for name, array in to_torch_state_dict(randomize(model)).items():
        new = name.replace(".se.fc.0.", ".se.fc1.").replace(".se.fc.2.", ".se.fc2.")
        renamed[new] = array[:, :, None, None] if new != name and array.ndim == 2 else array
    load_torch_weights(other, renamed)
    assert_same_weights(model, other)


def test_networks_with_a_deep_stem_are_refused_by_name():
    model = ResNet18(**SMALL)
    deep = {name: a for name, a in to_torch_state_dict(model).items() if not name.startswith("conv1.")}
    deep |= {f"conv1.{index}.weight": np.ones((8, 3, 3, 3), "float32") for index in (0, 3, 6)}
    with pytest.raises(ValueError, match="has a deep stem.*ecaresnet50t.*another network"):
        load_torch_weights(model, deep)


def test_the_embeddings_names_are_the_released_codes_and_ours_stay_readable():
    """NANet models/resnet/resnet_na5.py: conv1 of the key, conv2 of the global context."""
    model, other = randomize(thin(attention="na_embedding")), thin(attention="na_embedding")
    state = to_torch_state_dict(model)
    names = [
        f"{module}.{order}.{kind}" for module in ("conv1", "conv2") for order in (0, 2) for kind in ("weight", "bias")
    ]
    module = "features.2.na."
    assert {n.removeprefix(module) for n in state if n.startswith(module)} == {*names, "weight2", "bias2"}
    layer = model.get_layer("block_1_attention")
    (key, _), (query, _) = layer.embedding
    assert state[module + "conv1.0.weight"][0, 0, 1, 2] == key[0][1, 2, 0, 0]
    assert state[module + "conv2.0.weight"][0, 0, 1, 2] == query[0][1, 2, 0, 0]
    earlier = {n.replace(".na.conv1.", ".na.key.").replace(".na.conv2.", ".na.query."): a for n, a in state.items()}
    load_torch_weights(other, earlier)
    assert_same_weights(model, other)


@pytest.mark.parametrize("attention", ["na", "se", "cbam"])
def test_the_trunk_of_another_network_loads_with_fresh_modules(attention, state):
    """From a network without attention, and from one with other modules."""
    model = thin(attention=attention)
    plain = {name: array for name, array in state.items() if ".se." not in name}
    before = model.get_layer("block_1_attention").get_weights()
    with pytest.raises(
        ValueError, match='attention= that the file was trained with; or load the trunk.*attention="fresh"'
    ):
        load_torch_weights(model, plain)
    for given in (plain, state):
        load_torch_weights(model, given, attention="fresh")
        loaded = to_torch_state_dict(model)
        assert all(np.array_equal(loaded[name], array) for name, array in plain.items())
    for ours, old in zip(model.get_layer("block_1_attention").get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, old)
    with pytest.raises(ValueError, match='attention must be "load" or "fresh". Received: .none.'):
        load_torch_weights(model, plain, attention="none")


def test_fresh_selective_kernels_keep_the_convolution_of_the_plain_network():
    model = ResNet50(attention="sk", **SMALL)
    kernel = np.full((64, 64, 3, 3), 2, "float32")
    state = {
        n: a for n, a in to_torch_state_dict(model).items() if not {"conv2g", "bn2g", "conv_fc1"} & set(n.split("."))
    }
    load_torch_weights(model, {**state, "layer1.0.conv2.weight": kernel}, attention="fresh")
    np.testing.assert_array_equal(to_torch_state_dict(model)["layer1.0.conv2.weight"], kernel)


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
    other = thin(attention="se")
    load_torch_weights(other, str(write_safetensors(tmp_path / "weights.safetensors", counted)))
    assert_same_weights(network, other)


def test_half_precision_in_files_is_widened(fresh, state, tmp_path):
    half = {name: array.astype("float16") for name, array in state.items()}
    load_torch_weights(fresh, write_safetensors(tmp_path / "half.safetensors", half))
    name = "features.2.conv.0.0.weight"
    np.testing.assert_array_equal(to_torch_state_dict(fresh)[name], half[name].astype("float32"))
    upper = {name: (array.view("uint32") >> 16).astype("uint16") for name, array in state.items()}
    load_torch_weights(fresh, write_safetensors(tmp_path / "bfloat16.safetensors", upper))
    np.testing.assert_allclose(to_torch_state_dict(fresh)[name], state[name], rtol=2**-7)  # 8 bits, cut off


def test_the_classifier_may_stay_out(network, state):
    model = MobileNetV2(alpha=0.35, attention="se", input_shape=(32, 32, 3))
    before = model.get_layer("predictions").get_weights()
    with pytest.raises(ValueError, match="(?s)2 tensors of another shape: classifier.1.weight: .*skip_classifier=True"):
        load_torch_weights(model, state)
    load_torch_weights(model, state, skip_classifier=True)
    np.testing.assert_array_equal(model.get_layer("predictions").get_weights()[0], before[0])
    np.testing.assert_array_equal(model.get_layer("Conv_1").kernel, network.get_layer("Conv_1").kernel)
    without = {name: array for name, array in state.items() if not name.startswith("classifier")}
    with pytest.raises(ValueError, match="(?s)2 tensors missing: classifier.1.weight, .*skip_classifier=True"):
        load_torch_weights(model, without)
    load_torch_weights(model, without, skip_classifier=True)
    headless = MobileNetV2(alpha=0.35, attention="se", include_top=False)
    for given in (state, without):
        load_torch_weights(headless, given)
    assert "classifier.1.weight" not in to_torch_state_dict(headless)


def changed(state, **changes):
    """`state` with tensors replaced, added or (None) removed."""
    return {name: array for name, array in (state | changes).items() if array is not None}


CONV = "features.0.0.weight"
BAD = {
    "missing": (lambda s: changed(s, **{CONV: None}), "1 tensors missing: features.0.0.weight\n.*another depth, width"),
    "extra": (lambda s: changed(s, odd=np.ones(3)), "1 tensors without a place: odd\n"),
    "shape": (lambda s: changed(s, **{CONV: np.ones((16, 3, 5, 5))}), r"weight: \(16, 3, 3, 3\) expected, \(16, 3, 5"),
    "integers": (
        lambda s: changed(s, **{CONV: np.ones((16, 3, 3, 3), "int8")}),
        "floating-point numbers in 'feat.*int8",
    ),
    "objects": (lambda s: changed(s, **{CONV: np.full((16, 3, 3, 3), None)}), "floating-point numbers.*object"),
    "no se": (
        lambda s: {name: array for name, array in s.items() if ".se." not in name},
        "68 tensors missing: .* and 63 more.*has no attention modules and this network expects se: build it with the",
    ),
    "cbam": (
        lambda s: {name.replace(".se.fc.0", ".cbam.ChannelGate.mlp.1"): array for name, array in s.items()},
        "file has cbam modules and this network expects se",
    ),
    "other network": (lambda s: {"blocks.0.w": np.ones(3)}, "No name fits: the file is of another network.*rename"),
    "empty": (lambda s: {}, "No name fits"),
    "no tensor": (lambda s: changed(s, epoch=3), "Expected a state dict.*'epoch' -> int"),
    "number as name": (lambda s: s | {3: np.ones(1)}, "Expected a state dict.*3 -> ndarray"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(case, unloaded, state):
    change, message = BAD[case]
    before = [keras.ops.convert_to_numpy(weight).copy() for weight in unloaded.weights]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_torch_weights(unloaded, change(state))
    for weight, old in zip(unloaded.weights, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight), old)


def test_models_of_other_kinds_are_refused(state):
    image = keras.Input((32, 32, 3))
    for model in (keras.Sequential([image, keras.layers.Flatten()]), keras.Model(image, thin()(image)), "resnet"):
        with pytest.raises(ValueError, match="Expected a ResNet or MobileNetV2 built by this library.*inner one"):
            load_torch_weights(model, state)
    for name in ("srm", "eca", "lct", "non_local"):
        with pytest.raises(ValueError, match="No PyTorch name is known for .*SqueezeExcite"):
            to_torch_state_dict(thin(attention=name))
    wide = functools.partial(na_keras.SelectiveKernel, groups=(1, 1, 1), dilation_rates=(1, 1, 1))
    with pytest.raises(ValueError, match="branch_3_conv/kernel"):
        to_torch_state_dict(ResNet50(attention=wide, **SMALL))
    with pytest.raises(TypeError, match="path of a file. Received: list"):
        load_torch_weights(thin(), [1, 2])


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
