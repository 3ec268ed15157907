"""What attention costs at inference: latency and size of exported networks, with and without, measured in turns.

    python export/benchmark.py --model resnet50 mobilenetv2 --attention none se na --batch-size 1 8 \\
        --kinds keras savedmodel float32 float16 dynamic int8 --output docs/images/latency.png --table docs/latency.csv
    python export/benchmark.py --tflite vanilla=a/1/tflite/model_int8.tflite NA=b/1/tflite/model_int8.tflite
    python export/benchmark.py --saved-model vanilla=a/1 NA=b/1 --batch-size 1 8

The first form builds the library's own networks, with random weights, and exports them as export_model.py does; the
others take what you have exported. Each line of the table is a median over rounds in which all networks of the same
type and batch size took turns; ratios are to the first of them, within a round (latency/interleaved.py).

    keras        network(images) in a tf.function, without any deploy form
    savedmodel   the signature serving_default, loaded by tf.saved_model.load
    others       a TFLite file in LiteRT, one image, --threads threads

"SE" is na_keras' SqueezeExcite, written the usual way. All networks but Keras' have their batch norm folded alike.
"""

import argparse
import importlib.util
import os
import pathlib
import sys
import tempfile
from functools import partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

from latency import interleaved, networks, report


def named_path(text):
    """ "NAME=PATH" -> (NAME, Path)."""
    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise argparse.ArgumentTypeError(f"expected NAME=PATH, as in NA=exported/1. Received: {text!r}")
    return name, pathlib.Path(path)


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", nargs="+", default=["resnet50", "mobilenetv2"], help="networks (default: %(default)s)")
    add("--attention", nargs="+", default=["none", "se", "na"], help="modules; the first is the base")
    add("--kinds", nargs="+", default=["savedmodel", "float32", "int8"], choices=networks.KINDS)
    add("--saved-model", nargs="+", type=named_path, metavar="NAME=DIR", help="your own, instead of --model")
    add("--tflite", nargs="+", type=named_path, metavar="NAME=FILE", help="your own, instead of --model")
    add("--batch-size", nargs="+", type=int, default=[1], help="for Keras and SavedModels (default: %(default)s)")
    add("--size", type=int, default=224, help="pixels of the images' sides (default: %(default)s)")
    add("--rounds", type=int, default=25, help="(default: %(default)s)")
    add("--threads", type=int, default=1, help="of LiteRT; TensorFlow uses all cores (default: %(default)s)")
    add("--workdir", type=pathlib.Path, help="keeps the exported networks for the next time")
    add("--output", type=pathlib.Path, metavar="FILE.png", help="a picture; needs matplotlib")
    add("--table", type=pathlib.Path, metavar="FILE.csv", help="everything measured")
    arguments = parser.parse_args(argv)
    for flag in ("rounds", "threads", "size"):
        if getattr(arguments, flag) < 1:
            parser.error(f"--{flag} must be at least 1. Received: {getattr(arguments, flag)}")
    if min(arguments.batch_size) < 1:
        parser.error(f"--batch-size must be at least 1. Received: {min(arguments.batch_size)}")
    for flag in ("attention", "saved_model", "tflite"):
        names = [entry[0] if isinstance(entry, tuple) else entry for entry in getattr(arguments, flag) or ()]
        if len(set(names)) < len(names):
            parser.error(f"--{flag.replace('_', '-')}: each name once. Received: {' '.join(names)}")
    for path in (arguments.output, arguments.table):
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"no folder {path.absolute().parent} to write {path.name} into")
    return arguments


def check(arguments):
    """Raises ValueError or FileNotFoundError on what would fail only after minutes of work."""
    for name, path in [*(arguments.saved_model or ()), *(arguments.tflite or ())]:
        if not path.exists():
            raise FileNotFoundError(f"Nothing at {path}, given as {name}.")
    needed = {"matplotlib": "train"} if arguments.output else {}
    needed |= {"ai_edge_litert": "export"} if arguments.tflite or set(arguments.kinds) - {"keras", "savedmodel"} else {}
    for package, extra in needed.items():
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{package} is not installed. Run: pip install -e '.[{extra}]'")
    if arguments.saved_model or arguments.tflite:
        return
    from na_keras.layers import ATTENTION
    from na_keras.models import MODELS

    for flag, given, known in (
        ("--model", arguments.model, {name.lower() for name in MODELS}),
        ("--attention", arguments.attention, {"none", *ATTENTION}),
    ):
        if unknown := [name for name in given if name.lower() not in known]:
            raise ValueError(f"{flag} must be of {', '.join(sorted(known))}. Received: {unknown[0]}")


def measure_group(group, programs, sizes, rounds):
    """Measures the networks of one (model, kind, batch) in turns.

    Args:
        group: (model, kind, batch), for the table.
        programs: {attention: function that makes the function to be timed}.
        sizes: {attention: function that returns the size in 10^6 bytes}.
        rounds: see interleaved.measure.

    Returns:
        A Row for each. One that cannot be exported or run has a reason instead of numbers.
    """
    import keras

    print(f"{group[0]}, {group[1]}, batch {group[2]}", flush=True)
    ready, failures = {}, {}
    for name, make in programs.items():
        try:
            ready[name] = make()
            ready[name]()
        except (RuntimeError, ValueError) as error:  # LiteRT's and the export's refusals
            ready.pop(name, None)
            failures[name] = " ".join(str(error).split())[:200]
            print(f"  {name} does not run: {failures[name]}", flush=True)
    timings = {}
    if next(iter(programs)) in ready:
        # A log gets one line, a terminal a bar that moves.
        bar = keras.utils.Progbar(rounds, unit_name="round", verbose=1 if sys.stdout.isatty() else 2)
        seconds = interleaved.measure(ready, rounds, progress=bar.update)
        timings = interleaved.summarise(seconds)
    rows = []
    for name in programs:
        if name in timings:
            timing = timings[name]
            numbers = (timing.milliseconds, timing.ratio, timing.low, timing.high)
            rows.append(report.Row(*group, name, sizes[name](), *numbers))
        else:
            failure = failures.get(name, "the network that it is compared with does not run")
            size = 0.0 if name in failures else sizes[name]()
            rows.append(report.Row(*group, name, size, failure=failure))
    return rows


def library_rows(arguments, folder):
    """Rows of the library's own networks, one group after the other."""
    artifacts = networks.Artifacts(folder, arguments.size)

    def program(model, attention, kind, batch):
        if kind == "keras":
            network = artifacts.network(model, attention)
            return networks.keras_program(network, batch, arguments.size)
        path = artifacts.path(model, attention, kind)
        if kind == "savedmodel":
            return networks.savedmodel_program(path, batch, arguments.size)
        return networks.tflite_program(path, arguments.threads)

    def size(model, attention, kind):
        if kind == "keras":
            return 4e-6 * artifacts.network(model, attention).count_params()
        return networks.megabytes(artifacts.path(model, attention, kind))

    for model in arguments.model:
        for kind in arguments.kinds:
            for batch in arguments.batch_size if kind in networks.TF_KINDS else (1,):
                programs = {name: partial(program, model, name, kind, batch) for name in arguments.attention}
                sizes = {name: partial(size, model, name, kind) for name in arguments.attention}
                yield from measure_group((model, kind, batch), programs, sizes, arguments.rounds)
        artifacts.forget()
        if arguments.workdir is None:
            for path in folder.iterdir():
                networks.remove(path)


def given_rows(arguments):
    """Rows of files that somebody else exported."""
    for batch in arguments.batch_size if arguments.saved_model else ():
        make = networks.savedmodel_program
        programs = {name: partial(make, path, batch, arguments.size) for name, path in arguments.saved_model}
        sizes = {name: partial(networks.megabytes, path) for name, path in arguments.saved_model}
        yield from measure_group(("given", "savedmodel", batch), programs, sizes, arguments.rounds)
    if arguments.tflite:
        make = networks.tflite_program
        programs = {name: partial(make, path, arguments.threads) for name, path in arguments.tflite}
        sizes = {name: partial(networks.megabytes, path) for name, path in arguments.tflite}
        yield from measure_group(("given", "tflite", 1), programs, sizes, arguments.rounds)


def report_rows(rows, arguments):
    """Prints the table twice and writes the files that were asked for."""
    about = report.circumstances(arguments.threads, arguments.rounds, arguments.size)
    print(f"\n{about}\n\n{report.text_table(rows, arguments.size)}\n")
    print(report.markdown_table(rows, arguments.size))
    for path, write in ((arguments.table, report.write_csv), (arguments.output, report.draw)):
        if path is not None:
            report.replace_file(path, partial(write, rows, arguments.size, about))


def main(argv=None):
    arguments = parse_arguments(argv)
    rows = []
    try:
        check(arguments)
        with tempfile.TemporaryDirectory() as temporary:
            folder = arguments.workdir or pathlib.Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            given = arguments.saved_model or arguments.tflite
            for row in given_rows(arguments) if given else library_rows(arguments, folder):
                rows.append(row)
    except (ValueError, OSError) as error:
        sys.exit(f"benchmark.py: {error}")
    finally:
        if rows:  # also those of an hour that ended in Ctrl-C
            report_rows(rows, arguments)
    return rows


if __name__ == "__main__":
    main()
