"""Which module helps? Trains a network with each of several modules, from several seeds, and says what that allows to
say.

    python training/compare.py --attention none na se eca --seeds 0 1 2 3 4 5 6 7 --study-dir studies/digits
    python training/compare.py --attention none na se --seeds 0 1 2 --recipe finetune --model mine.keras \\
        --data-dir photographs --study-dir studies/mine --jobs 4 --devices 0 1 2 3
    python training/compare.py --report studies/digits

Every other flag is train.py's, written out. Each module and seed is a run of train.py in a process of its own; runs of
one seed begin with the same convolutions and classifier. The same command goes on after it was stopped or killed, with
further seeds or modules as well: what is finished is never run again. A run that fails is reported, and the others go
on; the same command tries it again. In the end, alone, parameters, multiply-accumulates and times are measured, and
report.md, summary.csv, comparison.png and curves.png are written into the folder. study.json, history.csv and
costs.csv are all that these need.
"""

import contextlib
import pathlib
import sys

import recipes
import terminal
import train

OWN_FLAGS = ("seed", "run_dir", "steps")  # of train.py, that a study decides itself
TRAIN = pathlib.Path(__file__).with_name("train.py")


def make_parser():
    """The parser of what is not train.py's."""
    parser = terminal.make_parser(__doc__)
    parser.allow_abbrev = False
    add = parser.add_argument
    add("--attention", nargs="+", metavar="MODULE", help="none, names, or package.module:Class of your own")
    add("--seeds", nargs="+", type=int, metavar="N", help="of the runs of each module")
    add("--study-dir", type=terminal.folder, help="folder of the study")
    add("--report", type=terminal.folder, metavar="DIR", help="make the report of this study again, and run nothing")
    add("--base", default="none", help="the module that the others are compared with (default: %(default)s)")
    add("--jobs", type=terminal.at_least_one, metavar="N", help="runs at a time (default: one, or one a device)")
    add("--devices", nargs="+", metavar="N", help="numbers of GPUs, of which each run gets one")
    add("--where", help="as train.py's, of the runs with a module")
    add("--preserve", action="store_true", help="as train.py's, of the runs with a module that starts trained")
    add("--no-timings", action="store_true", help="measure no costs in the end")
    return parser


def parse_arguments(argv):
    """(arguments, what is left of the command line for train.py); both are checked."""
    parser = make_parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.report is not None:
        given = [name for name, value in vars(arguments).items() if value and name not in ("report", "base")]
        if given or rest:
            parser.error(f"--report stands alone, or with --base. Received: {' '.join([*map(flag, given), *rest])}")
        return arguments, []
    if arguments.attention == ["none"] and (arguments.where or arguments.preserve):
        parser.error("--where and --preserve are about modules, and --attention none has none: leave them out")
    if missing := [name for name in ("attention", "seeds", "study_dir") if not getattr(arguments, name)]:
        parser.error(f"{', '.join(map(flag, missing))} is missing")
    for name, values in (("attention", arguments.attention), ("seeds", arguments.seeds)):
        if len({*values}) < len(values):
            parser.error(f"{flag(name)}: each once. Received: {' '.join(map(str, values))}")
    low, high = recipes.SEEDS
    if wrong := [seed for seed in arguments.seeds if not low <= seed <= high]:
        parser.error(f"--seeds must be between {low} and {high}. Received: {wrong[0]}")
    if arguments.devices and len({*arguments.devices}) < len(arguments.devices):
        parser.error(f"--devices: each once. Received: {' '.join(arguments.devices)}")
    if arguments.devices and arguments.jobs and arguments.jobs > len(arguments.devices):
        parser.error(f"--jobs {arguments.jobs} needs as many --devices. Received: {' '.join(arguments.devices)}")
    train.parse_arguments(rest, allow_abbrev=False)  # refuses what train.py does not take
    return arguments, rest


def flag(name):
    """The flag of an argument."""
    return f"--{name.replace('_', '-')}"


def flags_of(arguments, attention):
    """What a run with this module gets besides what all get."""
    flags = ["--attention", attention]
    if attention != "none":
        flags += ["--where", arguments.where] if arguments.where else []
        flags += ["--preserve"] if arguments.preserve else []
    return flags


def prepare(arguments, rest):
    """Checks all that can be known before the first run, and opens the study; writes nothing.

    Returns:
        Study, with what is asked for in it.

    Raises:
        ValueError, OSError: something is wrong; the message says what.
    """
    from na_keras import networks
    from run_files import run_directory
    from study.record import Study

    decided = None
    for attention in arguments.attention:
        command = train.parse_arguments([*rest, *flags_of(arguments, attention)], allow_abbrev=False)
        if given := [name for name in OWN_FLAGS if getattr(command, name) is not None]:
            raise ValueError(f"{flag(given[0])} is what a study decides itself: leave it out.")
        networks.import_modules(command.imports)
        recipe = train.resolved_recipe(command, arguments.study_dir)
        networks.resolve_attention(recipe.attention)
        if decided is None:
            execution = {name: getattr(command, name) for name in ("sync_bn", "precision", "xla")}
            decided = run_directory.as_json(command.recipe, recipe, **execution)
    decided |= {"where": arguments.where, "preserve": arguments.preserve or None}
    study = Study(arguments.study_dir)
    study.begin(decided, arguments.attention, arguments.seeds)
    check_base(study, arguments.base)
    return study


def check_base(study, base):
    """Raises ValueError if the study has modules, and not the one that they are to be compared with."""
    if base not in study.content["attention"] and base != "none":
        known = ", ".join(study.content["attention"])
        raise ValueError(f"--base must be a module of the study: {known}. Received: {base}")


def make_report(study, base):
    """Writes the report and prints what matters of it."""
    from study import report

    print("", report.result_table(study, base, "plain"), "", *report.what_it_says(study, base), sep="\n")
    if table := report.cost_table(study, "plain"):
        print("", table, sep="\n")
    print("", *(f"  {path}" for path in report.write(study, base)), sep="\n")


def measure_costs(study, base, rest):
    """Measures what the modules cost, unless costs.csv has it."""
    from study import costs, report

    modules = report.finished_modules(study, base)
    if not costs.are_complete(study, modules):
        imports = train.parse_arguments(rest).imports
        costs.measure(study, modules, imports, lambda text: print(text, flush=True))


def run_study(arguments, rest):
    """Runs what is not finished, and returns the exit code: 0, 1 if a run failed, 128 + signal if it was stopped."""
    from run_files.run_lock import RunLock
    from study.cells import Board, Runner
    from study.record import Cell

    def command(cell):
        own = ["--seed", str(cell.seed), "--run-dir", str(study.directory_of(cell))]
        return [sys.executable, str(TRAIN), *rest, *flags_of(arguments, cell.attention), *own]

    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(RunLock(arguments.study_dir))
        lock.take_existing()
        study = prepare(arguments, rest)
        arguments.study_dir.mkdir(parents=True, exist_ok=True)
        lock.take()
        study.write()
        cells = [Cell(name, seed) for seed in arguments.seeds for name in arguments.attention]
        interruption = stack.enter_context(terminal.Interruption())
        jobs = arguments.jobs or len(arguments.devices or [None])
        runner, board = Runner(study, command, jobs, arguments.devices or ()), Board(study, cells)
        failed = runner.run(cells, interruption, board)
        if interruption.signal:
            print(f"Interrupted by {interruption.signal.name}. The same command goes on.")
            return 128 + interruption.signal
    if study.histories:
        if not arguments.no_timings:
            measure_costs(study, arguments.base, rest)
        make_report(study, arguments.base)
    for cell, reason in failed.items():
        print(f"{cell.name} failed: {reason}", file=sys.stderr)
    return 1 if failed else 0


def main(argv=None):
    """Returns the process's exit code; see `run_study`."""
    arguments, rest = parse_arguments(argv)
    terminal.check_installed("compare.py", ("scipy", *train.NEEDED))
    try:
        terminal.start_tensorflow()
        if arguments.report is None:
            return run_study(arguments, rest)
        from study.record import STUDY, Study

        study = Study(arguments.report)
        if not study.histories:
            raise ValueError(f"{arguments.report} holds no study with a finished run ({STUDY}, history.csv).")
        check_base(study, arguments.base)
        make_report(study, arguments.base)
        return 0
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"compare.py: {error}")


if __name__ == "__main__":
    sys.exit(main())
