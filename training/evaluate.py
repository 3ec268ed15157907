"""Evaluates a trained network: single-crop top-1 and top-5 over every image of a dataset's split, of multi-label data
mean average precision and macro F1.

    python training/evaluate.py --model runs/demo/model.keras
    python training/evaluate.py --model runs/demo                               # its newest checkpoint
    python training/evaluate.py --model runs/demo/checkpoints/step-00000330
    python training/evaluate.py --model exported/demo/1 --dataset digits        # a SavedModel
    python training/evaluate.py --model exported/demo/1/tflite/model_int8.tflite --dataset digits
    python training/evaluate.py --model keras.applications.MobileNetV2 --weights imagenet --dataset imagenet2012 \\
        --data-dir DIR --resize 256

Dataset and sizes are those of the run (recipe.json) or of the export (manifest.json) unless given. The data must have
the classes that the network knows (labels.txt); a folder of images then needs no training images. Top-5 is left out
where there are five classes or fewer. A network that ends in sigmoids takes multi-label data (--dataset csv). --output
DIR writes what one looks at: per_class.csv, confusion_matrix.csv and .png (not of multi-label data), mistakes.csv and
.png.
"""

import sys

import recipe_fields
import recipes
import terminal


def parse_arguments(argv):
    parser = terminal.make_parser(__doc__)
    parser.add_argument(
        "--model",
        type=terminal.folder,
        required=True,
        help="a .keras, .h5 or .tflite file, run, checkpoint or SavedModel; or a network's name, with --weights",
    )
    parser.add_argument("--weights", help="of a network's name: imagenet, torchvision-v1 or torchvision-v2")
    parser.add_argument("--size", type=terminal.at_least_one, help="pixels of the sides, of a network's name (224)")
    terminal.add_pixels_flag(parser)
    terminal.add_import_flag(parser)
    parser.add_argument("--dataset", help="instead of the run's; then the run's splits do not count either")
    parser.add_argument("--data-dir", type=terminal.folder, help="where the dataset lies")
    parser.add_argument(
        "--split",
        default="validation",
        choices=["train", "validation", "test"],
        help="which images (default: %(default)s, of data without it the test images)",
    )
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave out and count images that cannot be opened or decoded, instead of stopping",
    )
    parser.add_argument("--resize", type=int, help="pixels of the shorter side before the crop, instead of the run's")
    parser.add_argument(
        "--batch-size", type=terminal.at_least_one, default=64, help="images per step (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=terminal.folder,
        metavar="DIR",
        help="write per_class.csv, mistakes.csv with a picture and, where an image has one class, confusion_matrix.csv "
        "with a picture into this folder; old ones are replaced",
    )
    parser.add_argument(
        "--mistakes", type=terminal.at_least_one, metavar="N", help="how many of the worst mistakes are written (40)"
    )
    recipe_fields.add_flags(parser, recipes.Recipe, recipes.SPLITS)
    arguments = parser.parse_args(argv)
    if arguments.mistakes and not arguments.output:
        parser.error("--mistakes says how many are written: give --output DIR, or leave it out")
    return arguments


def open_both(arguments):
    """(the trained network, the data's Source, the shorter side before the crop).

    Raises:
        ValueError, OSError, CheckpointError: something is not there, or they do not fit together.
    """
    from engine import trained
    from na_keras.data import load_source
    from na_keras.networks import import_modules

    import_modules(arguments.imports)
    network = trained.open_trained(arguments.model, arguments.pixels, arguments.weights, arguments.size)
    dataset, resize = arguments.dataset or network.dataset, arguments.resize or network.resize
    if dataset is None or resize is None:
        raise ValueError(
            f"Nothing beside {arguments.model} says how it was trained: give --dataset and --resize. "
            f"Known so far: --dataset={dataset} --resize={resize}"
        )
    splits = {**(network.splits if arguments.dataset is None else {}), **recipes.given_splits(arguments)}
    try:
        source = load_source(dataset, arguments.split, arguments.data_dir, network.class_names, **splits)
    except FileNotFoundError as error:
        if network.class_names is not None:
            raise
        raise FileNotFoundError(
            f"{error} Or put labels.txt, the network's class names, one a line, beside {network.path}."
        ) from error
    if network.multi_label not in (None, source.multi_label):
        ends = {True: "sigmoids, an answer for each class by itself", False: "a softmax, one class an image"}
        raise ValueError(
            f"{network.path} ends in {ends[network.multi_label]}. Expected data of that form (docs/data.md, labels in "
            f"a table), or a network that ends in {ends[source.multi_label]}. Received: {source.name}, which "
            f"{'is multi-label' if source.multi_label else 'has one class an image'}"
        )
    if resize < network.size:
        raise ValueError(f"Expected --resize of at least the network's image size {network.size}. Received: {resize}")
    if network.classes != len(source.class_names):
        raise ValueError(f"The network has {network.classes} classes, {dataset} has {len(source.class_names)}.")
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
    return network, source, resize


def show(task, answers, class_names):
    """Prints over which classes means are, where it is not all, and the worst classes."""
    from na_keras.text_table import text_table

    for note in answers.notes(class_names):
        print(note)
    header, rows = task.files.worst_table(answers, class_names)
    if rows:
        print(text_table(header, rows))


def other_images(arguments, network, source):
    """Lines that warn if the run had other images in the part of its data that is evaluated: a share that is held out
    changes with the folder, and may then hold what the network was trained on.
    """
    from run_files import data_record, run_directory

    places = (network.path, *network.path.parents[:2])
    directory = next((place for place in places if (place / run_directory.DATA).exists()), None)
    divided = network.splits.get("validation_split") and arguments.dataset is None
    if directory is None or not divided or recipes.given_splits(arguments) or arguments.split == "test":
        return []
    split = {"train": "training", "validation": "validation"}[arguments.split]
    return [f"WARNING: not the run's images: {x}" for x in data_record.changes_of_split(directory, split, source)]


def main(argv=None):
    arguments = parse_arguments(argv)
    if arguments.output:
        terminal.check_installed("evaluate.py", ["matplotlib"])
    print(f"Evaluating on {terminal.start_tensorflow()}", flush=True)
    import tensorflow as tf

    from engine import evaluation, steps
    from run_files import checkpoints, evaluation_files

    try:
        network, source, resize = open_both(arguments)
    except (ValueError, OSError, checkpoints.CheckpointError) as error:
        sys.exit(f"evaluate.py: {error}")
    print(*source.summary, *other_images(arguments, network, source), sep="\n", flush=True)
    strategy = tf.distribute.get_strategy()
    task = evaluation.task_of(source.multi_label)
    evaluate_steps = steps.make_evaluate_steps(strategy, network.predict, network.from_logits, task)
    options = {"batch_size": arguments.batch_size, "resize": resize, "size": network.size}
    options |= {"exif_orientation": network.exif_orientation, "skip_unreadable": arguments.skip_unreadable}
    try:
        answers = evaluation.evaluate(strategy, evaluate_steps, source, **options)
    except evaluation.UnreadableImageError as error:
        sys.exit(f"evaluate.py: {error}")
    if answers.count < source.count:
        print(f"WARNING: {source.count - answers.count} unreadable images were left out")
    print(f"{network.path} on {source.name}: {evaluation.in_words(task, answers.means)}, over {answers.count} images")
    show(task, answers, source.class_names)
    if arguments.output:
        pixels = resize, network.size, network.exif_orientation
        mistakes = arguments.mistakes or evaluation_files.MISTAKES
        names = task.files.write(arguments.output, answers, source, pixels, mistakes)
        print(f"Wrote {', '.join(names)} in {arguments.output}")
    return answers.means


if __name__ == "__main__":
    main()
