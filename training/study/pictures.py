"""The pictures of a study: each seed's number with the intervals, and the losses over the epochs with bands."""

import numpy as np

import plots
from study import report, statistics

COMPARISON, CURVES = "comparison.png", "curves.png"
LOSSES = {"loss": "training", "validation_loss": "validation"}


def draw_points(axes, values, factor=100.0):
    """Points of {name: numbers}, a row each, beside them mean and interval."""
    for place, numbers in enumerate(values.values()):
        color, numbers = f"C{place % 10}", factor * np.asarray(numbers)
        axes.plot(numbers, np.full(len(numbers), place + 0.15), "o", color=color, alpha=0.5, markersize=4)
        found = statistics.summarise(numbers)
        if found.count > 1:
            axes.plot([found.low, found.high], [place - 0.15] * 2, color=color, linewidth=2.5)
        axes.plot([found.mean], [place - 0.15], "|", color="black", markersize=11, markeredgewidth=2)
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.grid(alpha=0.3, axis="x")


def comparison(study, base):
    """Results on the left, paired differences to the base on the right."""
    values = report.results(study, study.metric, base)
    pairs = {
        name: [value - values[base][seed] for seed, value in found.items() if seed in values[base]]
        for name, found in values.items()
        if base in values and name != base
    }
    pairs = {name: found for name, found in pairs.items() if found}
    figure = plots.new_figure(10, 1.4 + 0.45 * len(values))
    left, right = figure.subplots(1, 2)
    draw_points(left, {name: list(found.values()) for name, found in values.items()})
    left.set_xlabel(f"{report.NAMES[study.metric]} of each seed, %;\nmean, 95 % interval")
    # In the rows and colours that the modules have on the left.
    draw_points(right, {name: pairs.get(name, []) for name in values})
    right.axvline(0, color="black", linewidth=1)
    right.set_xlabel(f"points more than {base} with the same seed;\nmean, 95 % interval")
    right.set_yticklabels([])
    return figure


def curves(study, base):
    """Losses of training and validation over the epochs: the mean over the seeds, and from the smallest to the largest
    of them.
    """
    modules, recipe = report.finished_modules(study, base), study.content["recipe"]
    task = "binary_cross_entropy" if study.content["data"].get("multi_label") else plots.CROSS_ENTROPY
    labels = {"loss": plots.training_loss(recipe), "validation_loss": task}
    figure = plots.new_figure(11, 4.2)
    for axes, (column, title) in zip(figure.subplots(1, 2), LOSSES.items(), strict=True):
        for place, name in enumerate(modules):
            of_seeds = [rows for cell, rows in study.histories.items() if cell.attention == name]
            epochs = min(map(len, of_seeds))  # with --patience they have different numbers
            numbers = np.array([[float(row[column]) for row in rows[:epochs]] for rows in of_seeds])
            x = range(1, epochs + 1)
            axes.plot(x, numbers.mean(0), color=f"C{place % 10}", linestyle="-" if place < 10 else "--", label=name)
            if len(numbers) > 1:
                options = {"color": f"C{place % 10}", "alpha": 0.15, "linewidth": 0}
                axes.fill_between(x, numbers.min(0), numbers.max(0), **options)
        axes.set(title=title, xlabel="epoch", ylabel=plots.axis_name(labels[column]), yscale="log")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    return figure


def draw(study, base):
    """Writes the pictures; returns their names."""
    plots.save(comparison(study, base), study.directory / COMPARISON)
    plots.save(curves(study, base), study.directory / CURVES)
    return [COMPARISON, CURVES]
