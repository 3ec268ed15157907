"""Makes a ready network of whatever `--model`, `--attention` and `--weights` name, and writes it as one .keras file.

    python training/make_model.py --model keras.applications.EfficientNetB0 --weights imagenet --output b0.keras
    python training/make_model.py --model ResNet50 --weights torchvision-v2 --attention na --output na_resnet50.keras
    python training/make_model.py --model mine.h5 --pixels tf --attention na --classes 3 --output mine_na.keras

The file takes raw RGB images, 0..255, and answers with probabilities. What of it is fresh, as the classifier of other
classes than the weights have, is printed. Nothing is trained here.
"""

import sys

import recipe_fields
import recipes
import terminal

FIELDS = ("model", "attention", "model_options", "seed", "weights", "where", "preserve", "pixels")
IMAGENET_CLASSES, USUAL_SIZE = 1000, 224


def parse_arguments(argv):
    parser = terminal.make_parser(__doc__)
    add = parser.add_argument
    add("--output", type=terminal.name_ending_in(".keras"), required=True, help="the file; there must be none")
    add("--classes", type=terminal.at_least_one, metavar="N", help="by default the file's own, or ImageNet's 1000")
    add(
        "--size", type=terminal.at_least_one, metavar="N", help="pixels of the sides; by default the file's own, or 224"
    )
    terminal.add_import_flag(parser)
    recipe_fields.add_flags(parser, recipes.Recipe, FIELDS)
    arguments = parser.parse_args(argv)
    if arguments.model is None:
        parser.error("--model is required")
    return arguments


def make(arguments):
    """(keras.Model, sentences that say what is fresh).

    Raises:
        ValueError, OSError: the flags do not go together, or a file cannot be read.
    """
    import keras

    from na_keras import networks

    if arguments.output.exists():
        raise FileExistsError(f"{arguments.output} is there already; it is kept. Choose another --output.")
    if not arguments.output.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {arguments.output.parent} for --output.")
    networks.import_modules(arguments.imports)
    given = recipe_fields.overrides(arguments, recipes.Recipe)
    seed, options = given.pop("seed", 0), given.pop("model_options", {})
    given = {name: given.get(name) for name in FIELDS if name in given}
    if given.get("attention") == "none":
        given["attention"] = None
    network = networks.Network(**given, options=options)
    size, classes = networks.own_shape(network)
    start, notes = networks.Start(network), []
    keras.utils.set_random_seed(seed)
    model = networks.build(
        network,
        size=arguments.size or size or USUAL_SIZE,
        classes=arguments.classes or classes or IMAGENET_CLASSES,
        activation="softmax",
        weights=start.weights,
        notes=notes,
    )
    return model, notes + [f"{name}: {digest}" for name, digest in start.digests.items()]


def main(argv=None):
    arguments = parse_arguments(argv)
    terminal.start_tensorflow()
    from na_keras.files import replace_file

    try:
        model, notes = make(arguments)
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"make_model.py: {' '.join(str(error).split())}")
    replace_file(arguments.output, model.save)
    print(*notes, sep="\n", end="\n" if notes else "")
    print(f"Wrote {arguments.output}: images {model.input_shape[1:]} to {model.output_shape[-1]} classes")


if __name__ == "__main__":
    main()
