"""export_model.py of networks that training here does not write: a whole export, and what is decided before one."""

import json

import keras
import pytest
import tensorflow as tf
from keras import layers
from small_run import picture, refuse

import export_model
import serving_client
from na_keras.deploy.images import ImageFormat
from na_keras.networks import Network, open_exported

HEIGHT, WIDTH = 24, 40


def oblong(folder, end=("sigmoid",), classes=3):
    """A file of grey images of any size, with an embedding beside its answer; labels.txt says nothing."""
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 1))
    x = layers.Conv2D(8, 3, 2, activation="relu")(layers.Rescaling(1 / 127.5, -1)(image))
    embedding = layers.GlobalMaxPooling2D(name="embedding")(x)
    answer = layers.Dense(classes, *end, kernel_initializer=keras.initializers.RandomNormal(0, 2), name="head")(
        embedding
    )
    keras.Model(image, [embedding, answer], name="oblong").save(folder / "oblong.keras")
    return folder / "oblong.keras"


def test_a_multi_label_network_of_grey_oblong_images_with_two_outputs(tmp_path, c_api_alone, capsys):
    path = oblong(tmp_path)
    (tmp_path / "photographs").mkdir()
    for index in range(12):
        data = tf.io.encode_png(picture((50, 50 + index), index)).numpy()
        (tmp_path / "photographs" / f"{index}.png").write_bytes(data)
    arguments = ["--model", path, "--output", tmp_path / "out", "--size", HEIGHT, WIDTH, "--output-name", "head"]
    arguments += ["--tflite", "float32", "int8", "--sample-images", tmp_path / "photographs"]
    export_model.main([str(argument) for argument in arguments])
    version = tmp_path / "out" / "1"
    manifest = json.loads((version / "manifest.json").read_text())
    assert manifest["answer"] == {"output": "probabilities", "ending": "sigmoid"}
    assert manifest["preprocessing"] == {
        **{"resize": 27, "size": [HEIGHT, WIDTH], "pixels": "grey 0..255", "exif_orientation": True},
        "grey": "round(0.2989 R + 0.5870 G + 0.1140 B)",
    }
    outputs = manifest["signatures"]["serving_default"]["outputs"]
    assert outputs["probabilities"]["shape"] == [None, 3] and outputs["embedding"]["shape"] == [None, 8]
    assert manifest["warmup"][0] == {"signature": "serving_default", "batch": 1}
    assert manifest["checks"]["reduced_precision"]["model_int8.tflite"]["correlation"] > 0.95
    assert "TFLite and ONNX files answer probabilities alone; the SavedModel probabilities, embedding" in (
        capsys.readouterr().out
    )
    photo = tmp_path / "photographs" / "3.png"
    crop = ImageFormat(HEIGHT, WIDTH, 1).crop(photo.read_bytes()).numpy().astype("float32")
    expected = keras.saving.load_model(path)(crop[None])[1].numpy()[0]
    serving_client.main(["--saved-model", str(version), "--image", str(photo)])
    lines = capsys.readouterr().out.splitlines()[1:]
    best = sorted(enumerate(expected), key=lambda pair: -pair[1])
    assert [line.split() for line in lines] == [[f"{100 * score:.1f}", "%", str(index)] for index, score in best]


def choose(folder, given=None, recorded=None, classes=1, activation=None):
    path = oblong(folder, ("sigmoid",) if activation is None else (), classes)
    exported = open_exported(Network(str(path)), activation=activation, output_name="head")
    return export_model.choose_labels(exported, given, recorded)


def test_one_sigmoid_has_one_name_or_two(tmp_path):
    exported, labels = choose(tmp_path)
    assert (exported.classes, exported.ending, labels) == (2, "softmax", ["0", "1"])
    exported, labels = choose(tmp_path, ["dog"], ["cat", "dog"])
    assert (exported.classes, exported.ending, labels) == (1, "sigmoid", ["dog"])
    assert choose(tmp_path, None, ["cat", "dog"])[0].classes == 2
    with pytest.raises(
        ValueError, match="1 classes: one sigmoid, with one name or two, no's first. Received: 3 labels"
    ):
        choose(tmp_path, ["a", "b", "c"])
    with pytest.raises(ValueError, match="The network has 1 classes. Received: 2 labels"):
        choose(tmp_path, ["cat", "dog"], activation="none")


def test_what_the_flags_leave_open_is_refused_before_anything_is_written(tmp_path):
    path, out = oblong(tmp_path, ()), tmp_path / "out"
    assert "has 2 outputs: embedding, head. Say by --output-name" in refuse(path, out)
    named = ("--output-name", "head")
    assert "ends in logits. Say by --activation" in refuse(path, out, *named)
    assert "by --size N, or --size HEIGHT WIDTH" in refuse(path, out, *named, "--activation", "none")
    assert "names a network without weights" in refuse("resnet50", out)
    assert "square images" in refuse("resnet50", out, "--weights", "torchvision-v2", "--size", 24, 40)
    assert "Did you mean" in refuse("keras.applications.ResNet5", out, "--weights", "x")
    assert "import: missing cannot be imported" in refuse(path, out, "--import", "missing")
    assert not out.exists()
