"""Trains a detector with an attention backbone on photographs with boxes, annotated in COCO's format.

    python training/train_detection.py --recipe cells-demo --data-dir DIR --run-dir runs/cells
    python training/train_detection.py --detector cascade_rcnn --attention na --weights FILE.keras \\
        --data-dir COCO --run-dir runs/cascade --strategy mirrored                         # the paper's schedule

DIR holds annotations/instances_train*.json and instances_val*.json (or both beside them) and the images. They are
converted to TFRecord files once. The run directory gets losses and average precision (history.csv, curves.png,
tensorboard/), pictures (evaluation/) and the detector; the same command line resumes an interrupted run. Needs the
extra "detection", in an environment of its own (docs/detection.md).
"""

import contextlib
import dataclasses
import json
import sys

import recipe_fields
import terminal
from detection_engine import EXTRA, NEEDED, recipes

STRATEGIES = ("none", "mirrored")


def parse_arguments(argv):
    parser = terminal.make_parser(__doc__)
    add, positive = parser.add_argument, terminal.at_least_one
    add("--recipe", default="coco-paper", help=f"one of {', '.join(recipes.RECIPES)} (default: %(default)s)")
    add("--run-dir", type=terminal.folder, help="folder of the run (default: a fresh one under runs/)")
    add("--data-dir", type=terminal.folder, required=True, help="where annotations and images lie")
    add(
        "--records-dir",
        type=terminal.folder,
        metavar="DIR",
        help="where the TFRecord files of the training images are, or are written to (default: DATA_DIR/tfrecords)",
    )
    add(
        "--train-records",
        metavar="PATTERN",
        help="TFRecord files of the training images that Model Garden's program create_coco_tf_record wrote, instead",
    )
    add("--strategy", default="none", choices=STRATEGIES, help="mirrored: on every GPU (default: %(default)s)")
    add("--virtual-cpus", type=int, metavar="N", help="split the CPU into N replicas, to rehearse")
    add("--steps", type=positive, metavar="N", help="stop after N steps in all and leave the run unfinished")
    add(
        "--checkpoint-every",
        type=positive,
        default=1000,
        metavar="N",
        help="steps between checkpoints, besides those at each epoch's end (default: %(default)s)",
    )
    recipe_fields.add_flags(parser, recipes.DetectionRecipe)
    arguments = parser.parse_args(argv)
    if arguments.records_dir and arguments.train_records:
        parser.error("--records-dir is where records are written that --train-records says are there: give one")
    return arguments


@dataclasses.dataclass
class Run:
    """What `prepare` found.

    Attributes:
        recipe, directory, strategy: of the run.
        decided: what decides it, from run_directory.as_json.
        resumed: whether the directory holds its beginning.
        splits: (training, validation), each a dataset.Split.
        description: of the detector, what detector.json has.
        data: what data.json has.
        weights: network.BackboneWeights, or None.
    """

    recipe: recipes.DetectionRecipe
    directory: object
    strategy: object
    decided: dict
    resumed: bool
    splits: tuple
    description: dict
    data: dict
    weights: object


def prepare(arguments, directory, lock):
    """Checks all that can be wrong before the first step, and writes nothing.

    Raises:
        ValueError, OSError: something is wrong; the message says what.
    """
    from detection_engine import dataset, loop, network
    from engine import strategies
    from na_keras.detection import coco
    from run_files import run_directory

    overrides = recipe_fields.overrides(arguments, recipes.DetectionRecipe)
    recipe = recipes.get_recipe(arguments.recipe, **overrides)
    strategy = strategies.make_strategy(arguments.strategy, arguments.virtual_cpus)
    strategies.check_batch_size(recipe.batch_size, strategy)
    lock.take_existing()
    splits = tuple(dataset.open_split(arguments.data_dir, split) for split in ("train", "val"))
    coco.check_same_categories(*(split.annotations for split in splits))
    if len(splits[0].photographs) < recipe.batch_size:
        raise ValueError(
            f"{splits[0].annotations.path} has {len(splits[0].photographs)} images, fewer than one --batch-size."
        )
    if not sum(len(photograph.boxes) for photograph in splits[0].photographs):
        raise ValueError(f"{splits[0].annotations.path} has no boxes that can be trained on.")
    weights = network.BackboneWeights(recipe) if recipe.weights else None
    execution = {"replicas": strategy.num_replicas_in_sync} | ({"weights_sha256": weights.sha256} if weights else {})
    decided = run_directory.as_json(arguments.recipe, recipe, **execution)
    resumed = run_directory.check(directory, decided, recipes.BEFORE, loop.DETECTOR)
    data = dataset.describe(*splits)
    dataset.check_same(directory, data)
    description = network.describe(recipe, splits[0].annotations.categories)
    return Run(recipe, directory, strategy, decided, resumed, splits, description, data, weights)


def start(run, lock):
    """Takes the run directory into possession, and writes what decides the run.

    Raises:
        OSError: another process trains there, or the folder cannot be written.
    """
    from detection_engine import dataset
    from na_keras.detection.model_garden import saved
    from run_files import run_directory

    run.directory.mkdir(parents=True, exist_ok=True)
    lock.take()

    def write(name, content):
        run_directory.write_text(run.directory / name, json.dumps(content, indent=2) + "\n")

    write(dataset.DATA, run.data)
    run_directory.start(run.directory, run.decided, run.strategy, run.splits[0].annotations.class_names)
    write(saved.DESCRIPTION, run.description)


def training_records(arguments, split):
    """The TFRecord files of the training images, written if they are not there.

    Raises:
        ValueError, OSError: an image that cannot be read; no folder that can be written; records of other images.
    """
    import progress
    from detection_engine import dataset

    if arguments.train_records:
        return [str(path) for path in dataset.ready_records(arguments.train_records, split.annotations)]
    folder = arguments.records_dir or arguments.data_dir / "tfrecords"
    shown = progress.Progress(len(split.photographs), "images converted")
    try:
        return [str(path) for path in dataset.converted(split, folder, shown.update)]
    except OSError as error:
        raise OSError(f"{folder} cannot be written: give --records-dir DIR. {error}") from error


def announce(run, name, devices):
    """Says what begins, on what data."""
    recipe, (training, validation) = run.recipe, run.splits
    print(
        f"{'Resuming' if run.resumed else 'Starting'} {name} in {run.directory}: {recipe.detector} on {recipe.model} "
        f"with attention {recipe.attention}, {run.strategy.num_replicas_in_sync} replica(s), global batch "
        f"{recipe.batch_size}, on {devices}",
        *training.annotations.summary,
        *validation.annotations.summary,
        *(run.weights.notes if run.weights and not run.resumed else ()),
        sep="\n",
        flush=True,
    )


def main(argv=None):
    """Returns the process's exit code: 0, or 128 + signal for a run that was interrupted and can be resumed."""
    arguments = parse_arguments(argv)
    terminal.check_installed("train_detection.py", NEEDED, EXTRA)
    devices = terminal.start_tensorflow()
    from detection_engine import loop
    from run_files import checkpoints, run_directory, run_lock

    directory = arguments.run_dir or run_directory.default_directory(arguments.recipe)
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(run_lock.RunLock(directory))
        try:
            run = prepare(arguments, directory, lock)
            paths = training_records(arguments, run.splits[0])
            start(run, lock)
        except (ValueError, OSError) as error:
            sys.exit(f"train_detection.py: {error}")
        announce(run, arguments.recipe, devices)
        recipe, training = run.recipe, run.splits[0]
        steps = len(training.photographs) // recipe.batch_size
        state = loop.TrainingState(recipe, run.description, paths, run.strategy, steps, run.weights)
        options = {"checkpoint_every": arguments.checkpoint_every, "stop_after": arguments.steps}
        try:
            outcome = loop.train(recipe, state, directory, run.strategy, run.splits, **options)
        except (loop.NotFiniteError, checkpoints.CheckpointError) as error:
            sys.exit(f"train_detection.py: {error}")
        return conclude(outcome, directory)


def conclude(outcome, directory):
    """Says how the run ended, and returns the exit code."""
    from detection_engine import loop
    from run_files import run_directory

    if outcome.finished:
        files = {"detector": loop.DETECTOR, "curves": run_directory.CURVES, "history": run_directory.HISTORY}
        files["pictures"] = run_directory.EVALUATION
        print(f"Finished {len(outcome.rows)} epochs.")
        print(*(f"  {name:<9} {directory / file}" for name, file in files.items()), sep="\n")
        return 0
    return terminal.conclude_unfinished(outcome)


if __name__ == "__main__":
    sys.exit(main())
