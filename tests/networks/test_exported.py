"""networks.open_exported: what an export is made of, by name or file, and what it refuses."""

import keras
import numpy as np
import pytest
from keras import layers
from small_classifiers import SIZE, pictures, small_classifier

from na_keras import ResNet18
from na_keras.deploy import deploy_copy
from na_keras.networks import Network, open_exported

RESCALING = [layers.Rescaling(1 / 255)]


def opened(path, activation=None, output_name=None, **fields):
    return open_exported(Network(str(path), **fields), activation=activation, output_name=output_name)


def saved(folder, model=None, **options):
    (model or small_classifier(**options)).save(folder / "model.keras")
    return folder / "model.keras"


def two_outputs(named=False):
    """(model, its classifier, its embedding): of grey images of any size, twice as wide as high or not."""
    image = keras.Input((None, None, 1))
    features = layers.Conv2D(4, 3)(layers.Rescaling(1 / 255)(image))
    embedding = layers.GlobalAveragePooling2D(name="embedding")(features)
    answer = layers.Dense(3, "softmax", name="head")(embedding)
    outputs = {"colours": answer, "embedding": embedding} if named else [embedding, answer]
    return keras.Model(image, outputs), keras.Model(image, answer), keras.Model(image, embedding)


def test_a_file_computes_on_raw_pixels_what_it_did_on_its_own(tmp_path):
    path = saved(tmp_path, first=[])
    exported = opened(path, pixels="tf")
    assert (exported.ending, exported.answer, exported.classes, exported.pixels) == (
        "softmax",
        "probabilities",
        10,
        "tf",
    )
    expected = keras.saving.load_model(path)(pictures() / np.float32(127.5) - 1)
    np.testing.assert_allclose(exported.model(pictures())["probabilities"], expected, atol=1e-5)
    with pytest.raises(ValueError, match="does not show what its pixels mean"):
        opened(path)


def test_logits_are_exported_as_what_is_asked_for(tmp_path):
    path = saved(tmp_path, first=RESCALING, last=(None,))
    scores = keras.saving.load_model(path)(pictures())
    for activation, name, function in (
        ("softmax", "probabilities", keras.ops.softmax),
        ("sigmoid", "probabilities", keras.ops.sigmoid),
        ("none", "logits", lambda x: x),
    ):
        exported = opened(path, activation)
        assert exported.answer == name and set(exported.model.output) == {name}
        np.testing.assert_allclose(exported.model(pictures())[name], function(scores), atol=1e-5)
    with pytest.raises(ValueError, match="model.keras ends in logits. Say by --activation"):
        opened(path)


def test_one_sigmoid_answers_for_yes_or_for_both(tmp_path):
    exported = opened(saved(tmp_path, first=RESCALING, classes=1, last=("sigmoid",)))
    assert (exported.ending, exported.classes) == ("sigmoid", 1)
    both = exported.with_both()
    assert (both.ending, both.classes) == ("softmax", 2)
    yes = exported.model(pictures())["probabilities"]
    np.testing.assert_allclose(both.model(pictures())["probabilities"], np.hstack([1 - yes, yes]), atol=1e-6)
    deploy_copy(both.model)


@pytest.mark.parametrize("named", [False, True])
def test_of_several_outputs_one_answers_and_the_others_keep_their_names(named, tmp_path):
    model, classifier, embedding = two_outputs(named)
    path, name = saved(tmp_path, model), "colours" if named else "head"
    exported = opened(path, output_name=name)
    images = pictures()[:, :16, :, :1]
    answer = deploy_copy(exported.model)[0](images)
    assert set(answer) == {"probabilities", "embedding"} and exported.model.input_shape == (None, None, None, 1)
    np.testing.assert_allclose(answer["probabilities"], classifier(images), atol=1e-5)
    np.testing.assert_allclose(answer["embedding"], embedding(images), atol=1e-5)
    with pytest.raises(ValueError, match=f"has 2 outputs: .*{name}.*. Say by --output-name"):
        opened(path)
    with pytest.raises(ValueError, match="has no output heads. It has: .*embedding"):
        opened(path, output_name="heads")


def test_an_output_with_a_name_of_the_exports_own_is_refused(tmp_path):
    image = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, {"head": layers.Dense(2, "softmax")(x), "scores": x})
    with pytest.raises(ValueError, match="has an output 'scores', a name that an export gives itself: rename it"):
        opened(saved(tmp_path, model), output_name="head")


def test_a_name_needs_weights_of_the_whole_network(tmp_path):
    with pytest.raises(ValueError, match="--model resnet50 names a network without weights.*Give --weights: imagenet"):
        opened("resnet50")
    trained = ResNet18(input_shape=(SIZE, SIZE, 3), classes=4)
    trained.save(path := tmp_path / "weights.keras")
    network = Network("resnet18", weights=str(path))
    with pytest.raises(ValueError, match="whole network.*The classifier is new: .* for 1000 classes"):
        open_exported(network, size=SIZE)
    exported = open_exported(network, size=SIZE, classes=4)
    np.testing.assert_allclose(exported.model(pictures())["probabilities"], trained(pictures()), atol=1e-5)
    assert len(exported.digests["weights_sha256"]) == 64
    with pytest.raises(ValueError, match="--weights and --attention are of a network's name"):
        opened(saved(tmp_path, first=RESCALING), weights=str(path))
    with pytest.raises(ValueError, match="--output-name is of a file"):
        open_exported(network, size=SIZE, classes=4, output_name="head")


@pytest.mark.parametrize(
    ("shape", "message"),
    [((8, 8, 2), r"images \(batch, height, width, 3\), or 1 for grey"), ((8, 3), "must be a classif")],
)
def test_what_is_no_image_is_refused(shape, message, tmp_path):
    image = keras.Input(shape)
    with pytest.raises(ValueError, match=message):
        opened(saved(tmp_path, keras.Model(image, layers.Dense(2, "softmax")(layers.Flatten()(image)))))


def test_three_channels_are_not_of_grey_images(tmp_path):
    image = keras.Input((8, 8, 1))
    path = saved(tmp_path, keras.Model(image, layers.Dense(2, "softmax")(layers.Flatten()(image))))
    with pytest.raises(ValueError, match="pixels=caffe is of red, green and blue"):
        opened(path, pixels="caffe")
    assert opened(path, pixels="tf").model.layers[1].name == "tf_preprocessing"
