"""The other attention layers: their reference code's numbers, their papers' constants, their errors."""

import pathlib
import re

import keras
import numpy as np
import pytest
from gradients import output_and_gradients

from na_keras import (
    CBAM,
    EfficientChannelAttention,
    GatherExcite,
    GlobalContext,
    LinearContextTransform,
    NonLocal,
    NormalizationAttention,
    SelectiveKernel,
    SimAM,
    SpatialGroupEnhance,
    SqueezeExcite,
    StyleRecalibration,
)
from na_keras.layers.efficient_channel_attention import adaptive_kernel_size

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "peers.npz")

MLP = {"squeeze/kernel": "0.weight", "squeeze/bias": "0.bias", "excite/kernel": "2.weight", "excite/bias": "2.bias"}
# weight's path in the layer -> PyTorch's name
TORCH_NAMES = {
    "se": {ours: f"fc.{theirs}" for ours, theirs in MLP.items()},
    "cbam": {
        "squeeze/kernel": "ChannelGate.mlp.1.weight",
        "squeeze/bias": "ChannelGate.mlp.1.bias",
        "excite/kernel": "ChannelGate.mlp.3.weight",
        "excite/bias": "ChannelGate.mlp.3.bias",
        "spatial_conv/kernel": "SpatialGate.spatial.conv.weight",
        "spatial_bn/gamma": "SpatialGate.spatial.bn.weight",
        "spatial_bn/beta": "SpatialGate.spatial.bn.bias",
        "spatial_bn/moving_mean": "SpatialGate.spatial.bn.running_mean",
        "spatial_bn/moving_variance": "SpatialGate.spatial.bn.running_var",
    },
    "gc": {
        "mask_kernel": "conv_mask.weight",
        "mask_bias": "conv_mask.bias",
        "squeeze/kernel": "channel_add_conv.0.weight",
        "squeeze/bias": "channel_add_conv.0.bias",
        "norm/gamma": "channel_add_conv.1.weight",
        "norm/beta": "channel_add_conv.1.bias",
        "excite/kernel": "channel_add_conv.3.weight",
        "excite/bias": "channel_add_conv.3.bias",
    },
    "sge": {"gamma": "weight", "beta": "bias"},
}
CASES = [(module, case) for module in ("se", "cbam", "gc") for case in ("00", "02")] + [("sge", "01")]


def golden_layer(module, case):
    """The layer with the file's weights."""
    if module == "sge":
        layer = SpatialGroupEnhance(groups=16)
    else:
        layer = {"se": SqueezeExcite, "cbam": CBAM, "gc": GlobalContext}[module](int(GOLDEN[f"{case}.reduction"]))
    layer.build(GOLDEN[f"{case}.x"].shape)
    paths = [weight.path.removeprefix(f"{layer.name}/") for weight in layer.weights]
    assert set(paths) == set(TORCH_NAMES[module])
    for weight, path in zip(layer.weights, paths, strict=True):
        array = GOLDEN[f"{case}.{module}.w.{TORCH_NAMES[module][path]}"]
        if array.ndim == 4 and min(weight.shape) > 1 or path == "spatial_conv/kernel":
            array = array.squeeze((2, 3)) if array.shape[2:] == (1, 1) else array.transpose(2, 3, 1, 0)
        if path.endswith(("squeeze/kernel", "excite/kernel")):
            array = array.T  # PyTorch: (outputs, inputs)
        weight.assign(array.reshape(weight.shape))
    return layer


@pytest.mark.parametrize(("module", "case"), CASES)
def test_output_and_input_gradient_equal_the_reference_code(module, case):
    layer = golden_layer(module, case)
    output, (dx,) = output_and_gradients(layer, [GOLDEN[f"{case}.x"]], GOLDEN[f"{case}.r"])
    # float32 rounding (6e-8) through sums over 25 to 196 positions and up to 64 channels: a few dozen roundings of
    # the largest value.
    for value, name in ((output, "out"), (dx, "dx")):
        expected = GOLDEN[f"{case}.{module}.{name}"]
        assert np.abs(value - expected).max() <= 5e-6 * np.abs(expected).max()
    assert np.abs(output - GOLDEN[f"{case}.x"]).max() > 0.1  # the weights do something


def fresh(layer):
    """x and the output of a layer as it was initialised."""
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 64)).astype("float32")
    return x, keras.ops.convert_to_numpy(layer(x))


@pytest.mark.parametrize("layer", [GlobalContext, NonLocal])
def test_a_fresh_residual_module_is_the_identity(layer):
    x, output = fresh(layer())
    np.testing.assert_array_equal(output, x)


@pytest.mark.parametrize(
    ("layer", "gate"),
    [
        (SpatialGroupEnhance(groups=16), 1 / (1 + np.exp(-1))),
        (LinearContextTransform(groups=16), 1 / (1 + np.exp(-1))),
        (StyleRecalibration(), 0.5),
    ],
)
def test_a_fresh_module_gates_everything_alike(layer, gate):
    x, output = fresh(layer)
    np.testing.assert_allclose(output, gate * x, rtol=1e-6)


def test_a_fresh_cbam_gates_all_positions_alike():
    x, output = fresh(CBAM())
    ratio = output / x
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1], ratio.shape), rtol=1e-5)
    assert ratio.std() > 0 and ratio.max() <= 0.5


def test_weights_start_at_the_reference_codes_scale():
    squeeze = SqueezeExcite()
    squeeze.build((None, 7, 7, 1024))
    kernel, bias = (np.array(weight) for weight in squeeze.squeeze.weights)
    assert np.abs(kernel).max() <= 1024**-0.5 and kernel.std() == pytest.approx((3 * 1024) ** -0.5, rel=0.02)
    assert np.abs(bias).max() <= 1024**-0.5 and bias.std() > 0
    gather = GatherExcite(extent=2, parametrized=True)
    gather.build((None, 8, 8, 512))
    assert np.array(gather.steps[0].kernel).std() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.05)
    selective = SelectiveKernel()
    selective.build((None, 8, 8, 128))
    for convolution in selective.convolutions:  # PyTorch's fan-out: 9 * outputs, whatever the groups
        assert np.array(convolution.kernel).std() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.05)


def test_eca_takes_the_kernel_size_of_its_papers_equation():
    channels = (16, 32, 64, 128, 256, 512, 1024, 2048)
    assert [adaptive_kernel_size(number) for number in channels] == [3, 3, 3, 5, 5, 5, 5, 7]
    layer = EfficientChannelAttention()
    layer.build((None, None, None, 2048))
    assert layer.count_params() == 7


def test_an_extent_of_the_whole_map_is_global():
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 8)).astype("float32")
    whole, large = (keras.ops.convert_to_numpy(GatherExcite(extent)(x)) for extent in (None, 4))
    np.testing.assert_allclose(large, whole, rtol=1e-5)


def test_the_selective_kernel_papers_own_form_can_be_said():
    """Branches of 32 groups, one of them dilated; at least 32 hidden features: section 3.1 of arXiv 1903.06586."""
    layer = SelectiveKernel(groups=(32, 32), dilation_rates=(1, 2), minimum_features=32)
    layer.build((None, None, None, 128))
    assert layer.count_params() == 2 * (9 * 128 * 128 // 32 + 4 * 128) + 128 * 32 + 4 * 32 + 32 * 2 * 128


def test_permuting_positions_permutes_the_output_of_what_has_no_convolution():
    rng = np.random.default_rng(0)
    x, order = rng.normal(size=(1, 20, 8)).astype("float32"), rng.permutation(20)
    for layer in (SqueezeExcite(4), GatherExcite(), SpatialGroupEnhance(4), SimAM(), NonLocal("dot_product")):
        layer.build((None, 5, 4, 8))
        for weight in layer.weights:
            weight.assign(rng.uniform(0.2, 1, weight.shape))
        one, other = (
            keras.ops.convert_to_numpy(layer(values.reshape(1, 5, 4, 8))).reshape(1, 20, 8)
            for values in (x, x[:, order])
        )
        # Sums over 20 positions in another order: some 20 roundings of 6e-8 of the largest value.
        assert np.abs(other - one[:, order]).max() <= 1.2e-6 * np.abs(one).max()


@pytest.mark.parametrize(
    ("layer", "arguments", "message"),
    [
        *(
            (layer, {"reduction": value}, f"reduction must be a positive integer.*Received: reduction={value}")
            for layer in (SqueezeExcite, CBAM, GlobalContext, SelectiveKernel, NonLocal)
            for value in (0, 2.0, True)
        ),
        *(
            (layer, {"groups": value}, f"groups must be a positive integer.*Received: groups={value}")
            for layer in (SpatialGroupEnhance, LinearContextTransform)
            for value in (0, -1, None)
        ),
        *(
            (layer, {"epsilon": value}, f"epsilon must be a positive number.*Received: epsilon={value}")
            for layer in (SpatialGroupEnhance, LinearContextTransform, StyleRecalibration)
            for value in (0.0, float("inf"), None)
        ),
        *(
            (layer, {"data_format": "nhwc"}, "channels_last.*Received: 'nhwc'")
            for layer in (SqueezeExcite, GatherExcite, CBAM, GlobalContext, SelectiveKernel, SpatialGroupEnhance)
        ),
        (CBAM, {"kernel_size": 4}, "kernel_size must be odd.*Received: kernel_size=4"),
        (EfficientChannelAttention, {"kernel_size": 4}, "kernel_size must be odd.*Received: kernel_size=4"),
        (EfficientChannelAttention, {"kernel_size": 0}, "kernel_size must be a positive integer"),
        (GatherExcite, {"extent": 1}, "extent must be None, or 2 or more. Received: extent=1"),
        (GatherExcite, {"extent": 2.5}, "extent must be a positive integer.*Received: extent=2.5"),
        (GatherExcite, {"extent": 6, "parametrized": True}, "a power of two, 2 or more. Received: extent=6"),
        (GatherExcite, {"parametrized": True}, "must be a power of two. Received: extent=None"),
        (SimAM, {"regularization": 0}, "regularization must be a positive number.*Received: regularization=0"),
        (NonLocal, {"pairwise": "cosine"}, "pairwise must be one of .*embedded_gaussian.*Received: 'cosine'"),
        (SelectiveKernel, {"filters": 0}, "filters must be a positive integer.*Received: filters=0"),
        (SelectiveKernel, {"strides": 0}, "strides must be a positive integer.*Received: strides=0"),
        (SelectiveKernel, {"groups": (1, 0)}, "groups must be a positive integer.*Received: groups=0"),
        (SelectiveKernel, {"groups": 32}, "one entry for each.*Received: groups=32, dilation_rates="),
        (SelectiveKernel, {"groups": (1, 2, 4)}, "one entry for each.*Received: groups=\\(1, 2, 4\\)"),
        (SelectiveKernel, {"strides": 2, "dilation_rates": (1, 2)}, "either strides or dilation.*Received: strides=2"),
    ],
)
def test_bad_arguments_are_refused_at_construction(layer, arguments, message):
    with pytest.raises(ValueError, match=message):
        layer(**arguments)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (GatherExcite(8), (2, 7, 9, 8), "extent is larger than the map: use extent=None.*extent=8"),
        (GatherExcite(8, data_format="channels_first"), (2, 64, 9, 7), "extent is larger than the map"),
        (SimAM(), (2, 8), "SimAM takes a batch of feature maps, rank 4. Received: input_shape=\\(2, 8\\)"),
        (StyleRecalibration(), (2, 4, 4, 4, 8), "StyleRecalibration takes a batch of feature maps, rank 4"),
    ],
)
def test_bad_inputs_are_refused_on_the_first_call(layer, shape, message):
    with pytest.raises(ValueError, match=message):
        layer(np.zeros(shape, "float32"))


# Everything that depends on the number of channels or the map's size, and what the message says would do.
ADVISED = [
    (SqueezeExcite, {"reduction": 16}, 8, {"reduction": 8}),
    (CBAM, {}, 8, {"reduction": 8}),
    (GlobalContext, {"reduction": 8}, 8, {"reduction": 4}),
    (NonLocal, {"reduction": 16}, 8, {"reduction": 8}),
    (SelectiveKernel, {"groups": (1, 4)}, 8, {"reduction": 8}),
    (SelectiveKernel, {}, 48, {"groups": (1, 24)}),
    (SelectiveKernel, {"filters": 32, "groups": (5, 1)}, 48, {"groups": (4, 1)}),
    (SelectiveKernel, {}, 3, {"groups": (1, 3), "reduction": 3}),
    (SelectiveKernel, {"minimum_features": 4}, 3, {"groups": (1, 3)}),
    (SpatialGroupEnhance, {}, 48, {"groups": 48}),
    (SpatialGroupEnhance, {"groups": 5}, 8, {"groups": 4}),
    (LinearContextTransform, {}, 24, {"groups": 12}),
    (LinearContextTransform, {"groups": 5}, 8, {"groups": 4}),
    (LinearContextTransform, {"groups": 8}, 8, {"groups": 4}),
    (LinearContextTransform, {}, 7, {"groups": 1}),
    (EfficientChannelAttention, {"kernel_size": 9}, 8, {"kernel_size": 7}),
    (EfficientChannelAttention, {"kernel_size": 3}, 1, {"kernel_size": 1}),
    (GatherExcite, {"extent": 8}, 8, {"extent": None}),
    (NormalizationAttention, {}, 1, {"unbiased": False}),
]


@pytest.mark.parametrize(("layer", "arguments", "channels", "advised"), ADVISED)
def test_what_a_message_says_would_do_does(layer, arguments, channels, advised):
    x = np.ones((2, 4, 4, channels), "float32")
    with pytest.raises(ValueError, match=f"{layer.__name__}|extent is larger|single channel is undefined") as refused:
        layer(**arguments)(x)
    found = re.search(r"; (.*) would do|use (\w+=None|\w+=False)", str(refused.value))
    assert eval(f"dict({found[1] or found[2]})") == advised
    assert layer(**{**arguments, **advised})(x).shape[:3] == x.shape[:3]


@pytest.mark.parametrize("layer", [LinearContextTransform, GlobalContext])
def test_one_channel_is_too_few(layer):
    with pytest.raises(ValueError, match="Received: 1 channels.*; too few"):
        layer()(np.ones((2, 4, 4, 1), "float32"))


@pytest.mark.parametrize("layer", [SqueezeExcite, GatherExcite, SimAM, SelectiveKernel])
def test_unknown_channels_are_refused(layer):
    with pytest.raises(ValueError, match=f"{layer.__name__} needs to know the number of channels"):
        layer()(keras.Input((4, 4, None)))
