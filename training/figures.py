"""Pictures of trained networks: loss curves, Grad-CAM heat maps and gates, each as one PNG.

    python training/figures.py loss vanilla=runs/vanilla NA=runs/na --output loss_curves.png
    python training/figures.py heatmaps vanilla=runs/vanilla/model.keras NA=runs/na/model.keras --output heat_maps.png
    python training/figures.py gates NA=runs/na/model.keras --output gates.png

loss      Figure 1 of the paper: training and validation loss of several run directories, finished or not.
heatmaps  Figure 2: the images above, below them a row per network with what speaks for the class.
gates     NA's gates in each block, over channels and images: median, quartiles, 5th to 95th percentile.

Images are the validation split's of the first network's run (recipe.json beside it), or those of --dataset or --images.
"""

import sys

import terminal

FRESH_GATE = 0.7310585786  # sigmoid(1)
OPACITY = 0.5  # of the heat map on its image


def parse_arguments(argv):
    parser = terminal.make_parser(__doc__)
    kinds = parser.add_subparsers(dest="figure", required=True, metavar="{loss,heatmaps,gates}")
    takes = {"loss": "a run directory", "heatmaps": "a .keras or .h5 file", "gates": "a .keras or .h5 file"}
    for figure, what in takes.items():
        kind = kinds.add_parser(figure, help=f"of {what} or several" if figure != "gates" else f"of {what}")
        count = 1 if figure == "gates" else "+"
        kind.add_argument(
            "named", metavar="NAME=PATH", type=terminal.named_path, nargs=count, help=f"{what} and its name"
        )
        kind.add_argument(
            "--output", type=terminal.name_ending_in(".png"), required=True, help="the PNG; an old one is replaced"
        )
        if figure == "loss":
            continue
        terminal.add_pixels_flag(kind)
        terminal.add_import_flag(kind)
        kind.add_argument("--images", nargs="+", type=terminal.folder, metavar="FILE", help="instead of a dataset's")
        kind.add_argument("--dataset", help="instead of the run's")
        kind.add_argument("--data-dir", type=terminal.folder, help="where the dataset lies")
        kind.add_argument("--resize", type=int, help="pixels of the shorter side before the crop, instead of the run's")
        default = {"heatmaps": 8, "gates": 64}[figure]
        kind.add_argument(
            "--count", type=terminal.at_least_one, default=default, help="images of the dataset (default: %(default)s)"
        )
        if figure == "heatmaps":
            kind.add_argument("--layer", help="whose maps; by default the last with more than one position")
            kind.add_argument("--predicted", action="store_true", help="each network's own class, not the label")
    arguments = parser.parse_args(argv)
    if arguments.figure != "loss" and arguments.images and (arguments.dataset or arguments.data_dir):
        parser.error("--images are shown instead of a dataset's: leave --dataset and --data-dir out")
    return arguments


def read_histories(named):
    """({name: rows of history.csv}, {name: its losses in training and validation, where recipe.json says them}).

    Raises:
        ValueError: a folder without finished epochs.
    """
    import plots
    from engine import evaluation
    from run_files import data_record, run_directory

    found, losses = {}, {}
    for name, directory in named:
        try:
            found[name] = run_directory.read_history(directory, sys.maxsize)
        except KeyError:  # no column of epochs
            found[name] = []
        if not found[name] or not {"loss", "validation_loss"} <= set(found[name][0]):
            raise ValueError(
                f"{directory} holds no {run_directory.HISTORY} with a finished epoch. Expected a run directory."
            )
        if (directory / run_directory.RECIPE).exists():
            task = evaluation.task_of(data_record.is_multi_label(data_record.read(directory)))
            losses[name] = plots.training_loss(run_directory.read_recipe(directory)), task.LOSS
    return found, losses


def class_shown(label, seen):
    """The class whose heat an image is shown with: its own; of several the first that no image before is shown with, or
    the first of all; None of no class.
    """
    own = label.nonzero()[0].tolist() if label.ndim else [int(label)]
    return next(iter([*(index for index in own if index not in seen), *own]), None)


def choose_examples(source, count):
    """[(encoded image, class)]: one of each class in the stored order, then further ones, `count` in all. Images of no
    class are left out.

    Raises:
        ValueError: there are no others.
    """
    firsts, others, seen = [], [], set()
    for example in source.examples(None):
        label = class_shown(example["label"].numpy(), seen)
        if label is None:
            continue
        if label not in seen:
            firsts.append((example["image"], label))
        elif len(others) < count:
            others.append((example["image"], label))
        seen.add(label)
        if len(firsts) == count or len(seen) == len(source.class_names) and len(firsts) + len(others) >= count:
            break
    if not firsts:
        raise ValueError(f"{source.name}: no image has a class to show. Give --images.")
    return (sorted(firsts, key=lambda pair: pair[1]) + others)[:count]


def read_images(arguments, size):
    """(uint8 (n, size, size, 3), labels or None, class names or None), cropped as for evaluation."""
    import numpy as np
    import tensorflow as tf

    from na_keras.data import load_source, preprocessing, recorded_splits
    from na_keras.model_files import training_record

    recipe, class_names = training_record(arguments.named[0][1])
    recipe = recipe or {}
    resize = arguments.resize or recipe.get("evaluation_resize") or size
    exif_orientation = recipe.get("exif_orientation", True)
    if arguments.images:
        missing = [str(path) for path in arguments.images if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"No image at {', '.join(missing)}")
        encoded, labels = [tf.io.read_file(str(path)) for path in arguments.images], None
    else:
        dataset = arguments.dataset or recipe.get("dataset")
        if dataset is None:
            raise ValueError(f"There is no recipe.json beside {arguments.named[0][1]}: give --images or --dataset.")
        splits = recorded_splits(recipe) if dataset == recipe.get("dataset") else {}
        source = load_source(dataset, "validation", arguments.data_dir, class_names, **splits)
        encoded, labels = zip(*choose_examples(source, arguments.count), strict=True)
        class_names = source.class_names
    try:
        images = [preprocessing.evaluation_image(data, resize, size, exif_orientation).numpy() for data in encoded]
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"An image does not decode: {error.message.splitlines()[0]}") from error
    return np.stack(images), labels, class_names


def load_networks(arguments):
    """({name: model}, image size).

    Raises:
        FileNotFoundError, ValueError: a file that is not there or no classifier; networks that do not fit together.
    """
    from na_keras.networks import import_modules, open_classifier

    import_modules(arguments.imports)
    models = {name: open_classifier(path, arguments.pixels) for name, path in arguments.named}
    shapes = {(model.input_shape[1:], model.output_shape[1:]) for model in models.values()}
    if len(shapes) > 1:
        raise ValueError(f"Expected networks of equal image sizes and classes. Received: {sorted(shapes)}")
    ((height, width, _), _) = shapes.pop()
    if height is None or height != width:
        raise ValueError(f"Expected networks of square images of a known size. Received: {height} x {width}")
    return models, height


def heat_maps(models, images, labels, class_names, layer, predicted):
    """Figure: the images, then a row per network; over each map the class it is of and its probability."""
    import numpy as np
    from matplotlib import colormaps

    import plots
    from na_keras.graph import grad_cam

    rows, columns = 1 + len(models), len(images)
    figure = plots.new_figure(0.5 + 1.25 * columns, 0.15 + 1.45 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    for row, name in enumerate(["image", *models]):
        grid[row, 0].set_ylabel(name)
        shown, titles = images, [""] * columns
        if row:
            probabilities = models[name].predict(images, verbose=0)
            classes = probabilities.argmax(-1) if predicted or labels is None else np.array(labels)
            heat = grad_cam(models[name], images, classes, layer, scaled=True)
            shown = (1 - OPACITY) * images / 255 + OPACITY * colormaps["jet"](heat)[..., :3]
            names = [class_names[index] if class_names else f"class {index}" for index in classes]
            titles = [f"{n[:14]}: {100 * p[c]:.0f} %" for n, p, c in zip(names, probabilities, classes, strict=True)]
        for axes, picture, title in zip(grid[row], shown, titles, strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.set_title(title, fontsize=9, pad=2)
    return figure


def gates_of(model, images):
    """{name of each NormalizationAttention: its gates, float32 array (images * channels,)}, in the graph's order."""
    import keras

    from na_keras import NormalizationAttention
    from na_keras.graph.calls import checked_functional, nested_model, run_graph

    gates = {}

    def call(operation, *args, **kwargs):
        if inner := nested_model(operation):
            return run_graph(inner, args, call)
        if isinstance(operation, NormalizationAttention):
            gates.setdefault(operation.name, keras.ops.convert_to_numpy(operation.gate(*args)).ravel())
        return operation(*args, **kwargs)

    source = checked_functional(model, "The figure of gates")
    run_graph(source, keras.ops.convert_to_tensor(images, source.inputs[0].dtype), call)
    return gates


def gate_boxes(gates, title):
    """{name: gates} -> figure, a box per module."""
    import plots

    figure = plots.new_figure(max(5, 1.5 + 0.45 * len(gates)), 4)
    axes = figure.subplots()
    axes.boxplot(list(gates.values()), whis=(5, 95), showfliers=False, widths=0.6, medianprops={"linewidth": 2})
    axes.axhline(FRESH_GATE, linestyle="--", linewidth=1, color="grey", label="fresh module, sigmoid(1)")
    names = [name.removesuffix("_attention") for name in gates]
    axes.set_xticks(range(1, len(names) + 1), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set(ylabel="gate", title=title)
    axes.grid(alpha=0.3, axis="y")
    axes.legend(loc="best")
    return figure


def make_gates(arguments):
    models, size = load_networks(arguments)
    ((name, model),) = models.items()
    images, _, _ = read_images(arguments, size)
    gates = gates_of(model, images)
    if not gates:
        raise ValueError(f"{arguments.named[0][1]} holds no NormalizationAttention layer: there are no gates to show.")
    title = f"gates of {name} over channels and {len(images)} images:\nmedian, quartiles, 5 to 95 %"
    return gate_boxes(gates, title)


def make_heat_maps(arguments):
    models, size = load_networks(arguments)
    images, labels, class_names = read_images(arguments, size)
    classes = next(iter(models.values())).output_shape[-1]
    if class_names and len(class_names) != classes:
        raise ValueError(f"The networks have {classes} classes, the images {len(class_names)}.")
    return heat_maps(models, images, labels, class_names, arguments.layer, arguments.predicted)


def make_loss(arguments):
    import plots

    return plots.loss_curves(*read_histories(arguments.named))


FIGURES = {"loss": make_loss, "heatmaps": make_heat_maps, "gates": make_gates}


def main(argv=None):
    arguments = parse_arguments(argv)
    terminal.check_installed("figures.py", ["matplotlib"])
    print(f"Computing on {terminal.start_tensorflow()}", flush=True)
    import plots

    try:
        if not arguments.output.parent.is_dir():
            raise FileNotFoundError(f"There is no folder {arguments.output.parent} for --output.")
        names = [name for name, _ in arguments.named]
        if len(set(names)) < len(names):
            raise ValueError(f"Expected a different name for each. Received: {', '.join(names)}")
        figure = FIGURES[arguments.figure](arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"figures.py: {error}")
    plots.save(figure, arguments.output)
    print(f"Wrote {arguments.output}")


if __name__ == "__main__":
    main()
