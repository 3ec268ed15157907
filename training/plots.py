"""Pictures of histories: the curves of one run, and the losses of several side by side."""

from na_keras.files import replace_file


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


def history_curves(rows, title):
    """Loss on the left, accuracy on the right, training against validation. `rows`: of history.csv, one per epoch."""
    figure = new_figure(9, 3.6)
    figure.suptitle(title)
    loss, accuracy = figure.subplots(1, 2)
    of = lambda column: {"training": (rows, column), "validation": (rows, f"validation_{column}")}  # noqa: E731
    draw_curves(loss, of("loss"), None, "cross-entropy", logarithmic=True)  # the end is what one looks for
    draw_curves(accuracy, of("top1"), None, "top-1 accuracy, %", factor=100)
    return figure


def loss_curves(histories):
    """Training on the left, validation on the right. `histories`: {name: rows of history.csv}."""
    figure = new_figure(9, 3.6)
    panels = (("loss", "training"), ("validation_loss", "validation"))
    for axes, (column, title) in zip(figure.subplots(1, 2), panels, strict=True):
        curves = {name: (rows, column) for name, rows in histories.items()}
        draw_curves(axes, curves, title, "cross-entropy", logarithmic=True)
    return figure
