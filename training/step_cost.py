"""What attention costs in training: time of a layer and of a training step, memory of a step, beside SE and none.

    python training/step_cost.py
    python training/step_cost.py --what step --engines xla jax --model MobileNetV2 --attention none se eca na
    python training/step_cost.py --what layer --shapes 8x56x56x256 --output cost.png --table cost.csv

    layer    forward pass, and forward and backward pass, of one layer on a map of --shapes; ratios to the first module
             of --attention that is not none
    step     forward and backward pass of a network and SGD with momentum; ratios to the first module of --attention
    memory   the largest memory of a process that does three such steps

Random data, fresh weights. In each of --processes fresh processes all modules take turns for --rounds rounds, the first
of them twice: how far that differs from itself is the null test. A goal is met or missed where the difference is
larger than that in every process, and open otherwise. Engines are tensorflow (a tf.function), xla (the same with
jit_compile) and jax; JAX takes a GPU if it has one.
"""

import argparse
import datetime
import os
import sys
from functools import partial

import progress
import terminal
from costs import report
from costs.processes import ENGINES, run_worker

WHAT = ("layer", "step", "memory")
BATCHES = {"ResNet50": 8, "MobileNetV2": 16}  # of the goals; 8 for others
SHAPES = ((8, 56, 56, 256), (8, 14, 14, 1024), (8, 112, 112, 16))  # of the goals


def shape_of(text):
    """ "8x56x56x256" -> (8, 56, 56, 256)."""
    sides = text.lower().split("x")
    if len(sides) != 4:
        raise argparse.ArgumentTypeError(f"expected BATCHxHEIGHTxWIDTHxCHANNELS. Received: {text}")
    return tuple(map(terminal.at_least_one, sides))


def parse_arguments(argv):
    parser = terminal.make_parser(__doc__)
    add = parser.add_argument
    add("--what", nargs="+", choices=WHAT, default=list(WHAT), help="(default: all)")
    add("--engines", nargs="+", choices=ENGINES, default=["tensorflow"], help="(default: tensorflow)")
    add("--attention", nargs="+", default=["none", "se", "na"], help="modules (default: none se na)")
    add("--shapes", nargs="+", type=shape_of, default=SHAPES, metavar="BxHxWxC", help="of the maps of a layer")
    add("--model", nargs="+", default=list(BATCHES), help="networks of a step (default: ResNet50 MobileNetV2)")
    add("--batch-size", type=terminal.at_least_one, help="images of a step (default: 16 for MobileNetV2, else 8)")
    add("--size", type=terminal.at_least_one, default=160, help="pixels of their sides (default: %(default)s)")
    add("--precision", choices=("float32", "mixed_bfloat16", "mixed_float16"), default="float32")
    add("--rounds", type=terminal.at_least_one, default=25, help="in each process (default: %(default)s)")
    add("--processes", type=terminal.at_least_one, default=3, help="one after the other (default: %(default)s)")
    add("--output", type=terminal.name_ending_in(".png"), metavar="FILE.png", help="a picture; needs matplotlib")
    add("--table", type=terminal.name_ending_in(".csv"), metavar="FILE.csv", help="everything measured")
    arguments = parser.parse_args(argv)
    for path in (arguments.output, arguments.table):
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"no folder {path.absolute().parent} to write {path.name} into")
    if len({*arguments.attention}) < len(arguments.attention):
        parser.error(f"--attention: each name once. Received: {' '.join(arguments.attention)}")
    if "layer" in arguments.what and arguments.attention == ["none"]:
        parser.error("--what layer needs a module. Received: --attention none")
    return arguments


def check(arguments):
    """Raises ValueError on names that nothing has."""
    from na_keras.layers import ATTENTION
    from na_keras.networks import network_name

    known = {"none", *ATTENTION}
    if unknown := [name for name in arguments.attention if name not in known]:
        raise ValueError(f"--attention must be of {', '.join(sorted(known))}. Received: {unknown[0]}")
    for name in arguments.model:
        if network_name(name).kind == "file":
            raise ValueError(f"--model must be the name of a network. Received: {name}")


def jobs_of(arguments):
    """(subject, job of costs/worker.py) of each group, the cheapest first."""
    common = {"precision": arguments.precision, "rounds": arguments.rounds}
    modules = arguments.attention
    for engine in arguments.engines:
        for what in sorted(arguments.what, key=WHAT.index):
            job = {"what": what, "engine": engine} | common
            if what == "layer":
                measured = [name for name in modules if name != "none"]
                for shape in arguments.shapes:
                    yield (
                        " x ".join(map(str, shape)),
                        {**job, "shape": shape, "modules": [measured[0], *measured]},
                    )
                continue
            for model in arguments.model:
                batch = arguments.batch_size or BATCHES.get(model, 8)
                subject = f"{model}, {batch} at {arguments.size}"
                network = {"model": model, "batch": batch, "size": arguments.size, "modules": [modules[0], *modules]}
                yield subject, {**job, **network}


def check_modules(jobs):
    """Raises ValueError where a module does not fit a map or a network: the group of it may be the last of an hour."""
    from costs.worker import make_layer, make_model

    checked = set()
    for subject, job in jobs:
        for module in job["modules"]:
            part = (module, job["shape"][-1]) if job["what"] == "layer" else (module, job["model"], job["size"])
            if part in checked:
                continue
            checked.add(part)
            try:
                make_layer(*part) if job["what"] == "layer" else make_model(job, module)
            except ValueError as error:
                raise ValueError(f"{module} does not fit {subject}; leave one of them out. {error}") from error


def measure_group(job, processes):
    """What each process measured, as `run_worker` returns it; of memory every module has a process of its own."""
    if job["what"] != "memory":
        return [run_worker(job) for _ in range(processes)]
    found = []
    for _ in range(processes):
        parts = [run_worker({**job, "modules": [module]}) for module in job["modules"]]
        found.append({**parts[0], "measured": {"memory": [part["measured"]["memory"][0] for part in parts]}})
    return found


def circumstances(arguments, found):
    """Machine, settings, versions and date, as one line. `found`: what all processes returned."""
    from na_keras.interleaved import machine

    devices = sorted({process["device"] for process in found} - {"CPU"})
    versions = "; ".join(sorted({process["versions"] for process in found}))
    repeats = f"{arguments.processes} processes of {arguments.rounds} rounds"
    return f"{', '.join([machine(), *devices])}; {arguments.precision}; {repeats}; {versions}; {datetime.date.today()}"


def report_rows(rows, about, arguments):
    """Prints the table twice and writes the files that were asked for."""
    from na_keras.files import replace_file

    print(f"\n{about}\n\n{report.table(rows)}\n\n{report.table(rows, 'markdown')}")
    for path, write in ((arguments.table, report.write_csv), (arguments.output, report.draw)):
        if path is not None:
            replace_file(path, partial(write, rows, about))


def main(argv=None):
    arguments = parse_arguments(argv)
    modules = [*(["jax"] if "jax" in arguments.engines else []), *(["matplotlib"] if arguments.output else [])]
    terminal.check_installed("step_cost.py", modules)
    os.environ["KERAS_BACKEND"] = ENGINES[
        arguments.engines[0]
    ]  # nothing is computed here, but TensorFlow may be missing
    rows, found = [], []
    try:
        check(arguments)
        jobs = list(jobs_of(arguments))
        check_modules(jobs)
        bar = progress.Progress(len(jobs), "groups")
        for done, (subject, job) in enumerate(jobs, start=1):
            processes = measure_group(job, arguments.processes)
            found += processes
            for name in processes[0]["measured"]:
                measured = [process["measured"][name] for process in processes]
                rows += report.rows_of(name, job["engine"], subject, job["modules"], measured)
            bar.update(done)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"step_cost.py: {error}")
    finally:
        if rows:  # also those of an hour that ended in Ctrl-C
            report_rows(rows, circumstances(arguments, found), arguments)
    return rows


if __name__ == "__main__":
    main()
