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

import command_line
from consumers.gates import GATES, gates_help
from versions import publish

os.environ["KERAS_BACKEND"] = "tensorflow"  # SavedModel and TFLite are TensorFlow's


def choose_images(model, recipe, size=None, resize=None):
    """The ImageFormat that is exported: from the flags, the run, or the network.

    Args:
        model: functional.
        recipe: of the run, or None.
        size: pixels of the sides, or (height, width); of a network that leaves them open.
        resize: as of ImageFormat.
    """
    from na_keras.deploy.images import ImageFormat, image_shape

    if size is None and None in model.input_shape[1:3] and recipe is None:
        raise ValueError(
            "The network takes images of any size: say which one is exported by --size N, or --size HEIGHT WIDTH. "
            f"Received: input_shape={model.input_shape}"
        )
    if size is None and None in model.input_shape[1:3]:
        size = recipe["size"]
    shape = image_shape(model, size)
    if resize is None and recipe is not None:
        resize = recipe["evaluation_resize"]
    try:
        return ImageFormat(*shape, resize, recipe["exif_orientation"] if recipe else True)
    except ValueError as error:
        raise ValueError(f"--{error}") from error


def choose_labels(exported, given, recorded):
    """(classifier, class names): of --labels, else those recorded with the run, else 0, 1, 2 ...

    One sigmoid, yes or no, has one name, of what is meant by yes; or two, no's first: then it answers for both.
    """
    labels = recorded if given is None else given
    one_sigmoid = exported.classes == 1 and exported.ending == "sigmoid"
    if labels is None:
        count = 2 if one_sigmoid else exported.classes
        print("No labels.txt beside the model and no --labels: the classes are called 0, 1, 2 ...")
        labels = [str(index) for index in range(count)]
    if one_sigmoid and len(labels) == 2:
        exported = exported.with_both()
    if len(labels) != exported.classes:
        expected = {True: ": one sigmoid, with one name or two, no's first", False: ""}[one_sigmoid]
        raise ValueError(f"The network has {exported.classes} classes{expected}. Received: {len(labels)} labels")
    return exported, labels


def choose_samples(arguments, recipe, images):
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
    return calibration.representative_images(examples, images, arguments.sample_count)


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


def open_network(arguments):
    """(networks.Exported, the run's recipe or None, class names, the manifest's entry on where it is from).

    Raises:
        ValueError, OSError: as `make_plan`.
    """
    from na_keras import networks
    from na_keras.model_files import read_labels, training_record

    networks.import_modules(arguments.imports)
    options = {"attention": arguments.attention, "weights": arguments.weights, "pixels": arguments.pixels}
    network = networks.Network(arguments.model, **options, options=arguments.model_options)
    labels, is_file = arguments.labels and read_labels(arguments.labels), network.name.kind == "file"
    if not is_file and arguments.size and len(set(arguments.size)) > 1:
        raise ValueError(f"--size: a network by its name takes square images. Received: {arguments.size}")
    exported = networks.open_exported(
        network,
        activation=arguments.activation,
        output_name=arguments.output_name,
        size=arguments.size and arguments.size[0],
        classes=labels and len(labels),
    )
    recipe, recorded = training_record(network.name.path) if is_file else (None, None)
    exported, labels = choose_labels(exported, labels, recorded)
    source = {"path": network.name.text, "sha256": exported.digests.get("model_sha256")}
    if not is_file:
        source |= {"weights": arguments.weights, "weights_sha256": exported.digests["weights_sha256"]}
    return exported, recipe, labels, source


def make_plan(arguments):
    """(writer.Plan, the run's recipe or None): everything read and checked, nothing written yet.

    Raises:
        ValueError, OSError: a flag, the model or a file beside it does not fit; the message says which.
    """
    from na_keras.deploy import rewrite
    from na_keras.deploy.outputs import answer_alone
    from versions import tflite_folder, writer

    exported, recipe, labels, source = open_network(arguments)
    model = rewrite.in_float32(exported.model)
    if len(model.outputs) == 1:
        model = answer_alone(model)
    images = choose_images(model, recipe, arguments.size, arguments.resize)
    kinds = tuple(dict.fromkeys(arguments.tflite))
    unsuitable = unsuitable_kinds(kinds, model)
    if unsuitable and not arguments.keep_going:
        raise ValueError("\n".join(unsuitable.values()))
    kinds = tuple(kind for kind in kinds if kind not in unsuitable)
    wanted = needs_samples(kinds) or arguments.sample_images is not None  # which verification asks about too
    samples = choose_samples(arguments, recipe, images) if wanted else None
    if len(model.outputs) > 1 and (kinds or arguments.onnx):
        print(f"TFLite and ONNX files answer {exported.answer} alone; the SavedModel {', '.join(model.output)}.")
    plan = writer.Plan(
        model=model,
        ending=exported.ending,
        labels=labels,
        images=images,
        top=arguments.top,
        image_dtype=arguments.image_dtype,
        source=source,
        reference=writer.reference_data(model, exported.ending, labels, images, arguments.image_dtype, samples),
        warmup_batches=tuple(arguments.warmup_batches),
        kinds=kinds,
        representative=samples,
        onnx=arguments.onnx,
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
            f"  {name:28} answers differ by {numbers['largest_difference']:.1e}, correlate by "
            f"{numbers['correlation']:.4f}; equal best class {numbers['top1_agreement']:.0%}"
        )
    command_line.print_exceptions("export_model.py", checks)


def add_network_flags(parser):
    """Which network it is, and what its pixels and its answers are."""
    add = parser.add_argument_group("the network").add_argument
    command_line.add_import_flag(add)
    add(
        "--weights",
        metavar="NAME",
        help="of a network's name: imagenet, torchvision-v1, torchvision-v2, or a file; all of it must be in them",
    )
    add("--attention", metavar="NAME", help="of a network's name: the attention that its weights have")
    add(
        "--model-options",
        type=command_line.json_object,
        default={},
        metavar="JSON",
        help="of a network's name: further arguments of its builder, as in '{\"alpha\": 0.35}'",
    )
    command_line.add_pixels_flag(add)
    add(
        "--activation",
        choices=("softmax", "sigmoid", "none"),
        help="what the answers are to be: probabilities that exclude each other, independent ones, or logits (default: "
        "what the network ends in; one that ends in logits needs it)",
    )
    add("--output-name", metavar="NAME", help="which of several outputs is the classifier's answer")
    add(
        "--size",
        type=int,
        nargs="+",
        metavar="N",
        help="pixels of the images' sides, or HEIGHT WIDTH, of a network that leaves them open",
    )


def parse_arguments(argv):
    kinds = command_line.tflite_kinds()
    parser = command_line.make_parser(__doc__, epilog=f"{command_line.kinds_help()}\n\n{gates_help()}")
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="a .keras or .h5 file, or with --weights a name: ours, or keras.applications.NAME",
    )
    add("--output", type=command_line.path, required=True, help="base folder of the versions")
    add_network_flags(parser)
    add("--labels", type=command_line.path, help="class names, one a line (default: labels.txt beside the model)")
    add(
        "--resize",
        type=int,
        help="pixels of the shorter side before the crop (default: the run's, or 8/7 of the crop's)",
    )
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
    if arguments.size and (len(arguments.size) > 2 or min(arguments.size) < 1):
        parser.error(f"--size must be one number of pixels, or a height and a width. Received: {arguments.size}")
    if arguments.size and len(arguments.size) == 1:
        arguments.size *= 2
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
    target, checks = command_line.publish_version(
        "export_model.py", arguments.output, lambda: make_plan(arguments), stop.check
    )
    print_checks(target, checks)


def main(argv=None, stop=None):
    """The program; `stop` is a publish.StopRequest that listens to signals already."""
    arguments = parse_arguments(argv)
    needed = {"ai_edge_litert": "export", **({"tf2onnx": "onnx", "onnxruntime": "onnx"} if arguments.onnx else {})}
    command_line.check_installed("export_model.py", needed)
    command_line.start_tensorflow("export_model.py")
    command_line.run_until_stopped(lambda: export(arguments, stop or publish.StopRequest()))


if __name__ == "__main__":
    request = publish.StopRequest()
    request.listen()
    main(stop=request)
