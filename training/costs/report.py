"""What step_cost.py found: rows with their spread over processes, goals, a table, CSV and a picture."""

import csv
import dataclasses
import statistics

# (measurement, engine, subject): the most that NA may take, as its ratio to SE of a layer, and as the difference of
# the two ratios to the network without attention of a training step; of its memory. Set for 2 CPU cores.
LAYERS = {"8 x 56 x 56 x 256": (1.10, 1.20), "8 x 14 x 14 x 1024": (1.10, 1.15), "8 x 112 x 112 x 16": (1.25, 1.30)}
GOALS = {("forward", "tensorflow", shape): forward for shape, (forward, _) in LAYERS.items()}
GOALS |= {("forward + backward", "tensorflow", shape): both for shape, (_, both) in LAYERS.items()}
STEPS = ("ResNet50, 8 at 160", "MobileNetV2, 16 at 160")
MARGINS = {("step", "tensorflow", subject): 0.03 for subject in STEPS}
MARGINS |= {("step", engine, subject): 0.02 for engine in ("xla", "jax") for subject in STEPS}
MARGINS |= {("memory", "tensorflow", subject): 0.0 for subject in STEPS}


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        measurement: "forward", "forward + backward", "step" or "memory".
        engine, subject: what computed, and which map or network with its batch.
        module: of attention, or "none"; the base's second measurement is that name with " again".
        amount: median over the processes of milliseconds, or of megabytes.
        ratio: to the base: median over the processes of each one's median over its rounds.
        low, high: smallest and largest ratio of a process.
        beside_se: the ratio less SE's, taken in each round; their medians as above. None without SE.
    """

    measurement: str
    engine: str
    subject: str
    module: str
    amount: float
    ratio: float
    low: float
    high: float
    beside_se: float | None = None

    @property
    def group(self):
        """What the lines that were measured in turns share."""
        return self.measurement, self.engine, self.subject


def rows_of(measurement, engine, subject, modules, processes):
    """The rows of one group.

    Args:
        measurement, engine, subject: of the group.
        modules: names; the first is the base.
        processes: for each process, for each module, the seconds of each round; of "memory" one number of megabytes.
    """
    from na_keras import interleaved

    unit, made = 1.0 if measurement == "memory" else 1000.0, []
    se = modules.index("se") if "se" in modules else 0
    for index, module in enumerate(modules):
        amounts = [statistics.median(process[index]) for process in processes]
        ratios = [
            statistics.median(own / base for own, base in zip(process[index], process[0], strict=True))
            for process in processes
        ]
        again = interleaved.AGAIN if module in modules[:index] else ""
        amount, ratio = unit * statistics.median(amounts), statistics.median(ratios)
        differences = [interleaved.difference(process[index], process[se], process[0]) for process in processes if se]
        beside = statistics.median(differences) if differences else None
        made.append(Row(measurement, engine, subject, module + again, amount, ratio, min(ratios), max(ratios), beside))
    return made


def null_spread(rows):
    """The largest that a ratio of the base to itself differs from 1, in any process; None where it ran once."""
    from na_keras import interleaved

    spreads = [interleaved.null_spread(row.low, row.high) for row in rows if row.module.endswith(interleaved.AGAIN)]
    return max(spreads, default=None)


def goal_of(row, rows):
    """(goal, value that is compared with it), of NA; None where there is none. `rows`: of its group."""
    if row.module != "na":
        return None
    if row.group in GOALS and rows[0].module == "se":
        return GOALS[row.group], row.ratio
    if row.group in MARGINS and row.beside_se is not None:
        return MARGINS[row.group], row.beside_se
    return None


def verdict(row, rows):
    """A goal, and whether the row keeps it, as text; "open" where the null test differs by more than it does."""
    from na_keras import interleaved

    found, spread = goal_of(row, rows), null_spread(rows)
    if found is None or spread is None:
        return ""
    goal, value = found
    word = interleaved.verdict(value, goal, spread)
    name = f"{goal:.2f}" if row.group in GOALS else f"SE + {goal:.2f}"
    return f"{name} {word}"


HEADER = ("measurement", "engine", "subject", "module", "ms or MB", "ratio", "processes", "goal")


def table(rows, style="plain"):
    """All rows, for a terminal or, with "markdown", for a page."""
    from na_keras.text_table import text_table

    lines = []
    for row in rows:
        group = [other for other in rows if other.group == row.group]
        spread = f"{row.low:.3f} .. {row.high:.3f}"
        numbers = [f"{row.amount:.1f}", f"{row.ratio:.3f}", spread, verdict(row, group)]
        lines.append([row.measurement, row.engine, row.subject, row.module, *numbers])
    return text_table(HEADER, lines, style)


def write_csv(rows, about, path):
    """A line per row, with the circumstances."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*(field.name for field in dataclasses.fields(Row)), "goal", "circumstances"])
        for row in rows:
            group = [other for other in rows if other.group == row.group]
            writer.writerow([*dataclasses.astuple(row), verdict(row, group), about])


def draw(rows, about, path):
    """A picture of the ratios, with a mark for each goal. PNG."""
    from na_keras import ratio_bars

    base = {row.group: row.module for row in reversed(rows)}
    bars = []
    for row in rows:
        if row.module == base[row.group]:
            continue
        marks, found = {}, goal_of(row, [other for other in rows if other.group == row.group])
        if found is not None:
            goal, value = found
            marks = {"goal": goal} if row.group in GOALS else {"SE and margin": row.ratio - value + goal}
        bars.append(ratio_bars.Bar(", ".join(row.group), row.module, row.ratio, row.low, row.high, marks))
    ratio_bars.draw(bars, "time or memory", about, path)
