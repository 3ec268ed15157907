"""TFRecord files of annotated images."""

import json

import numpy as np
import pytest
import tensorflow as tf

from na_keras.detection import coco, records


@pytest.fixture
def annotations(tmp_path):
    """Five images: colour, grey, PNG, CMYK, and one without boxes; two to a file."""
    image_module = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), "uint8")
    modes = {"a.jpg": "RGB", "b.jpg": "L", "c.png": "RGB", "d.jpg": "CMYK", "e.jpg": "RGB"}
    for name, mode in modes.items():
        image_module.fromarray(pixels).convert(mode).save(tmp_path / name)
    images = [{"id": 10 * i, "file_name": name, "width": 32, "height": 24} for i, name in enumerate(modes)]
    boxes = [{"image_id": 10 * i, "category_id": 3, "bbox": [4, 6, 8, 12], "iscrowd": i % 2} for i in range(4)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 3, "name": "cell"}]}
    (tmp_path / "instances_train.json").write_text(json.dumps(content))
    return coco.read_annotations(tmp_path / "instances_train.json")


@pytest.fixture
def two_a_file(monkeypatch):
    monkeypatch.setattr(records, "IMAGES_PER_FILE", 2)


def examples(paths):
    return [tf.train.Example.FromString(data.numpy()) for data in tf.data.TFRecordDataset([str(p) for p in paths])]


def test_records_hold_the_images_bytes_and_the_boxes_as_shares(annotations, two_a_file, tmp_path):
    paths = records.write_records(annotations, tmp_path, tmp_path / "records", "train")
    assert len(paths) == 3 and paths[0].name.startswith("train-") and paths[0].name.endswith("-00000-of-00003.tfrecord")
    features = [found.features.feature for found in examples(paths)]
    assert [found["image/source_id"].bytes_list.value[0] for found in features] == [b"0", b"10", b"20", b"30", b"40"]
    second = features[1]
    assert second["image/encoded"].bytes_list.value[0] == (tmp_path / "b.jpg").read_bytes()
    sides = [second[f"image/object/bbox/{side}"].float_list.value[0] for side in ("xmin", "ymin", "xmax", "ymax")]
    assert sides == [4 / 32, 6 / 24, 12 / 32, 18 / 24]
    assert second["image/object/class/label"].int64_list.value == [3]  # the category's own id
    assert second["image/object/is_crowd"].int64_list.value == [1]
    assert not features[4]["image/object/class/label"].int64_list.value


def test_a_conversion_that_was_stopped_goes_on_where_it_was(annotations, two_a_file, tmp_path):
    (tmp_path / "d.jpg").rename(tmp_path / "away")
    (tmp_path / "d.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match="d.jpg cannot be decoded"):
        records.write_records(annotations, tmp_path, tmp_path / "records", "train")
    (first,) = (tmp_path / "records").iterdir()
    before = first.stat().st_mtime_ns
    (tmp_path / "away").rename(tmp_path / "d.jpg")
    done = []
    paths = records.write_records(annotations, tmp_path, tmp_path / "records", "train", done.append)
    assert done == [2, 3, 4, 5]
    assert first.stat().st_mtime_ns == before
    assert len(examples(paths)) == 5


def test_an_image_of_another_size_than_annotated_is_named(annotations, tmp_path):
    content = json.loads(annotations.path.read_text())
    content["images"][2] |= {"width": 24, "height": 32}
    annotations.path.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match="c.png is 32 pixels wide and 24 high; .* say 24 and 32. If a program has turned"
    ):
        records.write_records(coco.read_annotations(annotations.path), tmp_path, tmp_path / "records", "train")


def test_other_annotations_have_other_records(annotations, tmp_path):
    before = records.record_paths(annotations, tmp_path, "train")
    annotations.path.write_text(annotations.path.read_text().replace("cell", "Cell"))
    assert records.record_paths(coco.read_annotations(annotations.path), tmp_path, "train") != before
