"""Exported detectors: what a server and a device answer is what the detector's own evaluation finds."""

import contextlib
import json
import pathlib
import shutil
import signal

import numpy as np
import pytest

pytest.importorskip("official", reason="needs the extra detection, in an environment of its own (docs/detection.md)")
pytest.importorskip("ai_edge_litert", reason="needs the extra export")

import tensorflow as tf  # noqa: E402
import tf_keras  # noqa: E402

import export_detection  # noqa: E402
import serving_client  # noqa: E402
from consumers import detection_rules, verification  # noqa: E402
from detection_engine import opened  # noqa: E402
from na_keras.detection.model_garden import detectors, inference, lite, saved, served  # noqa: E402
from na_keras.files import sha256_of  # noqa: E402
from versions import detector_version, publish  # noqa: E402

CATEGORIES = {3: "cat", 7: "dog", 90: "toothbrush"}
NETWORK = {"attention": "na", "frozen_stages": 0, "fixed_batch_norm": False, "filters": 16, "model_id": 18}
NETWORK |= {"coarsest_level": 5, "attention_stages": [3, 5]}
MOST = 40


def randomize(layer, spread):
    """Weights with which answers differ from image to image."""
    rng = np.random.default_rng(0)
    shapes = [weight.shape for weight in layer.weights]
    scales = [spread * (2 / np.prod(shape[:-1])) ** 0.5 if len(shape) > 1 else 0 for shape in shapes]
    layer.set_weights([rng.normal(0, scale, shape) for scale, shape in zip(scales, shapes, strict=True)])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with a finished RetinaNet that finds many objects in everything. To be left as it is."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    tf_keras.utils.set_random_seed(0)
    description = saved.describe("retinanet", CATEGORIES, 48, 64, **NETWORK)
    model = saved.make_task(saved.task_config(description)).build_model()
    for layer in model.head.network.layers:
        if layer.weights:
            randomize(layer, 1 if layer.name == "retinanet_class" else 0.3 if layer.name == "retinanet_box" else 1)
    for layer in model.backbone.layers:
        if layer.name.endswith("attention"):
            layer.set_weights([np.array([0.5]), np.array([0.7])])
    folder.mkdir()
    saved.save(folder / "detector", model, description)
    (folder / "recipe.json").write_text(json.dumps({"detector": "retinanet", "model": "ResNet18"}))
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of photographs: a JPEG, a PNG, and a grey PNG of odd sides."""
    folder = tmp_path_factory.mktemp("photographs")
    first, second, third, *_ = detector_version.patterns(60)
    (folder / "a.jpg").write_bytes(first)
    (folder / "b.png").write_bytes(second)
    grey = tf.image.rgb_to_grayscale(tf.io.decode_jpeg(third, channels=3))[:75, :51]
    (folder / "c.png").write_bytes(tf.io.encode_png(grey).numpy())
    return folder


@contextlib.contextmanager
def consumers(**chosen):
    """Verification asks these about the SavedModel, and no others."""
    genuine = verification.CONSUMERS
    verification.CONSUMERS = chosen
    yield
    verification.CONSUMERS = genuine


C_API = {"c_api": verification.CONSUMERS["c_api"]}


def arguments_of(run, output, *more):
    return [str(each) for each in ("--model", run, "--output", output, *more)]


@pytest.fixture(scope="module")
def exported(run, photographs, tmp_path_factory):
    """The base folder of a verified export. To be left as it is."""
    output = tmp_path_factory.mktemp("export") / "cells"
    more = ("--max-detections", MOST, "--tflite", "float32", "int8", "--sample-images", photographs)
    more += ("--accept", "reduced-precision")  # three photographs are no ranges, nor are random weights a detector
    with consumers(**C_API):
        export_detection.main(arguments_of(run, output, *more))
    return output


def test_a_version_says_what_it_is_and_what_was_checked(exported, run):
    version = exported / "1"
    manifest = json.loads((version / "manifest.json").read_text())
    assert manifest["categories"] == [[3, "cat"], [7, "dog"], [90, "toothbrush"]]
    assert (version / "labels.txt").read_text() == "cat\ndog\ntoothbrush\n"
    assert manifest["preprocessing"] | {"shorter": 48, "longer": 64, "canvas": 64} == manifest["preprocessing"]
    assert manifest["model"]["sha256"]["detector.json"] == sha256_of(run / "detector" / "detector.json")
    assert {"weights.index", "weights.data-00000-of-00001"} < set(manifest["model"]["sha256"])
    assert manifest["recipe"]["model"] == "ResNet18" and "tf-models-official" in manifest["packages"]
    present = {path.relative_to(version).as_posix() for path in version.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == present - {"manifest.json"}
    checks = manifest["checks"]
    names = {"c_api/serving_default", "c_api/serve_bytes", "model_float32.tflite"}
    assert set(checks["largest_difference"]) == names
    assert 0 < max(checks["largest_difference"].values()) <= checks["tolerance"] == 1e-3
    assert checks["reduced_precision"]["model_int8.tflite"]["agreement"] > 0.1
    assert min(checks["detections"].values()) > 20  # agreement on nothing would say nothing
    assert [entry["batch"] for entry in manifest["warmup"]] == [1, 1]


def test_evaluation_finds_in_an_export_what_it_finds_in_the_run(exported, run, photographs):
    from na_keras.detection import coco

    paths = sorted(photographs.iterdir())
    shapes = [tf.io.decode_image(path.read_bytes()).shape for path in paths]
    annotated = [
        coco.Photograph(index, path.name, width, height, ())
        for index, (path, (height, width, _)) in enumerate(zip(paths, shapes, strict=True))
    ]
    split = type("Split", (), {"photographs": annotated, "folder": photographs})
    of_export, of_run = opened.open_detector(exported / "1"), opened.open_detector(run)
    assert of_export.categories == of_run.categories == CATEGORIES
    first, second = (each.evaluator(split, 2).detect(lambda done: None) for each in (of_export, of_run))
    for index, (height, width, _) in enumerate(shapes):
        # The run answers with 100 objects, the export with MOST.
        known = min(one.score for one in first[index]) + 1e-4
        both = ([one for one in found[index] if one.score > known] for found in (first, second))
        ours, theirs = (detection_rules.rows(detector_version.packed([each], 100), 0) for each in both)
        assert 10 < len(ours[0]) < MOST
        assert max(detection_rules.differences(ours, theirs, (height, width))[0]) < 1e-4


def test_answers_name_the_classes_and_end_in_zeros_and_a_batch_may_be_empty(exported, photographs):
    served_model = tf.saved_model.load(str(exported / "1")).signatures
    data = [path.read_bytes() for path in sorted(photographs.iterdir())]
    answer = {name: value.numpy() for name, value in served_model["serve_bytes"](image_bytes=tf.constant(data)).items()}
    assert set(answer) == set(served.ANSWERS)
    names = np.array(["", *CATEGORIES.values()])
    assert (answer["detection_labels"].astype(str) == names[answer["detection_classes"]]).all()
    assert (np.diff(answer["detection_scores"], axis=1) <= 0).all()
    counts, boxes = answer["num_detections"], answer["detection_boxes"]
    assert boxes[2].min() >= 0 and boxes[2, :, 2].max() <= 75 and boxes[2, :, 3].max() <= 51
    assert {boxes.dtype.name, answer["detection_classes"].dtype.name} == {"float32", "int32"}
    for row, count in enumerate(counts):
        assert not boxes[row, count:].any() and not answer["detection_classes"][row, count:].any()
    nothing = served_model["serving_default"](images=np.zeros((0, 9, 9, 3), "uint8"))
    assert nothing["detection_boxes"].shape == (0, MOST, 4) and nothing["num_detections"].shape == (0,)
    with pytest.raises(tf.errors.InvalidArgumentError):
        served_model["serve_bytes"](image_bytes=tf.constant([data[0], b"no image"]))


def test_the_client_prints_a_box_on_a_line(exported, photographs, capsys):
    image = photographs / "a.jpg"
    command = ["--saved-model", str(exported), "--image", str(image), "--lowest-score"]
    serving_client.main([*command, "0.1"])
    path, *lines = capsys.readouterr().out.splitlines()
    assert path == str(image)
    height, width, _ = tf.io.decode_jpeg(image.read_bytes()).shape
    areas = []
    for line in lines:
        name, score, unit, *corners = line.split()
        assert name in CATEGORIES.values() and unit == "%" and 10 <= float(score) <= 100
        left, top, right, bottom = map(float, corners)
        assert 0 <= left <= right <= width and 0 <= top <= bottom <= height
        areas.append((right - left) * (bottom - top))
    assert sum(area > 0 for area in areas) > len(areas) / 2  # what random weights find outside is cut to nothing
    serving_client.main([*command, "1"])
    assert "nothing with a score of at least 1" in capsys.readouterr().out


def test_cascade_rcnn_answers_by_its_signature_what_its_evaluation_finds(photographs):
    network = NETWORK | {"units": 16, "regions": 8, "attention": None}
    tf_keras.utils.set_random_seed(0)
    description = saved.describe("cascade_rcnn", CATEGORIES, 48, 64, **network)
    config = saved.task_config(description)
    config.model.roi_generator.test_num_proposals = 30
    model = saved.make_task(config).build_model()
    for head in model.detection_head:
        for layer in head.network.layers:
            if layer.name.endswith("_class"):
                randomize(layer, 3)
    detector = saved.Detector(model, config, CATEGORIES)
    data = (photographs / "c.png").read_bytes()
    answer = served.signature_functions(detector)["serve_bytes"](tf.constant([data] * detector_version.BATCH))
    find = inference.make_find(model, tf.distribute.get_strategy())
    expected, _ = detector_version.found_in_files(find, detector, [data])
    count = int(expected["num_detections"][0])
    assert count > 5 and answer["num_detections"][0] >= count
    near = np.abs(answer["detection_boxes"].numpy()[0][:, None] - expected["detection_boxes"][0, None, :count])
    assert near.max(-1).min(0).max() < 1e-2  # each of them is there
    assert answer["detection_scores"][0, 0].numpy() == pytest.approx(expected["detection_scores"][0, 0], abs=1e-5)


def test_programs_that_import_nothing_slow_have_the_librarys_names():
    assert export_detection.KINDS == lite.KINDS and detection_rules.OUTPUTS == served.ANSWERS
    assert set(serving_client.BOXES) <= set(served.ANSWERS)


def test_a_files_suppression_is_model_gardens():
    config = saved.task_config(saved.describe("retinanet", CATEGORIES, 48, 64, **NETWORK))
    config.model.detection_generator.max_num_detections = MOST
    rng, maps = np.random.default_rng(0), {}
    for level in (3, 4, 5):
        shape = (1, 64 >> level, 64 >> level)
        maps[f"classes{level}"] = rng.normal(-1, 1, (*shape, 27)).astype("float32")
        maps[f"boxes{level}"] = rng.normal(0, 0.3, (*shape, 36)).astype("float32")
    ours = lite.postprocessing(config)({name: tf.constant(value) for name, value in maps.items()})
    found = config.model.detection_generator
    options = detectors.fields(found, "pre_nms_score_threshold", "nms_iou_threshold", "max_num_detections")
    generator = detectors.WithoutBackground(nms_version="batched", **options)
    anchors = lite.anchor.Anchor(**detectors.anchor_options(config.model), image_size=(64, 64)).multilevel_boxes
    raw = ({str(n): tf.constant(maps[f"{kind}{n}"]) for n in (3, 4, 5)} for kind in ("boxes", "classes"))
    anchors = {level: tf.cast(boxes[None], tf.float32) for level, boxes in anchors.items()}
    theirs = generator(*raw, anchors, tf.constant([[64.0, 64.0]]))
    assert ours["num_detections"] == theirs["num_detections"] == [MOST]
    answers = ({name: found[name].numpy() for name in inference.FOUND} for found in (ours, theirs))
    first, second = detection_rules.comparable(*answers, 0)  # without boxes that have no area
    assert len(first[0]) > MOST // 2
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    # All boxes beyond the canvas: without an area there, none is an answer.
    for level in (3, 4, 5):
        maps[f"boxes{level}"][...] = np.tile([0, 1e3, 0, 0], 9)
    assert lite.postprocessing(config)(maps)["num_detections"] == [0]


@pytest.fixture
def quick(exported, monkeypatch):
    """The plan of an export that needs no minutes: its SavedModel is a copy, one consumer is asked about it."""

    def copy(folder, plan):
        shutil.copytree(exported / "1", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.txt", "tflite"))

    monkeypatch.setattr(detector_version, "add_saved_model", copy)
    plan = detector_version.DetectorPlan(saved.Detector(None, None, CATEGORIES), {}, recorded_reference(exported))
    monkeypatch.setattr(export_detection, "make_plan", lambda arguments: (plan, None))
    with consumers(**C_API):
        yield plan


def recorded_reference(exported):
    """A reference of the exported version, from its own answers."""
    files = detector_version.patterns(48)[:2]
    signatures = tf.saved_model.load(str(exported / "1")).signatures
    of_files = signatures["serve_bytes"](image_bytes=tf.constant(files))
    same = np.stack([tf.io.decode_png(detector_version.png(np.full((50, 60, 3), 90 * i))).numpy() for i in (1, 2)])
    of_same = signatures["serving_default"](images=tf.constant(same))
    sizes = [tf.io.decode_image(data).shape[:2] for data in files]
    return {
        **{f"files/{name}": of_files[name].numpy() for name in inference.FOUND},
        **{f"images/{name}": of_same[name].numpy() for name in inference.FOUND},
        **{"files/sizes": np.array(sizes), "images/sizes": np.array([(50, 60)] * 2), "origin": np.array("patterns")},
        **{"labels": np.array([*CATEGORIES.values()]), "files": np.array(files), "images": same},
    }


def entries(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_what_disagrees_with_the_detector_is_not_published(quick, run, tmp_path):
    quick.reference["files/detection_boxes"] = quick.reference["files/detection_boxes"] + 1  # pixel
    with pytest.raises(SystemExit, match="nothing was published") as error:
        export_detection.main(arguments_of(run, tmp_path / "out"))
    message = str(error.value.code)
    assert "c_api: serve_bytes differs by" in message and "serving_default differs" not in message
    assert entries(tmp_path / "out") == []


def test_a_signal_leaves_nothing(quick, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detector_version, "add_tflite", lambda *arguments: signal.raise_signal(signal.SIGTERM))
    request, before = publish.StopRequest(), {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        request.listen()
        with pytest.raises(SystemExit) as error:
            export_detection.main(arguments_of(run, tmp_path / "out"), request)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert error.value.code == 143 and "Stopped by SIGTERM." in capsys.readouterr().err
    assert entries(tmp_path / "out") == []


def refused(*arguments):
    with pytest.raises(SystemExit) as error:
        export_detection.main(list(map(str, arguments)))
    return str(error.value.code)


def test_what_cannot_be_exported_is_refused_in_a_line_before_any_work(run, photographs, tmp_path, capsys):
    output = tmp_path / "out"
    assert "must be a run of train_detection.py" in refused(*arguments_of(tmp_path / "nowhere", output))
    classifier = tmp_path / "classifier"
    classifier.mkdir()
    (classifier / "model.keras").touch()
    assert "is a classifier's: export it by export_model.py" in refused(*arguments_of(classifier, output))
    message = refused(*arguments_of(run, output, "--tflite", "float32", "int8"))
    assert message == "export_detection.py: int8 needs some hundred photographs like those it will see: " + (
        "--sample-images DIR."
    )
    assert "No images in" in refused(*arguments_of(run, output, "--sample-images", classifier))
    cascade = shutil.copytree(run, tmp_path / "cascade")
    description = cascade / "detector" / "detector.json"
    description.write_text(description.read_text().replace('"retinanet"', '"cascade_rcnn"'))
    message = refused(*arguments_of(cascade, output, "--tflite", "float32"))
    assert "TFLite files are of RetinaNet only. Received: cascade_rcnn" in message and "\n" not in message
    paper = shutil.copytree(run, tmp_path / "paper")
    description = paper / "detector" / "detector.json"
    description.write_text(description.read_text().replace('"na"', '"na_paper"'))
    message = refused(*arguments_of(paper, output, "--tflite", "int8", "--sample-images", photographs))
    assert "integer" in message and "\n" not in message
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    assert "holds notes.txt, which no export wrote" in refused(*arguments_of(run, tmp_path / "full"))
    assert refused(*arguments_of(run, output, "--max-detections", 0)) == "2"
    assert "--max-detections must be from 1 to 1024. Received: 0" in capsys.readouterr().err
    (photographs / "c.png").rename(tmp_path / "c.png")
    try:
        (photographs / "c.png").write_bytes(b"no image")
        assert "c.png does not decode" in refused(*arguments_of(run, output, "--sample-images", photographs))
    finally:
        (tmp_path / "c.png").rename(photographs / "c.png")
    assert entries(output) == []


def test_of_a_run_that_is_not_finished_the_newest_checkpoint_is_exported(run, tmp_path, capsys):
    folder = tmp_path / "run"
    for step in (4, 8):
        (folder / f"checkpoints/step-{step:08}").mkdir(parents=True)
        for path in (run / "detector").glob("weights.*"):
            shutil.copy(path, folder / f"checkpoints/step-{step:08}" / path.name.replace("weights", "state"))
    shutil.copy(run / "detector" / "detector.json", folder)
    _, weights = export_detection.find_files(folder)
    assert weights == pathlib.Path(folder / "checkpoints/step-00000008/state")
    assert "is not finished: its newest checkpoint is exported, step-00000008" in capsys.readouterr().out
    export_detection.find_files(folder / "checkpoints/step-00000004")
    export_detection.find_files(run)
    assert capsys.readouterr().out == ""
