"""grad_cam: equal to the class activation map where that is defined, whatever the network is wrapped in."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from na_keras import NAMobileNetV2, grad_cam

SIZE, CHANNELS, CLASSES = 6, 4, 3


def images(count=4, size=SIZE):
    return np.random.default_rng(0).normal(0, 1, (count, size, size, 3)).astype("float32")


def normal(seed):
    return keras.initializers.RandomNormal(0, 0.5, seed)


def features():
    return keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.Conv2D(CHANNELS, 3, activation="tanh", kernel_initializer=normal(2), name="convolution"),
            layers.BatchNormalization(name="norm", beta_initializer=normal(1)),
        ],
        name="features",
    )


def head(activation):
    """Forms of the same ending: what the score is must not depend on how the softmax is written."""
    dense = layers.Dense(CLASSES, None, True, normal(3), normal(4), name="classes")
    pool = layers.GlobalAveragePooling2D(name="pool")
    if activation in ("softmax", "sigmoid", "log_softmax"):
        dense = layers.Dense(CLASSES, activation, True, normal(3), normal(4), name="classes")
        return [pool, dense]
    endings = {
        "none": [],
        "layer": [layers.Softmax()],
        "activation": [layers.Activation("softmax")],
        "operation": [keras.ops.softmax],
        "identity": [layers.Activation("linear"), layers.Identity()],
        "softmax, linear": [layers.Activation("softmax"), layers.Activation("linear", dtype="float32")],
    }
    return [pool, dense, *endings[activation]]


def assemble(*stack):
    image = keras.Input((SIZE, SIZE, 3))
    x = image
    for layer in stack:
        x = layer(x)
    return keras.Model(image, x)


def class_activation_map(backbone, dense, x, classes):
    """CAM with a ReLU, in float64; Grad-CAM is that divided by the number of positions."""
    maps = np.asarray(keras.ops.convert_to_numpy(backbone(x)), "float64")
    kernel = np.asarray(dense.get_weights()[0], "float64")
    return np.maximum(np.einsum("bhwc,cb->bhw", maps, kernel[:, classes]), 0) / np.prod(maps.shape[1:3])


# Gradient and maps are float32, 4 products are summed: a few times 1.2e-7 of numbers below 1.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.mark.parametrize(
    "activation",
    [
        "none",
        "softmax",
        "sigmoid",
        "log_softmax",
        "layer",
        "activation",
        "operation",
        "identity",
        "softmax, linear",
    ],
)
def test_it_is_the_class_activation_map_before_the_softmax(activation):
    backbone = features()
    model = assemble(backbone, *head(activation))
    expected = class_activation_map(backbone, model.get_layer("classes"), images(), [2, 0, 1, 1])
    assert (expected > 0.01).any(axis=(1, 2)).sum() >= 3
    result = grad_cam(model, images(), [2, 0, 1, 1])
    assert result.dtype == np.float32 and result.shape == (4, SIZE - 2, SIZE - 2)
    np.testing.assert_allclose(result, expected, **TOLERANCE)


def test_a_channels_weight_is_the_mean_of_its_gradient():
    """Where each position has its own slope: a Dense on all of them."""
    backbone, dense = features(), layers.Dense(CLASSES, None, True, normal(3))
    model = assemble(backbone, layers.Flatten(), dense)
    maps = keras.ops.convert_to_numpy(backbone(images()))
    weights = dense.get_weights()[0].reshape(*maps.shape[1:], CLASSES)[..., 1].mean((0, 1))
    np.testing.assert_allclose(grad_cam(model, images(), 1), np.maximum(maps @ weights, 0), **TOLERANCE)


def flat(backbone, ending):
    return assemble(*backbone.layers, *ending)


def nested_head(backbone, ending):
    inner = keras.Sequential([keras.Input((SIZE - 2, SIZE - 2, CHANNELS)), *ending], name="head")
    return assemble(backbone, inner)


def doubly_nested(backbone, ending):
    inner = assemble(backbone, ending[0])
    return assemble(assemble(inner, *ending[1:]))


def sequential(backbone, ending):
    return keras.Sequential([keras.Input((SIZE, SIZE, 3)), backbone, *ending])


@pytest.mark.parametrize("wrap", [flat, nested_head, doubly_nested, sequential])
def test_nesting_changes_nothing(wrap):
    backbone, ending = features(), head("softmax")
    model = wrap(backbone, ending)
    expected = class_activation_map(backbone, ending[1], images(), [1, 1, 1, 1])
    for layer in (None, "norm"):
        np.testing.assert_allclose(grad_cam(model, images(), 1, layer), expected, **TOLERANCE)


def test_a_layer_inside_is_named_by_its_path_and_differs_from_the_last():
    model = assemble(features(), *head("softmax"))
    maps = grad_cam(model, images(), 1, "features/convolution")
    np.testing.assert_array_equal(maps, grad_cam(model, images(), 1, "convolution"))
    other = grad_cam(model, images(), 1, "features/norm")
    assert np.abs(maps - other).max() > 1e-3  # a shift of channels changes the map; a scale would not
    np.testing.assert_array_equal(grad_cam(model, images(), 1), grad_cam(model, images(), 1, "features"))


def test_without_a_class_it_takes_each_images_best():
    model = assemble(features(), *head("softmax"))
    dense = model.get_layer("classes")
    kernel, _ = dense.get_weights()
    pooled = keras.ops.convert_to_numpy(model.get_layer("features")(images())).mean((1, 2))
    dense.set_weights([kernel, -(pooled @ kernel).mean(0)])  # no class is best for all
    best = keras.ops.convert_to_numpy(model(images())).argmax(-1)
    assert len(set(best)) > 1
    np.testing.assert_array_equal(grad_cam(model, images()), grad_cam(model, images(), best))


def test_the_images_of_a_batch_do_not_mix():
    model = assemble(features(), *head("softmax"))
    together = grad_cam(model, images(), [0, 1, 2, 0])
    alone = [grad_cam(model, images()[i : i + 1], c)[0] for i, c in enumerate([0, 1, 2, 0])]
    np.testing.assert_allclose(together, alone, **TOLERANCE)


def test_scaled_maps_have_the_images_size_and_a_maximum_of_one():
    model = assemble(features(), *head("softmax"))
    dense = model.get_layer("classes")
    kernel, bias = dense.get_weights()
    backbone = model.get_layer("features")
    backbone.get_layer("convolution").set_weights([np.full_like(w, 0.3) for w in backbone.layers[0].get_weights()])
    kernel[:, 0], kernel[:, 1] = 1, 0  # class 1 depends on nothing
    dense.set_weights([kernel, bias])
    positive = np.abs(images())
    maps = grad_cam(model, positive, [0, 0, 0, 1], scaled=True)
    assert maps.shape == (4, SIZE, SIZE) and maps.dtype == np.float32
    np.testing.assert_array_equal(maps.max(axis=(1, 2)), [1, 1, 1, 0])
    assert maps.min() >= 0


def test_channels_first_is_channels_last_transposed():
    backbone, ending = features(), head("softmax")
    model = assemble(backbone, *ending)
    image = keras.Input((3, SIZE, SIZE))
    x = backbone(layers.Permute((2, 3, 1))(image))
    x = layers.Permute((3, 1, 2), name="first")(x)
    first = keras.Model(image, ending[1](layers.GlobalAveragePooling2D(data_format="channels_first")(x)))
    pixels = images().transpose(0, 3, 1, 2)
    maps = grad_cam(first, pixels, 1, scaled=True, data_format="channels_first")
    np.testing.assert_allclose(maps, grad_cam(model, images(), 1, scaled=True), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grad_cam(first, pixels, 1), grad_cam(model, images(), 1), rtol=1e-4, atol=1e-5)


def test_the_data_format_is_the_layers_own_whatever_the_global_one():
    """ReLU has none itself: it is that of the convolution before, or after it."""
    image = keras.Input((3, 16, 20))
    x = layers.ReLU(name="early")(image)
    x = layers.MaxPooling2D(1, data_format="channels_first")(x)  # a convolution of this order needs a GPU
    x = layers.ReLU(name="late")(layers.BatchNormalization(axis=1)(x))
    x = layers.GlobalAveragePooling2D(data_format="channels_first")(x)
    model = keras.Model(image, layers.Dense(CLASSES)(x))
    pixels = np.random.default_rng(0).normal(0, 1, (2, 3, 16, 20)).astype("float32")
    for layer in (None, "early", "late"):
        assert grad_cam(model, pixels, 1, layer).shape == (2, 16, 20)
    assert grad_cam(model, pixels, 1, scaled=True).shape == (2, 16, 20)


def test_attention_heads_are_no_map():
    """(batch, heads, n, d) has rank 4 too."""
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(4, 3, name="maps")(image)
    heads = ops.transpose(ops.reshape(x, (-1, 16, 2, 2)), (0, 2, 1, 3))
    heads = ops.softmax(ops.matmul(heads, ops.transpose(heads, (0, 1, 3, 2))))
    model = keras.Model(image, layers.Dense(CLASSES)(layers.Flatten()(heads)))
    np.testing.assert_array_equal(grad_cam(model, images(), 1), grad_cam(model, images(), 1, "maps"))
    with pytest.raises(ValueError, match="says which axes are height and width: say data_format=.*maps"):
        grad_cam(model, images(), 1, model.operations[-3].name)


def double_dense(activation):
    return layers.Dense(CLASSES, activation, True, normal(3), normal(4), name="classes")


ENDINGS = {
    "Activation sigmoid": [layers.Activation("sigmoid")],
    "ops.sigmoid": [ops.sigmoid],
    "ops.log_softmax": [ops.log_softmax],
    "TensorFlow's softmax": [layers.Activation(lambda x: ops.softmax(x, -1))],
    "Lambda": [layers.Lambda(lambda x: ops.softmax(x))],
    "Softmax of maps": [layers.Reshape((1, 1, CLASSES)), layers.Softmax(), layers.Flatten()],
    "Softmax of maps, channels first": [layers.Reshape((CLASSES, 1, 1)), layers.Softmax(1), layers.Flatten()],
    "Reshape": [layers.Softmax(), layers.Reshape((CLASSES,))],
    "Flatten": [layers.Softmax(), layers.Flatten()],
    "Dropout": [layers.Softmax(), layers.Dropout(0.5)],
    "Rescaling": [layers.Softmax(), layers.Rescaling(100.0)],
    "cast": [layers.Softmax(), lambda x: ops.cast(x, "float16")],
    "percent": [layers.Softmax(), lambda x: x * 100.0],
    "Lambda of the same": [layers.Softmax(), layers.Lambda(lambda x: ops.clip(x, 0.0, 1.0))],
    "a model of its own": [keras.Sequential([keras.Input((CLASSES,)), layers.Softmax(), layers.Flatten()])],
}


@pytest.mark.parametrize("name", ENDINGS)
def test_scores_are_before_the_softmax_however_it_is_written(name):
    """With logits near 50, where the gradients of probabilities vanish."""
    backbone, dense = features(), double_dense(None)
    model = assemble(backbone, layers.GlobalAveragePooling2D(), dense, *ENDINGS[name])
    dense.set_weights([dense.get_weights()[0], np.float32([50, 0, -50])])
    expected = class_activation_map(backbone, dense, images(), [2, 0, 1, 1])
    np.testing.assert_allclose(grad_cam(model, images(), [2, 0, 1, 1]), expected, **TOLERANCE)


@pytest.mark.parametrize(
    "ending",
    [
        [layers.Softmax(), lambda x: 1.0 - x],
        [layers.Activation("sigmoid"), ops.square],
        [layers.Lambda(lambda x: ops.softmax(x / 3.0))],
        [layers.Softmax(), lambda x: (x + ops.flip(x, 1)) / 2.0],
    ],
    ids=["one minus", "square", "temperature", "mean"],
)
def test_probabilities_that_are_not_understood_are_refused(ending):
    model = assemble(features(), layers.GlobalAveragePooling2D(), double_dense(None), *ending)
    with pytest.raises(ValueError, match="grad_cam takes scores before the softmax or sigmoid.*ends in"):
        grad_cam(model, images(), 1)


@pytest.mark.parametrize("ending", [[], [layers.Activation("relu")], [layers.Activation("tanh")]])
def test_other_endings_are_differentiated_as_they_are(ending):
    model = assemble(features(), layers.GlobalAveragePooling2D(), double_dense(None), *ending)
    best = keras.ops.convert_to_numpy(model(images())).argmax(-1)  # where a ReLU has a gradient
    assert grad_cam(model, images(), best).max() > 0


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_of_one_unit_the_negative_class_can_be_asked_for(activation):
    backbone = features()
    dense = layers.Dense(1, activation, True, normal(3), name="classes")
    model = assemble(backbone, layers.GlobalAveragePooling2D(), dense)
    positive = class_activation_map(backbone, dense, images(), [0] * 4)
    kernel, bias = dense.get_weights()
    np.testing.assert_allclose(grad_cam(model, images(), 1), positive, **TOLERANCE)
    dense.set_weights([-kernel, -bias])
    negative = class_activation_map(backbone, dense, images(), [0] * 4)
    dense.set_weights([kernel, bias])
    np.testing.assert_allclose(grad_cam(model, images(), 0), negative, **TOLERANCE)
    best = (keras.ops.convert_to_numpy(model(images()))[:, 0] > (0.5 if activation else 0)).astype(int)
    np.testing.assert_array_equal(grad_cam(model, images()), grad_cam(model, images(), best))


def test_classes_may_be_a_tensor():
    model = classifier()
    best = ops.argmax(model(images()), -1)
    np.testing.assert_array_equal(grad_cam(model, images(), best), grad_cam(model, images()))
    np.testing.assert_array_equal(grad_cam(model, images(), np.int64(1)), grad_cam(model, images(), 1))


def test_other_inputs_beside_the_images_are_taken():
    image, age = keras.Input((SIZE, SIZE, 3), name="image"), keras.Input((2,), name="age")
    backbone, dense = features(), double_dense("softmax")
    pooled = layers.GlobalAveragePooling2D()(backbone(image))
    model = keras.Model([age, image], dense(layers.Concatenate()([pooled, age])))
    ages = np.random.default_rng(1).normal(0, 1, (4, 2)).astype("float32")
    plain = layers.Dense(CLASSES)
    same = assemble(backbone, layers.GlobalAveragePooling2D(), plain)
    plain.set_weights([dense.get_weights()[0][:CHANNELS], dense.get_weights()[1]])
    expected = grad_cam(same, images(), 1)
    np.testing.assert_allclose(grad_cam(model, [ages, images()], 1), expected, **TOLERANCE)
    np.testing.assert_allclose(grad_cam(model, {"image": images(), "age": ages}, 1), expected, **TOLERANCE)
    with pytest.raises(ValueError, match="Expected 2 inputs of shapes.*Received: 1"):
        grad_cam(model, images(), 1)
    with pytest.raises(ValueError, match=r"'age', one per image of shape \(None, 2\). Received: shape \(3, 2\)"):
        grad_cam(model, [ages[:3], images()], 1)
    with pytest.raises(ValueError, match="Expected a classifier of images: one input of rank 4"):
        grad_cam(keras.Model([image, other := keras.Input((4, 4, 3))], layers.Flatten()(image)), [images(), other], 1)


def test_images_over_time_have_a_map_each():
    backbone, dense = features(), double_dense("softmax")
    video = keras.Input((2, SIZE, SIZE, 3))
    x = layers.TimeDistributed(backbone, name="frames")(video)
    x = layers.TimeDistributed(layers.GlobalAveragePooling2D())(x)
    model = keras.Model(video, dense(layers.GlobalAveragePooling1D()(x)))
    frames = images().reshape(2, 2, SIZE, SIZE, 3)
    expected = class_activation_map(backbone, dense, images(), [1] * 4).reshape(2, 2, SIZE - 2, SIZE - 2) / 2
    np.testing.assert_allclose(grad_cam(model, frames, 1), expected, **TOLERANCE)
    assert grad_cam(model, frames, 1, scaled=True).shape == (2, 2, SIZE, SIZE)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_size_of_the_batches_changes_nothing(batch_size):
    model = classifier()
    expected = grad_cam(model, images(), [2, 0, 1, 1])
    np.testing.assert_allclose(grad_cam(model, images(), [2, 0, 1, 1], batch_size=batch_size), expected, **TOLERANCE)


def test_networks_of_this_library_take_integer_images_and_are_left_as_they_are():
    model = NAMobileNetV2(alpha=0.35, input_shape=(64, 64, 3), classes=4)
    weights, config = model.get_weights(), model.get_config()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), "uint8")
    assert grad_cam(model, pixels).shape == (2, 2, 2)  # the last convolution's, stride 32
    assert grad_cam(model, pixels, layer="C3").shape == (2, 8, 8)
    for ours, kept in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(ours, kept)
    assert model.get_config() == config


def test_maps_of_one_position_are_passed_over():
    """keras.applications.MobileNetV3 pools to 1 x 1 and goes on with convolutions."""
    pool = layers.GlobalAveragePooling2D(keepdims=True)
    model = assemble(features(), pool, layers.Conv2D(CLASSES, 1), layers.Flatten(), layers.Softmax())
    assert grad_cam(model, images()).shape == (4, SIZE - 2, SIZE - 2)


class Subclassed(keras.Model):
    def call(self, x):
        return x


def classifier():
    return assemble(features(), *head("softmax"))


def shared():
    convolution = layers.Conv2D(3, 3, padding="same", name="twice")
    return assemble(convolution, convolution, *head("softmax"))


def two_outputs():
    image = keras.Input((SIZE, SIZE, 3))
    return keras.Model(image, [layers.Flatten()(image), layers.Flatten()(image)])


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Subclassed, {}, "grad_cam needs a functional model.*Received: <Subclassed"),
        (two_outputs, {}, "images to one output.*choose one: keras.Model"),
        (lambda: assemble(layers.Conv2D(2, 3)), {}, "Expected a classifier.*None, 4, 4, 2"),
        (lambda: assemble(layers.Flatten(), layers.Dense(2)), {}, "has no layer whose output is feature maps"),
        (
            classifier,
            {"images": images()[0]},
            r"shape \(None, 6, 6, 3\). Received: shape \(6, 6, 3\). Give one image as",
        ),
        (classifier, {"images": images(2, 7)}, r"Received: shape \(2, 7, 7, 3\)"),
        (classifier, {"images": images()[:0]}, r"Received: shape \(0, 6, 6, 3\)"),
        (classifier, {"classes": 3}, "The network has classes 0 to 2. Received: class 3"),
        (classifier, {"classes": [0, -1, 0, 0]}, "classes 0 to 2. Received: class -1"),
        (classifier, {"classes": [0, 1]}, "one class per image, 4. Received: 2"),
        (classifier, {"classes": "cat"}, "one index per image. Received: 'cat'"),
        (classifier, {"layer": "sesame"}, "has no layer 'sesame'.*features/convolution, features/norm, features"),
        (classifier, {"layer": "pool"}, r"needs feature maps, rank 4. 'pool' returns \[\(None, 4\)\]"),
        (shared, {"layer": "twice"}, "'twice' stands for several calls: twice, twice"),
        (classifier, {"data_format": "first"}, "data_format must be"),
        (classifier, {"batch_size": 0}, "batch_size must be a positive number of images. Received: 0"),
        (classifier, {"classes": 1.0}, "one index per image. Received: 1.0"),
        (classifier, {"classes": True}, "one index per image. Received: True"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(model, options, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        grad_cam(model(), **{"images": images(), **options})
