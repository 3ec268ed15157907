"""The folder of a run: what decided it, what it has reached, what it made.

recipe.json        the resolved recipe, replicas, --sync-bn, --precision, --xla, and the SHA-256 of the weights and of
                   the model's file that the run starts from, written before the first step; a resumed run must have
                   the same, except for recipes.MAY_CHANGE. `class_weight_values` are the numbers of a file of class
                   weights
environment.json   versions, command line, commit, devices, written before the first step, one entry per start
data.json          what the data is: class names, counts, digests (data_record.py); a resumed run must have the same,
                   unless --accept-data-change is given, which is recorded there
labels.txt         class names, one a line
lock               says that a process trains here, as long as it does (run_lock.py)
history.csv        one row per epoch; holds nothing that depends on the clock, so equal runs have equal files. `loss` is
                   the mean of the recipe's loss, with smoothing and mixing; `validation_loss` is always the plain
                   cross-entropy, `validation_mean_class_accuracy` the mean of the classes' own accuracies. Without
                   top-5 where there are five classes or fewer. Multi-label runs have the numbers of
                   engine/multilabel.py instead, the loss a plain binary cross-entropy
speed.csv          one row per epoch and start: images/s, and the milliseconds of a step
checkpoints/       the two newest checkpoints
tensorboard/       logs: training/, with learning rate and images/s, and validation/, in which the same quantity has the
                   same name
curves.png         the history as a picture
best.keras         with --keep-best, the network of the best epoch so far (best_epoch.py)
evaluation/        of a finished run what its network answers to the validation images: per_class.csv,
                   mistakes.csv and .png, and where an image has one class confusion_matrix.csv and .png
                   (evaluation_files.py)
model.keras        the trained network, of the last epoch; its presence says that the run is finished
"""

import csv
import dataclasses
import datetime
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import subprocess
import sys

import recipes
from na_keras.files import replace_file, temporary_path

RECIPE, ENVIRONMENT, LABELS, HISTORY = "recipe.json", "environment.json", "labels.txt", "history.csv"
CURVES, MODEL, CHECKPOINTS, TENSORBOARD = "curves.png", "model.keras", "checkpoints", "tensorboard"
SPEED, DATA, LOCK, BEST, EVALUATION = "speed.csv", "data.json", "lock", "best.keras", "evaluation"
# What a recipe.json means that was written before it held these.
BEFORE = json.loads(json.dumps({**recipes.BEFORE, "precision": "float32", "xla": False}))
PACKAGES = ("na-keras", "keras", "tensorflow", "numpy", "tensorflow-datasets")


def write_text(path, text):
    """Replaces a text file as a whole."""
    replace_file(path, lambda temporary: temporary.write_text(text, "utf-8"))


def leftovers(name):
    """What a process that is killed while it writes that file leaves: its name of today, and that of version 0.1."""
    return {temporary_path(name).name, f".{name}.tmp"}


def as_json(recipe_name, recipe, **execution):
    """What decides a run as it is stored: the recipe, and what of the execution changes its numbers (replicas and
    sync_bn decide whose images a batch norm sees, precision and xla how it is rounded). Tuples are lists there.
    """
    return json.loads(json.dumps({"recipe": recipe_name, **dataclasses.asdict(recipe), **execution}))


def default_directory(recipe_name):
    """A fresh folder under runs/, named after the recipe and the time."""
    # With the process's number: two runs may start in one second.
    return pathlib.Path("runs") / f"{recipe_name}-{datetime.datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"


def check(directory, decided, before=BEFORE, finished=MODEL):
    """Whether `directory` holds an unfinished run that the same things decide (True) or nothing yet (False).

    Args:
        directory: pathlib.Path.
        decided: from `as_json`.
        before: what a recipe.json means that was written before it held these.
        finished: name in a directory whose presence says that its run is finished.

    Raises:
        FileExistsError: a finished run, or files that are not a run's.
        ValueError: an unfinished run of a different recipe; the message shows the differences.
    """
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"{directory} is a file; it is kept. Choose another --run-dir.")
    # What a start that was killed before recipe.json leaves does not count.
    names = {path.name for path in directory.iterdir()} if directory.exists() else set()
    unfinished_start = {ENVIRONMENT, LABELS, DATA, LOCK}.union(*map(leftovers, (ENVIRONMENT, LABELS, DATA, RECIPE)))
    if names <= unfinished_start:
        return False
    if (directory / finished).exists():
        raise FileExistsError(f"{directory} holds a finished run ({finished}); it is kept. Choose another --run-dir.")
    if not (directory / RECIPE).exists():
        raise FileExistsError(
            f"{directory} is not empty and holds no run ({RECIPE} is missing); it is kept. Choose another --run-dir."
        )
    stored, decided = read_recipe(directory, before), {**before, **decided}
    differences = [
        f"  {key}: {stored.get(key)!r} there, {decided.get(key)!r} asked for"
        for key in sorted({*stored, *decided} - {*recipes.MAY_CHANGE})
        if stored.get(key) != decided.get(key)
    ]
    if differences:
        raise ValueError(
            f"{directory} holds an unfinished run of another recipe; it is kept. Resume with the same command line, "
            "or choose another --run-dir. Differences:\n" + "\n".join(differences)
        )
    return True


def read_recipe(directory, before=BEFORE):
    """What decided the run in `directory`, as `as_json` made it; `before` as in `check`."""
    return {**before, **json.loads((directory / RECIPE).read_text("utf-8"))}


def stored_recipe(directory):
    """The same as (the Recipe, what else as a dictionary)."""
    stored = read_recipe(directory)
    values = {
        field.name: stored.pop(field.name) for field in dataclasses.fields(recipes.Recipe) if field.name in stored
    }
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return recipes.Recipe(**values), stored


def commit():
    """The checkout's git commit, with "+" if files differ from it; None outside git."""
    root = pathlib.Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+"], cwd=root, capture_output=True, text=True
        )
    except FileNotFoundError:  # no git on this machine
        return None
    return described.stdout.strip() or None


def version(package):
    """Of an installed package; None if it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(strategy):
    """What a reader needs to know to repeat the run."""
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "strategy": type(strategy).__name__,
        "replicas": strategy.num_replicas_in_sync,
    }


def start(directory, decided, strategy, class_names):
    """Writes what decides the run. A resumed run adds an entry to environment.json, and changes nothing else but
    recipes.MAY_CHANGE and class names that were accepted.
    """
    this_start = environment(strategy)
    directory.mkdir(parents=True, exist_ok=True)
    starts = directory / ENVIRONMENT
    earlier = json.loads(starts.read_text("utf-8")) if starts.exists() else []
    write_text(starts, json.dumps([*earlier, this_start], indent=2) + "\n")
    write_text(directory / LABELS, "".join(f"{name}\n" for name in class_names))
    # Last: with this file the folder counts as a run.
    write_text(directory / RECIPE, json.dumps(decided, indent=2) + "\n")


def read_history(directory, epochs):
    """The first `epochs` rows of history.csv, as dictionaries of strings."""
    path = directory / HISTORY
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if int(row["epoch"]) <= epochs]


def write_history(directory, rows):
    """Replaces history.csv by these rows. Columns are those of the last; an older version's rows may lack some or have
    more, such as the top-5 of three classes.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[-1].keys(), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(directory / HISTORY, text.getvalue())


def append_speed(directory, row):
    """Adds a row to speed.csv."""
    path = directory / SPEED
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row.keys(), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow({name: value if isinstance(value, int) else f"{value:.3f}" for name, value in row.items()})
