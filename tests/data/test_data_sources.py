"""TFDS's real ImageNet builder on small archives, and folders of files."""

import numpy as np
import pytest
import tensorflow as tf
from imagenet_tars import write_imagenet_tars

from na_keras.data import load_source, pipeline, preprocessing


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A data directory with archives that the builder prepares on first use."""
    folder = tmp_path_factory.mktemp("imagenet")
    write_imagenet_tars(folder)
    return folder


def indices(source, seed):
    return [int(example["index"]) for example in source.examples(seed)]


def test_imagenet_is_prepared_from_its_archives_once(imagenet, capsys):
    train = load_source("imagenet2012", "train", imagenet)
    assert "Preparing ImageNet" in capsys.readouterr().out
    validation = load_source("imagenet2012", "validation", imagenet)
    assert "Preparing" not in capsys.readouterr().out
    assert train.count == 80 and 40 <= validation.count <= 80
    assert len(train.class_names) == 1000 and train.class_names[0] == "n01440764"
    labels = {int(example["label"]) for example in train.examples(None)}
    assert labels == set(range(100, 110))
    first = next(iter(train.examples(None)))
    assert first["name"].numpy().startswith(b"n0") and first["image"].numpy().startswith(b"\xff\xd8\xff")


def test_imagenet_order_is_a_function_of_the_seed(imagenet):
    train = load_source("imagenet2012", "train", imagenet)
    one, again, other, stored = (indices(train, seed) for seed in (5, 5, 6, None))
    assert one == again and one != other and one != stored
    assert sorted(one) == sorted(other) == sorted(stored) and len(set(one)) == 80


def test_imagenet_batches_can_start_at_any_step(imagenet):
    train = load_source("imagenet2012", "train", imagenet)
    options = {"seed": 1, "epoch": 2, "batch_size": 16, "size": 32}
    whole = list(pipeline.training_batches(train, first_step=0, **options))
    rest = list(pipeline.training_batches(train, first_step=3, **options))
    assert (len(whole), len(rest)) == (5, 2)
    for (images, labels, _), (other_images, other_labels, _) in zip(whole[3:], rest, strict=True):
        np.testing.assert_array_equal(labels, other_labels)
        np.testing.assert_array_equal(images, other_images)


def test_data_that_is_not_there_is_never_fetched(tmp_path):
    with pytest.raises(FileNotFoundError, match="ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar not found"):
        load_source("imagenet2012", "train", tmp_path)
    with pytest.raises(FileNotFoundError, match="tfds build cifar10.*never downloads"):
        load_source("cifar10", "train", tmp_path)


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for k in range(count):
                image = tf.fill((40, 50, 3), tf.cast(100 * label + k, tf.uint8))
                (tmp_path / split / name / f"{k}.png").write_bytes(tf.io.encode_png(image).numpy())
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path


def test_folders_are_classes_in_sorted_order(folder):
    train, validation = (load_source("folder", split, folder) for split in ("train", "validation"))
    assert (train.class_names, train.count, validation.count) == (("cat", "dog"), 6, 4)
    for example in train.examples(3):
        value = preprocessing.decode(example["image"]).numpy()[0, 0, 0]
        assert int(example["label"]) == (value >= 100)
        assert ("dog" in example["name"].numpy().decode()) == (value >= 100)
    assert sorted(indices(train, 3)) == list(range(6))


def test_folders_that_do_not_fit_are_refused(folder, tmp_path_factory):
    with pytest.raises(ValueError, match="needs --data-dir"):
        load_source("folder", "train")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(FileNotFoundError, match="must hold a folder named train"):
        load_source("folder", "train", empty)
    (empty / "train" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match="No images in"):
        load_source("folder", "train", empty)
    (folder / "val" / "bird").mkdir()
    with pytest.raises(ValueError, match=r"does not: \['bird'\]"):
        load_source("folder", "validation", folder)


def test_an_unreadable_image_is_found_by_name_from_where_the_run_stood(folder):
    train = load_source("folder", "train", folder)
    names = [example["name"].numpy().decode() for example in train.examples(pipeline.epoch_seed(0, 0))]
    with open(names[4], "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n and then nothing")
    name, message = pipeline.first_unreadable(train, 0, 0, 1, 2)
    assert name == names[4] and message
    assert pipeline.first_unreadable(train, 0, 0, 3, 2) is None
