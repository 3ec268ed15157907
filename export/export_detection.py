"""Exports a trained detector: a SavedModel for TF Serving, and TFLite files of RetinaNet, verified, as one version.

    python export/export_detection.py --model runs/cells --output exported/cells --sample-images photographs/ \\
        --tflite float32 float16 int8

    exported/cells/              the base path to give to TF Serving
      1/                         the first version; the next export into the same folder writes 2/
        saved_model.pb, variables/    signatures in na_keras/detection/model_garden/served.py
        assets.extra/            warm-up requests, which a server runs before it answers
        tflite/model_KIND.tflite      with --tflite; inputs and outputs in na_keras/detection/model_garden/lite.py
        labels.txt               class names, one a line
        manifest.json            sources, categories, sizes, checks passed with their numbers, sha256 of every file

--model is a run of training/train_detection.py, its folder `detector`, or one of its checkpoints; of a run that is not
finished the newest checkpoint is taken. Needs the extras "detection" and "export" (docs/detection.md).

What verification asks about are random patterns, in which a good detector finds nothing: give --sample-images DIR,
photographs in which it finds something. A version is published as export_model.py does it: written under a name that no
server takes for one, checked there by consumers that are not Keras, and only then renamed. An export that fails or is
stopped publishes nothing.
"""

import json
import os

import command_line
from consumers.gates import GATES, gates_help
from versions import publish

os.environ["KERAS_BACKEND"] = "tensorflow"  # Model Garden's

PROGRAM = "export_detection.py"
KINDS = ("float32", "float16", "int8")  # as na_keras.detection.model_garden.lite has them, which imports TensorFlow
NEEDED = {"official": "detection", "tf_keras": "detection", "ai_edge_litert": "export"}


def parse_arguments(argv):
    parser = command_line.make_parser(__doc__, epilog=gates_help())
    add = parser.add_argument
    add("--model", type=command_line.path, required=True, help="a run, its folder detector, or one of its checkpoints")
    add("--output", type=command_line.path, required=True, help="base folder of the versions")
    add(
        "--max-detections",
        type=int,
        default=100,
        metavar="N",
        help="objects in an answer, at most; COCO's average precision counts 100 (default: %(default)s)",
    )
    add("--tflite", choices=KINDS, nargs="+", default=[], metavar="KIND", help=f"TFLite files: {', '.join(KINDS)}")
    add(
        "--sample-images",
        type=command_line.path,
        metavar="DIR",
        help="photographs for verification, and for the ranges of int8 files",
    )
    add("--sample-count", type=int, default=200, help="how many of them int8 files see, at most (default: %(default)s)")
    add(
        "--warmup-batches",
        type=int,
        nargs="+",
        default=[1],
        metavar="N",
        help="batch sizes that a server runs once before it answers (default: 1)",
    )
    add(
        "--accept",
        choices=GATES,
        nargs="+",
        default=[],
        metavar="GATE",
        help=f"publish in spite of what these gates of verification find: {', '.join(GATES)}; see below",
    )
    add("--keep-going", action="store_true", help="publish without the TFLite files that fail, and name them")
    arguments = parser.parse_args(argv)
    for name, values in (
        ("max-detections", [arguments.max_detections]),
        ("sample-count", [arguments.sample_count]),
        ("warmup-batches", arguments.warmup_batches),
    ):
        if not all(1 <= value <= 1024 for value in values):
            parser.error(f"--{name} must be from 1 to 1024. Received: {' '.join(map(str, values))}")
    return arguments


def find_files(path):
    """(detector.json, weights) at `path`, as saved.find gives them; says so if the run is not finished.

    Raises:
        FileNotFoundError: there is no detector.
    """
    from na_keras.detection.model_garden import saved

    if (path / "model.keras").exists() or path.suffix in (".keras", ".h5"):
        raise FileNotFoundError(f"{path} is a classifier's: export it by export_model.py.")
    description, weights = saved.find(path)
    if weights.name != saved.WEIGHTS and weights.parent != path:
        print(f"{path} is not finished: its newest checkpoint is exported, {weights.parent.name}.")
    return description, weights


def make_plan(arguments):
    """(detector_version.DetectorPlan, the run's recipe or None): everything read and checked, nothing written yet.

    Raises:
        ValueError, OSError: a flag, the run or an image does not fit; the message says which.
    """
    from na_keras.deploy import TFLITE_KINDS
    from na_keras.detection.model_garden import lite, saved
    from versions import detector_version

    kinds = tuple(dict.fromkeys(arguments.tflite))
    quantized = [kind for kind in kinds if TFLITE_KINDS[kind].quantized]
    description, weights = find_files(arguments.model)
    if kinds:
        lite.check_kind_of_detector(json.loads(description.read_text("utf-8"))["detector"])
    folder, samples = arguments.sample_images, None
    if quantized and folder is None:
        raise ValueError(f"{quantized[0]} needs some hundred photographs like those it will see: --sample-images DIR.")
    if folder is not None:
        samples = detector_version.sample_files(folder, arguments.sample_count)
    source, recipe = detector_version.describe_source(arguments.model, description, weights)
    if quantized:
        lite.check_integer_form(source["network"].get("attention"))
    detector = saved.load(description, weights, arguments.max_detections)
    plan = detector_version.DetectorPlan(
        detector=detector,
        source=source,
        reference=detector_version.reference_data(detector, samples),
        warmup_batches=tuple(arguments.warmup_batches),
        kinds=kinds,
        representative=detector_version.canvases_of(samples, detector.config) if quantized else None,
        accept=tuple(arguments.accept),
        keep_going=arguments.keep_going,
    )
    return plan, recipe


def print_checks(target, checks):
    """What verification measured, for a person."""
    print(
        f"Exported to {target}. Largest difference of scores, and of boxes as a share of the image, from the detector"
    )
    print(f"itself (at most {checks['tolerance']}):")
    for name, value in checks["largest_difference"].items():
        print(f"  {name:28} {value:.1e}")
    for name, numbers in checks["reduced_precision"].items():
        print(
            f"  {name:28} agrees on {numbers['agreement']:.0%} of the detections, whose boxes overlap by "
            f"{numbers['mean_overlap']:.3f}; scores differ by up to {numbers['largest_score_difference']:.3f}"
        )
    command_line.print_exceptions(PROGRAM, checks)


def export(arguments, stop):
    """Exports as the arguments say; ends the program with one line where that does not work.

    Args:
        arguments: of parse_arguments.
        stop: publish.StopRequest.
    """
    target, checks = command_line.publish_version(PROGRAM, arguments.output, lambda: make_plan(arguments), stop.check)
    print_checks(target, checks)


def main(argv=None, stop=None):
    """The program; `stop` is a publish.StopRequest that listens to signals already."""
    arguments = parse_arguments(argv)
    command_line.check_installed(PROGRAM, NEEDED)
    command_line.start_tensorflow(PROGRAM)
    command_line.run_until_stopped(lambda: export(arguments, stop or publish.StopRequest()))


if __name__ == "__main__":
    request = publish.StopRequest()
    request.listen()
    main(stop=request)
