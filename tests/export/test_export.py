"""export_model.py and verify.py: what is published, and what is never published."""

import hashlib
import importlib.util
import json
import pathlib
import shutil
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_run import LABELS, make_run, picture, refuse, small_network

import export_model
from consumers import answer_rules, wire_format
from na_keras import MobileNetV2, NAMobileNetV2, deploy
from na_keras.data import preprocessing
from na_keras.deploy import TFLITE_KINDS, rewrite
from na_keras.deploy.images import ImageFormat
from versions import warmup


def test_a_version_holds_everything_and_its_manifest_is_true(exported, model_file):
    assert [path.name for path in exported.iterdir()] == ["1"]
    version = exported / "1"
    manifest = json.loads((version / "manifest.json").read_text())
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((version / name).read_bytes()).hexdigest() == digest, name
    on_disk = {str(path.relative_to(version)) for path in version.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == on_disk - {"manifest.json"}
    assert {"saved_model.pb", "labels.txt", "tflite/model_float32.tflite"} <= on_disk
    assert manifest["model"]["sha256"] == hashlib.sha256(model_file.read_bytes()).hexdigest()
    assert manifest["preprocessing"] == {"resize": 56, "size": 48, "pixels": "RGB 0..255", "exif_orientation": False}
    assert manifest["deploy"] == {"batch_norm_folded": 2, "attention": 2, "attention_projected": 0}
    fingerprint = tf.saved_model.experimental.read_fingerprint(str(version))
    assert manifest["fingerprint"]["checkpoint_hash"] == str(fingerprint.checkpoint_hash)
    images = {"images": {"dtype": "float32", "shape": [None, 48, 48, 3]}}
    assert manifest["signatures"]["serving_default"]["inputs"] == images
    assert manifest["signatures"]["serving_default"]["method"] == "tensorflow/serving/predict"
    labels = manifest["signatures"]["serve_bytes"]["outputs"]["labels"]
    assert labels == {"dtype": "string", "shape": [None, 3]}
    checks = manifest["checks"]["largest_difference"]
    for name in ("serving_default", "serve_bytes", "model_float32.tflite"):
        assert any(name in check for check in checks)
    assert max(checks.values()) <= manifest["checks"]["tolerance"] == answer_rules.TOLERANCE


def test_signatures_have_the_public_names(exported):
    signatures = tf.saved_model.load(str(exported / "1")).signatures
    assert set(signatures) == {"serving_default", "serve_bytes"}
    images = signatures["serving_default"].structured_input_signature[1]
    assert images == {"images": tf.TensorSpec((None, 48, 48, 3), tf.float32, name="images")}
    image_bytes = signatures["serve_bytes"].structured_input_signature[1]
    assert image_bytes == {"image_bytes": tf.TensorSpec((None,), tf.string, name="image_bytes")}
    top = {"classes": tf.int32, "scores": tf.float32, "labels": tf.string}
    outputs = {name: {k: v.dtype for k, v in s.structured_outputs.items()} for name, s in signatures.items()}
    assert outputs == {"serving_default": {"probabilities": tf.float32, **top}, "serve_bytes": top}


def test_variables_are_written_once_and_nothing_is_compiled(exported, model_file):
    version = exported / "1"
    stored = tf.train.list_variables(str(version / "variables" / "variables"))
    count = sum(np.prod(shape, dtype=int) for name, shape in stored if "VARIABLE_VALUE" in name)
    network, _ = rewrite.deploy_copy(keras.saving.load_model(model_file))
    assert count == network.count_params()
    assert b"_XlaMustCompile" not in (version / "saved_model.pb").read_bytes()


def test_an_export_with_uint8_images_and_several_warmup_requests(model_file, tmp_path, c_api_alone):
    arguments = ["--model", model_file, "--output", tmp_path, "--image-dtype", "uint8", "--warmup-batches", 1, 3]
    export_model.main([str(argument) for argument in arguments])
    images = picture((48, 48)).numpy()[None]
    expected = keras.saving.load_model(model_file).predict(images.astype("float32"), verbose=0)
    signatures = tf.saved_model.load(str(tmp_path / "1")).signatures
    answer = signatures["serving_default"](images=tf.constant(images))
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
    manifest = json.loads((tmp_path / "1" / "manifest.json").read_text())
    assert manifest["signatures"]["serving_default"]["inputs"]["images"]["dtype"] == "uint8"
    recorded = json.loads((model_file.parent / "recipe.json").read_text())
    assert manifest["recipe"] == {"exif_orientation": False, **recorded}  # what a run of before the field did
    assert manifest["warmup"] == [
        {"signature": signature, "batch": batch} for batch in (1, 3) for signature in ("serving_default", "serve_bytes")
    ]
    shapes = [inputs["images"].shape for name, inputs in warmup.read_requests(tmp_path / "1") if "images" in inputs]
    assert shapes == [(1, 48, 48, 3), (3, 48, 48, 3)]


def test_warmup_requests_are_what_a_server_reads_and_their_replay_is_a_direct_call(exported):
    """wire_format.py reads any protocol buffer; it was not written with warmup.py."""
    path = exported / "1" / "assets.extra" / "tf_serving_warmup_requests"
    signatures = tf.saved_model.load(str(exported / "1")).signatures
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    assert records == list(wire_format.records(path.read_bytes()))
    for record, signature, name in zip(
        records, ["serving_default", "serve_bytes"], ["images", "image_bytes"], strict=True
    ):
        assert [number for number, _ in wire_format.fields(record)] == [6]  # predict_log
        asked, inputs = wire_format.warmup_request(record)
        assert (asked, list(inputs)) == (signature, [name])
        answer = signatures[signature](**{name: tf.constant(inputs[name].tolist())})
        assert answer["scores"].shape == (1, 3) and np.isfinite(answer["scores"]).all()
    assert warmup.replay(exported / "1") == [
        {"signature": "serving_default", "batch": 1},
        {"signature": "serve_bytes", "batch": 1},
    ]


@pytest.mark.parametrize(
    ("signature", "inputs"),
    [
        ("serve_bytes", {"image_bytes": [b"not an image"]}),
        ("serve_bytes", {"images": [b""]}),
        ("serving_default", {"images": np.zeros((1, 8, 8, 3), "float32")}),
        ("other", {"images": np.zeros((1, 48, 48, 3), "float32")}),
    ],
)
def test_a_warmup_request_that_fails_is_found(exported, tmp_path, signature, inputs):
    shutil.copytree(exported / "1", tmp_path / "1")
    warmup.write_requests(tmp_path / "1", [(signature, inputs)])
    with pytest.raises(RuntimeError, match=f"warm-up request to {signature} fails"):
        warmup.replay(tmp_path / "1")


def test_a_warmup_request_that_fails_stops_the_export(model_file, tmp_path, monkeypatch):
    genuine, failing = warmup.write_requests, [("serve_bytes", {"image_bytes": [b"not an image"]})]
    monkeypatch.setattr(warmup, "write_requests", lambda folder, _: genuine(folder, failing))
    with pytest.raises(SystemExit, match="warm-up request to serve_bytes fails"):
        export_model.main(["--model", str(model_file), "--output", str(tmp_path / "out")])
    assert list((tmp_path / "out").iterdir()) == []


def test_requests_of_any_length_come_back():
    for length in (0, 1, 100, 127, 128, 16383, 16384, 300_000):
        signature, inputs = wire_format.warmup_request(warmup.encode("x", {"image_bytes": [b"y" * length]}))
        assert signature == "x" and inputs["image_bytes"].tolist() == [b"y" * length]


def test_answers_are_those_of_the_keras_model_after_evaluation_preprocessing(exported, model_file):
    model = keras.saving.load_model(model_file)
    files = [tf.io.encode_jpeg(picture()).numpy(), tf.io.encode_png(picture((200, 50), 1)).numpy()]
    crops = np.stack([preprocessing.evaluation_image(data, 56, 48) for data in files])
    expected = model.predict(crops, verbose=0)
    signatures = tf.saved_model.load(str(exported / "1")).signatures
    for batch in (1, 2):
        answer = signatures["serve_bytes"](image_bytes=tf.constant(files[:batch]))
        order = np.argsort(-expected[:batch], axis=1)[:, :3]
        np.testing.assert_array_equal(answer["classes"], order)
        np.testing.assert_allclose(answer["scores"], np.take_along_axis(expected[:batch], order, 1), atol=1e-5)
        assert answer["labels"].numpy().astype(str).tolist() == [[LABELS[i] for i in row] for row in order]
        full = signatures["serving_default"](images=tf.constant(crops[:batch].astype("float32")))
        np.testing.assert_allclose(full["probabilities"], expected[:batch], atol=1e-5)
    assert np.ptp(expected) > 0.05  # not a network that says the same of everything


def test_tflite_file_takes_one_raw_image_and_uses_builtins_only(exported, model_file):
    from ai_edge_litert.interpreter import Interpreter

    path = exported / "1" / "tflite" / "model_float32.tflite"
    interpreter = Interpreter(str(path))
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["images"], "outputs": ["probabilities"]}}
    image = picture((48, 48)).numpy()[None].astype("float32")
    ours = interpreter.get_signature_runner("serving_default")(images=image)["probabilities"]
    np.testing.assert_allclose(ours, keras.saving.load_model(model_file).predict(image, verbose=0), atol=1e-5)
    assert b"Flex" not in path.read_bytes()


def test_every_kind_of_tflite_file_with_labels_and_a_report_of_its_tensors(model_file, tmp_path, capsys):
    arguments = ["--model", model_file, "--output", tmp_path, "--sample-count", 40, "--tflite", *TFLITE_KINDS]
    export_model.main([str(argument) for argument in arguments])
    folder = tmp_path / "1" / "tflite"
    manifest = json.loads((tmp_path / "1" / "manifest.json").read_text())
    quantized = {"int8", "int8_float_gate", "int16x8"}
    names = {f"model_{kind}.tflite" for kind in TFLITE_KINDS}
    assert {path.name for path in folder.iterdir()} == names | {f"model_{kind}.tensors.csv" for kind in quantized}
    for kind in TFLITE_KINDS:
        path, described = folder / f"model_{kind}.tflite", manifest["tflite"][f"model_{kind}.tflite"]
        assert described["bytes"] == path.stat().st_size
        assert ("gates" in described) == (kind in quantized)
        if kind != "int16x8":
            assert zipfile.ZipFile(path).read("labels.txt").decode().split() == LABELS
        if kind in quantized:
            assert described["gates"]["count"] == 2
            assert described["gates"]["correlation"]["lowest"] > 0.99
            assert described["gates"]["sqnr_decibels"]["lowest"] > 20
            assert "LOGISTIC" in (folder / f"model_{kind}.tensors.csv").read_text()
    assert set(manifest["checks"]["reduced_precision"]) == names - {"model_float32.tflite"}
    assert "training images of digits" in (printed := capsys.readouterr().out)
    assert "model_int8.tflite" in printed and "not checked with server" in printed


def test_kinds_of_files_that_cannot_be_written_are_refused_before_any_work(model_file, tmp_path):
    out, alone = tmp_path / "out", tmp_path / "alone.keras"
    alone.write_bytes(model_file.read_bytes())
    assert "give --sample-images DIR" in refuse(alone, out, "--tflite", "int8")
    assert "No images in" in refuse(model_file, out, "--tflite", "int8", "--sample-images", tmp_path)
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    assert "cut.jpg does not decode" in refuse(model_file, out, "--tflite", "int8", "--sample-images", tmp_path)
    plain = make_run(tmp_path / "plain", build=lambda size: MobileNetV2((size, size, 3), 0.35, classes=len(LABELS)))
    assert "this network has none" in refuse(plain, out, "--tflite", "int8_float_gate")
    literal = make_run(tmp_path / "literal", build=lambda size: small_network(size, similarity="l1"))
    assert "with similarity='l1'" in refuse(literal, out, "--tflite", "int8")
    assert not out.exists()


def test_the_next_export_is_the_next_version(exported, model_file, tmp_path, c_api_alone, capsys):
    exported = shutil.copytree(exported, tmp_path / "model")
    before = {path: path.read_bytes() for path in (exported / "1").rglob("*") if path.is_file()}
    (exported / "incoming-abc").mkdir()  # what a killed export leaves
    (exported / ".DS_Store").touch()  # what a file browser leaves
    other = tmp_path / "other.txt"
    other.write_text("\n".join(f"Größe {index}" for index in range(7)), "utf-8")
    export_model.main(["--model", str(model_file), "--output", str(exported), "--resize", "48", "--labels", str(other)])
    assert f"{exported / 'incoming-abc'} is being written by another export, or was left" in capsys.readouterr().out
    assert (exported / "2" / "labels.txt").read_text("utf-8").splitlines()[6] == "Größe 6"
    assert sorted(path.name for path in exported.iterdir()) == [".DS_Store", "1", "2", "incoming-abc"]
    assert json.loads((exported / "2" / "manifest.json").read_text())["preprocessing"]["resize"] == 48
    assert {path: path.read_bytes() for path in before} == before
    # A server under another user must be able to read it.
    assert (exported / "2").stat().st_mode & 0o055 == 0o055


def test_artifacts_that_disagree_with_keras_are_not_published(model_file, tmp_path, monkeypatch, c_api_alone):
    def write_another_network(network, *arguments, **options):
        weights = network.get_weights()
        network.set_weights([*weights[:-1], weights[-1] + np.eye(len(LABELS))[0]])
        genuine(network, *arguments, **options)

    genuine = deploy.write_saved_model
    monkeypatch.setattr(deploy, "write_saved_model", write_another_network)
    with pytest.raises(SystemExit, match="failed verification"):
        export_model.main(["--model", str(model_file), "--output", str(tmp_path / "out")])
    assert list((tmp_path / "out").iterdir()) == []


def test_an_export_that_fails_leaves_no_version(model_file, tmp_path, monkeypatch):

    def out_of_space(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(deploy, "convert_tflite", out_of_space)
    with pytest.raises(SystemExit, match="nothing was published; writing below .*out failed: .* No space left"):
        export_model.main(["--model", str(model_file), "--output", str(tmp_path / "out")])
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_network_trained_in_mixed_precision_ships_in_float32(tmp_path, policy, c_api_alone):
    path = make_run(tmp_path / "run", policy=policy)
    trained = keras.saving.load_model(path)
    copy = rewrite.float32_copy(trained)
    assert {layer.compute_dtype for layer in copy.layers} == {"float32"}
    for one, other in zip(copy.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    if policy == "mixed_float16":
        export_model.main(["--model", str(path), "--output", str(tmp_path / "out")])
        assert (tmp_path / "out" / "1" / "saved_model.pb").exists()


class Unregistered(keras.layers.Layer):
    """A user's layer without the decorator that a saved model needs."""

    def get_config(self):
        return super().get_config()


Unregistered.__module__ = "a_module_that_is_not_here"


def test_a_folder_that_holds_something_else_is_refused_and_kept(model_file, tmp_path):
    (tmp_path / "notes.txt").write_text("irreplaceable")
    assert "is not empty and holds notes.txt, which no export wrote; it is kept" in refuse(model_file, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert "is a file; it is kept" in refuse(model_file, tmp_path / "notes.txt")
    (tmp_path / "other" / "7").mkdir(parents=True)  # a version that is not ours
    assert "holds 7, which no export wrote" in refuse(model_file, tmp_path / "other")


def test_bad_models_and_labels_are_refused_before_anything_is_written(model_file, tmp_path):
    out = tmp_path / "out"
    assert "there is no file" in refuse(tmp_path / "missing.keras", out)
    (tmp_path / "text.keras").write_text("not a model")
    assert "is not a Keras model file" in refuse(tmp_path / "text.keras", out)
    (tmp_path / "labels.txt").write_text("a\nb\n")
    assert "7 classes. Received: 2 labels" in refuse(model_file, out, "--labels", tmp_path / "labels.txt")
    assert "No such file" in refuse(model_file, out, "--labels", tmp_path / "missing.txt")
    assert "--resize must be at least the image size 48. Received: 40" in refuse(model_file, out, "--resize", 40)
    logits = make_run(tmp_path / "logits", activation=None)
    assert "ends in logits. Say by --activation what its answers are to be: softmax" in refuse(logits, out)
    features = make_run(tmp_path / "features", include_top=False)
    assert "must answer (batch, classes). Received: (None, 11, 11, 16)" in refuse(features, out)
    raw = make_run(tmp_path / "raw", build=lambda size: NAMobileNetV2((size, size, 3), include_preprocessing=False))
    assert "does not show what its pixels mean. Say it by --pixels" in refuse(raw, out)
    unknown = tmp_path / "unknown.keras"
    keras.Sequential([keras.Input((32, 32, 3)), Unregistered()]).save(unknown)
    assert "Unregistered, which is not registered here" in refuse(unknown, out)
    assert "2" in refuse(model_file, out, "--top", 0)
    assert not out.exists()


def test_sizes_come_from_the_flag_the_run_or_the_network():
    model = lambda *sides: keras.Sequential([keras.Input((*sides, 3)), keras.layers.Rescaling(1.0)])  # noqa: E731
    recipe = {"size": 48, "evaluation_resize": 56, "exif_orientation": False}
    choose = export_model.choose_images
    assert choose(model(None, None), recipe) == ImageFormat(48, 48, 3, 56, False)
    assert choose(model(32, 32), recipe, None, 40) == ImageFormat(32, 32, 3, 40, False)
    assert choose(model(224, 224), None) == ImageFormat(224, 224, 3, 256, True)
    assert choose(model(None, None), None, (32, 64)) == ImageFormat(32, 64, 3, 37, True)
    with pytest.raises(ValueError, match="by --size N, or --size HEIGHT WIDTH"):
        choose(model(None, None), None)
    with pytest.raises(ValueError, match=r"images of 32 x 64, size=\[32, 32\]"):
        choose(model(32, 64), None, [32, 32])


def test_a_missing_package_is_named_before_any_work(monkeypatch, tmp_path):
    genuine = importlib.util.find_spec
    missing = lambda name: None if name == "ai_edge_litert" else genuine(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", missing)
    assert "pip install -e '.[export]'" in refuse(tmp_path / "any.keras", tmp_path / "out")


def test_a_model_without_its_run_directory_needs_nothing_else(model_file, tmp_path):
    alone = tmp_path / "alone.keras"
    alone.write_bytes(pathlib.Path(model_file).read_bytes())
    arguments = export_model.parse_arguments(["--model", str(alone), "--output", str(tmp_path / "out")])
    plan, recipe = export_model.make_plan(arguments)
    assert recipe is None and plan.labels == list("0123456")
    assert plan.images == ImageFormat(48, 48, 3, round(48 * 256 / 224), True)
