"""TFDS's real ImageNet builder on small archives, and folders of files."""

import os

import numpy as np
import pytest
import tensorflow as tf
from imagenet_tars import write_imagenet_tars

import check_data
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
    for source, split in ((train, "train"), (validation, "validation")):
        details = source.details()
        assert (
            details["version"].startswith("imagenet2012/5.") and details["split"] == split and details["bytes"] > 1000
        )
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


def add_image(path, value=7):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(tf.fill((40, 50, 3), tf.cast(value, tf.uint8))).numpy())


def names_of(source):
    return [example["name"].numpy() for example in source.examples(None)]


def test_what_systems_leave_behind_is_no_class_and_no_image(folder):
    before = names_of(load_source("folder", "train", folder))
    for place in (".ipynb_checkpoints", "__MACOSX/cat", "@eaDir", "cat/.ipynb_checkpoints", "dog/@eaDir"):
        add_image(folder / "train" / place / "copy.png")
    (folder / "train" / "cat" / "._0.png").write_bytes(b"resource fork")
    (folder / "val" / ".DS_Store").touch()
    source = load_source("folder", "train", folder)
    assert source.class_names == ("cat", "dog") and names_of(source) == before
    notes = "\n".join(source.notes)
    assert "6 images in 2 classes: cat 3, dog 3" in notes
    assert "ignored .ipynb_checkpoints, @eaDir, __MACOSX" in notes and "ignored 1 hidden files" in notes


def test_what_is_ignored_and_empty_is_said(folder):
    (folder / "train" / "bird").mkdir()
    for name in ("cat/a.HEIC", "cat/b.HEIC", "dog/c.tif", "readme.md"):
        (folder / "train" / name).touch()
    (folder / "train" / "cat" / "0.png").rename(folder / "train" / "cat" / "0.JFIF")
    source = load_source("folder", "train", folder)
    notes = "\n".join(source.notes)
    assert source.count == 6  # JFIF is JPEG
    assert "no images of 1 classes: bird" in notes
    for said in ("2 .HEIC", "1 .tif", "1 .txt", "1 files outside of class folders, readme.md first"):
        assert said in notes


def test_linked_folders_are_followed_once(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    add_image(elsewhere / "far.png")
    (folder / "train" / "cat" / "linked").symlink_to(elsewhere)
    (folder / "train" / "cat" / "itself").symlink_to(folder / "train" / "cat")
    (folder / "train" / "owl").symlink_to(elsewhere)
    source = load_source("folder", "train", folder)
    assert source.class_names == ("cat", "dog", "owl") and source.count == 3 + 1 + 3 + 1


def test_a_folder_level_too_many_is_refused(folder):
    (folder / "deep" / "train").mkdir(parents=True)
    (folder / "train").rename(folder / "deep" / "train" / "train")
    with pytest.raises(ValueError, match="train must hold one folder per class. Received: train, whose images all lie"):
        load_source("folder", "train", folder / "deep")
    with pytest.raises(FileNotFoundError, match=r"Perhaps you mean .*deep\."):
        load_source("folder", "train", folder)
    # One class with folders of its own beside another class is nobody's mistake.
    add_image(folder / "two" / "train" / "cat" / "one" / "0.png")
    add_image(folder / "two" / "train" / "cat" / "other" / "0.png")
    add_image(folder / "two" / "train" / "dog" / "0.png")
    assert load_source("folder", "train", folder / "two").count == 3


def test_a_trained_networks_classes_need_no_train_folder(folder):
    add_image(folder / "alone" / "test" / "dog" / "0.png")
    names = ("dog", "cat", "owl")
    source = load_source("folder", "test", folder / "alone", class_names=names)
    assert source.class_names == names and [int(e["label"]) for e in source.examples(None)] == [0]
    assert "no images of 2 classes: cat, owl" in "\n".join(source.notes)
    with pytest.raises(ValueError, match=r"are not among the 1 class names: \['dog'\]"):
        load_source("folder", "test", folder / "alone", class_names=("cat",))
    # The test split can be asked for beside a validation split.
    add_image(folder / "test" / "cat" / "0.png")
    assert [load_source("folder", split, folder).count for split in ("validation", "test")] == [4, 1]
    with pytest.raises(
        ValueError, match=r"the 2 classes cat, dog\. Received: 10 classes 0, 1.*Class 0 is '0', not 'cat'"
    ):
        load_source("digits", "validation", class_names=("cat", "dog"))


def unreadable_files(folder):
    """Puts files that cannot be read among the images; {path: a part of the reason}."""
    cat = folder / "train" / "cat"
    (cat / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    (cat / "folder.jpg").mkdir()
    (cat / "text.jpg").write_text("Dear Sir or Madam\n")
    reasons = {
        "dangling.jpg": "No such file",
        "folder.jpg": "directory",
        "text.jpg": "received 18 bytes that begin with 68",
    }
    if os.geteuid():  # root may read everything
        (cat / "secret.jpg").write_bytes(b"secret")
        (cat / "secret.jpg").chmod(0)
        reasons["secret.jpg"] = "denied"
    with open(os.fsencode(cat) + b"/cut\xff.png", "wb") as file:
        file.write((cat / "0.png").read_bytes()[:-30])
    os.symlink("nowhere.png", os.fsencode(cat) + b"/gone\xff.png")
    reasons |= {"cut\\xff.png": "PNG", "gone\\xff.png": "No such file"}
    return {str(cat / name): reason for name, reason in reasons.items()}


def test_check_files_names_every_file_that_would_stop_a_run(folder):
    expected = unreadable_files(folder)
    found = dict(pipeline.check_files(load_source("folder", "train", folder)))
    assert set(found) == set(expected)
    for name, reason in found.items():
        assert expected[name] in reason and "\n" not in reason and "{{" not in reason


def test_the_program_that_checks_data_lists_what_it_found(folder, capsys):
    check_data.main(["--data-dir", str(folder)])
    output = capsys.readouterr().out
    assert "6 images in 2 classes: cat 3, dog 3" in output and "All 10 images can be read" in output
    bad = unreadable_files(folder)
    with pytest.raises(SystemExit) as stop:
        check_data.main(["--data-dir", str(folder)])
    output = capsys.readouterr().out
    assert all(f"\n{name}: " in output for name in bad)
    assert stop.value.code == f"check_data.py: {len(bad)} of {10 + len(bad)} images cannot be read"


def test_files_that_cannot_be_opened_are_named_or_left_out(folder):
    bad = unreadable_files(folder)
    train = load_source("folder", "train", folder)
    options = {"seed": 0, "epoch": 0, "first_step": 0, "batch_size": train.count, "size": 32}
    ((_, _, weights),) = pipeline.training_batches(train, skip_unreadable=True, **options)
    assert int(tf.reduce_sum(weights)) == 6 == train.count - len(bad)
    with pytest.raises(pipeline.UNREADABLE):
        list(pipeline.training_batches(train, **options))
    with pytest.raises(pipeline.UNREADABLE):
        list(pipeline.evaluation_batches(train, batch_size=4, resize=36, size=32))
    assert pipeline.first_unreadable(train, 0, 0, 0, 4)[0] in bad


@pytest.mark.parametrize("name", ["dangling.jpg", "folder.jpg", "gone\\xff.png"])
def test_each_kind_of_unreadable_file_stops_with_an_error_that_is_recognised(folder, name):
    for path in unreadable_files(folder):
        if not path.endswith(name):
            path = path.encode().replace(b"\\xff", b"\xff")
            os.rmdir(path) if os.path.isdir(path) else os.unlink(path)
    train = load_source("folder", "train", folder)
    with pytest.raises(pipeline.UNREADABLE):
        list(pipeline.evaluation_batches(train, batch_size=4, resize=36, size=32))
    found, message = pipeline.first_unreadable(train, None, 0, 0, 4)
    assert found.endswith(name) and message


def test_a_class_folder_whose_name_is_no_text_is_refused(folder):
    os.mkdir(os.fsencode(folder) + b"/train/caf\xe9")
    with pytest.raises(ValueError, match=r"caf\\xe9 must have a name in UTF-8"):
        load_source("folder", "train", folder)


def test_skipped_files_are_not_read(folder):
    """A resumed epoch and another machine's share cost no reading: a missing file there goes unnoticed."""
    train = load_source("folder", "train", folder)
    order = [example["name"].numpy().decode() for example in train.examples(pipeline.epoch_seed(0, 0))]
    os.unlink(order[0])
    options = {"seed": 0, "epoch": 0, "batch_size": 2, "size": 32}
    assert len(list(pipeline.training_batches(train, first_step=1, **options))) == 2


def test_an_unreadable_image_is_found_by_name_from_where_the_run_stood(folder):
    train = load_source("folder", "train", folder)
    names = [example["name"].numpy().decode() for example in train.examples(pipeline.epoch_seed(0, 0))]
    with open(names[4], "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n and then nothing")
    name, message = pipeline.first_unreadable(train, 0, 0, 1, 2)
    assert name == names[4] and message
    assert pipeline.first_unreadable(train, 0, 0, 3, 2) is None
