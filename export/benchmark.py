"""What attention costs at inference: latency and size of exported networks, with and without, measured in turns.

    python export/benchmark.py --model resnet50 mobilenetv2 --attention none se na --batch-size 1 8 \\
        --kinds keras savedmodel float32 float16 dynamic int8 --output docs/images/latency.png --table docs/latency.csv
    python export/benchmark.py --tflite vanilla=a/1/tflite/model_int8.tflite NA=b/1/tflite/model_int8.tflite
    python export/benchmark.py --saved-model vanilla=a/1 NA=b/1 --batch-size 1 8

The first form takes networks by name, ours and keras.applications.NAME, with random weights, or .keras and .h5 files
with their own, puts modules in and exports them as export_model.py does; the others take what you have exported. Each
line of the table is a median over rounds in which all networks of the same type and batch size took turns; ratios are
to the first of them, within a round (na_keras/interleaved.py). The first is measured twice, which shows how much of a
difference is chance. The spread is that of the rounds, quartiles; of several --processes it is the range of theirs,
which says more: the same network twice is nearer to itself within one process than in two.

    keras        network(images) in a tf.function, without any deploy form
    savedmodel   the signature serving_default, loaded by tf.saved_model.load
    others       a TFLite file in LiteRT, one image, --threads threads

"SE" is na_keras' SqueezeExcite, written the usual way. All networks but Keras' have their batch norm folded alike.
"""

import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial

import command_line
from latency import artifacts, report
from latency.runtimes import RUNTIMES, TFLITE

os.environ["KERAS_BACKEND"] = "tensorflow"  # the one whose exports are measured


def parse_arguments(argv):
    parser = command_line.make_parser(__doc__, epilog=command_line.kinds_help())
    add = parser.add_argument
    add(
        "--model",
        nargs="+",
        default=["resnet50", "mobilenetv2"],
        help="networks, by name or file (default: %(default)s)",
    )
    add("--attention", nargs="+", default=["none", "se", "na"], help="modules; the first is the base")
    add("--kinds", nargs="+", default=["savedmodel", "float32", "int8"], choices=RUNTIMES)
    add(
        "--saved-model",
        nargs="+",
        type=command_line.named_path,
        metavar="NAME=DIR",
        help="your own, instead of --model",
    )
    add("--tflite", nargs="+", type=command_line.named_path, metavar="NAME=FILE", help="your own, instead of --model")
    add("--batch-size", nargs="+", type=int, default=[1], help="for Keras and SavedModels (default: %(default)s)")
    add(
        "--size",
        type=int,
        default=224,
        help="pixels of the images' sides; exported files have one of their own (default: %(default)s)",
    )
    command_line.add_pixels_flag(add)
    command_line.add_import_flag(add)
    add("--rounds", type=int, default=25, help="(default: %(default)s)")
    add(
        "--processes",
        type=int,
        default=1,
        help="fresh ones, one after the other, each with all rounds (default: %(default)s)",
    )
    add("--threads", type=int, default=1, help="of LiteRT; TensorFlow uses all cores (default: %(default)s)")
    add("--workdir", type=command_line.path, help="keeps the exported networks for the next time")
    add("--output", type=command_line.path, metavar="FILE.png", help="a picture; needs matplotlib")
    add("--table", type=command_line.path, metavar="FILE.csv", help="everything measured")
    arguments = parser.parse_args(argv)
    for flag in ("rounds", "threads", "size", "processes"):
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
    given = arguments.saved_model or arguments.tflite
    needed = {"matplotlib": "train"} if arguments.output else {}
    for runtime in [TFLITE] if arguments.tflite else [] if given else map(RUNTIMES.get, arguments.kinds):
        needed |= runtime.package
    if sentence := command_line.missing_package(needed):
        raise ValueError(sentence)
    if given:
        return
    from na_keras import networks
    from na_keras.layers import ATTENTION

    networks.import_modules(arguments.imports)
    for name in arguments.model:
        networks.network_name(name)
    known = {"none", *ATTENTION}
    if unknown := [name for name in arguments.attention if name not in known]:
        raise ValueError(f"--attention must be of {', '.join(sorted(known))}. Received: {unknown[0]}")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One network of those that take turns.

    Attributes:
        name: for the table.
        program: function that makes the function to be timed.
        megabytes: function that returns the size, in 10^6 bytes.
    """

    name: str
    program: Callable
    megabytes: Callable


def start(candidates):
    """Makes each candidate's program and runs it once.

    Returns:
        ({name: function to be timed}, {name: why it does not run}).
    """
    ready, failures = {}, {}
    for candidate in candidates:
        try:
            program = candidate.program()
            program()
        except (RuntimeError, ValueError) as error:  # LiteRT's and the export's refusals
            failures[candidate.name] = " ".join(str(error).split())[:200]
            print(f"  {candidate.name} does not run: {failures[candidate.name]}", flush=True)
        else:
            ready[candidate.name] = program
    return ready, failures


def measure_group(group, candidates, rounds):
    """Measures the networks of one (model, kind, batch) in turns.

    Args:
        group: (model, kind, batch), for the table.
        candidates: list of Candidate; ratios are to the first.
        rounds: see interleaved.measure.

    Returns:
        A list with a Row for each, and after the first one for its null test. One that cannot be exported or run has a
        reason instead of numbers.
    """
    import keras

    from na_keras import interleaved

    print(f"{group[0]}, {group[1]}, batch {group[2]}", flush=True)
    first = candidates[0]
    candidates = [first, dataclasses.replace(first, name=first.name + interleaved.AGAIN), *candidates[1:]]
    ready, failures = start(candidates)
    timings, seconds = {}, {}
    if candidates[0].name in ready:
        # A log gets one line, a terminal a bar that moves.
        bar = keras.utils.Progbar(rounds, unit_name="round", verbose=1 if sys.stdout.isatty() else 2)
        seconds = interleaved.measure(ready, rounds, progress=bar.update)
        timings = interleaved.summarise(seconds)
    rows = []
    for candidate in candidates:
        name, failure = candidate.name, failures.get(candidate.name)
        side = getattr(ready.get(name), "side", None)
        row = report.Row(*group, name, 0.0 if failure else candidate.megabytes(), side=side)
        if name in timings:
            beside = (
                interleaved.difference(*(seconds[k] for k in (name, "se", first.name))) if "se" in seconds else None
            )
            rows.append(dataclasses.replace(row, **dataclasses.asdict(timings[name]), beside_se=beside))
        else:
            failure = failure or "the network that it is compared with does not run"
            rows.append(dataclasses.replace(row, failure=failure))
    return rows


def library_candidate(files, model, attention, group, threads):
    """Candidate of a network by name or file; its file is written when its program is made."""
    _, kind, batch = group
    runtime = RUNTIMES[kind]
    source = partial(files.path, model, attention, kind) if runtime.write else partial(files.network, model, attention)
    size_of = artifacts.megabytes if runtime.write else artifacts.network_megabytes
    return Candidate(
        attention,
        lambda: runtime.program(source(), batch, files.size, threads),
        lambda: size_of(source()),
    )


def library_groups(arguments, folder):
    """(group, candidates) of networks by name or file, one after the other; what is exported lies in `folder`."""
    files = artifacts.Artifacts(folder, arguments.size, arguments.pixels)
    for model in arguments.model:
        for kind in arguments.kinds:
            for batch in arguments.batch_size if RUNTIMES[kind].batches else (1,):
                group = (model, kind, batch)
                yield (
                    group,
                    [library_candidate(files, model, name, group, arguments.threads) for name in arguments.attention],
                )
        files.forget()
        if arguments.workdir is None:
            for path in folder.iterdir():
                artifacts.remove(path)


def given_groups(arguments):
    """(group, candidates) of files that somebody else exported."""

    def candidates(paths, runtime, batch):
        settings = (batch, arguments.size, arguments.threads)
        return [
            Candidate(name, partial(runtime.program, path, *settings), partial(artifacts.megabytes, path))
            for name, path in paths
        ]

    for batch in arguments.batch_size if arguments.saved_model else ():
        yield ("given", "savedmodel", batch), candidates(arguments.saved_model, RUNTIMES["savedmodel"], batch)
    if arguments.tflite:
        yield ("given", "tflite", 1), candidates(arguments.tflite, TFLITE, 1)


def report_rows(rows, arguments, processes):
    """Prints the table twice and writes the files that were asked for. `processes`: how many measured."""
    from na_keras.files import replace_file

    sizes = report.image_sizes(rows, arguments.size)
    size = sizes[0] if len(sizes) == 1 else None  # that the targets are for
    about = report.circumstances(arguments.threads, arguments.rounds, sizes, processes)
    print(f"\n{about}\n\n{report.table(rows, size)}\n")
    print(report.table(rows, size, "markdown"))
    for path, write in ((arguments.table, report.write_csv), (arguments.output, report.draw)):
        if path is not None:
            replace_file(path, partial(write, rows, size, about))


def measure_in_processes(argv, arguments, folder):
    """Yields, after each fresh process of this program with the same arguments, the rows of all so far, combined."""
    table, picture = folder / "process.csv", folder / "process.png"
    command = [sys.executable, __file__, *argv, "--processes", "1", "--workdir", str(folder), "--table", str(table)]
    command += ["--output", str(picture)] if arguments.output else []  # the one of argv is of all processes
    processes = []
    try:
        for number in range(arguments.processes):
            print(f"process {number + 1} of {arguments.processes}", flush=True)
            if code := subprocess.run(command).returncode:
                raise ValueError(f"process {number + 1} ended with {code}; what it wrote is above")
            processes.append(report.read_csv(table))
            yield report.combined(processes)
    finally:
        for path in (table, picture):
            artifacts.remove(path)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse_arguments(argv)
    command_line.start_tensorflow("benchmark.py")
    rows, processes = [], 1
    try:
        check(arguments)
        with tempfile.TemporaryDirectory() as temporary:
            folder = arguments.workdir or pathlib.Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            if arguments.processes > 1:
                for processes, rows in enumerate(measure_in_processes(argv, arguments, folder), start=1):  # noqa: B007
                    pass
                return rows
            given = arguments.saved_model or arguments.tflite
            for group, candidates in given_groups(arguments) if given else library_groups(arguments, folder):
                rows += measure_group(group, candidates, arguments.rounds)
    except (ValueError, OSError) as error:
        sys.exit(f"benchmark.py: {error}")
    finally:
        if rows:  # also those of an hour that ended in Ctrl-C
            report_rows(rows, arguments, processes)
    return rows


if __name__ == "__main__":
    main()
