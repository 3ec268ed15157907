"""Pictures of histories (the curves of one run, the losses of several side by side) and of evaluations (confusion
matrices, sheets of images).
"""

import dataclasses

import numpy as np

from na_keras.files import replace_file

CROSS_ENTROPY = "cross_entropy"  # as recipes call it

LABELLED = 40  # up to so many classes, a confusion matrix has their names
CELLS = 250  # rows of the picture of a larger one; what lies in one row is not told apart there
CONFUSIONS = 25  # pairs of classes that stand beside it


@dataclasses.dataclass(frozen=True)
class Curves:
    """Which shares of an epoch's images are drawn over the epochs, in per cent.

    Attributes:
        label: of the axis.
        columns: {name in the legend: column of history.csv}.
        dashed: which of the names.
    """

    label: str
    columns: dict
    dashed: tuple[str, ...] = ()


def new_figure(width, height):
    """A matplotlib Figure of so many inches that needs no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure, path):
    """Writes a PNG in place of an older one."""
    replace_file(path, lambda temporary: figure.savefig(temporary, dpi=100, format="png"))


def draw_curves(axes, curves, title, label, factor=1, logarithmic=False, dashed=()):
    """Draws {name: (rows of history.csv, column)} over the epochs, each value times `factor`; dashed, those names."""
    for name, (rows, column) in curves.items():
        rows = [row for row in rows if row.get(column) not in (None, "")]  # an older version's may lack it
        epochs, values = [int(row["epoch"]) for row in rows], [factor * float(row[column]) for row in rows]
        axes.plot(epochs, values, "--" if name in dashed else "-", marker="." if len(rows) < 40 else None, label=name)
    axes.set(title=title, xlabel="epoch", ylabel=label, yscale="log" if logarithmic else "linear")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3, which="both")
    axes.legend()


def training_loss(recipe):
    """The name of what `loss` in the history of a recipe, a dictionary, is: that of the loss, or another one where the
    images are weighed or their labels changed. Only what has the name of the validation's loss belongs on one axis with
    `validation_loss`, which is the task's (engine/multiclass.py, multilabel.py), plain.
    """
    mixed = bool(recipe["mixup"] or recipe["cutmix"])
    changes = {"class-weighted": recipe["class_weights"], "smoothed": recipe["label_smoothing"], "mixed": mixed}
    changes = ", ".join(name for name, changed in changes.items() if changed)
    return f"{changes} {axis_name(recipe['loss'])}" if changes else recipe["loss"]


def axis_name(loss):
    """A loss as it is written in a text."""
    return {CROSS_ENTROPY: "cross-entropy", "binary_cross_entropy": "binary cross-entropy"}.get(loss, loss)


def history_curves(rows, title, shares, losses=(CROSS_ENTROPY, CROSS_ENTROPY)):
    """Losses on the left, accuracy on the right, training against validation.

    Args:
        rows: of history.csv, one per epoch.
        title: of the figure.
        shares: Curves of the accuracy; what the last row does not have is left out.
        losses: names of the losses of training, see `training_loss`, and validation. Different ones get axes of their
            own.
    """
    training, validation = {"training": (rows, "loss")}, {"validation": (rows, "validation_loss")}
    kinds = [(losses[0], training | validation)]
    if losses[0] != losses[1]:
        kinds = [(losses[0], training), (losses[1], validation)]
    figure = new_figure(4.5 * (1 + len(kinds)), 3.6)
    figure.suptitle(title)
    *panels, accuracy = figure.subplots(1, 1 + len(kinds))
    for axes, (name, curves) in zip(panels, kinds, strict=True):
        # Logarithmic: the end is what one looks for.
        draw_curves(axes, curves, None, axis_name(name), logarithmic=True)
    curves = {name: (rows, column) for name, column in shares.columns.items() if rows[-1].get(column) not in (None, "")}
    draw_curves(accuracy, curves, None, shares.label, factor=100, dashed=shares.dashed)
    return figure


def loss_curves(histories, losses=None):
    """Training on the left, validation on the right, each kind of loss in axes of its own.

    Args:
        histories: {name: rows of history.csv}.
        losses: {name: (name of its training loss, of its validation loss)}; cross-entropy where it is not there.
    """
    losses = {name: (losses or {}).get(name, (CROSS_ENTROPY, CROSS_ENTROPY)) for name in histories}
    panels = []
    for index, (column, title) in enumerate((("loss", "training"), ("validation_loss", "validation"))):
        kinds = {name: pair[index] for name, pair in losses.items()}
        for kind in dict.fromkeys(kinds.values()):
            curves = {name: (histories[name], column) for name in histories if kinds[name] == kind}
            panels.append((curves, title, axis_name(kind)))
    figure = new_figure(4.5 * len(panels), 3.6)
    for axes, (curves, title, label) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        draw_curves(axes, curves, title, label, logarithmic=True)
    return figure


def shortened(name, length=22):
    """A class name that fits beside a matrix or over a small image."""
    return name if len(name) <= length else f"{name[: length - 1]}\u2026"


def draw_labelled(figure, shares, matrix, class_names):
    """A confusion matrix with names, and with counts in those cells that are not empty."""
    axes, classes = figure.subplots(), len(matrix)
    picture = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    names = [shortened(name) for name in class_names]
    axes.set_xticks(range(classes), names, rotation=45 if max(map(len, names)) > 3 else 0, ha="right")
    if max(map(len, names)) <= 3:
        axes.set_xticks(range(classes), names, ha="center")
    axes.set_yticks(range(classes), names)
    digits = len(str(matrix.max()))
    size = min(11, 60 / digits if classes < 8 else 62 * figure.get_figwidth() / (classes * (digits + 1)))
    for row, column in np.argwhere(matrix) if size >= 4.5 else ():
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, matrix[row, column], ha="center", va="center", color=colour, fontsize=size)
    axes.set(xlabel="answer", ylabel="truth")
    figure.colorbar(picture, ax=axes, label="% of the images of a class", shrink=0.8)


def draw_large(figure, shares, matrix, class_names):
    """A confusion matrix without names, and beside it the pairs of classes that are confused most."""
    figure.get_layout_engine().set(w_pad=0.15)
    axes, bars = figure.subplots(1, 2, width_ratios=(1.4, 1))
    starts = np.unique(np.linspace(0, len(matrix), min(CELLS, len(matrix)), endpoint=False).astype(int))
    pooled = np.maximum.reduceat(np.maximum.reduceat(shares, starts, axis=0), starts, axis=1)
    # By the root: what matters is off the diagonal, and small.
    extent = (-0.5, len(matrix) - 0.5, len(matrix) - 0.5, -0.5)
    options = {"cmap": "Blues", "norm": "linear", "interpolation": "nearest", "extent": extent}
    picture = axes.imshow(np.sqrt(pooled), vmin=0, vmax=1, **options)
    axes.set(xlabel="answer, number of the class", ylabel="truth, number of the class")
    ticks = np.array([0, 1, 5, 25, 50, 100])
    bar = figure.colorbar(picture, ax=axes, label="% of the images of a class", shrink=0.8, ticks=np.sqrt(ticks / 100))
    bar.set_ticklabels(ticks)
    wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    pairs = [divmod(int(cell), len(matrix)) for cell in order if wrong.flat[cell]]
    names = [f"{shortened(class_names[truth])} \u2192 {shortened(class_names[answer])}" for truth, answer in pairs]
    bars.barh(range(len(pairs)), [wrong[pair] for pair in pairs], color="tab:blue")
    bars.set_yticks(range(len(pairs)), names, fontsize=8)
    bars.set_ylim(CONFUSIONS - 0.5, -0.5)
    bars.xaxis.get_major_locator().set_params(integer=True)
    bars.set(title="most frequent confusions, truth \u2192 answer", xlabel="images")


def confusion_matrix(matrix, class_names, title):
    """A confusion matrix, a row of which is a class: colours say which share of its images has which answer.

    Args:
        matrix: int (classes, classes), images by truth and answer.
        class_names: in that order.
        title: of the figure.
    """
    classes = len(matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    labelled = classes <= LABELLED
    side = min(max(4.0, 1.6 + 0.42 * classes), 12)
    figure = new_figure(side + 1.2, side) if labelled else new_figure(13, 6)
    figure.suptitle(title)
    (draw_labelled if labelled else draw_large)(figure, shares, matrix, class_names)
    return figure


def image_sheet(images, captions, title, columns=8):
    """Small images side by side.

    Args:
        images: uint8 (size, size, 3) each, or None for one that cannot be shown.
        captions: two lines over each.
        title: of the figure.
        columns: at most so many side by side.
    """
    rows, inches = -(-max(len(images), 1) // columns), 1.6
    height = 1.3  # of a cell in widths: image and caption
    figure = new_figure(inches * columns, inches * height * rows + 0.4)
    # One pair of axes in place, because a layout of many takes seconds.
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    figure.suptitle(title, y=1 - 0.08 / figure.get_figheight(), va="top")
    for cell, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = cell % columns, height * (cell // columns)
        axes.text(left + 0.5, top + 0.25, caption, ha="center", va="bottom", fontsize=8)
        if image is not None:
            sides = (left + 0.02, left + 0.98, top + height - 0.04, top + height - 1)
            axes.imshow(image, extent=sides, interpolation="nearest", aspect="auto", clip_on=False)
    axes.set(xlim=(0, columns), ylim=(height * rows, -0.4 / inches))
    return figure
