"""The paper's columns of parameters and GFLOPs, to every printed digit, and the multiply-accumulates beside them."""

import functools
import math

import keras
import pytest
from keras import layers
from table_networks import NETWORKS, network, weights_not_drawn

import na_keras
from na_keras import ResNet18, ResNet50
from na_keras.graph.complexity import count_macs, count_parameters, paper_flops


def sequential(*stack, shape=(4, 6, 3)):
    return keras.Sequential([keras.Input(shape), *stack])


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


@pytest.mark.parametrize("name", ["ge", "cbam", "gc"])
def test_both_data_formats_count_the_same(name):
    """Every kind of layer of MobileNetV2's blocks, with sides that differ."""

    def counts(data_format):
        image = keras.Input((3, 64, 96) if data_format == "channels_first" else (64, 96, 3))
        keras.config.set_image_data_format(data_format)
        try:
            x = keras.layers.ZeroPadding2D(1)(image)
            x = keras.layers.Conv2D(32, 3, 2)(x)
            x = keras.layers.BatchNormalization(axis=1 if data_format == "channels_first" else 3)(x)
            x = keras.layers.DepthwiseConv2D(3)(keras.layers.ReLU(6.0)(x))
            x = na_keras.get_attention(name)(name="attention")(x)
            model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(x))
        finally:
            keras.config.set_image_data_format("channels_last")
        return count_macs(model), paper_flops(model)

    assert counts("channels_first") == counts("channels_last")


def test_frozen_layers_are_not_counted_as_parameters():
    model = sequential(layers.Flatten(), layers.Dense(5, name="predictions"), layers.Dense(2))
    assert count_parameters(model) == 72 * 5 + 5 + 12
    model.get_layer("predictions").trainable = False
    assert count_parameters(model) == 12


@pytest.mark.parametrize("name", sorted(set(na_keras.ATTENTION) - {"sk"}))
def test_every_attention_is_counted_or_refused_by_name(name):
    factory = functools.partial(na_keras.LinearContextTransform, groups=32) if name == "lct" else name  # 64 channels
    with weights_not_drawn():
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
    with weights_not_drawn():
        return ResNet18(input_shape=(64, 64, 3))


# layers on maps (4, 6, 3): (multiply-accumulates, what the counter of the paper's code adds), by hand
@pytest.mark.parametrize(
    ("layer", "macs", "flops"),
    [
        (lambda: layers.Conv2D(5, 3, padding="same"), 24 * 27 * 5, 24 * 28 * 5),
        (lambda: layers.Conv2D(5, 1, use_bias=False, activation="relu"), 24 * 15, 24 * 15 + 24 * 5),
        (lambda: layers.Conv2D(5, 1, use_bias=False, activation="sigmoid"), 24 * 15, 24 * 15),
        (lambda: layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2), 24 * 9 * 6, 24 * 9 * 6 + 24 * 6),
        (lambda: layers.SeparableConv2D(5, 3, padding="same"), 24 * (27 + 15), 24 * (27 + 15 + 5)),
        (lambda: layers.Normalization(), 0, 0),
        (lambda: layers.Rescaling(0.1), 0, 0),
        (lambda: layers.LayerNormalization(), 0, 0),
        (lambda: layers.GroupNormalization(3), 0, 0),
        (lambda: layers.BatchNormalization(), 0, 2 * 72),
        (lambda: layers.BatchNormalization(scale=False, center=False), 0, 72),
        (lambda: layers.ReLU(), 0, 72),
        (lambda: layers.PReLU(), 0, 72),
        (lambda: layers.LeakyReLU(), 0, 72),
        (lambda: layers.Activation("relu"), 0, 72),
        (lambda: layers.Activation("relu6"), 0, 72),
        (lambda: layers.Activation("hard_silu"), 0, 0),
        (lambda: layers.MaxPooling2D(), 0, 72),
        (lambda: layers.AveragePooling2D(2), 0, 72),
        (lambda: layers.GlobalMaxPooling2D(), 0, 72),
        (lambda: layers.UpSampling2D(2), 0, 4 * 72),
        (lambda: layers.Dropout(0.5), 0, 0),
        (lambda: keras.Sequential([layers.Flatten(), layers.Dense(7, activation="softmax")]), 72 * 7, 72 * 7),
    ],
)
def test_a_keras_layer_counts_as_its_counterpart_in_pytorch(layer, macs, flops):
    model = sequential(layer())
    assert (count_macs(model), paper_flops(model)) == (macs, flops)


def test_a_sequential_and_models_inside_count_as_the_same_layers_outside():
    """The inner model was built for images of any size."""
    image = keras.Input((None, None, 3))
    inner = keras.Model(image, layers.ReLU()(layers.Conv2D(4, 3)(image)))
    head = [layers.GlobalAveragePooling2D(), layers.Dense(5)]
    macs = 2 * 4 * 27 * 4 + 20
    flat = sequential(*inner.layers[1:], *head)
    for model in (flat, sequential(inner, *head), sequential(keras.Sequential([inner, head[0]]), head[1])):
        assert count_macs(model) == macs
        assert paper_flops(model) == macs + 2 * 4 * 4 + 2 * (2 * 4 * 4)
    twice = keras.Model(other := keras.Input((4, 6, 3)), layers.Add()([inner(other), inner(other)]))
    assert count_macs(twice) == 2 * 2 * 4 * 27 * 4


class Weightless(layers.Layer):
    def call(self, x):
        return keras.ops.square(x)


class MyConvolution(layers.Conv2D):
    pass


class WithCode(keras.Model):
    def call(self, x):
        return x


IMAGE = keras.Input((4, 6, 3))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: ResNet18(input_shape=(None, None, 3)),
            r"input_shape=\(224, 224, 3\).*Received: input_shape=\(None, None, 3\)",
        ),
        (
            lambda: keras.Model([IMAGE, keras.Input((None, 3), name="words")], layers.Flatten()(IMAGE)),
            r"depend on the image's size.*Received: input_shape=\(None, 3\) for the input 'words'",
        ),
        (lambda: sequential(Weightless(name="odd")), "Cannot count the operations of 'odd', a Weightless"),
        (lambda: sequential(MyConvolution(4, 3, name="odd")), "Cannot count the operations of 'odd', a MyConvolution"),
        (lambda: sequential(layers.Conv2DTranspose(4, 3, name="odd")), "operations of 'odd', a Conv2DTranspose"),
        (lambda: sequential(WithCode(name="odd")), "Cannot count the operations of 'odd', a WithCode"),
        (lambda: keras.Model(IMAGE, keras.ops.matmul(IMAGE, keras.ops.transpose(IMAGE, (0, 1, 3, 2)))), "a Matmul"),
        (WithCode, "Counting operations needs a functional model"),
        (lambda: keras.Sequential([layers.Dense(2)]), "Give the Sequential an input shape"),
    ],
)
def test_what_cannot_be_counted_is_said(model, message):
    refused = model()
    for count in (count_macs, paper_flops):
        with pytest.raises(ValueError, match=message):
            count(refused)


@pytest.mark.parametrize("layer", [lambda: layers.Activation(keras.ops.square), lambda: layers.Dense(2)])
def test_what_the_papers_counter_would_see_of_it_is_not_invented(layer):
    """A function of one's own; fully connected at every position, where the counter multiplies the wrong axes."""
    model = sequential(layer())
    assert count_macs(model) == (0 if isinstance(model.layers[0], layers.Activation) else 24 * 3 * 2)
    with pytest.raises(ValueError, match="in no table of the paper.*Use count_macs"):
        paper_flops(model)


def test_a_layer_counts_as_often_as_it_is_used_in_this_model():
    image = keras.Input((4, 4, 3))
    layer = keras.layers.Conv2D(3, 1)
    once = layer(image)
    twice = keras.Model(image, layer(once))
    assert (count_macs(keras.Model(image, once)), count_macs(twice)) == (144, 288)
    assert count_parameters(twice) == 12
