"""Pictures of histories: the curves of one run, and the losses of several side by side."""

from na_keras.files import replace_file

CROSS_ENTROPY = "cross_entropy"  # as recipes call it; what evaluation computes, whatever a network was trained with


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


def draw_curves(axes, curves, title, label, factor=1, logarithmic=False):
    """Draws {name: (rows of history.csv, column)} over the epochs, each value times `factor`."""
    for name, (rows, column) in curves.items():
        epochs, values = [int(row["epoch"]) for row in rows], [factor * float(row[column]) for row in rows]
        axes.plot(epochs, values, marker="." if len(rows) < 40 else None, label=name)
    axes.set(title=title, xlabel="epoch", ylabel=label, yscale="log" if logarithmic else "linear")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3, which="both")
    axes.legend()


def axis_name(loss):
    """A recipe's loss as it is written in a text."""
    return {CROSS_ENTROPY: "cross-entropy", "binary_cross_entropy": "binary cross-entropy"}.get(loss, loss)


def history_curves(rows, title, loss=CROSS_ENTROPY):
    """Losses on the left, accuracy on the right, training against validation.

    Args:
        rows: of history.csv, one per epoch.
        title: of the figure.
        loss: name of the training loss. What is no cross-entropy gets axes of its own, since the validation's loss is.
    """
    training, validation = {"training": (rows, "loss")}, {"validation": (rows, "validation_loss")}
    losses = (
        [(loss, training | validation)] if loss == CROSS_ENTROPY else [(loss, training), (CROSS_ENTROPY, validation)]
    )
    figure = new_figure(4.5 * (1 + len(losses)), 3.6)
    figure.suptitle(title)
    *panels, accuracy = figure.subplots(1, 1 + len(losses))
    for axes, (name, curves) in zip(panels, losses, strict=True):
        # Logarithmic: the end is what one looks for.
        draw_curves(axes, curves, None, axis_name(name), logarithmic=True)
    curves = {"training": (rows, "top1"), "validation": (rows, "validation_top1")}
    draw_curves(accuracy, curves, None, "top-1 accuracy, %", factor=100)
    return figure


def loss_curves(histories, losses=None):
    """Training on the left, for each kind of loss in axes of its own, validation on the right.

    Args:
        histories: {name: rows of history.csv}.
        losses: {name: name of its training loss}; cross-entropy where it is not there.
    """
    losses = {name: (losses or {}).get(name, CROSS_ENTROPY) for name in histories}
    panels = [("loss", "training", kind) for kind in dict.fromkeys(losses.values())]
    panels.append(("validation_loss", "validation", CROSS_ENTROPY))
    figure = new_figure(4.5 * len(panels), 3.6)
    for axes, (column, title, kind) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        shown = [name for name in histories if column == "validation_loss" or losses[name] == kind]
        draw_curves(axes, {name: (histories[name], column) for name in shown}, title, axis_name(kind), logarithmic=True)
    return figure
