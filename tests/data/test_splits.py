"""Which images are for training and which for validation, where the user says so."""

import collections

import pytest
import tensorflow as tf
from imagenet_tars import write_imagenet_tars

import check_data
from na_keras.data import load_source
from na_keras.data.held_out import held_out
from na_keras.data.tfds import positions, prepared_builder
from na_keras.deploy import calibration

COUNTS = {"cat": 10, "dog": 5, "owl": 2, "yak": 1}
PARTS = ("train", "validation")


def add_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(tf.fill((33, 35, 3), tf.cast(len(path.name), tf.uint8))).numpy())


@pytest.fixture
def flat(tmp_path):
    """Classes without a folder train, as most people have them."""
    for name, count in COUNTS.items():
        for index in range(count):
            add_image(tmp_path / "flat" / name / f"{index}.png")
    return tmp_path / "flat"


def names(source, folder):
    """Class and file of each example, relative to the folder."""
    return [e["name"].numpy().decode().removeprefix(f"{folder}/") for e in source.examples(None)]


def both(folder, share="0.2", dataset="folder"):
    return [load_source(dataset, split, folder, validation_split=share) for split in PARTS]


def test_each_class_gives_its_share_and_one_image_stays_for_training(flat):
    training, validation = both(flat)
    per_class = [source.details()["images_per_class"] for source in (training, validation)]
    assert per_class == [{"cat": 8, "dog": 4, "owl": 1, "yak": 1}, {"cat": 2, "dog": 1, "owl": 1, "yak": 0}]
    assert training.class_names == validation.class_names == tuple(COUNTS)
    assert (training.count, validation.count) == (14, 4)
    parts = names(training, flat) + names(validation, flat)
    assert sorted(parts) == sorted(f"{path.parent.name}/{path.name}" for path in flat.rglob("*.png"))
    for source in (training, validation):
        assert all(source.class_names[e["label"]] in e["name"].numpy().decode() for e in source.examples(7))
    notes = "\n".join(validation.notes)
    assert "4 of 18 images held out, 0.2 of each class, by name" in notes
    assert "classes of one image, which is trained on: yak" in notes


def test_the_same_images_are_held_out_wherever_the_folder_lies_and_few_others_when_it_grows(flat, tmp_path):
    held, digests = names(both(flat)[1], flat), [source.details() for source in both(flat, 0.2)]
    (tmp_path / "moved").mkdir()
    flat.rename(tmp_path / "moved" / "train")
    moved = both(tmp_path / "moved")
    assert names(moved[1], tmp_path / "moved" / "train") == held
    assert [source.details() for source in moved] == digests
    for index in (10, 11, 12, 13):
        add_image(tmp_path / "moved" / "train" / "cat" / f"{index}.png")
    grown = names(both(tmp_path / "moved")[1], tmp_path / "moved" / "train")
    assert len(grown) == 5 and len(set(held) - set(grown)) <= 1


def test_only_training_images_calibrate_and_the_test_folder_stays_a_split_of_its_own(flat, tmp_path, capsys):
    flat.rename(tmp_path / "train")
    add_image(tmp_path / "test" / "cat" / "other.png")
    training, validation = both(tmp_path)
    examples = calibration.from_dataset("folder", tmp_path, train_split=None, validation_split="0.2")
    assert {e["name"].numpy() for e in examples} == {e["name"].numpy() for e in training.examples(None)}
    assert load_source("folder", "test", tmp_path, validation_split="0.2").count == 1
    check_data.main(["--data-dir", str(tmp_path), "--validation-split", "0.2", "--split", "validation"])
    output = capsys.readouterr().out
    assert f"{validation.name}: 4 images" in output and "All 4 images can be read" in output


def test_a_folder_of_which_nothing_can_be_held_out_is_refused(flat, tmp_path):
    for share in ("0", "1", "20", "20%", "train[:80%]", float("nan")):
        with pytest.raises(ValueError, match="must be the share to hold out, between 0 and 1, such as 0.2. Received"):
            both(flat, share)
    with pytest.raises(ValueError, match="--train-split is for datasets of TFDS"):
        load_source("folder", "train", flat, train_split="train")
    with pytest.raises(ValueError, match="digits have splits of their own"):
        load_source("digits", "validation", validation_split="0.2")
    add_image(tmp_path / "two" / "train" / "cat" / "0.png")
    with pytest.raises(ValueError, match="no two images of one class"):
        both(tmp_path / "two")
    add_image(tmp_path / "two" / "val" / "cat" / "0.png")
    with pytest.raises(ValueError, match="two/val holds validation images, and --validation-split asks"):
        both(tmp_path / "two")


def test_what_lacks_validation_images_is_told_of_the_share(flat, tmp_path):
    hint = "If its folders cat, dog, owl, yak are the classes, .* --validation-split=0.2"
    for split, name in (("train", "train"), ("validation", "validation or val or test")):
        with pytest.raises(FileNotFoundError, match=f"must hold a folder named {name} with one per class. {hint}"):
            load_source("folder", split, flat)
    with pytest.raises(FileNotFoundError, match="must hold a folder named train with"):
        both(tmp_path / "nowhere")
    (tmp_path / "deep").mkdir()
    flat.rename(tmp_path / "deep" / "train")
    with pytest.raises(FileNotFoundError, match=r"Perhaps you mean .*deep\."):
        both(tmp_path)
    with pytest.raises(FileNotFoundError, match="Or hold a part of its training images out"):
        load_source("folder", "validation", tmp_path / "deep")


def test_of_several_labels_each_class_gets_about_its_share():
    labels = [
        ((0,) if k % 2 else ()) + ((1,) if k % 5 == 0 else ()) + ((2,) if k % 33 == 0 else ()) for k in range(200)
    ]
    chosen = held_out([b"%d" % k for k in range(200)], labels, 0.25)
    whole = collections.Counter(label for row in labels for label in row or ("none",))
    held = collections.Counter(label for k in chosen for label in labels[k] or ("none",))
    assert whole == {0: 100, 1: 40, 2: 7, "none": 77} and held[2] == 2
    assert all(abs(held[label] - count / 4) <= 2 for label, count in whole.items())


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """80 training and some 50 validation images; see imagenet_tars.py."""
    folder = tmp_path_factory.mktemp("imagenet")
    write_imagenet_tars(folder)
    prepared_builder("imagenet2012", folder)
    return folder


def indices(source):
    return {int(example["index"]) for example in source.examples(3)}


def test_tfds_splits_are_taken_in_tfdss_own_syntax(imagenet):
    splits = {"train_split": "train[:80%]", "validation_split": "train[80%:]"}
    training, validation = (load_source("imagenet2012", split, imagenet, **splits) for split in PARTS)
    assert (training.count, validation.count) == (64, 16) and training.name == "imagenet2012/train[:80%]"
    whole = load_source("imagenet2012", "train", imagenet)
    assert indices(training) | indices(validation) == indices(whole) and not indices(training) & indices(validation)
    assert training.details() == {**whole.details(), "split": "train[:80%]"}
    more = {"train_split": "train[:10]+validation[10:]", "validation_split": "validation[:10]"}
    assert load_source("imagenet2012", "validation", imagenet, **more).count == 10


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (("trian[:80%]", None), r"has the splits train, validation. Received: 'trian\[:80%\]'. Unknown split"),
        (("train[:80%", "validation"), r"Received: 'train\[:80%'. Unrecognized split format"),
        (("train[:900]", None), r"slice \[:900\] incompatible with 80 examples"),
        (("train[10:10]", None), "holds no images"),
        (("train[:9]+train[8:]", None), "holds some images twice"),
        ((None, "train[80%:]"), r"'train' and the validation split 'train\[80%:\]' of imagenet2012 share 16 images"),
        (("train[:50%]", "train[30:]"), "share 10 images. Give two that share none, as in --train-split='train"),
        (("train+validation", None), "share"),
        ((None, "0.2"), "Received: '0.2'. Unrecognized split format"),
    ],
)
def test_tfds_splits_that_are_none_or_overlap_are_refused(imagenet, splits, message):
    for split in PARTS:
        with pytest.raises(ValueError, match=message):
            load_source("imagenet2012", split, imagenet, train_split=splits[0], validation_split=splits[1])


def test_a_dataset_without_validation_images_is_told_how_to_divide_one(imagenet, monkeypatch):
    builder = prepared_builder("imagenet2012", imagenet)
    assert positions(builder, "train[:-10]+validation") == [
        ("train", 0, 70),
        ("validation", 0, positions(builder, "validation")[0][2]),
    ]
    monkeypatch.setattr("na_keras.data.tfds.SPLITS", {"train": ("train",), "validation": ("dev",)})
    with pytest.raises(ValueError, match=r"no split named dev.*Divide one: --train-split='train\[:80%\]'"):
        load_source("imagenet2012", "validation", imagenet)
