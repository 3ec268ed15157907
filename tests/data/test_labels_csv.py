"""Image files with labels in a CSV file: one class an image, or any number."""

import numpy as np
import pytest
import tensorflow as tf

from na_keras.data import augmentation, load_source, pipeline

SEVERAL = "image,cat,dog,owl\na.png,1,0,0\nb.png,1,1,0\nc.png,0,0,0\nd.png,0,1.0,0.0\n"
ONE = "file,label\na.png,dog\nb.png,cat\nimg/e.png,dog\nd.png,cat\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "img").mkdir()
    for index, name in enumerate(("a", "b", "c", "d", "img/e")):
        png = tf.io.encode_png(tf.fill((33, 35, 3), tf.cast(10 * index, tf.uint8)))
        (tmp_path / f"{name}.png").write_bytes(png.numpy())
    return tmp_path


def load(folder, train=None, validation=None, split="train", **options):
    for name, content in (("train.csv", train), ("validation.csv", validation)):
        if content is not None:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_source("csv", split, folder, **options)


def read(source):
    """{file's name: label} in the stored order."""
    return {e["name"].numpy().decode().split("/")[-1][0]: e["label"].numpy().tolist() for e in source.examples(None)}


def test_a_column_of_labels_gives_each_image_one_class(folder):
    training = load(folder, ONE, "path;Class\nc.png;dog\n")
    assert training.class_names == ("cat", "dog") and not training.multi_label
    assert read(training) == {"a": 1, "b": 0, "e": 1, "d": 0}
    validation = load(folder, split="validation")
    assert validation.class_names == training.class_names and read(validation) == {"c": 1}
    assert "4 images in 2 classes: cat 2, dog 2" in training.summary[0]
    names = ("owl", "dog", "cat")
    assert read(load(folder, split="validation", class_names=names)) == {"c": 1}


def test_a_column_for_each_class_gives_each_image_any_number(folder):
    training = load(folder, SEVERAL, SEVERAL)
    assert training.multi_label and load(folder, split="validation").multi_label
    assert read(training) == {"a": [1, 0, 0], "b": [1, 1, 0], "c": [0, 0, 0], "d": [0, 1, 0]}
    notes = "\n".join(training.notes)
    assert "4 images in 3 classes: cat 2, dog 2, owl 0" in notes and "1 images of no class" in notes
    assert "no images of 1 classes: owl" in notes


def test_batches_of_several_labels_are_vectors_also_filled_up(folder):
    training = load(folder, SEVERAL)
    whole = list(pipeline.evaluation_batches(training, batch_size=3, resize=36, size=32))
    assert [labels.shape.as_list() for _, labels, _ in whole] == [[3, 3], [3, 3]]
    assert whole[1][1].dtype == tf.float32 and whole[1][2].numpy().tolist() == [1, 0, 0]
    assert [int(image[0, 0, 0]) for images, _, _ in whole for image in images] == [0, 10, 20, 30, 0, 0]
    (folder / "a.png").write_bytes(b"no image")
    assert pipeline.first_unreadable(training, None, 0, 0, 1)[0].endswith("a.png")


def test_mixing_several_labels_mixes_their_vectors():
    labels = tf.constant([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    images, seed = (
        tf.cast(tf.constant([0, 200])[:, None, None, None] * tf.ones((2, 8, 8, 3), tf.int32), tf.uint8),
        (3, 4),
    )
    mixed, targets, _ = augmentation.mixed_batch(images, labels, tf.ones(2), seed, 3, mixup=1.0, cutmix=0.0)
    ratio = 1 - mixed[0, 0, 0, 0].numpy() / 200
    assert 0.05 < ratio < 0.95
    np.testing.assert_allclose(targets[0], [1, 1 - ratio, ratio], atol=0.005)  # half a level of 200


@pytest.mark.parametrize(
    "content",
    [
        SEVERAL.replace(",", ";").encode("utf-8-sig"),
        SEVERAL.replace(",", "\t").replace("\n", "\r\n"),
        SEVERAL.replace("\n", ",,\n") + "\n,,,,,\n",
        SEVERAL.replace("image,cat", '"the, image","cat"').replace("a.png,1", "./a.png , 1"),
    ],
    ids=["semicolons and a byte-order mark", "tabs and Windows' lines", "empty cells and lines", "quotes and space"],
)
def test_what_spreadsheets_write_is_taken(folder, content):
    training = load(folder, content)
    assert training.class_names == ("cat", "dog", "owl")
    assert list(read(training).values()) == [[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("", "train.csv is empty"),
        ("image,label\n", "train.csv holds a header and no images"),
        ("image\na.png\n", "a header of two columns or more.* Received: 'image'"),
        ("image,cat;dog\n", "separated by commas, by semicolons or by tabs"),
        ("image,cat,cat\na.png,1,1\n", "two or more different names"),
        ("image,,cat\na.png,1,1\n", "two or more different names"),
        ("image,label,width\na.png,cat,7\n", "'label' among 3 columns"),
        (b"image,label\na.png,h\xe4her\n", "line 2: expected text in UTF-8"),
        (ONE + "c.png\n", "line 6: expected 2 cells: file, label. Received: .'c.png'"),
        (ONE + "c.png,cat,dog\n", "line 6: expected 2 cells"),
        (ONE + "c.png,\n", "line 6: the image c.png has no label"),
        (ONE + "\nimg/../a.png,dog\n", "line 7: the image img/../a.png stands in line 2 already"),
        (ONE + "f.png,cat\ng.png,cat\n", "line 6: there is no image file .*f.png. The same of 1 more lines"),
        (ONE + "img,cat\n", "line 6: there is no image file"),
        (ONE + "img\\f.png,cat\n", "line 6: there is no image file .* Folders are separated by /"),
        (ONE + "/a.png,cat\n", "line 6: expected a path relative to"),
        (ONE + 'c.png,"cat\n', "line 6: unexpected end of data"),
        (SEVERAL + "img/e.png,1,2,0\n", "line 6: expected 0 or 1 for dog. Received: '2'"),
        (SEVERAL + "img/e.png,1,,0\n", "line 6: expected 0 or 1 for dog. Received: ''"),
        ("image,kind\na.png,cat\n", "line 2: expected 0 or 1 for kind. Received: 'cat'.*named label or class"),
    ],
)
def test_what_is_not_clear_is_refused_with_its_line(folder, train, message):
    with pytest.raises(ValueError, match=message):
        load(folder, train)


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (
            SEVERAL,
            SEVERAL.replace("cat,dog", "dog,cat"),
            "the classes of .*train.csv in the same order: column 2 is 'dog'",
        ),
        (SEVERAL, "image,cat,dog\na.png,1,0\n", "same order: 2 classes, not 3"),
        (SEVERAL, ONE, "validation.csv has one class name an image, .*train.csv a column"),
        (ONE, ONE.replace("dog", "wolf"), "line 2: .*train.csv has no class 'wolf': cat, dog"),
    ],
)
def test_validation_labels_that_are_not_trainings_are_refused(folder, train, validation, message):
    with pytest.raises(ValueError, match=message):
        load(folder, train, validation, split="validation")


def test_a_networks_classes_must_be_the_columns(folder):
    assert load(folder, SEVERAL, class_names=("cat", "dog", "owl")).count == 4
    with pytest.raises(ValueError, match="what is asked for in the same order: column 2 is 'cat', not 'dog'"):
        load(folder, class_names=("dog", "cat", "owl"))
    with pytest.raises(ValueError, match="line 3: the class names that are asked for have no class 'cat'"):
        load(folder, ONE, class_names=("dog",))


def test_a_share_of_one_file_is_held_out(folder):
    (folder / "all.csv").write_text(ONE)
    training, validation = (load(folder, split=split, validation_split=0.5) for split in ("train", "validation"))
    assert (training.count, validation.count) == (2, 2) and training.class_names == ("cat", "dog")
    assert {**read(training), **read(validation)} == {"a": 1, "b": 0, "e": 1, "d": 0}
    assert sorted(read(validation).values()) == [0, 1]
    with pytest.raises(FileNotFoundError, match="a file named train.csv. Or hold a part of one file out"):
        load(folder)
    (folder / "more.csv").write_text(ONE)
    with pytest.raises(FileNotFoundError, match="a single CSV file. Received: all.csv, more.csv"):
        load(folder, validation_split="0.2")
    with pytest.raises(ValueError, match="validation.csv names validation images, and --validation-split asks"):
        load(folder, ONE, ONE, validation_split="0.2")
    with pytest.raises(ValueError, match="needs --data-dir"):
        load_source("csv", "train")


def test_other_labels_are_other_data(folder):
    before = load(folder, ONE).details()
    assert before["images_per_class"] == {"cat": 2, "dog": 2}
    swapped = ONE.replace("a.png,dog", "a.png,cat").replace("b.png,cat", "b.png,dog")
    after = load(folder, swapped).details()
    assert after["images_per_class"] == before["images_per_class"] and after != before
    assert load(folder, ONE.replace(",", ";")).details() == before
