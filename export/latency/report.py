"""What benchmark.py found, as text, Markdown, CSV and a picture, beside the ratios that this library sets itself."""

import csv
import dataclasses
import datetime
import importlib.metadata
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
TARGET_SIZE = 224


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

    again = [other for other in rows if other.group == row.group and other.attention.endswith(interleaved.AGAIN)]
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


def draw(rows, size, about, path):
    """A picture of the ratios, with a mark for each target. PNG."""
    from na_keras import ratio_bars

    base = {row.group: row.attention for row in reversed(rows)}
    bars = []
    for row in rows:
        if row.ratio is None or row.attention == base[row.group]:
            continue
        target, margin = limits(row, size)
        marks = {} if target is None else {"goal": target}
        if margin is not None:
            marks["SE and margin"] = row.ratio - row.beside_se + margin
        model, kind, batch = row.group
        bars.append(
            ratio_bars.Bar(f"{model} {kind}, batch {batch}", row.attention, row.ratio, row.low, row.high, marks)
        )
    ratio_bars.draw(bars, "time", about, path)
