"""The networks: the paper's parameter counts, PyTorch's geometry, keras.applications' habits."""

import functools
import json
import math
import types

import keras
import numpy as np
import pytest
from table_networks import weights_not_drawn

import na_keras
from na_keras import (
    MobileNetV2,
    NAMobileNetV2,
    NAResNet50,
    NormalizationAttention,
    ResNet18,
    ResNet50,
    count_parameters,
)
from na_keras.models import in_stages, resnet
from na_keras.models.mobilenet_v2 import mobilenet_v2_stages
from na_keras.models.resnet import residual_block, resnet_stages
from na_keras.models.shared import BlockOptions


def trainable(model):
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def randomize(model):
    """Weights that make every mistake visible: no unit scale, no zero shift, NA's gamma away from 0."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            low, high = 0.5, 1.5
            layer.set_weights(
                [
                    rng.uniform(low, high, size),
                    rng.normal(0, 0.2, size),
                    rng.normal(0, 0.2, size),
                    rng.uniform(low, high, size),
                ]
            )
        if isinstance(layer, NormalizationAttention):
            layer.set_weights([rng.normal(0, 1, (1,)), rng.normal(0, 1, (1,))])


# Parameters of the modules that are in no table of the paper, from their own papers' numbers per block of c channels;
# those of the tables are in test_complexity.py, the plain networks' below.
@pytest.mark.parametrize(
    ("attention", "of_block"),
    [
        ("lct", lambda channels: 2 * channels),
        ("srm", lambda channels: 4 * channels),
        ("eca", lambda channels: 3 if channels == 64 else 5),
        ("simam", lambda channels: 0),
    ],
)
def test_modules_add_their_papers_parameters(attention, of_block):
    factory = functools.partial(na_keras.LinearContextTransform, groups=32) if attention == "lct" else attention
    with weights_not_drawn():
        network = ResNet18(input_shape=(32, 32, 3), attention=factory)
    assert trainable(network) == 11_689_512 + sum(2 * of_block(c) for c in (64, 128, 256, 512))


@functools.cache
def randomized_network(builder, size):
    model = builder(input_shape=(size, size + 32, 3), classes=10, classifier_activation=None)
    randomize(model)
    images = np.random.default_rng(1).integers(0, 256, (2, size, size + 32, 3)).astype("float32")
    return model, images, model.predict(images, verbose=0)


@pytest.mark.parametrize(
    ("builder", "oracle", "size"), [(NAResNet50, "resnet50", 64), (NAMobileNetV2, "mobilenet_v2", 96)]
)
def test_logits_equal_pytorchs_geometry(builder, oracle, size):
    """Even sizes: with odd ones "same" padding and PyTorch's agree, and a mistake would not show."""
    networks = pytest.importorskip("reference_networks", reason="the oracle needs jax")
    model, images, logits = randomized_network(builder, size)
    expected = getattr(networks, oracle)(images, networks.weights_of(model))
    # The measured differences between float32 programs are 5e-5 of the logits' spread; every mistake of geometry,
    # epsilon or placement that can be seen at all makes .01 or more.
    assert np.abs(logits - expected).max() < 2e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("builder", "size"), [(NAResNet50, 64), (NAMobileNetV2, 96)])
def test_saved_network_loads_with_the_same_output(builder, size, tmp_path):
    model, images, logits = randomized_network(builder, size)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(logits, loaded.predict(images, verbose=0))
    assert loaded.get_layer("C4").output.shape == model.get_layer("C4").output.shape


def test_uint8_images_are_taken_as_they_are():
    model, images, logits = randomized_network(NAMobileNetV2, 96)
    np.testing.assert_array_equal(model.predict(images.astype("uint8"), verbose=0), logits)


@pytest.mark.parametrize("builder", [ResNet18, functools.partial(MobileNetV2, alpha=0.35)])
def test_preprocess_input_is_what_the_graph_does_without_it(builder):
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    inside = builder(input_shape=(32, 32, 3), classes=4, name="inside")
    outside = builder(input_shape=(32, 32, 3), classes=4, include_preprocessing=False, name="outside")
    trained = [w for layer in inside.layers if layer.name != "normalization" for w in layer.get_weights()]
    outside.set_weights(trained)
    kept = images.copy()
    np.testing.assert_allclose(
        inside.predict(images, verbose=0),
        outside.predict(na_keras.preprocess_input(images), verbose=0),
        atol=1e-5,
    )
    np.testing.assert_array_equal(images, kept)


@pytest.mark.parametrize(("stages", "first"), [(resnet_stages, (50,)), (mobilenet_v2_stages, ())])
def test_another_layers_namespace_builds_the_same_graph(stages, first):
    """As tf_keras.layers will: every layer comes from the namespace, with the same name, and plain arguments."""
    made = []

    def recording(kind):
        def make(*arguments, **options):
            assert not any(isinstance(value, keras.initializers.Initializer) for value in options.values())
            layer = getattr(keras.layers, kind)(*arguments, **options)
            made.append(layer.name)
            return layer

        return make

    kinds = "ZeroPadding2D Conv2D DepthwiseConv2D BatchNormalization ReLU MaxPooling2D Add Activation".split()
    namespace = types.SimpleNamespace(**{kind: recording(kind) for kind in kinds})
    image = keras.Input((64, 64, 3))
    model = keras.Model(image, stages(image, *first, attention=NormalizationAttention, layers=namespace)["C5"])
    plain = keras.Model(image, stages(image, *first, attention=NormalizationAttention)["C5"])
    assert [layer.name for layer in model.layers] == [layer.name for layer in plain.layers] != []
    others = [layer.name for layer in model.layers if layer.name not in made]
    assert all("attention" in name or "input" in name for name in others)


@pytest.mark.parametrize(
    ("builder", "channels"),
    [
        (NAResNet50, (256, 512, 1024, 2048)),
        (ResNet18, (64, 128, 256, 512)),
        (NAMobileNetV2, (24, 32, 96, 320)),
    ],
)
def test_stage_outputs_can_be_asked_for_by_name(builder, channels):
    model = builder(include_top=False, input_shape=(64, 96, 3))
    for level, (stride, width) in enumerate(zip((4, 8, 16, 32), channels, strict=True), start=2):
        assert model.get_layer(f"C{level}").output.shape == (None, 64 // stride, 96 // stride, width)


def test_heads_follow_keras_applications():
    build = functools.partial(MobileNetV2, alpha=0.35)
    assert build(include_top=False).output_shape == (None, None, None, 1280)
    assert build(include_top=False, pooling="avg").output_shape == (None, 1280)
    assert build(include_top=False, pooling="max").layers[-1].name == "max_pool"
    model = build(classes=7, classifier_activation=None, input_shape=(None, None, 3), attention="na")
    x = np.zeros((1, 40, 50, 3), "float32")
    assert model(x).shape == (1, 7)
    assert "dropout" in [layer.name for layer in model.layers]
    assert "dropout" not in [layer.name for layer in build(dropout_rate=0.0).layers]


# torchvision's, which are the paper's where it has the network.
PLAIN = {
    "ResNet18": 11_689_512,
    "ResNet34": 21_797_672,
    "ResNet50": 25_557_032,
    "ResNet101": 44_549_160,
    "ResNet152": 60_192_808,
    "MobileNetV2": 3_504_872,
}


@pytest.mark.parametrize("name", na_keras.models.MODELS)
def test_every_builder_keeps_what_training_expects(name):
    """The protocol at na_keras.models.MODELS, and the published number of parameters; SimAM has none."""
    build = functools.partial(
        na_keras.models.MODELS[name],
        input_shape=(64, 64, 3),
        classes=1000,
        classifier_activation=None,
        attention="simam",
        synchronized_batch_norm=keras.backend.backend() == "tensorflow",  # the only one that can
        name="network",
    )
    with weights_not_drawn():
        model = build()
    assert model.name == "network" and model.input_shape == (None, 64, 64, 3) and model.output_shape == (None, 1000)
    assert trainable(model) == PLAIN[name]
    assert keras.backend.standardize_dtype(model.output.dtype) == "float32"
    levels = [model.get_layer(f"C{level}").output.shape[1:3] for level in (2, 3, 4, 5)]
    assert levels == [(64 // stride,) * 2 for stride in (4, 8, 16, 32)]
    attention = [layer for layer in model.layers if isinstance(layer, na_keras.SimAM)]
    assert attention and all(layer.name.endswith("_attention") for layer in attention)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert norms and all(norm.synchronized == build.keywords["synchronized_batch_norm"] for norm in norms)
    kinds = [layer.name for layer in model.layers if isinstance(layer, keras.layers.Normalization)]
    assert len(kinds) == 1  # raw pixels come in
    if name not in ("ResNet101", "ResNet152"):  # deeper, and otherwise ResNet50's
        with weights_not_drawn():
            layers = build(include_preprocessing=False).layers
        assert not any(isinstance(layer, keras.layers.Normalization) for layer in layers)


def test_layer_names_are_deterministic():
    names = [[layer.name for layer in NAMobileNetV2((32, 32, 3), alpha=0.35).layers] for _ in range(2)]
    assert names[0] == names[1]
    for name in ("expanded_conv_attention", "block_16_attention", "block_3_depthwise", "Conv_1", "predictions"):
        assert name in names[0]
    resnet, _, _ = randomized_network(NAResNet50, 64)
    attention = [layer.name for layer in resnet.layers if isinstance(layer, NormalizationAttention)]
    assert attention[0] == "conv2_block1_attention" and attention[-1] == "conv5_block3_attention"
    assert len(attention) == 16


def test_attention_takes_any_layer_of_the_users():
    @keras.saving.register_keras_serializable("test")
    class Halve(keras.layers.Layer):
        def call(self, x):
            return x / 2

    model = ResNet18(attention=Halve, include_top=False, input_shape=(32, 32, 3))
    assert sum(isinstance(layer, Halve) for layer in model.layers) == 8
    model = MobileNetV2(
        attention=functools.partial(NormalizationAttention, similarity=None), input_shape=(32, 32, 3), alpha=0.35
    )
    assert {layer.similarity for layer in model.layers if isinstance(layer, NormalizationAttention)} == {None}
    calls = []
    ResNet18(attention=lambda name: calls.append(name) or Halve(name=name), input_shape=(32, 32, 3))
    assert calls[:2] == ["conv2_block1_attention", "conv2_block2_attention"] and len(calls) == 8


def test_input_tensor_continues_the_users_graph():
    image = keras.Input((40, 40, 1))
    model = ResNet18(input_tensor=keras.layers.Concatenate()([image] * 3), include_top=False, pooling="avg")
    assert keras.Model(image, model(keras.layers.Concatenate()([image] * 3))).output_shape == (None, 512)


def test_weights_takes_the_path_of_a_file(tmp_path):
    model = ResNet18(input_shape=(32, 32, 3), classes=5)
    model.save_weights(tmp_path / "trained.weights.h5")
    loaded = ResNet18(input_shape=(32, 32, 3), classes=5, weights=tmp_path / "trained.weights.h5")
    for ours, theirs in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_channels_first_has_the_same_weights_and_names():
    keras.config.set_image_data_format("channels_first")
    try:
        model = NAMobileNetV2(alpha=0.35, input_shape=(3, 64, 64))
        resnet = NAResNet50(input_shape=(3, 64, 64), include_top=False)
    finally:
        keras.config.set_image_data_format("channels_last")
    other = NAMobileNetV2(alpha=0.35, input_shape=(64, 64, 3))
    assert [(w.path, tuple(w.shape)) for w in model.weights[:200]] == [
        (w.path, tuple(w.shape)) for w in other.weights[:200]
    ]
    assert resnet.get_layer("C5").output.shape == (None, 2048, 2, 2)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_keeps_weights_normalisation_and_classifier_in_float32(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = NAMobileNetV2(alpha=0.35, input_shape=(32, 32, 3), classes=4)
    finally:
        keras.config.set_dtype_policy("float32")
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    assert model.predict(images, verbose=0).dtype == np.float32
    assert {keras.backend.standardize_dtype(w.dtype) for w in model.trainable_weights} == {"float32"}
    assert model.get_layer("block_5_attention").compute_dtype == policy.removeprefix("mixed_")


def test_initial_weights_have_the_authors_scale():
    model = NAMobileNetV2((32, 32, 3))
    depthwise = np.array(model.get_layer("block_8_depthwise").kernel)  # 384 channels
    assert depthwise.std() == pytest.approx(np.sqrt(2 / (9 * 384)), rel=0.05)
    expand = np.array(model.get_layer("block_8_expand").kernel)
    assert expand.std() == pytest.approx(np.sqrt(2 / 384), rel=0.05)
    assert np.array(model.get_layer("predictions").kernel).std() == pytest.approx(0.01, rel=0.05)
    predictions = NAResNet50(input_shape=(32, 32, 3)).get_layer("predictions")
    for weight in predictions.get_weights():
        assert np.abs(weight).max() <= 2048**-0.5 and weight.std() == pytest.approx((3 * 2048) ** -0.5, rel=0.1)


def test_decode_predictions_names_the_best_classes_first(monkeypatch):
    from keras.src.applications import imagenet_utils  # its class index is otherwise fetched from the network

    index = {str(i): [f"n{i:08d}", f"name_{i}"] for i in range(1000)}
    monkeypatch.setattr(imagenet_utils, "CLASS_INDEX", json.loads(json.dumps(index)))
    scores = np.zeros((1, 1000), "float32")
    scores[0, [3, 7]] = 0.25, 0.75
    assert na_keras.decode_predictions(scores, top=2)[0] == [
        ("n00000007", "name_7", 0.75),
        ("n00000003", "name_3", 0.25),
    ]
    with pytest.raises(ValueError, match="1000"):
        na_keras.decode_predictions(scores[:, :10])


@pytest.mark.parametrize("name", sorted(set(na_keras.ATTENTION) - {"sk"}))
def test_every_name_builds_the_smallest_network(name):
    """The digits recipe's network; its first block has 8 channels."""
    model = MobileNetV2(input_shape=(48, 48, 3), alpha=0.35, classes=10, attention=name)
    layers = [layer for layer in model.layers if layer.name.endswith("_attention")]
    assert len(layers) == 17


@pytest.mark.parametrize("name", ["sk", "cbam", "non_local"])
def test_blocks_with_batch_norm_in_their_attention_train_and_are_saved(name, tmp_path):
    image = x = keras.Input((16, 16, 8))
    for index, stride in ((1, 2), (2, 1)):
        options = BlockOptions(na_keras.get_attention(name))
        x = residual_block(x, 32, stride, True, f"conv2_block{index}", options)
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(x))
    model.compile("sgd", "mse")
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 8)).astype("float32")
    weights = model.get_layer("conv2_block2_attention").weights
    before = [np.array(weight) for weight in weights]
    model.fit(images, np.ones((4, 128), "float32"), epochs=1, verbose=0)
    moved = [weight.path for weight, old in zip(weights, before, strict=True) if not np.array_equal(old, weight)]
    assert any("moving_mean" in path for path in moved) and any("gamma" in path for path in moved)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model.predict(images, verbose=0), loaded.predict(images, verbose=0))


def test_selective_kernels_replace_the_bottlenecks_3x3_convolution():
    model = ResNet50(input_shape=(64, 64, 3), attention="sk")
    names = [layer.name for layer in model.layers]
    for name in ("conv2_block1", "conv3_block1", "conv5_block3"):
        assert model.get_layer(f"{name}_attention").input is model.get_layer(f"{name}_1_relu").output
        assert model.get_layer(f"{name}_3_conv").input is model.get_layer(f"{name}_attention").output
    assert not [name for name in names if "_2_" in name]
    strides = [layer.strides for layer in model.layers if isinstance(layer, na_keras.SelectiveKernel)]
    assert strides == [1] * 3 + [2] + [1] * 3 + [2] + [1] * 5 + [2] + [1] * 2
    narrow = functools.partial(na_keras.SelectiveKernel, reduction=32)
    model = ResNet50(input_shape=(64, 64, 3), attention=narrow, include_top=False)
    assert {layer.reduction for layer in model.layers if isinstance(layer, na_keras.SelectiveKernel)} == {32}


def test_attention_in_some_stages_selective_kernels_too(monkeypatch):
    monkeypatch.setitem(resnet.RESNET, 50, ((1, 1, 1, 1), True))
    build = functools.partial(ResNet50, input_shape=(32, 32, 3), include_top=False)
    for name, in_place_of in (("na", ()), ("sk", ("conv5_block1_2_pad", "conv5_block1_2_conv", "conv5_block1_2_bn"))):
        model = build(attention=in_stages(name, (3, 5)))
        names = [layer.name for layer in model.layers]
        modules = [layer for layer in names if layer.endswith("_attention")]
        assert modules == ["conv3_block1_attention", "conv5_block1_attention"]
        assert "conv4_block1_2_conv" in names and not {*in_place_of} & {*names}
    everywhere, plain = build(attention=in_stages("na", (2, 3, 4, 5))), build()
    assert count_parameters(everywhere) == count_parameters(build(attention="na")) == count_parameters(plain) + 2 * 4


@pytest.mark.parametrize(("attention", "stages"), [("na", ()), ("na", (1, 2)), ("na", (6,)), (None, (2,))])
def test_stages_that_there_are_not_are_refused(attention, stages):
    with pytest.raises(ValueError, match="takes attention and stages of 2, 3, 4, 5"):
        in_stages(attention, stages)


def test_a_factory_may_leave_blocks_out():
    first = lambda name: NormalizationAttention(name=name) if "block_1_" in name else None  # noqa: E731
    model = MobileNetV2(input_shape=(32, 32, 3), alpha=0.35, attention=first)
    assert [layer.name for layer in model.layers if layer.name.endswith("attention")] == ["block_1_attention"]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras synchronises on TensorFlow only")
def test_synchronized_batch_norm_reaches_into_attention_given_by_name():
    def norms_of(layer):
        parts = layer._flatten_layers(include_self=False)
        return [part for part in parts if isinstance(part, keras.layers.BatchNormalization)]

    build = functools.partial(MobileNetV2, input_shape=(32, 32, 3), alpha=0.35, synchronized_batch_norm=True)
    networks = build(attention="cbam"), build(attention="ge")
    layers = [layer for model in networks for layer in model.layers if layer.name.endswith("_attention")]
    for name in ("srm", "non_local"):
        layers.append(na_keras.get_attention(name, synchronized=True)())
        layers[-1].build((None, 8, 8, 16))
    assert all(norms_of(layer) and all(norm.synchronized for norm in norms_of(layer)) for layer in layers)
    assert not norms_of(na_keras.get_attention("se", synchronized=True)())
    layer = build(attention=functools.partial(na_keras.CBAM, reduction=8)).get_layer("block_1_attention")
    assert not layer.spatial_bn.synchronized  # a callable decides for itself
