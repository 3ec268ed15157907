"""What the programs of this folder share with the person at the terminal: a start without chatter, types of arguments,
signals that end a run.

Importing this file imports nothing but the standard library: a command line is parsed, and `--help` answered, before
TensorFlow and Keras are imported, which takes seconds.
"""

import argparse
import contextlib
import importlib.util
import os
import pathlib
import re
import signal
import sys
import tempfile

import recipes

# 2: neither information nor warnings of TensorFlow's C++ part. Whoever has set the variable keeps it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever this machine prefers

# While it is imported, TensorFlow does not know the level yet; these are the lines that the level would leave out.
# "I0000 00:00:" begins a line, or as TensorFlow 2.20 has it "2026-01-31 12:00:00.000000: I ".
INFORMATION = re.compile(
    rb"[IW]\d{4} \d\d:|\d{4}-\d\d-\d\d .{15}: [IW] |To enable the following instructions:|"
    rb"WARNING: All log messages before absl::InitializeLog\(\) is called"
)
NO_GPU = re.compile(rb"(E\d{4} |\d{4}-\d\d-\d\d .{15}: E ).*failed call to cuInit")


def folder(text):
    """A path of the command line, with `~` for the home folder also where the shell leaves it: `--run-dir=~/x`."""
    return pathlib.Path(text).expanduser()


def at_least_one(text):
    """A whole number from 1 on."""
    with contextlib.suppress(ValueError):
        if int(text) >= 1:
            return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number of at least 1. Received: {text}")


def named_path(text):
    """ "NAME=PATH" -> (NAME, Path)."""
    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise argparse.ArgumentTypeError(f"expected NAME=PATH, as in NA=runs/na. Received: {text!r}")
    return name, folder(path)


def make_parser(documentation):
    """An ArgumentParser that shows a program's docstring as it stands."""
    return argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)


def name_ending_in(ending):
    """An argparse type: a path whose file has this ending, such as ".png"."""

    def file(text):
        if folder(text).suffix != ending:
            raise argparse.ArgumentTypeError(f"expected a name that ends in {ending}. Received: {text!r}")
        return folder(text)

    return file


def add_pixels_flag(parser):
    """What pixels mean to the network of a file."""
    parser.add_argument("--pixels", choices=recipes.PIXELS, help="what they mean to a file that does not show it")


def add_import_flag(parser):
    """Modules of the user's own, whose classes a file may hold."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        metavar="MODULE",
        help="import this module first, which registers classes of your own that a file holds; may be repeated",
    )


def add_execution_flags(parser):
    """Where and how a network trains, as far as it is no matter of the recipe."""
    add = parser.add_argument
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


def check_execution_flags(parser, arguments):
    """Ends the program if these flags contradict each other."""
    if arguments.xla and arguments.sync_bn:
        parser.error("--xla compiles each replica by itself, and --sync-bn talks between replicas: choose one")


def check_installed(program, modules, extra="train"):
    """Ends a program that would otherwise fail in the middle: of the extra, these modules are missing."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        sys.exit(f"{program}: {', '.join(missing)} not installed. Run: pip install -e '.[{extra}]'")


@contextlib.contextmanager
def standard_error_without(dropped):
    """Holds back what the process writes to its standard error, C++ included, and in the end passes on all lines but
    those for which `dropped`, a function of a line in bytes, is true.
    """
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
            held.seek(0)
            for line in held:
                if not dropped(line):
                    os.write(2, line)


def start_tensorflow():
    """Imports TensorFlow and Keras, quietly unless TF_CPP_MIN_LOG_LEVEL asks for more.

    Returns:
        What there is to compute on, in words. Every program prints it, as the error of a machine without a GPU driver
        is held back: "CPU (no GPU found)", or "2 GPUs".
    """
    gpus = []

    def dropped(line):
        return INFORMATION.match(line) or not gpus and NO_GPU.match(line)

    quiet = os.environ["TF_CPP_MIN_LOG_LEVEL"] >= "2" and "tensorflow" not in sys.modules
    with standard_error_without(dropped) if quiet else contextlib.nullcontext():
        import keras
        import tensorflow as tf

        gpus += tf.config.list_physical_devices("GPU")
    keras.config.set_image_data_format("channels_last")  # whatever this machine's keras.json says
    if not gpus:
        return "CPU (no GPU found)"
    return "1 GPU" if len(gpus) == 1 else f"{len(gpus)} GPUs"


def conclude_unfinished(outcome):
    """Says how a run ended that can be resumed, and returns the exit code: 0, or 128 + signal.

    Args:
        outcome: has `signal`, which interrupted the run, or None; and `step`, the number of steps done.
    """
    if outcome.signal:
        print(f"Interrupted by {outcome.signal.name}; a checkpoint is written. The same command resumes the run.")
        return 128 + outcome.signal
    print(f"Stopped after {outcome.step} steps as asked. The same command without --steps resumes the run.")
    return 0


class Interruption:
    """Notes SIGTERM and SIGINT instead of dying of them, so that a loop can end at a step's boundary.

    Attributes:
        signal: the first that came, or None. A second one acts as it would have without us.
    """

    def __enter__(self):
        """Takes the signals over."""
        self.signal = None
        self.previous = {number: signal.signal(number, self.note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def note(self, number, frame):
        """Remembers a signal."""
        self.signal = signal.Signals(number)
        self.__exit__()

    def __exit__(self, *error):
        """Puts the handlers back that were there before."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
