"""Trains a network with attention on images.

    python training/train.py                                  # the demo: NA-MobileNetV2 on scikit-learn's digits
    python training/train.py --strategy=mirrored              # on every GPU of this machine
    python training/train.py --strategy=mirrored --virtual-cpus=2    # a rehearsal of two replicas without GPUs
    python training/train.py --recipe=resnet50-paper --attention=na --data-dir=DIR --strategy=mirrored   # ImageNet

The demo takes about 2 minutes on 2 CPU cores and ends above 95 % on held-out handwriting. The run directory holds all
that the run was and made (see run_directory.py); the same command line with the same --run-dir resumes an interrupted
run.
"""

import contextlib
import dataclasses
import os
import pathlib
import sys

import recipe_fields
import recipes
import terminal

# Modules without which a run would fail, some only at its end; by dataset, those of TFDS if it is none of these.
NEEDED = ("matplotlib", "tensorboard")
NEEDED_BY_DATASET = {"digits": ("sklearn",), "folder": (), "csv": ()}
NEEDED_BY_TFDS = ("tensorflow_datasets",)


def parse_arguments(argv, allow_abbrev=True):
    """The command line's. `allow_abbrev`: whether a flag may be shortened, as in argparse."""
    parser = terminal.make_parser(__doc__)
    parser.allow_abbrev = allow_abbrev
    add, positive = parser.add_argument, terminal.at_least_one
    add("--recipe", default="digits-demo", help=f"one of {', '.join(recipes.RECIPES)} (default: %(default)s)")
    add("--run-dir", type=terminal.folder, help="folder of the run (default: a fresh one under runs/)")
    add("--data-dir", type=terminal.folder, help="where the dataset lies; what it must hold depends on --dataset")
    terminal.add_import_flag(parser)
    terminal.add_execution_flags(parser)
    add("--steps", type=positive, metavar="N", help="stop after N steps in all and leave the run unfinished")
    add(
        "--checkpoint-every",
        type=positive,
        default=1000,
        metavar="N",
        help="steps between checkpoints, besides those at each epoch's end (default: %(default)s)",
    )
    add(
        "--steps-per-call",
        type=positive,
        default=1,
        metavar="N",
        help="optimizer steps per compiled call (default: %(default)s)",
    )
    add(
        "--accept-data-change",
        action="store_true",
        help="resume although the data is not what it was; the change is recorded in data.json, and if the training "
        "images changed, the unfinished epoch begins again",
    )
    recipe_fields.add_flags(parser, recipes.Recipe)
    arguments = parser.parse_args(argv)
    if arguments.strategy == "multi_worker_mirrored" and arguments.run_dir is None:
        parser.error("--strategy=multi_worker_mirrored needs --run-dir: one folder that all machines see")
    terminal.check_execution_flags(parser, arguments)
    return arguments


def needed_modules(arguments):
    """What this run imports besides TensorFlow and Keras."""
    recipe = recipes.RECIPES.get(arguments.recipe)
    dataset = arguments.dataset or (recipe.dataset if recipe else "folder")
    return (*NEEDED, *NEEDED_BY_DATASET.get(dataset, NEEDED_BY_TFDS))


@dataclasses.dataclass
class Run:
    """What `prepare` found.

    Attributes:
        recipe, directory, strategy, state: of the run.
        decided: what decides it, from run_directory.as_json.
        resumed: whether the directory holds its beginning.
        sources: (training, validation).
        record: DataRecord of them.
    """

    recipe: recipes.Recipe
    directory: pathlib.Path
    strategy: object
    decided: dict
    resumed: bool
    sources: list
    record: object
    state: object


def resolved_recipe(arguments, directory):
    """The recipe with the fields that were given.

    Raises:
        ValueError: see recipes.get_recipe; or recipe.json is damaged.
    """
    from run_files import run_directory

    recipe = recipes.get_recipe(arguments.recipe, **recipe_fields.overrides(arguments, recipes.Recipe))
    if arguments.evaluation_resize is None and (directory / run_directory.RECIPE).exists():
        # Before the resize followed the size, runs kept their recipe's.
        own = recipes.RECIPES[arguments.recipe].evaluation_resize
        if run_directory.read_recipe(directory)["evaluation_resize"] == own:
            recipe = dataclasses.replace(recipe, evaluation_resize=own)
    return recipe


def prepare(arguments, directory, lock):
    """Checks all that can be wrong before the first step, and writes nothing.

    Args:
        arguments: of the command line.
        directory: of the run.
        lock: RunLock of it, which is taken if a process has trained there before.

    Returns:
        Run.

    Raises:
        ValueError, OSError: something is wrong; the message says what.
    """
    from engine import class_weights, evaluation, optimization, strategies
    from engine.training_state import TrainingState
    from na_keras import networks
    from na_keras.data import load_source
    from run_files import data_record, run_directory

    networks.import_modules(arguments.imports)
    recipe = resolved_recipe(arguments, directory)
    strategy = strategies.make_strategy(arguments.strategy, arguments.virtual_cpus)
    strategies.check_batch_size(recipe.batch_size, strategy, recipe.accumulate)
    if strategies.is_chief(strategy):
        lock.take_existing()
    execution = {name: getattr(arguments, name) for name in ("sync_bn", "precision", "xla")}
    replicas = strategy.num_replicas_in_sync
    start = networks.Start(recipe.network)
    execution |= {**start.digests, **class_weights.recorded(recipe.class_weights)}
    decided = run_directory.as_json(arguments.recipe, recipe, replicas=replicas, **execution)
    resumed = run_directory.check(directory, decided)
    given = recipe_fields.overrides(arguments, recipes.Recipe) if not resumed else {}  # older runs were not asked
    recipes.check_effects(recipe, given)
    if arguments.sync_bn and arguments.strategy == "none" and not resumed:
        raise ValueError("--sync-bn has no effect without several replicas: give a --strategy, or leave --sync-bn out.")
    splits = ("train", "validation")
    sources = [load_source(recipe.dataset, split, arguments.data_dir, **recipe.splits) for split in splits]
    evaluation.check_recipe(recipe, sources[0])
    if sources[0].count < recipe.batch_size:
        raise ValueError(f"{sources[0].name} holds {sources[0].count} images, fewer than one --batch-size.")
    record = data_record.check(directory, sources, resumed, arguments.accept_data_change)
    other_classes = start.check_classes(sources[0].class_names)
    weights = class_weights.resolve(recipe.class_weights, sources[0], record)
    steps_per_epoch, classes = sources[0].count // recipe.batch_size, len(sources[0].class_names)
    try:
        options = {"precision": arguments.precision, "sync_bn": arguments.sync_bn, "weights": start.weights}
        state = TrainingState(recipe, strategy, classes, steps_per_epoch, **options)
    except TypeError as error:
        raise ValueError(f"{recipe.model} does not take --model-options={recipe.model_options}: {error}") from error
    state.notes += [other_classes] if other_classes else []
    state.notes += state.notes.change_of_ending(evaluation.task_of(sources[0].multi_label).ACTIVATION)
    state.notes += [] if weights is None else [class_weights.note(weights, sources[0].class_names)]
    optimization.check_found("--no-weight-decay", given.get("no_weight_decay", ()), state.freezing.trainable)
    state.freezing.check_effects(given)
    return Run(recipe, directory, strategy, decided, resumed, sources, record, state)


def start(run, lock):
    """Takes the run directory into possession, and writes what decides the run.

    Raises:
        OSError: another process trains there, or has begun to since `prepare`.
    """
    from run_files import run_directory

    run.directory.mkdir(parents=True, exist_ok=True)
    lock.take()
    if run_directory.check(run.directory, run.decided) != run.resumed:
        raise BlockingIOError(f"Another process has begun a run in {run.directory} just now. Choose another --run-dir.")
    if run.record.missing and not run.record.accepted:
        run.record.write(run.directory, shift=0, step=0)
    run_directory.start(run.directory, run.decided, run.strategy, run.sources[0].class_names)


def check_pixels(run):
    """Warns if a trained network gets images that do not look like those that it was trained on."""
    import tensorflow as tf

    from engine.loop import evaluation_options
    from na_keras.data import pipeline
    from na_keras.networks import unlikely_range

    if not run.recipe.network.starts_trained:
        return
    options = {**evaluation_options(run.recipe), "batch_size": 8, "skip_unreadable": True}
    batches = pipeline.evaluation_batches(run.sources[1], **options, context=tf.distribute.InputContext())
    if found := unlikely_range(run.state.model, next(iter(batches))[0]):
        print(f"WARNING: {found}")


def announce(run, name, devices):
    """Says what begins, on what data."""
    recipe, (training, validation) = run.recipe, run.sources
    print(
        f"{'Resuming' if run.resumed else 'Starting'} {name} in {run.directory}: {recipe.model} with attention "
        f"{recipe.attention}, {training.count} training and {validation.count} held-out images of {recipe.dataset}, "
        f"{run.strategy.num_replicas_in_sync} replica(s), global batch {recipe.batch_size}, on {devices}",
        *(line for source in run.sources for line in source.summary),
        sep="\n",
        flush=True,
    )
    if not run.resumed:
        print(*run.state.notes, sep="\n", end="\n" if run.state.notes else "", flush=True)
        check_pixels(run)
    if run.resumed and run.record.missing:
        print("The run holds no record of its data, as an older version started it: from now on it does.")
    for line in run.record.accepted:
        print(f"Accepted: {line}")


def main(argv=None):
    """Returns the process's exit code: 0, or 128 + signal for a run that was interrupted and can be resumed."""
    arguments = parse_arguments(argv)
    terminal.check_installed("train.py", needed_modules(arguments))
    devices = terminal.start_tensorflow()
    from engine import evaluation, loop, strategies
    from run_files import checkpoints, run_directory, run_lock

    execution = loop.Execution(
        arguments.xla, arguments.checkpoint_every, arguments.steps_per_call, stop_after=arguments.steps
    )
    directory = arguments.run_dir or run_directory.default_directory(arguments.recipe)
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(run_lock.RunLock(directory))
        try:
            run = prepare(arguments, directory, lock)
            if strategies.is_chief(run.strategy):
                start(run, lock)
            else:  # one machine talks
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        except (ValueError, OSError) as error:
            sys.exit(f"train.py: {error}")
        announce(run, arguments.recipe, devices)
        try:
            outcome = loop.train(run.recipe, run.state, directory, run.strategy, run.sources, execution, run.record)
        except (
            loop.NotFiniteError,
            evaluation.UnreadableImageError,
            checkpoints.CheckpointError,
            strategies.DisagreementError,
        ) as error:
            sys.exit(f"train.py: {error}")
        return conclude(outcome, run)


def conclude(outcome, run):
    """Says how the run ended, and returns the exit code."""
    from engine import evaluation
    from run_files import best_epoch, run_directory

    directory, recipe, rows = run.directory, run.recipe, outcome.rows
    if outcome.finished:
        task = evaluation.task_of(run.sources[0].multi_label)

        def in_words(row, metric):
            return evaluation.metric_in_words(task, metric, best_epoch.validated(row, metric))

        headline = in_words(rows[-1], task.KEEP_BEST[0])
        print(f"Finished {len(rows)} epochs: {headline} on {run.sources[1].count} held-out images.")
        files = {"network": run_directory.MODEL, "curves": run_directory.CURVES, "history": run_directory.HISTORY}
        files["mistakes"] = run_directory.EVALUATION
        if recipe.keep_best and (best := best_epoch.best_epoch(rows, recipe.keep_best)):
            if best_epoch.patience_is_over(rows, recipe):
                print(f"For {recipe.patience} epochs none was better than epoch {best['epoch']} (--patience).")
            print(f"The best epoch is {best['epoch']}: {in_words(best, recipe.keep_best)}")
            files["best"] = run_directory.BEST
        print(*(f"  {name:<9} {directory / file}" for name, file in files.items()), sep="\n")
        return 0
    return terminal.conclude_unfinished(outcome)


if __name__ == "__main__":
    sys.exit(main())
