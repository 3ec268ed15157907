"""What a study found, as a page: report.md, and the same numbers in summary.csv."""

import csv
import io

from na_keras.text_table import text_table
from run_files import run_directory
from study import costs, statistics
from study.record import HISTORY

REPORT, SUMMARY = "report.md", "summary.csv"
LOSS = "loss"
NAMES = {"top1": "top-1", "mean_average_precision": "mean average precision"}
FIRST_FIELDS = ("recipe", "model", "dataset", "size", "epochs", "batch_size")  # of the recipe, those named first


def finished_modules(study, base):
    """The modules with a finished cell, the base first, the others as they were asked for."""
    finished = {cell.attention for cell in study.histories}
    names = [name for name in study.content["attention"] if name in finished]
    return [name for name in names if name == base] + [name for name in names if name != base]


def results(study, metric, base):
    """{module: {seed: number}} of the finished cells."""
    found = {name: {} for name in finished_modules(study, base)}
    for cell in study.histories:
        found[cell.attention][cell.seed] = study.result(cell, metric)
    return found


def number(value, factor=1.0, digits=2, sign=False):
    """A number for a table; "-" for NaN."""
    return "-" if value != value else f"{factor * value:{'+' if sign else ''}.{digits}f}"


def interval(summary, factor=1.0, digits=2, sign=False):
    """The interval of a mean for a table; "-" of a single seed."""
    if summary.low != summary.low:
        return "-"
    return " .. ".join(number(value, factor, digits, sign) for value in (summary.low, summary.high))


def result_table(study, base, style):
    """Mean, deviation and interval of metric and loss, and the paired differences of the metric."""
    metric = study.metric
    of_metric, of_loss = results(study, metric, base), results(study, LOSS, base)
    different = statistics.compare(of_metric, base) if base in of_metric else {}
    header = ["module", "seeds", f"{NAMES[metric]}, %", "deviation", "95 %", "loss", "deviation"]
    header += [f"to {base}, points", "95 %", "p", "p corrected"]
    rows = []
    for name, values in of_metric.items():
        summary, loss = statistics.summarise(list(values.values())), statistics.summarise(list(of_loss[name].values()))
        row = [name, summary.count, number(summary.mean, 100), number(summary.deviation, 100), interval(summary, 100)]
        row += [number(loss.mean, digits=4), number(loss.deviation, digits=4)]
        if name in different:
            found = different[name]
            row += [number(found.summary.mean, 100, sign=True), interval(found.summary, 100, sign=True)]
            row += [f"{found.p:.4f}", f"{found.adjusted:.4f}"]
        else:
            row += [""] * 4
        rows.append(row)
    return text_table(header, rows, style)


def cost_table(study, style):
    """Parameters, MACs, times; None where nothing was measured."""
    rows = costs.read(study)
    if not rows:
        return None
    lines = []
    for name, row in rows.items():
        macs = f"{int(row['macs']) / 1e6:.1f}" if row["macs"] else "-"
        line = [name, row["parameters"] or "-", macs]
        for what in costs.MEASURED:
            spread = f"{float(row[f'{what}_low']):.2f} .. {float(row[f'{what}_high']):.2f}"
            line += [f"{float(row[f'{what}_milliseconds']):.2f}", f"{float(row[f'{what}_ratio']):.2f}", spread]
        lines.append(line)
    header = ["module", "parameters", "million MACs"]
    header += [text for what in ("training step", "answer") for text in (f"{what}, ms", "ratio", "quartiles")]
    return text_table(header, lines, style)


def what_it_says(study, base):
    """Sentences: which modules differ, and what so many seeds could have shown at all."""
    values = results(study, study.metric, base)
    if base not in values:
        return [f"{base} is not among the modules that are finished: there is nothing to compare with."]
    different = statistics.compare(values, base)
    if not different:
        return ["There is nothing to compare yet."]
    pairs = min(found.summary.count for found in different.values())
    lines = []
    for word, sign in (("better", 1), ("worse", -1)):
        names = [name for name, found in different.items() if found.significant and sign * found.summary.mean > 0]
        if names:
            limit = f"corrected p at most {statistics.LEVEL}"
            lines.append(f"Significantly {word} than {base} ({limit}): {', '.join(names)}.")
    unclear = [name for name, found in different.items() if not found.significant]
    if unclear:
        lines.append(f"No difference to {base} is shown for: {', '.join(unclear)}.")
    smallest = len(different) * statistics.smallest_p(pairs)
    lines.append(
        f"The smallest corrected p that {pairs} seeds and {len(different)} comparisons can have is "
        f"{min(1.0, smallest):.4f}"
        + (
            f": nothing can be significant with fewer than {statistics.seeds_needed(len(different))} seeds."
            if smallest > statistics.LEVEL
            else "."
        )
    )
    return lines


def missing_cells(study):
    """Names of the cells that are not finished."""
    return [cell.name for cell in study.cells if cell not in study.histories]


def circumstances(study):
    """Lines: recipe, which epoch counts, data, where it ran."""
    recipe = study.content["recipe"]
    first = [f"{name} {recipe[name]}" for name in FIRST_FIELDS]
    options = [f"{name} {value}" for name, value in recipe.items() if name == "model_options" and value]
    splits = study.content["data"]["splits"]
    kept = f"the epoch that is best by {study.keep_best}" if study.keep_best else "the last epoch"
    images = " and ".join(f"{split['images']} {name}" for name, split in splits.items())
    classes = len(study.content["data"]["class_names"])
    lines = [
        f"Recipe: {', '.join([*first, *options])}; {images} images, {classes} classes.",
        f"Numbers are of {kept}, on the validation images, in per cent; mean and deviation over seeds, intervals of "
        "the mean by Student's t.",
        "Differences are between runs of one seed, which begin with the same convolutions and classifier; p is of "
        "the two-sided sign-flip test, corrected by Holm for all modules of the table.",
        *(f"Ran on {place}." for place in study.content["where"]),
    ]
    if missing := missing_cells(study):
        lines.append(f"Not finished: {', '.join(missing)}.")
    return lines


def markdown(study, base):
    """The page."""
    parts = ["\n".join(f"- {line}" for line in circumstances(study)), result_table(study, base, "markdown")]
    parts.append("\n".join(what_it_says(study, base)))
    if table := cost_table(study, "markdown"):
        rows, batch = costs.read(study), study.content["recipe"]["batch_size"]
        about = "; ".join(dict.fromkeys(row["about"] for row in rows.values()))
        parts += [
            table,
            f"Times beside each other in one process, medians of {costs.ROUNDS} rounds, ratios to {next(iter(rows))} "
            f"in the same round; a step of {batch} images, an answer to one image in deploy form. {about}.",
        ]
    return "\n\n".join(parts) + "\n"


def summary_csv(study, base):
    """A line for each module, numbers as they are."""
    text = io.StringIO()
    fields = ("count", "mean", "deviation", "low", "high")
    columns = [f"{kind}_{field}" for kind in (study.metric, LOSS, "difference") for field in fields]
    writer = csv.DictWriter(text, ["attention", *columns, "p", "p_corrected"], restval="", lineterminator="\n")
    writer.writeheader()
    values = {metric: results(study, metric, base) for metric in (study.metric, LOSS)}
    different = statistics.compare(values[study.metric], base) if base in values[study.metric] else {}
    for name in values[study.metric]:
        row = {"attention": name}
        summaries = {metric: statistics.summarise(list(found[name].values())) for metric, found in values.items()}
        if name in different:
            summaries["difference"] = different[name].summary
            row |= {"p": different[name].p, "p_corrected": different[name].adjusted}
        for kind, summary in summaries.items():
            row |= {f"{kind}_{field}": getattr(summary, field) for field in fields}
        writer.writerow(row)
    return text.getvalue()


def write(study, base):
    """Writes report.md, summary.csv and the pictures of a study with a finished cell. Returns the files' paths."""
    from study import pictures

    run_directory.write_text(study.directory / REPORT, markdown(study, base))
    run_directory.write_text(study.directory / SUMMARY, summary_csv(study, base))
    names = [HISTORY, REPORT, SUMMARY, *pictures.draw(study, base)]
    return [study.directory / name for name in names]
