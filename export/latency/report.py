"""What benchmark.py found, as text, Markdown, CSV and a picture, beside the ratios that this library sets itself."""

import csv
import dataclasses
import datetime
import importlib.metadata

PACKAGES = ("tensorflow", "keras", "ai-edge-litert", "numpy")

# (network, kind, batch): largest ratio of the network with NA to the one without, at 224 x 224 on a 2-core CPU.
TARGETS = {
    ("resnet50", "savedmodel", 8): 1.08,
    ("resnet50", "savedmodel", 1): 1.12,
    ("resnet50", "float32", 1): 1.05,
    ("mobilenetv2", "float32", 1): 1.08,
    ("resnet50", "int8", 1): 1.12,
    ("mobilenetv2", "int8", 1): 1.20,
    ("resnet50", "int8_float_gate", 1): 1.12,
    ("mobilenetv2", "int8_float_gate", 1): 1.20,
}
SE_MARGIN = 0.03  # how far above the network with SE, in every float row
FLOAT_KINDS = ("keras", "savedmodel", "float32", "float16")
TARGET_SIZE = 224


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a network, exported in one way, on one batch size.

    Attributes:
        model, kind, batch, attention: which; lines that agree in the first three were measured in turns.
        megabytes: size of the file or folder (Keras: of the weights), in 10^6 bytes.
        milliseconds, ratio, low, high: see interleaved.Timing; None if it did not run.
        failure: why it did not run, or "".
        side: pixels of its images' sides, "HEIGHTxWIDTH" where they are not square; None where it did not run.
    """

    model: str
    kind: str
    batch: int
    attention: str
    megabytes: float
    milliseconds: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    failure: str = ""
    side: int | str | None = None

    @property
    def group(self):
        """What the lines that were measured in turns share."""
        return self.model, self.kind, self.batch


def limits(row, rows, size):
    """(target of a row, SE's ratio + .03); each None where there is none."""
    if row.attention != "na" or size != TARGET_SIZE:
        return None, None
    beside = [other.ratio for other in rows if other.group == row.group and other.attention == "se"]
    limit = beside[0] + SE_MARGIN if beside and beside[0] is not None and row.kind in FLOAT_KINDS else None
    return TARGETS.get((row.model.lower(), row.kind, row.batch)), limit


def verdict(row, limit):
    """A limit and whether the row keeps it, as text."""
    if limit is None or row.ratio is None:
        return ""
    return f"{limit:.3f} {'met' if row.ratio <= limit else 'missed'}"


HEADER = ("network", "type", "batch", "attention", "MB", "ms", "ratio", "quartiles", "target", f"SE + {SE_MARGIN}")


def cells(row, rows, size):
    """A line of the table, under HEADER."""
    first = [row.model, row.kind, row.batch, row.attention, f"{row.megabytes:.2f}"]
    if row.failure:
        return [*first, "", "", "did not run", "", ""]
    target, limit = limits(row, rows, size)
    quartiles = f"{row.low:.3f} .. {row.high:.3f}"
    numbers = [f"{row.milliseconds:.2f}", f"{row.ratio:.3f}", quartiles]
    return [*first, *numbers, verdict(row, target), verdict(row, limit)]


def table(rows, size, style="plain"):
    """All rows, for a terminal or, with "markdown", for a page; below it why some did not run."""
    from na_keras.text_table import text_table

    failures = [f"{' '.join(map(str, row.group))}, {row.attention}: {row.failure}" for row in rows if row.failure]
    return "\n".join([text_table(HEADER, [cells(row, rows, size) for row in rows], style), *failures])


def image_sizes(rows, size):
    """Pixels of the sides of the images that were measured, in order; `size` where nothing ran."""
    found = {row.side for row in rows if row.side is not None}
    return sorted(found, key=lambda side: (isinstance(side, str), side)) or [size]


def circumstances(threads, rounds, sizes):
    """Machine, settings, versions and date, as one line; `sizes` as of `image_sizes`."""
    from na_keras.interleaved import machine

    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    images = ", ".join(size.replace("x", " x ") if isinstance(size, str) else f"{size} x {size}" for size in sizes)
    return (
        f"{machine()}; TensorFlow on all of them, LiteRT on {threads}; "
        f"{rounds} rounds; images {images}; {versions}; {datetime.date.today()}"
    )


def write_csv(rows, size, about, path):
    """A line per row with everything that was measured, its limits and the circumstances."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        fields = [field.name for field in dataclasses.fields(Row)]
        writer.writerow([*fields, "target", "se_limit", "circumstances"])
        for row in rows:
            writer.writerow([*dataclasses.astuple(row), *limits(row, rows, size), about])


def draw(rows, size, about, path):
    """Bars from 1, the network without attention, to each ratio, with quartiles; a mark for each target. PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [row for row in rows if row.ratio is not None]
    base = {group: next(row.attention for row in rows if row.group == group) for group in {row.group for row in rows}}
    drawn = [row for row in drawn if row.attention != base[row.group]]
    names = list(dict.fromkeys(row.attention for row in drawn))
    groups = list(dict.fromkeys(row.group for row in drawn))
    figure = Figure(figsize=(8, 1.5 + 0.3 * len(drawn)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    height = 0.8 / max(len(names), 1)
    marked = set()
    for row in drawn:
        number = names.index(row.attention)
        place = groups.index(row.group) + height * (number - (len(names) - 1) / 2)
        label = row.attention if row.attention not in marked else None
        marked.add(row.attention)
        spread = [[row.ratio - row.low], [row.high - row.ratio]]
        axes.barh(place, row.ratio - 1, height, 1, xerr=spread, color=f"C{number}", ecolor="0.3", label=label)
        for limit, style, name in zip(limits(row, rows, size), ("D", "|"), ("target", "SE + 0.03"), strict=True):
            if limit is not None:
                label = name if name not in marked else None
                marked.add(name)
                axes.plot(limit, place, style, color="black", markersize=6 if style == "D" else 12, label=label)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(groups)), [f"{model} {kind}, batch {batch}" for model, kind, batch in groups])
    axes.invert_yaxis()
    axes.set_xlabel("time / time of the first network of the row (median, quartiles)")
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    if drawn:
        axes.legend(loc="best")
    figure.suptitle(about.replace("; ", "\n", 2), fontsize=7)
    figure.savefig(path, dpi=120, format="png")
