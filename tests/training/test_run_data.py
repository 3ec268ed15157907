"""A resumed run goes on with its data, or with other data that was accepted; evaluation has the network's classes."""

import csv
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from tiny_network import FLAGS, tiny, train_here

import evaluate
from engine import class_weights
from engine.training_state import Epochs
from na_keras.data import load_source
from na_keras.data.image_folder import image_folder
from na_keras.models import MODELS
from run_files import data_record, run_directory

# Twelve training images in batches of four: 3 steps an epoch.
RUN = (*FLAGS, "--dataset", "folder", "--batch-size", 4, "--epochs", 2, "--warmup-epochs", 0)


@pytest.fixture(scope="module", autouse=True)
def tiny_model():
    """`--model=Tiny` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "Tiny", tiny)
        yield


def add_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    path.write_bytes(tf.io.encode_png(pixels).numpy())


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with data/ and run/, which was stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("begun")
    for split, count in (("train", 6), ("validation", 2)):
        for name in ("cat", "dog"):
            for index in range(count):
                add_image(folder / "data" / split / name / f"{index}.png")
    code, output = train_here(folder / "run", *RUN, "--data-dir", folder / "data", "--steps", 4)
    assert code == 0 and "12 images in 2 classes: cat 6, dog 6" in output
    assert "top-1" in output and "top-5" not in output  # of two classes
    return folder


@pytest.fixture
def copied(begun, tmp_path):
    shutil.copytree(begun, tmp_path / "copy")
    return tmp_path / "copy"


def resume(folder, *arguments):
    return train_here(folder / "run", *RUN, "--data-dir", folder / "data", *arguments)


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_run_records_its_data(begun):
    record = json.loads((begun / "run" / "data.json").read_text())
    assert record["class_names"] == ["cat", "dog"] and record["changes"] == []
    for split, count in (("training", 6), ("validation", 2)):
        described = record["splits"][split]
        assert described["images"] == 2 * count and described["images_per_class"] == {"cat": count, "dog": count}
        assert len(described["sha256_of_names_and_sizes"]) == 64


CHANGES = {
    "more training images": (
        lambda data: add_image(data / "train" / "cat" / "new.png"),
        ["training images: 12 there, 13 now", "training images of cat: 6 there, 7 now"],
    ),
    "another file of the same name": (
        lambda data: (data / "train" / "dog" / "3.png").write_bytes(b"another"),
        ["training: as many images, but some files have other names or sizes"],
    ),
    "a renamed file": (
        lambda data: (data / "train" / "dog" / "3.png").rename(data / "train" / "dog" / "9.png"),
        ["training: as many images, but some files have other names or sizes"],
    ),
    "fewer held-out images": (
        lambda data: (data / "validation" / "cat" / "0.png").unlink(),
        ["validation images: 4 there, 3 now"],
    ),
    "a renamed class": (
        lambda data: [(data / split / "dog").rename(data / split / "wolf") for split in ("train", "validation")],
        ["classes that are gone: dog", "classes that are new: wolf"],
    ),
    "one class more": (
        lambda data: add_image(data / "train" / "owl" / "0.png"),
        ["classes that are new: owl", "Its network has 2 classes, the data 3: start another run"],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_is_refused_with_the_difference_before_anything_is_written(copied, change):
    make, lines = CHANGES[change]
    make(copied / "data")
    before = contents(copied / "run")
    message, _ = resume(copied)
    assert "holds a run of other data; it is kept" in message and all(line in message for line in lines)
    assert ("--accept-data-change" in message) == (change != "one class more")
    assert contents(copied / "run") == before


def test_another_number_of_classes_cannot_be_accepted_even_by_a_run_without_a_record(copied):
    CHANGES["one class more"][0](copied / "data")
    (copied / "run" / "data.json").unlink()
    before = contents(copied / "run")
    assert "Its network has 2 classes, the data 3" in resume(copied, "--accept-data-change")[0]
    assert contents(copied / "run") == before


def test_accepted_data_begins_the_unfinished_epoch_again_and_is_recorded(copied):
    """Also in other numbers: the second epoch then has four steps. Unreadable images may be left out from now on."""
    for name in ("a", "b", "c"):
        add_image(copied / "data" / "train" / "cat" / f"{name}.png")
    for split in ("train", "validation"):
        (copied / "data" / split / "dog" / "damaged.png").write_bytes(b"no image")
    code, output = resume(copied, "--accept-data-change", "--skip-unreadable")
    assert code == 0 and "Accepted: training images: 12 there, 16 now" in output
    assert "begins again with the new data; 1 steps were done with the old" in output
    for warning in ("1 unreadable training images were left out", "1 unreadable held-out images were left out"):
        assert warning in output
    with (copied / "run" / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"], row["examples"]) for row in rows] == [("1", "3", "12"), ("2", "8", "15")]
    # Of a cosine over eight steps the last one's: the schedule goes by epochs.
    assert float(rows[1]["learning_rate"]) == pytest.approx(0.05 * (1 + np.cos(np.pi * 7 / 8)) / 2, rel=1e-5)
    record = json.loads((copied / "run" / "data.json").read_text())
    (change,) = record["changes"]
    assert change["step"] == 4 and "training images: 12 there, 16 now" in change["differences"]
    assert record["splits"]["training"]["images"] == 16
    assert json.loads((copied / "run" / "recipe.json").read_text())["skip_unreadable"] is True
    assert (copied / "run" / "model.keras").exists()


def test_a_run_without_a_record_goes_on_with_a_notice_and_has_one_then(copied):
    (copied / "run" / "data.json").unlink()
    code, output = resume(copied, "--steps", 4)
    assert code == 0 and "holds no record of its data" in output
    # Where the data lies does not count.
    (copied / "data").rename(copied / "elsewhere")
    code, output = resume(copied, "--steps", 4, "--data-dir", copied / "elsewhere")
    assert code == 0 and "holds no record" not in output


@pytest.mark.parametrize(("images", "expected"), [(40, (3, 0)), (400, (3, 0)), (99, (3, 0))])
def test_an_epoch_keeps_its_number_when_its_length_changes(images, expected):
    before = {"class_names": ["a"], "splits": {"training": {"images": 100}}}
    record = data_record.DataRecord({"class_names": ["a"], "splits": {"training": {"images": images}}}, before, ("x",))
    epochs = Epochs(images // 10)
    assert record.accept(epochs, 34, 10) == 4  # of the fourth epoch
    assert epochs.position(34) == expected
    assert epochs.position(epochs.first_step(7)) == (7, 0) and epochs.first_step(3) == 34


def test_top5_of_an_older_history_is_left_out_where_it_says_nothing(tmp_path):
    old = [{"epoch": 1, "loss": 2.5, "top5": 1.0}]
    run_directory.write_history(tmp_path, [*old, {"epoch": 2, "loss": 1.5}])
    assert (tmp_path / "history.csv").read_text() == "epoch,loss\n1,2.5\n2,1.5\n"


def test_a_network_is_evaluated_on_any_split_of_its_classes_without_training_images(copied, capsys):
    data = copied / "data"
    for split in ("test", "unknown/test"):
        add_image(data / split / "dog" / "0.png")
    (data / "unknown" / "test" / "dog").rename(data / "unknown" / "test" / "wolf")
    shutil.rmtree(data / "train")
    (data / "test" / "dog" / "damaged.jpg").write_bytes(b"no image")
    arguments = ["--model", str(copied / "run"), "--data-dir", str(data), "--split", "test"]
    with pytest.raises(SystemExit, match="the image .*damaged.jpg cannot be decoded"):
        evaluate.main(arguments)
    capsys.readouterr()
    result = evaluate.main([*arguments, "--skip-unreadable"])
    output = capsys.readouterr().out
    assert "2 images in 2 classes: cat 0, dog 2" in output and "WARNING: 1 unreadable images were left out" in output
    assert "over 1 images" in output and "cross-entropy" in output and "top-5" not in output and "top5" not in result
    arguments[3] = str(data / "unknown")
    with pytest.raises(SystemExit, match=r"are not among the 2 class names: \['wolf'\]"):
        evaluate.main(arguments)


# --- class weights -------------------------------------------------------------------------------------------------


@pytest.fixture
def unequal(tmp_path):
    """The training images of a folder: four cats, two dogs."""
    for index in range(6):
        add_image(tmp_path / "train" / ("cat" if index < 4 else "dog") / f"{index}.png")
    return image_folder("train", tmp_path)


def test_balanced_classes_weigh_the_same(unequal, tmp_path, capsys):
    weights = class_weights.resolve("balanced", unequal)
    np.testing.assert_allclose(weights, [6 / (2 * 4), 6 / (2 * 2)])
    assert class_weights.note(weights, unequal.class_names) == "Class weights: cat 0.75, dog 1.5"
    assert "Counting" not in capsys.readouterr().out  # a folder knows its files
    more = image_folder("train", tmp_path, ["cat", "cow", "dog"])
    with pytest.raises(ValueError, match="training images of every class. .*train has none of cow: remove the class"):
        class_weights.resolve("balanced", more)
    assert class_weights.resolve(None, unequal) is None


def test_images_that_must_be_counted_are_counted_once(tmp_path, capsys):
    source = load_source("digits", "train")
    record = data_record.check(tmp_path, (source, load_source("digits", "validation")), False, False)
    weights = class_weights.resolve("balanced", source, record)
    counts = record.data["splits"]["training"]["images_per_class"]
    assert sum(counts.values()) == 1437 and "Counting the images of each class" in capsys.readouterr().out
    np.testing.assert_allclose(weights, [143.7 / number for number in counts.values()], rtol=1e-6)
    record.write(tmp_path, 0, 0)
    resumed = data_record.check(tmp_path, (source, load_source("digits", "validation")), True, False)
    np.testing.assert_array_equal(class_weights.resolve("balanced", source, resumed), weights)
    assert "Counting" not in capsys.readouterr().out and resumed.fingerprint == record.fingerprint


FILES = {
    "weights.csv": ("class,weight\ncat,0.5\ndog,2\n", None),
    "windows.csv": ("\ufeffdog,2\r\ncat,0.5\r\n", None),
    "weights.json": ('{"dog": 2, "cat": 0.5}', None),
    "missing.csv": ("cat,1\ncow,1\n", "for each class of .*Missing: dog. Unknown: cow"),
    "zero.csv": ("class,weight\ncat,0\ndog,1\n", "line 2: expected a number above 0. Received: '0'"),
    "twice.json": ('{"dog": 2, "dog": 1, "cat": 1}', "the entry 'dog': the class 'dog' was there before"),
    "text.csv": ("cat,1\ndog\n", "line 2 is no class,weight: dog"),
    "list.json": ("[1, 2]", "holds no dictionary"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_class_weights_names_every_class_once(name, unequal, tmp_path):
    text, message = FILES[name]
    (tmp_path / name).write_text(text, "utf-8")
    if message is None:
        np.testing.assert_array_equal(class_weights.resolve(tmp_path / name, unequal), [0.5, 2])
        return
    with pytest.raises(ValueError, match=message):
        class_weights.resolve(tmp_path / name, unequal)


def test_a_run_goes_on_with_the_class_weights_it_began_with(begun, tmp_path):
    weights, data = tmp_path / "weights.csv", ("--data-dir", begun / "data")
    message, _ = train_here(tmp_path / "run", *RUN, *data, "--class-weights", weights)
    assert "--class-weights must be balanced, or a CSV or JSON file. There is no file" in message
    assert not (tmp_path / "run").exists()
    weights.write_text("cat,1\ndog,3\n")
    code, output = train_here(tmp_path / "run", *RUN, *data, "--class-weights", weights, "--steps", 1)
    assert code == 0 and "Class weights: cat 1, dog 3" in output
    recipe = run_directory.read_recipe(tmp_path / "run")
    assert recipe["class_weights"] == str(weights) and recipe["class_weight_values"] == {"cat": 1.0, "dog": 3.0}
    weights.write_text("cat,1\ndog,4\n")
    message, _ = train_here(tmp_path / "run", *RUN, *data, "--class-weights", weights)
    assert "class_weight_values: {'cat': 1.0, 'dog': 3.0} there, {'cat': 1.0, 'dog': 4.0} asked for" in message


# --- splits and labels ------------------------------------------------------------------------------------------------


def test_a_share_that_is_held_out_is_the_runs_validation_wherever_it_is_evaluated(tmp_path, capsys):
    for name, count in (("cat", 8), ("dog", 8), ("owl", 1)):
        for index in range(count):
            add_image(tmp_path / "data" / name / f"{name}{index}.png")
    flags = (*RUN, "--epochs", 1, "--validation-split", "0.25")
    code, output = train_here(tmp_path / "run", *flags, "--data-dir", tmp_path / "data", "--seed", 3)
    assert code == 0 and "4 of 17 images held out, 0.25 of each class, by name" in output
    with (tmp_path / "run" / "history.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    record = json.loads((tmp_path / "run" / "data.json").read_text())["splits"]
    assert record["validation"]["images_per_class"] == {"cat": 2, "dog": 2, "owl": 0}
    assert record["training"]["images_per_class"] == {"cat": 6, "dog": 6, "owl": 1}

    (tmp_path / "data").rename(tmp_path / "elsewhere")
    arguments = ["--data-dir", str(tmp_path / "elsewhere"), "--model"]
    result = evaluate.main([*arguments, str(tmp_path / "run")])
    assert result["loss"] == pytest.approx(float(row["validation_loss"]), rel=1e-5)
    output = capsys.readouterr().out
    assert "held-out part" in output and "over 4 images" in output and "WARNING" not in output
    # More images than the run had: some that it was trained on may be held out now.
    for index in range(8):
        add_image(tmp_path / "elsewhere" / "cat" / f"new{index}.png")
    evaluate.main([*arguments, str(tmp_path / "run" / "model.keras"), "--split", "train"])
    output = capsys.readouterr().out
    assert "training part" in output and "not the run's images: training images of cat: 6 there, 12 now" in output
