"""The picture of ratios that were measured in turns (interleaved.py): bars from 1, the first program of each group.

Only a drawing needs matplotlib, and imports it.
"""

import dataclasses
import itertools
import textwrap

from na_keras.interleaved import AGAIN

MOST = 10  # bars in one part of a picture
MARKERS = {"goal": ("D", 6), "SE and margin": ("|", 12)}  # what a bar is compared with: marker and its size


@dataclasses.dataclass(frozen=True)
class Bar:
    """One program.

    Attributes:
        group: what was measured in turns, as text; it stands beside the group's first bar.
        name: of the program.
        ratio: to the first program of the group, which itself has no bar.
        low, high: its spread.
        marks: {a key of MARKERS: the ratio that it stands at}.
    """

    group: str
    name: str
    ratio: float
    low: float
    high: float
    marks: dict = dataclasses.field(default_factory=dict)


def parts_of(bars):
    """Bars of a picture's parts: each of whole groups with at most MOST bars in all, or of one larger group."""
    parts = [[]]
    for _, group in itertools.groupby(bars, key=lambda bar: bar.group):
        group = list(group)
        if parts[-1] and len(parts[-1]) + len(group) > MOST:
            parts.append([])
        parts[-1] += group
    return parts


def draw_part(axes, bars, colors):
    """A bar for each, with its spread and marks. Returns {text of the legend: what was drawn}."""
    legend = {}
    for place, bar in enumerate(bars):
        spread = [[bar.ratio - bar.low], [bar.high - bar.ratio]]
        options = {"color": colors[bar.name], "ecolor": "0.3"}
        legend[bar.name] = axes.barh(place, bar.ratio - 1, 0.8, 1, xerr=spread, **options)
        for name, value in bar.marks.items():
            marker, size = MARKERS[name]
            (legend[name],) = axes.plot(value, place, marker, color="black", markersize=size)
    before = [None, *(bar.group for bar in bars)]
    labels = [bar.group if bar.group != last else "" for bar, last in zip(bars, before, strict=False)]
    axes.set_yticks(range(len(bars)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    return legend


def draw(bars, measured, about, path):
    """Writes the picture, PNG.

    Args:
        bars: list of Bar; those of a group follow each other.
        measured: what the ratios are of, as the label of the axis.
        about: the circumstances, in one line.
        path: of the file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, parts = list(dict.fromkeys(bar.name for bar in bars)), parts_of(bars)
    colors = {name: "0.75" if name.endswith(AGAIN) else f"C{place % 10}" for place, name in enumerate(names)}
    figure = Figure(figsize=(8, 1 + sum(0.7 + 0.26 * len(part) for part in parts)), layout="constrained")
    FigureCanvasAgg(figure)
    heights = [max(len(part), 1) + 2 for part in parts]
    all_axes = figure.subplots(len(parts), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights})[:, 0]
    legend = {}
    for axes, part in zip(all_axes, parts, strict=True):
        legend |= draw_part(axes, part, colors)
    if legend:
        all_axes[0].legend(legend.values(), legend.keys(), loc="best", fontsize=8)
    all_axes[-1].set_xlabel(f"{measured}, ratio to the first of the group (median, and its spread)")
    figure.suptitle(textwrap.fill(about, 120), fontsize=7)
    figure.savefig(path, dpi=120, format="png")
