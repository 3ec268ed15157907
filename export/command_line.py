"""What the command lines of this folder's programs share. Standard library only, for they are parsed before TensorFlow
and Keras are imported, which takes seconds.

Importing this file keeps TensorFlow's start-up messages from the person who runs a program; errors are still printed,
and what is computed stays the same.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import sys

import serving_client
from versions import publish

# 2: no information and no warnings of TensorFlow's C++ part. Whoever has set the variable keeps it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

PIXELS = ("raw", "tf", "torch", "caffe")  # as na_keras.networks has them, which imports Keras


def make_parser(documentation, **options):
    """An ArgumentParser that shows a program's docstring as it stands."""
    return argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter, **options
    )


def path(text):
    """A path of the command line, with `~` for the home folder, wherever the shell leaves it: `--output=~/x`."""
    return pathlib.Path(text).expanduser()


def named_path(text):
    """ "NAME=PATH" -> (NAME, Path)."""
    name, separator, given = text.partition("=")
    if not (name and separator and given):
        raise argparse.ArgumentTypeError(f"expected NAME=PATH, as in NA=exported/1. Received: {text!r}")
    return name, path(given)


def json_object(text):
    """'{"alpha": 0.35}' -> the dictionary."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected JSON, as in '{{\"alpha\": 0.35}}'. Received: {text!r}")
    return value


def add_import_flag(add):
    """Modules of the user's own, whose classes a file may hold; `add` is a parser's add_argument."""
    add(
        "--import",
        dest="imports",
        action="append",
        metavar="MODULE",
        help="import this module first, which registers classes of your own that a file holds; may be repeated",
    )


def add_pixels_flag(add):
    """What pixels mean to the network of a file; `add` as above."""
    add(
        "--pixels",
        choices=PIXELS,
        help="what the pixels of a .keras or .h5 file mean, where it does not show it: 0..255; -1..1; ImageNet's mean "
        "and deviation; BGR less the mean",
    )


def missing_package(packages):
    """A sentence about the first of these packages that is not installed, or None.

    Args:
        packages: {name to import: extra of this project that installs it}.
    """
    for package, extra in packages.items():
        if importlib.util.find_spec(package) is None:
            return f"{package.replace('_', '-')} is not installed. Run: pip install -e '.[{extra}]'"
    return None


def check_installed(program, packages):
    """Ends a program that needs a package which is not installed; see `missing_package`."""
    if sentence := missing_package(packages):
        sys.exit(f"{program}: {sentence}")


def start_tensorflow(program):
    """Imports TensorFlow without its start-up messages, before anything else does; see serving_client."""
    serving_client.import_tensorflow(program)  # which stands there because that file is copied to other machines


def tflite_kinds():
    """TFLITE_KINDS of na_keras/deploy/tflite/kinds.py, read from that file alone: `import na_keras` imports Keras."""
    (package,) = importlib.util.find_spec("na_keras").submodule_search_locations
    location = pathlib.Path(package, "deploy", "tflite", "kinds.py")
    specification = importlib.util.spec_from_file_location("tflite_kinds", location)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.TFLITE_KINDS


def kinds_help():
    """The kinds of TFLite files, a line each, for the end of a program's help."""
    lines = [f"  {name:16} {kind.description}" for name, kind in tflite_kinds().items()]
    return "\n".join(("kinds of TFLite files:", *lines))


def publish_version(program, output, make_plan, check_stop):
    """Writes and publishes a version; ends the program with one line where that does not work, and nothing is left.

    Args:
        program: name for messages.
        output: base folder of the versions.
        make_plan: function that reads and checks everything, and returns (writer.Plan or another of the kind, the run's
            recipe or None); its ValueError and OSError are the user's to mend.
        check_stop: of publish.StopRequest, called between the steps of the work.

    Returns:
        (path of the published version, what verification measured).
    """
    try:
        publish.check_base_folder(output)
        publish.check_writable(output)
        for folder in publish.leftovers(output):
            print(f"{folder} is being written by another export, or was left by one that was killed: then delete it.")
        plan = make_plan()
    except (ValueError, OSError) as error:
        sys.exit(f"{program}: {error}")

    import tensorflow as tf

    from versions import writer

    try:
        with publish.incoming_version(output) as incoming:
            checks = writer.write_version(incoming, *plan, check_stop)
            return publish.release(incoming), checks
    except (RuntimeError, ValueError) as error:
        sys.exit(f"{program}: nothing was published. {error}")
    except (OSError, tf.errors.OpError) as error:  # a full disk, in Python's words or TensorFlow's
        reason = str(error).splitlines()[0]
        sys.exit(f"{program}: nothing was published; writing below {output} failed: {reason}")


def run_until_stopped(work):
    """Calls `work`; ends the program with a signal's own status if one stops it."""
    try:
        work()
    except publish.Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.number)


def print_exceptions(program, checks):
    """What verification did not check, what was accepted in spite of it, and what was left out."""
    for name, reason in checks["skipped"].items():
        print(f"  not checked with {name}: {reason}")
    for entry in checks["accepted"]:
        print(f"  accepted ({entry['gate']}): {entry['finding']}")
    for name, reason in checks["failed"].items():
        print(f"{program}: failed and left out: {name}: {reason.removeprefix(f'{name}: ')}", file=sys.stderr)
