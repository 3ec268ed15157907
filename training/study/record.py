"""The folder of a study. study.json and history.csv are the study: with these two it goes on anywhere, and the report
is made of them; the runs themselves can be deleted once they are finished.

study.json     what all cells share: recipe, execution, data; which modules and seeds were asked for; where it ran
history.csv    every epoch of every finished cell: module, seed, and the columns of a run's history.csv
costs.csv      what each module costs (costs.py)
cells/         the run directory of each cell, MODULE-SEED
logs/          what the cell's train.py printed
report.md      and summary.csv, comparison.png, curves.png: what report.py makes
lock           one process at a time works on a study
"""

import csv
import dataclasses
import io
import json
import math
import re

import recipes
from na_keras import interleaved
from run_files import best_epoch, data_record, run_directory

STUDY, HISTORY, COSTS, CELLS, LOGS = "study.json", "history.csv", "costs.csv", "cells", "logs"
OWN = ("attention", "seed")  # of a recipe: what differs between cells
METRICS = ("top1", "mean_average_precision")  # of the validation; a run's history has one of them


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        attention: as --attention names it; "none" for no module.
        seed: of the run.
    """

    attention: str
    seed: int

    @property
    def name(self):
        """Of its folder."""
        return f"{re.sub('[^A-Za-z0-9_.]', '-', self.attention)}-{self.seed}"


def shared(recipe):
    """What all cells have in common of what decides a run (run_directory.as_json)."""
    return {key: value for key, value in recipe.items() if key not in {*OWN, *recipes.MAY_CHANGE}}


def differences(there, now):
    """Lines: what two dictionaries have otherwise, of what both know."""
    keys = sorted(set(there) & set(now))
    return [f"  {key}: {there[key]!r} there, {now[key]!r} here" for key in keys if there[key] != now[key]]


class Study:
    """A study's folder, and what it holds.

    Attributes:
        directory: pathlib.Path.
        content: of study.json.
        histories: {Cell: rows of its history.csv, dictionaries of text}, of finished cells.
    """

    def __init__(self, directory):
        """Opens what is there. Raises ValueError: no study, or a damaged one; FileNotFoundError: no such folder."""
        self.directory, self.content, self.histories = directory, {}, {}
        path = directory / STUDY
        if not path.exists():
            return
        try:
            self.content = json.loads(path.read_text("utf-8"))
            missing = {"recipe", "attention", "seeds"} - set(self.content)
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error}. Bring it back, or take another --study-dir.") from error
        if missing:
            raise ValueError(f"{path} lacks {', '.join(sorted(missing))}: it is no study's.")
        self.content["recipe"] = {**shared(run_directory.BEFORE), **self.content["recipe"]}
        self.read_histories()

    def read_histories(self):
        """Reads history.csv. Raises ValueError on cells that the study does not have."""
        path = self.directory / HISTORY
        if not path.exists():
            return
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                try:
                    cell = Cell(row.pop("attention"), int(row.pop("seed")))
                    epoch = int(row["epoch"])
                except (KeyError, ValueError) as error:
                    raise ValueError(f"{path}: a line without attention, seed and epoch: {error}") from error
                self.histories.setdefault(cell, []).append(row)
                if epoch != len(self.histories[cell]):
                    raise ValueError(f"{path}: epoch {epoch} of {cell.name} is not where it belongs.")
        if strangers := [cell.name for cell in self.histories if cell not in self.cells]:
            raise ValueError(f"{path} holds {', '.join(strangers)}, of which {STUDY} knows nothing.")

    @property
    def cells(self):
        """All cells that were ever asked for: a seed's together, so that pairs are complete early."""
        return [Cell(name, seed) for seed in self.content["seeds"] for name in self.content["attention"]]

    @property
    def metric(self):
        """The name in METRICS that the histories have."""
        row = next(iter(self.histories.values()))[-1]
        return next(name for name in METRICS if f"validation_{name}" in row)

    @property
    def keep_best(self):
        """The metric by which a cell's epoch is chosen; None: the last epoch counts."""
        return self.content["recipe"].get("keep_best")

    def result(self, cell, metric):
        """A finished cell's metric of the validation: of its last epoch, with --keep-best of its best one."""
        rows = self.histories[cell]
        row = best_epoch.best_epoch(rows, self.keep_best) if self.keep_best else rows[-1]
        return best_epoch.validated(row, metric) if row else math.nan

    def directory_of(self, cell):
        """The cell's run directory."""
        return self.directory / CELLS / cell.name

    def begin(self, decided, attention, seeds):
        """Begins the study, or adds modules and seeds to it.

        Args:
            decided: what decides its runs, as run_directory.as_json makes it; what differs between cells is left out.
            attention, seeds: asked for now.

        Raises:
            ValueError: it is a study of another recipe, or modules whose folders would have one name; the message says
                so and nothing was written.
            FileExistsError: the folder holds something else.
        """
        decided = shared(decided)
        if not self.content:
            if self.directory.exists() and any(path.name != run_directory.LOCK for path in self.directory.iterdir()):
                raise FileExistsError(
                    f"{self.directory} is not empty and holds no study ({STUDY} is missing). Choose another "
                    "--study-dir."
                )
            self.content = {"recipe": decided, "attention": [], "seeds": [], "runs": {}, "data": None, "where": []}
        elif different := differences(self.content["recipe"], decided):
            raise ValueError(
                f"{self.directory} is a study of another recipe; numbers of different recipes are never mixed. Give "
                "the flags that it has, or another --study-dir. Differences:\n" + "\n".join(different)
            )
        names = {}
        for name in [*self.content["attention"], *attention]:
            if names.setdefault(Cell(name, 0).name, name) != name:
                raise ValueError(f"--attention: {name} and {names[Cell(name, 0).name]} would share a folder.")
        for known, asked in ((self.content["attention"], attention), (self.content["seeds"], seeds)):
            known += [value for value in asked if value not in known]
        self.content["seeds"].sort()
        for cell in self.cells:
            self.check(cell)

    def check(self, cell):
        """Compares a cell's run directory, if it is there, with the study.

        Raises:
            ValueError: its recipe or data are not the study's, or its numbers are not those that the study has of it.
        """
        directory = self.directory_of(cell)
        if not (directory / run_directory.RECIPE).exists():
            return
        recipe = run_directory.read_recipe(directory)
        own = {"attention": cell.attention, "seed": cell.seed}
        if cell.attention == "none":
            own |= {"attention": None, "where": None, "preserve": None}
        different = differences(self.content["recipe"] | self.content["runs"] | own, recipe)
        data = data_record.read(directory)
        if data and self.content["data"]:
            different += [f"  {line}" for line in data_record.differences(self.content["data"], data)]
        if different:
            raise ValueError(
                f"{directory} is not a run of this study. Bring it back as it was, or delete the folder, and it is run "
                "again. Differences to the study:\n" + "\n".join(different)
            )
        rows = run_directory.read_history(directory, self.content["recipe"]["epochs"])
        if cell in self.histories and rows and rows != self.histories[cell]:
            raise ValueError(
                f"{directory / run_directory.HISTORY} is not what it was when the run finished: {self.directory}/"
                f"{HISTORY} has other numbers of {cell.name}. Bring back the one that was changed; or delete the run's "
                "folder, and the study's numbers stand."
            )

    def is_trained(self, cell):
        """Whether its run directory holds a finished run."""
        return (self.directory_of(cell) / run_directory.MODEL).exists()

    def write(self):
        """Writes study.json."""
        self.directory.mkdir(parents=True, exist_ok=True)
        run_directory.write_text(self.directory / STUDY, json.dumps(self.content, indent=2) + "\n")

    def add(self, cell):
        """Takes the numbers of a finished run over.

        Raises:
            ValueError: see `check`; or the run has no history.
        """
        self.check(cell)
        directory = self.directory_of(cell)
        rows = run_directory.read_history(directory, self.content["recipe"]["epochs"])
        if not rows:
            raise ValueError(
                f"{directory} is finished without {run_directory.HISTORY}: delete it, and it is run again."
            )
        recipe = shared(run_directory.read_recipe(directory))
        self.content["runs"] = {key: value for key, value in recipe.items() if key not in self.content["recipe"]}
        self.content["data"] = self.content["data"] or data_record.read(directory)
        self.note_place(directory)
        self.histories[cell] = rows
        self.write()
        self.write_histories()

    def note_place(self, directory):
        """Notes with which versions, on which machine, from which commit a run was trained here."""
        start = json.loads((directory / run_directory.ENVIRONMENT).read_text("utf-8"))[-1]
        packages = ", ".join(f"{name} {version}" for name, version in start["packages"].items() if version)
        place = f"{interleaved.machine()}; {packages}; commit {start['commit']}"
        if place not in self.content["where"]:
            self.content["where"].append(place)

    def write_histories(self):
        """Writes history.csv, in the order of the cells."""
        text, columns = io.StringIO(), {}
        for rows in self.histories.values():
            columns |= dict.fromkeys(rows[-1])
        writer = csv.DictWriter(text, ["attention", "seed", *columns], lineterminator="\n", restval="")
        writer.writeheader()
        for cell in self.cells:
            for row in self.histories.get(cell, ()):
                writer.writerow({"attention": cell.attention, "seed": cell.seed, **row})
        run_directory.write_text(self.directory / HISTORY, text.getvalue())
