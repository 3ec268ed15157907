"""Exports a trained network: a SavedModel for TF Serving and TFLite files for devices, verified, as one version.

    python export/export_model.py --model runs/demo/model.keras --output exported/demo \\
        --tflite float32 float16 dynamic int8 int8_float_gate

    exported/demo/               the base path to give to TF Serving
      1/                         the first version; the next export into the same folder writes 2/
        saved_model.pb, variables/    signatures in na_keras/deploy/saved_model.py
        assets.extra/            warm-up requests, which a server runs before it answers (versions/warmup.py)
        tflite/model_KIND.tflite and, of quantized kinds, model_KIND.tensors.csv (versions/tflite_folder.py)
        onnx/model.onnx          with --onnx
        labels.txt               class names, one a line
        manifest.json            sources, versions, signatures, checks passed with their numbers, sha256 of every file

The network ships in deploy form (na_keras/deploy/rewrite.py). The full-integer kinds need sample images: those of the
run's dataset, or of --sample-images.

A version is written under a name that no server takes for one, checked there by consumers that are not Keras
(verify.py), and only then renamed. Existing versions and other people's files are never touched. An export that fails
or is stopped publishes nothing; one that was killed leaves a folder incoming-*, which may be deleted when no export is
running.
"""

import os
import sys

import command_line
from consumers.gates import GATES, gates_help
from versions import publish

os.environ["KERAS_BACKEND"] = "tensorflow"  # SavedModel and TFLite are TensorFlow's


def choose_sizes(model, recipe, resize):
    """(pixels of the shorter side before the crop, of the crop): from the flags, the run, or the network."""
    size = model.input_shape[1] or (recipe and recipe["size"])
    if size is None or model.input_shape[2] not in (size, None):
        raise ValueError(
            "An export needs one square image size, from the network or from recipe.json beside it. "
            f"Received: input_shape={model.input_shape}"
        )
    resize = resize or (recipe["evaluation_resize"] if recipe else round(size * 256 / 224))
    if resize < size:
        raise ValueError(f"--resize must be at least the image size {size}. Received: {resize}")
    return resize, size


def choose_labels(path, recorded, classes):
    """The class names: of the file `path`, else those `recorded` with the run, else 0, 1, 2 ..."""
    from na_keras.model_files import read_labels

    labels = recorded if path is None else read_labels(path)
    if labels is None:
        print("No labels.txt beside the model and no --labels: the classes are called 0, 1, 2 ...")
        labels = [str(index) for index in range(classes)]
    if len(labels) != classes:
        raise ValueError(f"The network has {classes} classes. Received: {len(labels)} labels")
    return labels


def choose_samples(arguments, recipe, resize, size):
    """Representative images for the quantized kinds: of --sample-images, or of the run's dataset."""
    from na_keras.data import recorded_splits
    from na_keras.deploy import calibration

    if arguments.sample_images is not None:
        examples = calibration.from_folder(arguments.sample_images)
    elif recipe is not None:
        print(
            f"The ranges of quantized files come from {arguments.sample_count} training images of {recipe['dataset']}"
        )
        examples = calibration.from_dataset(recipe["dataset"], arguments.data_dir, **recorded_splits(recipe))
    else:
        raise ValueError(
            "Quantized TFLite files need some hundred images like those that the network will see: give "
            "--sample-images DIR (any image files), or export from a run directory, whose recipe names its dataset."
        )
    return calibration.representative_images(examples, resize, size, arguments.sample_count, upright(recipe))


def upright(recipe):
    """Whether photographs are turned upright as their Exif tag says: as in the run, and without one they are."""
    return recipe["exif_orientation"] if recipe else True


def needs_samples(kinds):
    """Whether one of these kinds is quantized."""
    from na_keras.deploy import TFLITE_KINDS

    return any(TFLITE_KINDS[kind].quantized for kind in kinds)


def unsuitable_kinds(kinds, model):
    """{kind: why no such file can be written of this model, or the models inside it}; of the others nothing."""
    from na_keras import NormalizationAttention
    from na_keras.deploy import TFLITE_KINDS, attention_forms
    from na_keras.graph.calls import calls_of, models_of

    operations = [call.operation for inner in models_of(model) for call in calls_of(inner)]
    attention = [operation for operation in operations if isinstance(operation, NormalizationAttention)]
    reasons = {}
    for kind in kinds:
        if TFLITE_KINDS[kind].float_gates_of and not attention:
            reasons[kind] = (
                f"{kind} keeps the gates of NormalizationAttention in float, and this network has none: leave it out; "
                f"{TFLITE_KINDS[kind].float_gates_of} is the file you want."
            )
        try:
            for layer in attention if TFLITE_KINDS[kind].quantized else ():
                attention_forms.check_integer_safe(layer)
        except ValueError as error:
            reasons[kind] = f"{kind}: {error}"
    return reasons


def make_plan(arguments):
    """(writer.Plan, the run's recipe or None): everything read and checked, nothing written yet.

    Raises:
        ValueError, OSError: a flag, the model or a file beside it does not fit; the message says which.
    """
    from na_keras.deploy import rewrite
    from na_keras.graph.calls import checked_functional
    from na_keras.model_files import check_classifier, load_model, training_record
    from versions import tflite_folder, writer

    model = check_classifier(load_model(arguments.model))
    model = rewrite.in_float32(checked_functional(model, "An export"))
    recipe, recorded = training_record(arguments.model)
    labels = choose_labels(arguments.labels, recorded, model.output_shape[-1])
    resize, size = choose_sizes(model, recipe, arguments.resize)
    kinds = tuple(dict.fromkeys(arguments.tflite))
    unsuitable = unsuitable_kinds(kinds, model)
    if unsuitable and not arguments.keep_going:
        raise ValueError("\n".join(unsuitable.values()))
    kinds = tuple(kind for kind in kinds if kind not in unsuitable)
    wanted = needs_samples(kinds) or arguments.sample_images is not None  # which verification asks about too
    samples = choose_samples(arguments, recipe, resize, size) if wanted else None
    plan = writer.Plan(
        model=model,
        labels=labels,
        resize=resize,
        size=size,
        top=arguments.top,
        image_dtype=arguments.image_dtype,
        reference=writer.reference_data(model, labels, resize, size, arguments.image_dtype, samples),
        warmup_batches=tuple(arguments.warmup_batches),
        kinds=kinds,
        representative=samples,
        onnx=arguments.onnx,
        exif_orientation=upright(recipe),
        accept=tuple(arguments.accept),
        keep_going=arguments.keep_going,
        failed={tflite_folder.file_name(kind): reason for kind, reason in unsuitable.items()},
    )
    return plan, recipe


def print_checks(target, checks):
    """What verification measured, for a person."""
    tolerance = checks["tolerance"]
    print(f"Exported to {target}. Largest difference from Keras, in units of the largest logit (at most {tolerance}):")
    for name, value in checks["largest_difference"].items():
        print(f"  {name:28} {value:.1e}")
    if checks["reduced_precision"]:
        print("Of reduced precision:")
    for name, numbers in checks["reduced_precision"].items():
        print(
            f"  {name:28} probabilities differ by {numbers['largest_difference']:.1e}, correlate by "
            f"{numbers['correlation']:.4f}; equal best class {numbers['top1_agreement']:.0%}"
        )
    for name, reason in checks["skipped"].items():
        print(f"  not checked with {name}: {reason}")
    for entry in checks["accepted"]:
        print(f"  accepted ({entry['gate']}): {entry['finding']}")
    for name, reason in checks["failed"].items():
        print(f"export_model.py: failed and left out: {name}: {reason.removeprefix(f'{name}: ')}", file=sys.stderr)


def parse_arguments(argv):
    kinds = command_line.tflite_kinds()
    parser = command_line.make_parser(__doc__, epilog=f"{command_line.kinds_help()}\n\n{gates_help()}")
    add = parser.add_argument
    add("--model", type=command_line.path, required=True, help="a .keras file")
    add("--output", type=command_line.path, required=True, help="base folder of the versions")
    add("--labels", type=command_line.path, help="class names, one a line (default: labels.txt beside the model)")
    add("--resize", type=int, help="pixels of the shorter side before the crop (default: the run's)")
    add("--top", type=int, default=5, help="classes named in an answer (default: %(default)s)")
    add(
        "--image-dtype",
        choices=("float32", "uint8"),
        default="float32",
        help="dtype of the images that serving_default takes; uint8 is a quarter of the bytes over gRPC "
        "(default: %(default)s)",
    )
    add(
        "--warmup-batches",
        type=int,
        nargs="+",
        default=[1],
        metavar="N",
        help="batch sizes that a server runs once before it answers, for example the allowed_batch_sizes of its "
        "batching configuration (default: 1)",
    )
    add(
        "--tflite",
        choices=kinds,
        nargs="+",
        default=["float32"],
        metavar="KIND",
        help=f"kinds of TFLite files: {', '.join(kinds)}; see below (default: float32)",
    )
    add(
        "--sample-images",
        type=command_line.path,
        metavar="DIR",
        help="images for the ranges of quantized files, and for verification",
    )
    add("--data-dir", type=command_line.path, help="where the run's dataset lies, instead of --sample-images")
    add("--sample-count", type=int, default=200, help="how many of these images, at most (default: %(default)s)")
    add("--onnx", action="store_true", help="write onnx/model.onnx too; needs the extra onnx")
    add(
        "--accept",
        choices=GATES,
        nargs="+",
        default=[],
        metavar="GATE",
        help=f"publish in spite of what these gates of verification find: {', '.join(GATES)}; see below. The manifest "
        "records it",
    )
    add("--keep-going", action="store_true", help="publish without the TFLite and ONNX files that fail, and name them")
    arguments = parser.parse_args(argv)
    if arguments.sample_count < 1:
        parser.error(f"--sample-count must be at least 1. Received: {arguments.sample_count}")
    if arguments.top < 1:
        parser.error(f"--top must be at least 1. Received: {arguments.top}")
    if not all(1 <= batch <= 1024 for batch in arguments.warmup_batches):
        parser.error(f"--warmup-batches must be from 1 to 1024. Received: {arguments.warmup_batches}")
    return arguments


def export(arguments, stop):
    """Exports as the arguments say; ends the program with one line where that does not work.

    Args:
        arguments: of parse_arguments.
        stop: publish.StopRequest.
    """
    output = arguments.output
    try:
        publish.check_base_folder(output)
        publish.check_writable(output)
        for folder in publish.leftovers(output):
            print(f"{folder} is being written by another export, or was left by one that was killed: then delete it.")
        plan, recipe = make_plan(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"export_model.py: {error}")

    import tensorflow as tf

    from versions import writer

    try:
        with publish.incoming_version(output) as incoming:
            checks = writer.write_version(incoming, plan, arguments.model, recipe, stop.check)
            target = publish.release(incoming)
    except (RuntimeError, ValueError) as error:
        sys.exit(f"export_model.py: nothing was published. {error}")
    except (OSError, tf.errors.OpError) as error:  # a full disk, in Python's words or TensorFlow's
        reason = str(error).splitlines()[0]
        sys.exit(f"export_model.py: nothing was published; writing below {output} failed: {reason}")
    print_checks(target, checks)


def main(argv=None, stop=None):
    """The program; `stop` is a publish.StopRequest that listens to signals already."""
    arguments = parse_arguments(argv)
    needed = {"ai_edge_litert": "export", **({"tf2onnx": "onnx", "onnxruntime": "onnx"} if arguments.onnx else {})}
    command_line.check_installed("export_model.py", needed)
    command_line.start_tensorflow("export_model.py")
    try:
        export(arguments, stop or publish.StopRequest())
    except publish.Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.number)


if __name__ == "__main__":
    request = publish.StopRequest()
    request.listen()
    main(stop=request)
