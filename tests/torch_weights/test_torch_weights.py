"""Weights from PyTorch and back: the names, every error, and nothing half-loaded. No PyTorch is needed here."""

import keras
import numpy as np
import pytest
from small_networks import SMALL, assert_restores, assert_same_weights, randomize, thin

import na_keras
from na_keras import MobileNetV2, ResNet18, ResNet50, load_torch_weights, to_torch_state_dict
from na_keras.torch_weights.names import layer_weights

NETWORKS = [
    (ResNet50, "sk"),
    *((ResNet18, name) for name in (None, "na", "na_embedding", "se", "eca", "cbam", "gc", "sge")),
]
NETWORKS += [(thin, name) for name in (None, "na", "na_embedding", "ge", "cbam", "gc", "sge")]


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda row: f"{getattr(row[0], '__name__', 'thin')}-{row[1]}")
def written(request):
    """(builder, attention, a network of it, its state dict)."""
    builder, attention = request.param
    model = randomize(builder(attention=attention, **({} if builder is thin else SMALL)))
    return builder, attention, model, to_torch_state_dict(model)


def test_there_and_back_is_the_same_network(written):
    _, _, model, state = written
    assert len(state) == len(model.weights)
    assert all(array.flags.c_contiguous and array.dtype == np.float32 for array in state.values())
    assert_restores(model, state)


# Names and shapes as the reference programs' state dicts have them.
TRUNK = {
    ResNet50: {
        "conv1.weight": (64, 3, 7, 7),
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer4.2.bn3.running_var": (2048,),
        "layer3.0.downsample.0.weight": (1024, 512, 1, 1),
        "layer3.0.downsample.1.bias": (1024,),
        "fc.weight": (4, 2048),
    },
    ResNet18: {
        "layer1.0.conv1.weight": (64, 64, 3, 3),
        "layer2.0.conv2.weight": (128, 128, 3, 3),
        "layer4.1.bn2.running_var": (512,),
        "layer3.0.downsample.0.weight": (256, 128, 1, 1),
    },
    thin: {
        "features.0.0.weight": (16, 3, 3, 3),
        "features.1.conv.0.0.weight": (16, 1, 3, 3),
        "features.1.conv.1.weight": (8, 16, 1, 1),
        "features.1.conv.2.running_mean": (8,),
        "features.3.conv.0.0.weight": (48, 8, 1, 1),
        "features.3.conv.1.0.weight": (48, 1, 3, 3),
        "features.17.conv.3.bias": (112,),
        "features.18.0.weight": (1280, 112, 1, 1),
        "classifier.1.weight": (4, 1280),
    },
}
MODULES = {
    (ResNet50, "sk"): {
        "layer1.0.conv2.weight": (64, 64, 3, 3),
        "layer1.0.conv2g.weight": (64, 2, 3, 3),
        "layer1.0.bn2g.running_mean": (64,),
        "layer1.0.conv_fc1.weight": (4, 64, 1, 1),
        "layer1.0.bn_fc1.weight": (4,),
        "layer1.0.conv_fc2.weight": (128, 4, 1, 1),
    },
    (ResNet18, "na"): {"layer1.0.na.weight2": (1,), "layer4.1.na.bias2": (1,)},
    (ResNet18, "se"): {"layer1.0.se.fc.0.weight": (4, 64), "layer1.0.se.fc.2.weight": (64, 4)},
    (ResNet18, "eca"): {"layer1.0.eca.conv.weight": (1, 1, 3), "layer4.1.eca.conv.weight": (1, 1, 5)},
    (ResNet18, "cbam"): {
        "layer2.1.cbam.ChannelGate.mlp.1.weight": (8, 128),
        "layer2.1.cbam.ChannelGate.mlp.3.bias": (128,),
        "layer2.1.cbam.SpatialGate.spatial.conv.weight": (1, 2, 7, 7),
        "layer2.1.cbam.SpatialGate.spatial.bn.running_mean": (1,),
    },
    (ResNet18, "gc"): {
        "layer1.0.gc.conv_mask.weight": (1, 64, 1, 1),
        "layer1.0.gc.channel_add_conv.0.weight": (4, 64, 1, 1),
        "layer1.0.gc.channel_add_conv.1.weight": (4, 1, 1),
    },
    (ResNet18, "sge"): {"layer1.0.sge.weight": (1, 64, 1, 1)},
    (thin, "na"): {"features.17.na.weight2": (1,)},
}


def test_names_and_shapes_are_the_reference_programs(written):
    builder, attention, _, state = written
    known = {**TRUNK[builder], **MODULES.get((builder, attention), {})}
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
    given = {name.replace(".gc.", ".context_block."): array for name, array in to_torch_state_dict(model).items()}
    assert_restores(model, given)


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
    model = randomize(thin())
    renamed = timm_mobilenet_v2(to_torch_state_dict(model))
    assert {"blocks.1.0.conv_pw.weight", "blocks.6.0.bn3.running_mean", "conv_head.weight"} <= set(renamed)
    assert_restores(model, renamed)


def test_timms_squeeze_and_excitation_is_read():
    model, renamed = randomize(ResNet18(attention="se", **SMALL)), {}
    for name, array in to_torch_state_dict(model).items():
        new = name.replace(".se.fc.0.", ".se.fc1.").replace(".se.fc.2.", ".se.fc2.")
        renamed[new] = array[:, :, None, None] if new != name and array.ndim == 2 else array
    assert_restores(model, renamed)


def test_timms_efficient_channel_attention_is_read_and_named():
    """timm calls every module `se`."""
    model = randomize(ResNet18(attention="eca", **SMALL))
    renamed = {name.replace(".eca.", ".se."): array for name, array in to_torch_state_dict(model).items()}
    assert "layer1.0.se.conv.weight" in renamed
    assert_restores(model, renamed)
    with pytest.raises(ValueError, match="The file has eca modules and this network expects se"):
        load_torch_weights(ResNet18(attention="se", **SMALL), renamed)


def test_networks_that_average_in_their_shortcuts_are_refused_by_name():
    model, moved = ResNet18(**SMALL), {}
    for name, array in to_torch_state_dict(model).items():
        moved[name.replace(".downsample.1.", ".downsample.2.").replace(".downsample.0.", ".downsample.1.")] = array
    with pytest.raises(ValueError, match="averages before the convolutions of its shortcuts.*ecaresnetlight"):
        load_torch_weights(model, moved)


def test_networks_with_a_deep_stem_are_refused_by_name():
    model = ResNet18(**SMALL)
    deep = {name: a for name, a in to_torch_state_dict(model).items() if not name.startswith("conv1.")}
    deep |= {f"conv1.{index}.weight": np.ones((8, 3, 3, 3), "float32") for index in (0, 3, 6)}
    with pytest.raises(ValueError, match="has a deep stem.*ecaresnet50t.*another network"):
        load_torch_weights(model, deep)


def test_the_embeddings_names_are_the_released_codes_and_ours_stay_readable():
    """NANet models/resnet/resnet_na5.py: conv1 of the key, conv2 of the global context."""
    model = randomize(thin(attention="na_embedding"))
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
    assert_restores(model, earlier)


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


def test_models_of_other_kinds_are_refused(network, unloaded, state):
    image = keras.Input((32, 32, 3))
    for model in (keras.Sequential([image, keras.layers.Flatten()]), keras.Model(image, network(image)), "resnet"):
        with pytest.raises(ValueError, match="Expected a ResNet or MobileNetV2 built by this library.*inner one"):
            load_torch_weights(model, state)
    with pytest.raises(ValueError, match="No PyTorch name is known for .*SqueezeExcite"):
        to_torch_state_dict(thin(attention="srm"))
    with pytest.raises(TypeError, match="path of a file. Received: list"):
        load_torch_weights(unloaded, [1, 2])


@pytest.mark.parametrize(
    ("layer", "path"),
    [
        (na_keras.StyleRecalibration(), "mean_weight"),
        (na_keras.LinearContextTransform(2), "gamma"),
        (na_keras.NonLocal(), "query/kernel"),
        (na_keras.SelectiveKernel(groups=(1, 1, 1), dilation_rates=(1, 1, 1), reduction=2), "branch_3_conv/kernel"),
    ],
)
def test_weights_of_layers_without_a_name_in_pytorch_are_refused(layer, path):
    layer.build((None, 4, 4, 8))
    with pytest.raises(ValueError, match=f"No PyTorch name is known for '{path}' in the layer .*SqueezeExcite"):
        list(layer_weights(layer, "layer1.0"))
