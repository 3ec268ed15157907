"""history.csv as a picture: loss on the left, accuracy on the right, training against validation."""


def draw(rows, path, title):
    """Saves a PNG.

    Args:
        rows: dictionaries with the columns of history.csv, one per epoch.
        path: of the PNG.
        title: above the curves.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = [int(row["epoch"]) for row in rows]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = (("loss", "cross-entropy", 1), ("top1", "top-1 accuracy, %", 100))
    for axes, (column, label, factor) in zip(figure.subplots(1, 2), panels, strict=True):
        for prefix, name in (("", "training"), ("validation_", "validation")):
            axes.plot(epochs, [factor * float(row[prefix + column]) for row in rows], marker=".", label=name)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_yscale("log" if column == "loss" else "linear")  # the end is what one looks for
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    temporary = path.with_name(f".tmp.{path.name}")
    figure.savefig(temporary, dpi=120)
    temporary.rename(path)
