"""insert_attention: the places, the weights, what stays the same, and what is refused."""

import functools

import keras
import numpy as np
import pytest
from keras import layers

from na_keras import NormalizationAttention, insert_attention

HALF_GATE = functools.partial(NormalizationAttention, beta_initializer="zeros")  # sigmoid(0) = 1/2


@keras.saving.register_keras_serializable(package="test_insertion")
class InputDependentGate(layers.Layer):
    """As squeeze-and-excitation: even a fresh one's gate depends on the image."""

    def call(self, x):
        return x * keras.ops.sigmoid(keras.ops.mean(x, axis=(1, 2), keepdims=True))


@keras.saving.register_keras_serializable(package="test_insertion")
class Identity(layers.Layer):
    """As a global context block with a last layer of zeros: adds nothing at first."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(1,), initializer="zeros", name="scale")

    def call(self, x):
        return x + self.scale * keras.ops.mean(x, axis=(1, 2), keepdims=True)


def randomize(model):
    """Weights under which each layer matters: batch norms neither of unit scale nor centred."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            randomize(layer)
        elif isinstance(layer, layers.BatchNormalization):
            size = layer.gamma.shape
            gamma, beta, mean = rng.uniform(0.5, 1.5, size), rng.normal(0, 0.2, size), rng.normal(0, 0.2, size)
            layer.set_weights([gamma, beta, mean, rng.uniform(0.5, 1.5, size)])
        elif isinstance(layer, layers.Conv2D | layers.Dense):
            layer.set_weights([rng.normal(0, 1 / np.sqrt(np.prod(w.shape[:-1])), w.shape) for w in layer.weights])
    return model


def residual_block(x, name, between=(), add=None):
    """Conv, norm, ReLU, conv, norm, the layers between, addition to a shortcut with a projection."""
    shortcut = layers.BatchNormalization(name=f"{name}_0_bn")(layers.Conv2D(6, 1, name=f"{name}_0_conv")(x))
    x = layers.BatchNormalization(name=f"{name}_1_bn")(layers.Conv2D(4, 1, name=f"{name}_1_conv")(x))
    x = layers.Conv2D(6, 3, padding="same", name=f"{name}_2_conv")(layers.ReLU()(x))
    x = layers.BatchNormalization(name=f"{name}_2_bn")(x)
    for layer in between:
        x = layer(x)
    return (add or layers.Add())([shortcut, x])


def tiny(blocks=2, head=True, name="tiny", **options):
    """A residual network of a few channels."""
    image = keras.Input((8, 8, 3), name="image")
    x = image
    for index in range(blocks):
        x = layers.ReLU(name=f"out{index}")(residual_block(x, f"block{index}", **options))
    if head:
        x = layers.Dense(5, activation="softmax", name="classes")(layers.GlobalAveragePooling2D()(x))
    return randomize(keras.Model(image, x, name=name))


def inserted(model):
    """Name of the layer before -> module, models inside included."""
    found = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found |= inserted(layer)
        elif layer.name.endswith("_attention"):
            found[layer.name.removesuffix("_attention")] = layer
    return found


def outputs(model, count=3, dtype="float32"):
    rng = np.random.default_rng(1)
    images = [rng.normal(0, 1, (count, *tensor.shape[1:])).astype(dtype) for tensor in model.inputs]
    result = model(images if len(images) > 1 else images[0], training=False)
    return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(result)]


def assert_same(model, other):
    for ours, theirs in zip(outputs(model), outputs(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# Table 1's residual additions: 16 blocks; MobileNetV2 has 10 among its 17 blocks, where stride and channels stay.
@pytest.mark.parametrize(
    ("network", "where", "count", "first", "last"),
    [
        ("ResNet50", None, 16, "conv2_block1_3_bn", "conv5_block3_3_bn"),
        ("MobileNetV2", r"project_BN$", 17, "expanded_conv_project_BN", "block_16_project_BN"),
        ("EfficientNetB0", None, 9, "block2b_project_bn", "block6d_project_bn"),
        ("ResNet50V2", r"_3_conv$", 16, "conv2_block1_3_conv", "conv5_block3_3_conv"),
    ],
)
def test_applications_networks_compute_the_same_with_modules_in_their_blocks(network, where, count, first, last):
    """In float64, so that rounding hides nothing."""
    keras.config.set_dtype_policy("float64")
    try:
        model = randomize(getattr(keras.applications, network)(weights=None, input_shape=(32, 32, 3), classes=10))
        new = insert_attention(model, "na", where, preserve=True)
    finally:
        keras.config.set_dtype_policy("float32")
    modules, before = inserted(new), outputs(model)
    assert (len(modules), *list(modules)[:: count - 1]) == (count, first, last)
    assert all(isinstance(module, NormalizationAttention) for module in modules.values())
    names = {layer.name for layer in model.layers}
    assert {layer.name for layer in new.layers} == names | {f"{name}_attention" for name in modules}
    assert np.ptp(before[0]) > 1e-6
    # Rounding is 1e-16 a number and some thousand roundings deep: 1e-13. What a wrong place does is asserted below.
    np.testing.assert_allclose(outputs(new)[0], before[0], rtol=1e-10)


def test_without_preserve_every_weight_is_kept():
    model = randomize(keras.applications.MobileNetV2((32, 32, 3), 0.35, weights=None, classes=10))
    before, weights = outputs(model), model.get_weights()
    plain = insert_attention(model)
    modules = list(inserted(plain))
    assert (len(modules), modules[0], modules[-1]) == (10, "block_2_project_BN", "block_15_project_BN")
    for ours, kept in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(ours, kept)
    assert np.abs(outputs(plain)[0] / before[0] - 1).max() > 1e-3
    for layer in model.layers:
        for ours, theirs in zip(plain.get_layer(layer.name).get_weights(), layer.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_the_shorter_way_to_an_addition_is_the_shortcut():
    assert list(inserted(insert_attention(tiny()))) == ["block0_2_bn", "block1_2_bn"]


def test_a_gate_of_one_half_changes_no_bit():
    """Multiplying by 2 and by 1/2 is exact, whatever is computed between."""
    model = tiny()
    assert_same(insert_attention(model, HALF_GATE, preserve=True), model)


def test_preserving_holds_in_training_mode_and_single_precision():
    model = tiny()
    new = insert_attention(model, preserve=True)
    images = np.random.default_rng(2).normal(0, 1, (4, 8, 8, 3)).astype("float32")
    for training in (False, True):
        ours, theirs = (keras.ops.convert_to_numpy(m(images, training=training)) for m in (new, model))
        # Two blocks of some 20 roundings of 1.2e-7 each, on numbers of order 1.
        np.testing.assert_allclose(ours, theirs, atol=5e-6)


def test_a_module_that_starts_as_the_identity_goes_anywhere():
    model = tiny()
    assert_same(insert_attention(model, Identity, where="^out", preserve=True), model)


@pytest.mark.parametrize(
    "options",
    [
        {"between": (layers.Dropout(0.5), layers.Activation("linear"))},
        {"add": lambda tensors: tensors[0] + tensors[1]},
        {"add": lambda tensors: layers.Add()([tensors[1], tensors[0]])},
    ],
    ids=["dropout", "operator", "shortcut last"],
)
def test_layers_between_and_forms_of_the_addition(options):
    model = tiny(1, **options)
    new = insert_attention(model, HALF_GATE, preserve=True)
    assert list(inserted(new)) == ["block0_2_bn"]
    assert_same(new, model)


def test_where_takes_an_expression_or_a_function():
    model = tiny()
    assert list(inserted(insert_attention(model, where=r"_1_bn$"))) == ["block0_1_bn", "block1_1_bn"]
    wide = insert_attention(model, where=lambda layer: isinstance(layer, layers.Conv2D) and layer.filters == 4)
    assert list(inserted(wide)) == ["block0_1_conv", "block1_1_conv"]


@pytest.mark.parametrize("outer", ["functional", "sequential", "sequential backbone"])
def test_models_inside_the_model_are_entered(outer):
    head = [layers.GlobalAveragePooling2D(), layers.Dense(5)]
    if outer == "sequential":
        model = keras.Sequential([keras.Input((8, 8, 3)), tiny(head=False), *head])
    else:
        image = keras.Input((8, 8, 3))
        backbone = tiny(head=False)
        if outer == "sequential backbone":
            backbone = keras.Sequential([keras.Input((8, 8, 3)), layers.Rescaling(0.5), backbone], name="backbone")
        x = backbone(image, training=False)
        for layer in head:
            x = layer(x)
        model = keras.Model(image, x)
    new = insert_attention(model, HALF_GATE, preserve=True)
    assert list(inserted(new)) == ["block0_2_bn", "block1_2_bn"]
    assert_same(new, model)


def test_a_shared_layer_has_one_module_called_as_often():
    image, other = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 3), name="right")
    shared = layers.Conv2D(4, 3, name="shared")
    model = randomize(keras.Model([image, other], {"sum": layers.Add()([shared(image), shared(other)])}))
    new = insert_attention(model, HALF_GATE, where="shared", preserve=True)
    assert len(inserted(new)) == 1 and len(new.weights) == len(model.weights) + 2
    assert set(new.output) == {"sum"} and [t.name for t in new.inputs] == ["left", "right"]
    assert_same(new, model)


def test_a_layer_that_is_also_an_output_gives_the_modules_output():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="features")(image)
    model = keras.Model(image, [x, layers.GlobalAveragePooling2D()(x)])
    new = insert_attention(model, where="features")
    features, _ = outputs(new)
    gate = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(features, gate * outputs(model)[0], rtol=1e-6)
    assert_same(insert_attention(model, HALF_GATE, where="features", preserve=True), model)


def test_the_original_is_neither_changed_nor_shared():
    model = tiny()
    before, config = outputs(model), model.get_config()
    new = insert_attention(model, preserve=True)
    new.set_weights([np.zeros_like(w) for w in new.get_weights()])
    np.testing.assert_array_equal(outputs(model)[0], before[0])
    assert model.get_config() == config and model.get_layer("block0_2_bn").output is not None


def test_saved_equals_loaded_and_a_second_insertion_finds_no_place(tmp_path):
    new = insert_attention(tiny(), preserve=True)
    new.save(tmp_path / "new.keras")
    loaded = keras.saving.load_model(tmp_path / "new.keras")
    assert_same(loaded, new)
    with pytest.raises(ValueError, match="Before those there is: block0_2_bn_attention, block1_2_bn_attention"):
        insert_attention(loaded)


def test_a_taken_name_is_avoided():
    twice = insert_attention(insert_attention(tiny(1), where="_2_bn$"), where="_2_bn$")
    assert {"block0_2_bn_attention", "block0_2_bn_attention_"} <= {layer.name for layer in twice.layers}


def test_adapted_normalisation_and_frozen_layers_are_kept():
    normalize = layers.Normalization(name="normalize")
    normalize.adapt(np.random.default_rng(0).normal(5, 3, (50, 8, 8, 3)).astype("float32"))
    image = keras.Input((8, 8, 3))
    backbone = tiny(1, head=False)
    backbone.trainable = False
    model = keras.Model(image, backbone(normalize(image)))
    new = insert_attention(model, HALF_GATE, preserve=True)
    assert_same(new, model)
    assert [weight.name for weight in new.trainable_weights] == ["gamma", "beta"]


def test_modules_have_the_precision_and_the_data_format_of_the_network():
    keras.config.set_dtype_policy("mixed_bfloat16")
    keras.config.set_image_data_format("channels_first")
    try:
        image = keras.Input((3, 8, 8))
        x = layers.BatchNormalization(axis=1, name="bn")(layers.Conv2D(4, 3, padding="same")(image))
        model = keras.Model(image, layers.ReLU()(x))
    finally:
        keras.config.set_dtype_policy("float32")
        keras.config.set_image_data_format("channels_last")
    (module,) = inserted(insert_attention(model, where="^bn$", preserve=True)).values()
    assert (module.data_format, module.compute_dtype) == ("channels_first", "bfloat16")
    assert keras.config.dtype_policy().name == "float32"
    assert keras.config.image_data_format() == "channels_last"


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_a_module_after_a_layer_without_a_data_format_has_the_networks(data_format):
    """Under the other global setting, as a loaded model may be."""
    first = data_format == "channels_first"
    image = keras.Input((3, 16, 20) if first else (16, 20, 3))
    x = layers.ReLU(name="before")(image)
    x = layers.MaxPooling2D(2, data_format=data_format)(x)
    x = layers.ReLU(name="after")(layers.Dropout(0.5)(layers.BatchNormalization(axis=1 if first else 3)(x)))
    inner = keras.Model(other := keras.Input(x.shape[1:]), layers.Activation("tanh", name="inside")(other))
    model = keras.Model(image, layers.GlobalAveragePooling2D(data_format=data_format)(inner(x)))
    keras.config.set_image_data_format("channels_last" if first else "channels_first")
    try:
        modules = inserted(insert_attention(model, where="^(before|after|inside)$"))
    finally:
        keras.config.set_image_data_format("channels_last")
    assert {name: module.data_format for name, module in modules.items()} == dict.fromkeys(
        ("before", "after", "inside"), data_format
    )


class Subclassed(keras.Model):
    def call(self, x):
        return x


def plain(*stack):
    image = keras.Input((8, 8, 3))
    x = image
    for layer in stack:
        x = layer(x)
    return keras.Model(image, x, name="plain")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Subclassed, {}, "needs a functional model, whose graph it reads. Received: <Subclassed.*Build the network as"),
        (lambda: keras.Sequential([layers.Dense(2)]), {}, "begin it with keras.Input"),
        (tiny, {"attention": None}, "attention must be a name"),
        (tiny, {"attention": "sesame"}, "one of .*'na'.*Received: 'sesame'"),
        (tiny, {"attention": lambda name: name}, "must return a layer when called with name=. Received: 'block0_2_bn_"),
        (tiny, {"where": "sesame"}, "where='sesame' matches none of the .* of 'tiny'. Some of their names: block0_"),
        (tiny, {"where": "("}, "not a regular expression"),
        (tiny, {"where": 3}, "where must be None, a regular expression.*Received: 3"),
        (
            tiny,
            {"where": "classes"},
            "not take the output of 'classes', .None, 5.: NormalizationAttention takes",
        ),
        (
            tiny,
            {"attention": lambda name: layers.MaxPooling2D(name=name)},
            "must return the shape of its input, .None, 8, 8, 6. after 'block0_2_bn'",
        ),
        (
            lambda: plain(layers.Conv2D(4, 3, name="only")),
            {},
            "no such addition.*where=..only.*maps: only",
        ),
        (
            tiny,
            {"attention": InputDependentGate, "preserve": True},
            "InputDependentGate after 'block0_2_bn' would change.*by 0.* to .* no weights .*preserve=False",
        ),
        (tiny, {"where": "out0", "preserve": True}, r"'out0' \(ReLU\) has no weights that take up the inverse"),
        (
            lambda: plain(layers.Conv2D(4, 3, activation="relu", name="active")),
            {"where": "active", "preserve": True},
            "multiplies by 0.731059, and 'active'",
        ),
        (
            lambda: plain(layers.BatchNormalization(scale=False, name="unscaled")),
            {"where": "unscaled", "preserve": True},
            "Choose a normalisation with scale=True",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(model, options, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        insert_attention(model(), **options)
