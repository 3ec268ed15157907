"""Trains a network with attention on images.

    python training/train.py                                  # the demo: NA-MobileNetV2 on scikit-learn's digits
    python training/train.py --strategy=mirrored              # on every GPU of this machine
    python training/train.py --strategy=mirrored --virtual-cpus=2    # a rehearsal of two replicas without GPUs

The demo takes about 3 minutes on 2 CPU cores and ends above 95 % on held-out handwriting. The run directory holds all
that the run was and made (see run_directory.py); the same command line with the same --run-dir resumes an interrupted
run.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--recipe", default="digits-demo", help="a name in recipes.py (default: %(default)s)")
    add("--model", help="network, instead of the recipe's")
    add("--attention", help='attention module, instead of the recipe\'s; "none" for no attention')
    add("--run-dir", type=pathlib.Path, help="folder of the run (default: a fresh one under runs/)")
    add("--strategy", default="none", help='"none" or "mirrored" (default: %(default)s)')
    add("--virtual-cpus", type=int, metavar="N", help="split the CPU into N replicas, to rehearse")
    add("--sync-bn", action="store_true", help="batch-norm statistics over all replicas")
    add("--batch-size", type=int, help="images per step, all replicas together, instead of the recipe's")
    add("--epochs", type=int, help="instead of the recipe's")
    add("--steps", type=int, help="stop after N steps in all and leave the run unfinished")
    add("--checkpoint-every", type=int, default=1000, help="steps between checkpoints (default: %(default)s)")
    add("--steps-per-call", type=int, default=1, help="optimizer steps per compiled call (default: %(default)s)")
    add("--seed", type=int, help="instead of the recipe's")
    arguments = parser.parse_args(argv)
    for name in ("steps", "checkpoint_every", "steps_per_call"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1. Received: {value}")
    return arguments


def main(argv=None):
    arguments = parse_arguments(argv)
    # After the arguments: --help and a wrong flag answer at once.
    import loop
    import recipes
    import run_directory
    import strategies
    from na_keras.data import load_source

    try:
        recipe = recipes.get_recipe(
            arguments.recipe,
            model=arguments.model,
            attention=arguments.attention,
            batch_size=arguments.batch_size,
            epochs=arguments.epochs,
            seed=arguments.seed,
        )
        directory = arguments.run_dir or run_directory.default_directory(arguments.recipe)
        resumed = run_directory.check(directory, arguments.recipe, recipe)
        strategy = strategies.make_strategy(arguments.strategy, arguments.virtual_cpus)
        strategies.check_batch_size(recipe.batch_size, strategy)
        sources = load_source(recipe.dataset, "train"), load_source(recipe.dataset, "validation")
    except (ValueError, FileExistsError) as error:
        sys.exit(f"train.py: {error}")
    run_directory.start(directory, arguments.recipe, recipe, strategy, sources[0].class_names)
    print(
        f"{'Resuming' if resumed else 'Starting'} {arguments.recipe} in {directory}: {recipe.model} with attention "
        f"{recipe.attention}, {sources[0].count} training and {sources[1].count} held-out images of "
        f"{recipe.dataset}, {strategy.num_replicas_in_sync} replica(s), global batch {recipe.batch_size}"
    )
    rows, finished = loop.train(
        recipe,
        directory,
        strategy,
        sources,
        arguments.sync_bn,
        arguments.checkpoint_every,
        arguments.steps_per_call,
        arguments.steps,
    )
    if not finished:
        print(f"Stopped after {arguments.steps} steps as asked. The same command without --steps resumes the run.")
        return
    print(
        f"Finished {recipe.epochs} epochs: top-1 {100 * rows[-1]['validation_top1']:.2f} % on "
        f"{sources[1].count} held-out images.\n"
        f"  network   {directory / run_directory.MODEL}\n"
        f"  curves    {directory / run_directory.CURVES}\n"
        f"  history   {directory / run_directory.HISTORY}"
    )


if __name__ == "__main__":
    main()
