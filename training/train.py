"""Trains a network with attention on images.

    python training/train.py                                  # the demo: NA-MobileNetV2 on scikit-learn's digits
    python training/train.py --strategy=mirrored              # on every GPU of this machine
    python training/train.py --strategy=mirrored --virtual-cpus=2    # a rehearsal of two replicas without GPUs
    python training/train.py --recipe=resnet50-paper --attention=na --data-dir=DIR --strategy=mirrored   # ImageNet

The demo takes about 2 minutes on 2 CPU cores and ends above 95 % on held-out handwriting. The run directory holds all
that the run was and made (see run_directory.py); the same command line with the same --run-dir resumes an interrupted
run.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

NEEDED = ("matplotlib", "tensorboard", "sklearn")  # of the extra "train"; without them a run would fail at its end


FIELD_HELP = {
    "attention": 'attention module; "none" for no attention',
    "batch_size": "images per step, all replicas together",
    "model_options": "further arguments of the builder as JSON",
}
JSON_FIELDS = ("model_options", "no_weight_decay")


def add_recipe_flags(parser, recipe_class):
    """One flag per field of a recipe, named after it: --learning-rate, --crop-area LOW HIGH, --flip, --no-flip ..."""
    group = parser.add_argument_group("fields of the recipe", "each replaces the recipe's own")
    for field in dataclasses.fields(recipe_class):
        flag, text = f"--{field.name.replace('_', '-')}", FIELD_HELP.get(field.name)
        if field.name in JSON_FIELDS:
            group.add_argument(flag, type=json.loads, metavar="JSON", help=text or "as JSON")
        elif field.type is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif field.type == tuple[float, float]:
            group.add_argument(flag, type=float, nargs=2, metavar=("LOW", "HIGH"), help=text)
        else:
            kinds = [kind for kind in (int, float, str) if kind == field.type or field.type == kind | None]
            group.add_argument(flag, type=kinds[0], help=text)


def parse_arguments(argv):
    import recipes

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--recipe", default="digits-demo", help=f"one of {', '.join(recipes.RECIPES)} (default: %(default)s)")
    add("--run-dir", type=pathlib.Path, help="folder of the run (default: a fresh one under runs/)")
    add("--data-dir", type=pathlib.Path, help="where the dataset lies; what it must hold depends on --dataset")
    names = '"none", "mirrored", "multi_worker_mirrored" or "tpu"'
    add("--strategy", default="none", help=f"{names} (default: %(default)s)")
    add("--virtual-cpus", type=int, metavar="N", help="split the CPU into N replicas, to rehearse")
    add("--sync-bn", action="store_true", help="batch-norm statistics over all replicas")
    add(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of activations; weights, statistics and the loss stay float32 (default: %(default)s)",
    )
    add("--xla", action="store_true", help="compile the forward and backward pass with XLA")
    add("--steps", type=int, help="stop after N steps in all and leave the run unfinished")
    add("--checkpoint-every", type=int, default=1000, help="steps between checkpoints (default: %(default)s)")
    add("--steps-per-call", type=int, default=1, help="optimizer steps per compiled call (default: %(default)s)")
    add_recipe_flags(parser, recipes.Recipe)
    arguments = parser.parse_args(argv)
    for name in ("steps", "checkpoint_every", "steps_per_call"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1. Received: {value}")
    if arguments.strategy == "multi_worker_mirrored" and arguments.run_dir is None:
        parser.error("--strategy=multi_worker_mirrored needs --run-dir: one folder that all machines see")
    if arguments.xla and arguments.sync_bn:
        parser.error("--xla compiles each replica by itself, and --sync-bn talks between replicas: choose one")
    return arguments


def recipe_overrides(arguments, recipe_class):
    """The recipe's fields among the arguments, lists as tuples."""
    values = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(recipe_class)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def main(argv=None):
    """Returns the process's exit code: 0, or 128 + signal for a run that was interrupted and can be resumed."""
    missing = [module for module in NEEDED if importlib.util.find_spec(module) is None]
    if missing:
        sys.exit(f"train.py: {', '.join(missing)} not installed. Run: pip install -e '.[train]'")
    arguments = parse_arguments(argv)
    import keras

    import recipes
    from engine import checkpoints, evaluation, loop, run_directory, strategies
    from na_keras.data import load_source

    errors = (
        *(loop.NotFiniteError, evaluation.UnreadableImageError),
        *(checkpoints.CheckpointError, strategies.DisagreementError),
    )
    keras.config.set_image_data_format("channels_last")  # whatever this machine's keras.json says
    try:
        recipe = recipes.get_recipe(arguments.recipe, **recipe_overrides(arguments, recipes.Recipe))
        directory = arguments.run_dir or run_directory.default_directory(arguments.recipe)
        strategy = strategies.make_strategy(arguments.strategy, arguments.virtual_cpus)
        strategies.check_batch_size(recipe.batch_size, strategy, recipe.accumulate)
        replicas = strategy.num_replicas_in_sync
        execution = {name: getattr(arguments, name) for name in ("sync_bn", "precision", "xla")}
        decided = run_directory.as_json(arguments.recipe, recipe, replicas=replicas, **execution)
        resumed = run_directory.check(directory, decided)
        sources = [load_source(recipe.dataset, split, arguments.data_dir) for split in ("train", "validation")]
        if sources[0].count < recipe.batch_size:
            raise ValueError(f"{sources[0].name} holds {sources[0].count} images, fewer than one --batch-size.")
        steps_per_epoch = sources[0].count // recipe.batch_size
        classes = len(sources[0].class_names)
        try:
            run = loop.Run(recipe, strategy, classes, steps_per_epoch, arguments.precision, arguments.sync_bn)
        except TypeError as error:
            raise ValueError(f"{recipe.model} does not take --model-options={recipe.model_options}: {error}") from error
    except (ValueError, OSError) as error:
        sys.exit(f"train.py: {error}")
    with contextlib.ExitStack() as stack:
        if strategies.is_chief(strategy):
            run_directory.start(directory, decided, strategy, sources[0].class_names)
        else:  # one machine talks
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        print(
            f"{'Resuming' if resumed else 'Starting'} {arguments.recipe} in {directory}: {recipe.model} with attention "
            f"{recipe.attention}, {sources[0].count} training and {sources[1].count} held-out images of "
            f"{recipe.dataset}, {replicas} replica(s), global batch {recipe.batch_size}"
        )
        try:
            rows, step, interrupted, finished = loop.train(
                run,
                recipe,
                directory,
                strategy,
                sources,
                xla=arguments.xla,
                checkpoint_every=arguments.checkpoint_every,
                steps_per_call=arguments.steps_per_call,
                stop_after=arguments.steps,
            )
        except errors as error:
            sys.exit(f"train.py: {error}")
        return conclude(recipe, directory, sources, rows, step, interrupted, finished)


def conclude(recipe, directory, sources, rows, step, interrupted, finished):
    """Says how the run ended, and returns the exit code."""
    from engine import run_directory

    if finished:
        print(
            f"Finished {recipe.epochs} epochs: top-1 {100 * float(rows[-1]['validation_top1']):.2f} % on "
            f"{sources[1].count} held-out images.\n"
            f"  network   {directory / run_directory.MODEL}\n"
            f"  curves    {directory / run_directory.CURVES}\n"
            f"  history   {directory / run_directory.HISTORY}"
        )
        return 0
    if interrupted:
        print(f"Interrupted by {interrupted.name}; a checkpoint is written. The same command resumes the run.")
        return 128 + interrupted
    print(f"Stopped after {step} steps as asked. The same command without --steps resumes the run.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
