"""The paper's columns of parameters and GFLOPs, to every printed digit, and the multiply-accumulates beside them."""

import functools
import math

import keras
import pytest
from table_networks import NETWORKS, network

import na_keras
from na_keras import MobileNetV2, ResNet18, ResNet50
from na_keras.graph.complexity import count_macs, count_parameters, paper_flops


@functools.cache
@pytest.mark.parametrize(("builder", "attention", "parameters", "millions", "printed", "gflops", "gmacs"), NETWORKS)
def test_counts_are_the_papers_to_every_digit(builder, attention, parameters, millions, printed, gflops, gmacs):
    model = network(builder, attention)
    assert count_parameters(model) == parameters
    assert f"{parameters / 1e6:.3f}" == millions
    assert f"{paper_flops(model) / 1e9:.3f}" == printed
    assert f"{paper_flops(model) / 1e9:.5f}" == f"{gflops:.5f}"
    assert f"{count_macs(model) / 1e9:.5f}" == f"{gmacs:.5f}"


def test_a_pooling_module_in_na_mean_makes_the_4_127_of_the_released_code():
    """The one row of the tables where released code and print disagree; ours is the print."""
    model = network(ResNet50, "na_mean")
    pooled = sum(
        math.prod(layer.input.shape[1:]) for layer in model.layers if isinstance(layer, na_keras.NormalizationAttention)
    )
    assert f"{(paper_flops(model) + pooled) / 1e9:.5f}" == "4.12744"


def test_a_small_network_is_counted_by_hand():
    image = keras.Input((8, 6, 3))
    x = keras.layers.ZeroPadding2D(1)(image)
    x = keras.layers.Conv2D(4, 3, 2)(x)  # 4 x 3 positions
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = keras.layers.MaxPooling2D(3, 2)(keras.layers.ZeroPadding2D(1)(x))
    x = keras.layers.GlobalAveragePooling2D()(x)  # 2 x 2 positions
    model = keras.Model(image, keras.layers.Dense(5)(x))
    macs = 9 * 3 * 4 * 12 + 9 * 4 * 12 + 4 * 5
    assert count_macs(model) == macs
    assert paper_flops(model) == macs + 4 * 12 + 2 * 4 * 12 + 4 * 12 + 4 * 12 + 4 * 4
    assert count_parameters(model) == (27 * 4 + 4) + 8 + 36 + 25


def test_both_data_formats_count_the_same():
    keras.config.set_image_data_format("channels_first")
    try:
        models = [MobileNetV2(attention=name, input_shape=(3, 64, 96), alpha=0.35) for name in ("ge", "cbam", "gc")]
    finally:
        keras.config.set_image_data_format("channels_last")
    for model, name in zip(models, ("ge", "cbam", "gc"), strict=True):
        other = MobileNetV2(attention=name, input_shape=(64, 96, 3), alpha=0.35)
        assert (count_macs(model), paper_flops(model)) == (count_macs(other), paper_flops(other))


def test_frozen_layers_are_not_counted_as_parameters():
    model = ResNet18(input_shape=(32, 32, 3))
    model.get_layer("predictions").trainable = False
    assert count_parameters(model) == 11_689_512 - 513_000


@pytest.mark.parametrize("name", sorted(set(na_keras.ATTENTION) - {"sk"}))
def test_every_attention_is_counted_or_refused_by_name(name):
    factory = functools.partial(na_keras.LinearContextTransform, groups=32) if name == "lct" else name  # 64 channels
    model = ResNet18(attention=factory, input_shape=(64, 64, 3))
    plain = count_macs(network_64())
    extra = count_macs(model) - plain
    assert extra >= 0
    if name in ("lct", "srm", "eca", "simam", "non_local"):
        with pytest.raises(ValueError, match="in no table of the paper.*Use count_macs"):
            paper_flops(model)
        positions_by_channels = {64: 256, 128: 64, 256: 16, 512: 4}  # two blocks each
        of_blocks = {
            "srm": sum(2 * 2 * c for c in positions_by_channels),
            "eca": sum(2 * c * k for c, k in ((64, 3), (128, 5), (256, 5), (512, 5))),
            "non_local": sum(2 * n * 4 * c * c // 2 for c, n in positions_by_channels.items()),
        }
        assert extra == of_blocks.get(name, 0)
    else:
        assert paper_flops(model) > 0


@functools.cache
def network_64():
    return ResNet18(input_shape=(64, 64, 3))


def test_what_cannot_be_counted_is_said():
    with pytest.raises(ValueError, match=r"input_shape=\(224, 224, 3\).*Received: input_shape=\(None, None, 3\)"):
        count_macs(ResNet18(input_shape=(None, None, 3)))
    image = keras.Input((32, 32, 3))
    separable = keras.Model(image, keras.layers.SeparableConv2D(4, 3, name="odd")(image))
    with pytest.raises(ValueError, match="Cannot count the operations of 'odd'.*Received: a SeparableConv2D"):
        count_macs(separable)


def test_a_layer_counts_as_often_as_it_is_used_in_this_model():
    image = keras.Input((4, 4, 3))
    layer = keras.layers.Conv2D(3, 1)
    once = layer(image)
    twice = keras.Model(image, layer(once))
    assert (count_macs(keras.Model(image, once)), count_macs(twice)) == (144, 288)
    assert count_parameters(twice) == 12
