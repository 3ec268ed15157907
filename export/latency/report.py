"""What benchmark.py found, as text, Markdown, CSV and a picture, beside the ratios that this library sets itself."""

import csv
import dataclasses
import datetime
import importlib.metadata
import itertools
import statistics

PACKAGES = ("tensorflow", "keras", "ai-edge-litert", "numpy")

# (network, kind, batch): largest ratio of the network with NA to the one without, at 224 x 224 on a 2-core CPU.
TARGETS = {("resnet50", "savedmodel", 1): 1.08, ("resnet50", "savedmodel", 8): 1.08}
# (network, kind): how far that ratio may be above the one of the network with SE.
SE_MARGINS = {
    ("resnet50", "savedmodel"): 0.02,
    ("mobilenetv2", "savedmodel"): 0.03,
    ("resnet50", "float32"): 0.01,
    ("mobilenetv2", "float32"): 0.02,
    **{(network, kind): 0.03 for network in ("resnet50", "mobilenetv2") for kind in ("int8_float_gate", "int8")},
}
AGAIN = " again"  # after the name of a group's first network, measured a second time: the null test
TARGET_SIZE = 224
MOST_BARS = 10  # in one part of a picture


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a network, exported in one way, on one batch size.

    Attributes:
        model, kind, batch, attention: which; lines that agree in the first three were measured in turns.
        megabytes: size of the file or folder (Keras: of the weights), in 10^6 bytes.
        milliseconds, ratio, low, high: see interleaved.Timing, and of several processes `combined`; None if it did not
            run.
        failure: why it did not run, or "".
        beside_se: the ratio less the one of "se" in the same round, the median; None without both.
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
    beside_se: float | None = None

    @property
    def group(self):
        """What the lines that were measured in turns share."""
        return self.model, self.kind, self.batch


def combined(processes):
    """The rows of several processes that measured the same, each a list, as one: medians, and the ratios' range."""
    rows = []
    for same in zip(*processes, strict=True):
        ran = [row for row in same if row.ratio is not None]
        ratios = [row.ratio for row in ran]
        if len(ran) < len(same):
            rows.append(next(row for row in same if row.ratio is None))
            continue
        milliseconds, ratio = statistics.median(row.milliseconds for row in ran), statistics.median(ratios)
        beside = [row.beside_se for row in ran if row.beside_se is not None]
        combined = {"milliseconds": milliseconds, "ratio": ratio, "low": min(ratios), "high": max(ratios)}
        combined["beside_se"] = statistics.median(beside) if beside else None
        rows.append(dataclasses.replace(ran[0], **combined))
    return rows


def limits(row, size):
    """(target of a row, the most that it may be above SE); each None where there is none."""
    if row.attention != "na" or size != TARGET_SIZE:
        return None, None
    network = row.model.lower()
    margin = None if row.beside_se is None else SE_MARGINS.get((network, row.kind))
    return TARGETS.get((network, row.kind, row.batch)), margin


def verdict(row, rows, value, limit):
    """A limit and whether the value keeps it, as text; "open" where the null test of its group differs by more."""
    from na_keras import interleaved

    again = [other for other in rows if other.group == row.group and other.attention.endswith(AGAIN)]
    spreads = [interleaved.null_spread(other.low, other.high) for other in again if other.ratio is not None]
    if None in (limit, value) or not spreads:
        return ""
    return f"{limit:.2f} {interleaved.verdict(value, limit, max(spreads))}"


HEADER = ("network", "type", "batch", "attention", "MB", "ms", "ratio", "spread", "target", "above SE")


def cells(row, rows, size):
    """A line of the table, under HEADER."""
    first = [row.model, row.kind, row.batch, row.attention, f"{row.megabytes:.2f}"]
    if row.failure:
        return [*first, "", "", "did not run", "", ""]
    target, margin = limits(row, size)
    numbers = [f"{row.milliseconds:.2f}", f"{row.ratio:.3f}", f"{row.low:.3f} .. {row.high:.3f}"]
    above = verdict(row, rows, row.beside_se, margin)
    if row.beside_se is not None and row.attention not in ("se", rows[0].attention):
        above = f"{row.beside_se:+.3f} {above}".rstrip()
    return [*first, *numbers, verdict(row, rows, row.ratio, target), above]


def table(rows, size, style="plain"):
    """All rows, for a terminal or, with "markdown", for a page; below it why some did not run."""
    from na_keras.text_table import text_table

    failures = [f"{' '.join(map(str, row.group))}, {row.attention}: {row.failure}" for row in rows if row.failure]
    return "\n".join([text_table(HEADER, [cells(row, rows, size) for row in rows], style), *failures])


def image_sizes(rows, size):
    """Pixels of the sides of the images that were measured, in order; `size` where nothing ran."""
    found = {row.side for row in rows if row.side is not None}
    return sorted(found, key=lambda side: (isinstance(side, str), side)) or [size]


def circumstances(threads, rounds, sizes, processes=1):
    """Machine, settings, versions and date, as one line; `sizes` as of `image_sizes`."""
    from na_keras import interleaved

    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    images = ", ".join(size.replace("x", " x ") if isinstance(size, str) else f"{size} x {size}" for size in sizes)
    repeats = f"{rounds} rounds" + (f" in each of {processes} processes" if processes > 1 else "")
    return (
        f"{interleaved.machine()}; TensorFlow on all of them, LiteRT on {threads}; "
        f"{repeats}; images {images}; {versions}; {datetime.date.today()}"
    )


def write_csv(rows, size, about, path):
    """A line per row with everything that was measured, its limits and the circumstances."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        fields = [field.name for field in dataclasses.fields(Row)]
        writer.writerow([*fields, "target", "se_margin", "circumstances"])
        for row in rows:
            writer.writerow([*dataclasses.astuple(row), *limits(row, size), about])


def read_csv(path):
    """The rows of a file that `write_csv` wrote."""
    kinds = {"model": str, "kind": str, "attention": str, "failure": str, "batch": int}
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    rows = []
    for line in lines:
        fields = {field.name: line.get(field.name, "") for field in dataclasses.fields(Row)}
        side = fields.pop("side")
        values = {
            name: kinds.get(name, float)(text) if text or name == "failure" else None for name, text in fields.items()
        }
        rows.append(Row(**values, side=int(side) if side.isdecimal() else side or None))
    return rows


def parts_of(rows):
    """Rows of a picture's parts: each of whole groups with at most MOST_BARS rows in all, or of one larger group."""
    parts = [[]]
    for _, group in itertools.groupby(rows, key=lambda row: row.group):
        group = list(group)
        if parts[-1] and len(parts[-1]) + len(group) > MOST_BARS:
            parts.append([])
        parts[-1] += group
    return parts


def draw_part(axes, rows, names, size):
    """A bar for each row, the row's group beside the first of it. Returns {text of the legend: what was drawn}."""
    legend = {}
    for place, row in enumerate(rows):
        spread = [[row.ratio - row.low], [row.high - row.ratio]]
        color = f"C{names.index(row.attention)}"
        legend[row.attention] = axes.barh(place, row.ratio - 1, 0.8, 1, xerr=spread, color=color, ecolor="0.3")
        target, margin = limits(row, size)
        places = target, None if margin is None else row.ratio - row.beside_se + margin
        for limit, style, name in zip(places, ("D", "|"), ("target", "SE and margin"), strict=True):
            if limit is not None:
                (legend[name],) = axes.plot(limit, place, style, color="black", markersize=6 if style == "D" else 12)
    groups = [row.group for row in rows]
    labels = [
        f"{model} {kind}, batch {batch}" if groups.index((model, kind, batch)) == place else ""
        for place, (model, kind, batch) in enumerate(groups)
    ]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    return legend


def draw(rows, size, about, path):
    """Bars from 1, the network without attention, to each ratio, with its spread and a mark for each target; ten at
    most in each part. PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    base = {row.group: row.attention for row in reversed(rows)}
    drawn = [row for row in rows if row.ratio is not None and row.attention != base[row.group]]
    names, parts = list(dict.fromkeys(row.attention for row in drawn)), parts_of(drawn)
    figure = Figure(figsize=(8, 1 + sum(0.7 + 0.26 * len(part) for part in parts)), layout="constrained")
    FigureCanvasAgg(figure)
    heights = [max(len(part), 1) + 2 for part in parts]
    all_axes = figure.subplots(len(parts), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights})[:, 0]
    legend = {}
    for axes, part in zip(all_axes, parts, strict=True):
        legend |= draw_part(axes, part, names, size)
    if legend:
        all_axes[0].legend(legend.values(), legend.keys(), loc="best", fontsize=8)
    all_axes[-1].set_xlabel("time / time of the first network of the group (median, and its spread)")
    figure.suptitle(about.replace("; ", "\n", 2), fontsize=7)
    figure.savefig(path, dpi=120, format="png")
