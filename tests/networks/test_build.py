"""Networks that are not of this library: raw pixels in, modules in place, the classifier asked for."""

import keras
import numpy as np
import pytest
from keras import layers
from small_classifiers import SIZE, pictures, small_classifier

from na_keras import NormalizationAttention, networks

RESCALING = [layers.Rescaling(1 / 255)]


def built(model, size=SIZE, classes=10, activation="softmax", **fields):
    """(network, what is said of it)."""
    network, notes = networks.Network(str(model), **fields), []
    start = networks.Start(network)
    options = {"size": size, "classes": classes, "activation": activation, "weights": start.weights}
    return networks.build(network, **options, notes=notes), " ".join(notes)


@pytest.fixture(scope="module")
def mobilenet():
    """keras.applications.MobileNetV2 by its name, with NA."""
    return built("keras.applications.mobilenetv2", attention="na", options={"alpha": 0.35})


def test_a_network_of_keras_applications_takes_raw_pixels_and_is_saved_so(mobilenet, tmp_path):
    network, notes = mobilenet
    assert notes == "" and network.layers[1].name == "tf_preprocessing"
    modules = [layer.name for layer in network.layers if isinstance(layer, NormalizationAttention)]
    assert len(modules) == 10 and modules[0] == "block_2_project_BN_attention"
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(loaded(pictures()), network(pictures()))
    _, notes = built(
        "keras.applications.MobileNetV2",
        weights=str(tmp_path / "network.keras"),
        classes=3,
        attention="na",
        options={"alpha": 0.35},
    )
    assert notes == "The classifier is new: the weights are of 10 classes, the network has 3."


def test_imagenet_weights_are_keras_own_and_other_classes_are_said(monkeypatch):
    original, made = keras.applications.MobileNetV2, []

    def builder(*args, weights="imagenet", **kwargs):
        made.append((weights, original(*args, weights=None, input_shape=(32, 32, 3), **kwargs)))
        return made[-1][1]

    builder.__module__, builder.__wrapped__ = original.__module__, original
    monkeypatch.setattr(networks.names, "application_builders", lambda: {"MobileNetV2": builder})
    start = networks.Start(
        network := networks.Network("keras.applications.MobileNetV2", weights="imagenet", options={"alpha": 0.35})
    )
    (weights, trained), notes = made[0], []
    assert weights == "imagenet" and len(start.digests["weights_sha256"]) == 64
    monkeypatch.undo()
    model = networks.build(network, size=SIZE, classes=3, weights=start.weights, notes=notes)
    assert notes == ["The classifier is new: the weights are of 1000 classes, the network has 3."]
    np.testing.assert_array_equal(model.get_layer("Conv_1").kernel, trained.get_layer("Conv_1").kernel)


NORMALIZED = keras.applications.mobilenet_v2.preprocess_input


@pytest.mark.parametrize(
    "options",
    [
        {"first": RESCALING},
        {"first": RESCALING, "last": (None, layers.Softmax())},
        {"first": RESCALING, "last": (None, layers.Activation("softmax", name="answer"))},
        {"first": [NORMALIZED], "last": (None, keras.ops.softmax)},
    ],
    ids=["dense", "softmax-layer", "activation", "operations"],
)
@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_a_file_computes_what_it_did_with_fresh_modules_in_it(options, ending, tmp_path):
    if ending == ".h5" and options["first"] != RESCALING:
        pytest.skip("Keras does not read its own .h5 files of operations")
    model = small_classifier(**options)
    model.save(tmp_path / f"model{ending}")
    network, notes = built(tmp_path / f"model{ending}", attention="na")
    assert "the network computes what it did without them" in notes
    assert network.get_layer("branch_bn_attention")
    np.testing.assert_allclose(network(pictures()), model(pictures()), atol=1e-5)
    logits, _ = built(tmp_path / f"model{ending}", activation=None)
    np.testing.assert_allclose(keras.ops.softmax(logits(pictures())), model(pictures()), atol=1e-5)


def test_a_nested_file_gets_other_classes_and_modules_of_ones_own(tmp_path):
    outer = keras.Sequential([keras.Input((SIZE, SIZE, 3)), *RESCALING, small_classifier()])
    outer.save(tmp_path / "outer.keras")
    network, notes = built(tmp_path / "outer.keras", classes=3, attention="na_keras.layers:SimAM", where="branch_bn")
    assert network.output_shape == (None, 3)
    assert "is of 10 classes, the network has 3" in notes
    assert "fresh and change what the network computes: SimAM after 'branch_bn'" in notes
    with pytest.raises(ValueError, match="^preserve=True: SimAM"):
        built(tmp_path / "outer.keras", attention="simam", preserve=True)


def mapped_classifier(*last):
    """A classifier of 10 classes that ends as keras.applications.MobileNet, in a convolution of a map of 1 x 1."""
    trunk = small_classifier(RESCALING)
    x = layers.Reshape((1, 1, 16))(trunk.get_layer("head").input)
    x = layers.Conv2D(10, 1, name="head")(x)
    for layer in last:
        x = layer(x)
    return keras.Model(trunk.input, x)


@pytest.mark.parametrize(
    "last",
    [
        [layers.Reshape((10,)), layers.Activation("softmax")],
        [layers.Softmax(), layers.Reshape((1, 10)), layers.Dropout(0.1), layers.Reshape((10,))],
        [layers.Reshape((-1,)), layers.Softmax()],
        [layers.Flatten(), layers.Softmax()],
        [keras.Sequential([layers.Reshape((10,)), layers.Softmax()])],
        [keras.Sequential([layers.Flatten(), layers.Dropout(0.1)]), layers.Softmax()],
    ],
    ids=["mobilenet", "twice", "any", "flatten", "nested", "nested without a reshape"],
)
def test_other_classes_pass_a_reshape_after_the_classifier(last, tmp_path):
    model = mapped_classifier(*last)
    model.save(tmp_path / "model.keras")
    network, notes = built(tmp_path / "model.keras", classes=3, attention="na")
    assert network.output_shape == (None, 3)
    assert "is of 10 classes, the network has 3" in notes
    np.testing.assert_allclose(np.sum(network(pictures()), axis=1), 1, rtol=1e-6)
    same, _ = built(tmp_path / "model.keras")
    np.testing.assert_allclose(same(pictures()), model(pictures()), atol=1e-6)


def test_other_classes_are_refused_where_a_reshape_splits_them(tmp_path):
    last = [layers.Softmax(), layers.Reshape((2, 5), name="pairs"), layers.Flatten()]
    mapped_classifier(*last).save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=r"has 10 classes, .* 'pairs' brings into the shape \(2, 5\); for 3 classes"):
        built(tmp_path / "model.keras", classes=3)
    assert built(tmp_path / "model.keras")[0].output_shape == (None, 10)


@pytest.mark.parametrize(
    ("options", "fields", "message"),
    [
        ({"last": ("tanh",)}, {}, "must end in a softmax, in sigmoids, or in logits. Received: tanh"),
        ({"last": ("softmax", layers.Rescaling(2.0))}, {}, "must end in a Dense layer .*a Rescaling"),
        ({}, {"size": 48}, "takes images of 32 x 32: give --size 32"),
        ({}, {"options": {"alpha": 1.0}}, "is built already"),
        ({}, {"attention": "na", "where": "nowhere"}, "where='nowhere' matches none"),
    ],
)
def test_what_does_not_fit_is_refused(options, fields, message, tmp_path):
    small_classifier(RESCALING, **options).save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=message):
        built(tmp_path / "model.keras", **fields)


def test_a_file_of_sigmoids_starts_other_endings_which_is_said(tmp_path):
    model = small_classifier(RESCALING, last=("sigmoid",))
    model.save(tmp_path / "model.keras")
    logits, notes = built(tmp_path / "model.keras", activation=None)
    np.testing.assert_allclose(keras.ops.sigmoid(logits(pictures())), model(pictures()), atol=1e-5)
    same, said = built(tmp_path / "model.keras", activation="sigmoid")
    np.testing.assert_allclose(same(pictures()), model(pictures()), atol=1e-5)
    assert notes == said == ""
    assert "model.keras ends in sigmoids" in built(tmp_path / "model.keras")[1]


def test_the_same_classes_in_another_order_are_refused_and_other_classes_said(tmp_path):
    small_classifier(RESCALING, classes=3).save(tmp_path / "model.keras")
    start = networks.Start(networks.Network(str(tmp_path / "model.keras")))
    assert start.check_classes(["cat", "dog", "owl"]) is None  # nothing says which
    (tmp_path / "labels.txt").write_text("cat\nowl\ndog\n")
    start = networks.Start(networks.Network(str(tmp_path / "model.keras")))
    assert start.check_classes(["cat", "owl", "dog"]) is None and start.check_classes(["a", "b"]) is None
    assert "knows cat, ... dog." in start.check_classes(["ant", "bee", "fly"])
    with pytest.raises(ValueError, match="class 1 is owl there and dog in the data"):
        start.check_classes(["cat", "dog", "owl"])


def test_weights_of_pytorch_are_not_for_networks_that_only_have_the_same_names(tmp_path):
    np.savez(tmp_path / "state.npz", **{"conv1.weight": np.zeros((1, 1, 1, 1), "float32")})
    with pytest.raises(ValueError, match="names are known for this library's networks only"):
        built("keras.applications.MobileNetV2", options={"alpha": 0.35}, weights=str(tmp_path / "state.npz"))


def test_under_mixed_precision_pixels_and_classifier_are_float32_and_files_say_their_own(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network, _ = built("keras.applications.MobileNetV2", options={"alpha": 0.35})
        small_classifier(RESCALING).save(tmp_path / "half.keras")
    finally:
        keras.config.set_dtype_policy("float32")
    assert network.get_layer("tf_preprocessing").compute_dtype == network.layers[-1].compute_dtype == "float32"
    assert network.get_layer("Conv_1").compute_dtype == "bfloat16"
    with pytest.raises(ValueError, match="half.keras computes in bfloat16: give --precision bfloat16"):
        built(tmp_path / "half.keras")


def test_synchronized_batch_norm_reaches_every_layer(tmp_path):
    small_classifier(RESCALING).save(tmp_path / "model.keras")
    network = networks.Network(str(tmp_path / "model.keras"), attention="cbam")
    model = networks.build(network, size=SIZE, classes=10, synchronized=True)
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, layers.BatchNormalization)]
    assert len(norms) == 3 and all(norm.synchronized for norm in norms)
