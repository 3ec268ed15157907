"""What each module of a study costs: parameters, multiply-accumulates, a training step, an answer of the deployed
network. Measured after the cells, alone, because times beside a training say nothing.
"""

import csv
import datetime
import io

from costs.processes import run_worker
from na_keras import interleaved
from run_files import run_directory
from study.record import COSTS

ROUNDS = 21
MEASURED = {"step": "step", "answer": "answer"}  # what costs/worker.py calls them, and how columns begin
NUMBERS = ("milliseconds", "ratio", "low", "high")
COLUMNS = ("attention", "parameters", "macs", *(f"{name}_{number}" for name in MEASURED for number in NUMBERS), "about")


def counts(job, attention):
    """(parameters, MACs) of a job's network; MACs None where the counter does not know a module of one's own."""
    import keras

    from costs import worker
    from na_keras.graph import complexity

    model = worker.make_model(job, attention, "softmax")
    keras.backend.clear_session()
    try:
        macs = complexity.count_macs(model)
    except ValueError:
        macs = None
    return complexity.count_parameters(model), macs


def job_of(study, imports):
    """The job of costs/worker.py for the networks of a study."""
    recipe = study.content["recipe"]
    fields = {"where": recipe["where"], "pixels": recipe["pixels"], "options": recipe["model_options"]}
    return {
        "model": recipe["model"],
        "network": fields,
        "size": recipe["size"],
        "classes": len(study.content["data"]["class_names"]),
        "batch": recipe["batch_size"] // (recipe["accumulate"] or 1),
        "imports": list(imports or ()),
        "engine": "xla" if recipe["xla"] else "tensorflow",
        "precision": {"float32": "float32"}.get(recipe["precision"], f"mixed_{recipe['precision']}"),
        "rounds": ROUNDS,
    }


def measure(study, modules, imports, say):
    """Measures all modules in turns and writes costs.csv.

    Args:
        study: Study with a finished cell.
        modules: names; the first is what the ratios are to.
        imports: modules of the user's own.
        say: function of a sentence, for what begins.

    Raises:
        RuntimeError: a measuring process failed.
    """
    job = job_of(study, imports)
    rows = {name: {"attention": name} for name in [*modules, modules[0] + interleaved.AGAIN]}
    for name in modules:
        say(f"Counting {name}.")
        parameters, macs = counts(job, name)
        rows[name] |= {"parameters": parameters, "macs": "" if macs is None else macs}
    for what in MEASURED:
        say(f"Measuring {what}: {len(modules)} modules, {ROUNDS} rounds.")
        form = {"engine": "tensorflow", "precision": "float32"} if what == "answer" else {}
        found = run_worker({**job, **form, "what": what, "modules": [modules[0], *modules]})
        names = [modules[0] + interleaved.AGAIN, *modules]
        seconds = dict(zip(names, found["measured"][what], strict=True))
        about = f"{interleaved.machine()}; {found['device']}; {found['versions']}; {datetime.date.today()}"
        timings = interleaved.summarise({modules[0]: seconds[modules[0]]} | seconds)
        for name, timing in timings.items():
            rows[name] |= {f"{what}_{number}": f"{getattr(timing, number):.4f}" for number in NUMBERS}
            rows[name]["about"] = about
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.values())
    run_directory.write_text(study.directory / COSTS, text.getvalue())


def read(study):
    """{module: its row of costs.csv}; empty without the file."""
    path = study.directory / COSTS
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["attention"]: row for row in csv.DictReader(file)}


def are_complete(study, modules):
    """Whether costs.csv has these modules, measured beside each other."""
    return {*modules} <= {*read(study)}
