"""What error, help and doc texts send a reader to exists: files, pages, modules, programs, flags, extras."""

import ast
import configparser
import functools
import importlib
import re

import pytest
from programs import ROOT

FOLDERS = ("na_keras", "training", "export")
OTHER_TOOLS = {  # flags of docker, of tensorflow_model_server and of tfds, where a text shows their commands
    *("--entrypoint", "--init", "--network", "--rm", "--version", "--data_dir"),
}
# Files of the reference code, which headers cite without a folder.
CITED = {"imagenet.py", "main_mobile.py", "resnet_na3.py", "resnet_na5.py"}
WRITTEN = {"report.md"}  # by programs

CONTINUED = re.compile(r"\\\n\s*")  # a command over two lines
COMMAND = re.compile(r"\bpython3? (-m )?([\w./]+)([^`\n]*)")
EXTRAS = re.compile(r"(?:'|\"|\s)(?:\.|na[-_]keras)\[([\w,{}-]+)\]")
PATH = re.compile(r"(?<![\w/.:-])((?:na_keras|training|export|tests|docs)/[\w./-]*\w)")
FILE = re.compile(r"(?<![\w/.{}-])(\w+(?:/\w+)*\.(?:py|md))\b")
FLAG = re.compile(r"(?<![\w-])(--[a-z][\w-]*)")
MODULE = re.compile(r"(?<![\w./>])(na_keras(?:\.[A-Za-z]\w*)+)")


@functools.cache
def tree(path):
    return ast.parse(path.read_text())


def texts(path):
    """(line, text) of every string of a file; what an f-string inserts is {}."""
    pieces = set()
    for node in ast.walk(tree(path)):  # an f-string comes before its pieces
        if isinstance(node, ast.JoinedStr):
            pieces |= {id(piece) for piece in node.values}
            yield node.lineno, "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pieces:
            yield node.lineno, node.value


@functools.cache
def extras():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return set(setup["options.extras_require"])


@functools.cache
def own_folders():
    """Packages of ours, which a text may name by their last folder; some are of the reference code too."""
    packages = {path.parent.name for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py")}
    return packages - {"models", "networks"}


@functools.cache
def repository_files():
    folders = [ROOT / folder for folder in (*FOLDERS, "tests", "docs")]
    paths = [*ROOT.glob("*.md"), *(path for folder in folders for path in folder.rglob("*"))]
    return {str(path.relative_to(ROOT)) for path in paths}


def imported_files(path):
    """A program and the files beside it that it imports."""
    stems = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            stems += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            stems += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    files = (path.parent / f"{stem.replace('.', '/')}.py" for stem in stems)
    return [path, *(file for file in files if file.exists())]


@functools.cache
def flags_of(program):
    """The flags of a program: those its files add to a parser, and the recipe's fields."""
    flags = {"--help"}
    for file in imported_files(program):
        for node in ast.walk(tree(file)):
            first = node.args[0] if isinstance(node, ast.Call) and node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and first.value.startswith("--"):
                flags.add(first.value)
            if isinstance(node, ast.ClassDef) and node.name.endswith("Recipe"):
                names = {field.target.id for field in node.body if isinstance(field, ast.AnnAssign)}
                flags |= {f"--{name.replace('_', '-')}" for name in names}
    return flags | {f"--no-{flag[2:]}" for flag in flags}


@functools.cache
def flags_of_all():
    return set().union(*(flags_of(path) for folder in ("training", "export") for path in (ROOT / folder).glob("*.py")))


def exists(dotted):
    """Whether a dotted name of the library is a module or an attribute of one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if not dotted.startswith(error.name):  # something else is missing
                return True
            continue
        for name in parts[length:]:
            if not hasattr(value, name):
                return False
            value = getattr(value, name)
        return True
    return False


def command_problems(text):
    for module, program, arguments in COMMAND.findall(text):
        if module:  # run from export/, or a tool's own module
            ours = program.split(".")[0] in ("consumers", "engine", "latency", "versions")
            if (
                ours
                and not program.endswith(".X")
                and f"export/{program.replace('.', '/')}.py" not in repository_files()
            ):
                yield f"no module {program} in export/"
        elif program.endswith(".py"):
            if program not in repository_files():
                yield f"no program {program}"
            else:
                for flag in FLAG.findall(arguments):
                    if flag not in flags_of(ROOT / program):
                        yield f"{program} has no flag {flag}"


def problems(text):
    """What a text names and the repository does not have, in words."""
    text = CONTINUED.sub(" ", text)
    yield from command_problems(text)
    for listed in EXTRAS.findall(text):
        yield from (f"no extra {name}" for name in listed.split(",") if name not in extras() and "{" not in name)
    for path in PATH.findall(text):
        if not (ROOT / path).exists():
            yield f"nothing at {path}"
    for name in FILE.findall(text):
        ours = name.split("/")[0] in own_folders() if "/" in name else name not in CITED | WRITTEN
        if ours and not any(f"/{file}".endswith(f"/{name}") for file in repository_files()):
            yield f"no file {name}"
    if " " in text.strip():  # a flag alone is code
        for flag in FLAG.findall(text):
            if flag not in flags_of_all() | OTHER_TOOLS:
                yield f"no program has a flag {flag}"
    for dotted in MODULE.findall(text):
        if not exists(dotted.removesuffix(".py")):
            yield f"no {dotted}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_texts_name_exists(folder):
    found = [
        f"{path.relative_to(ROOT)}:{line}: {problem}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, text in texts(path)
        for problem in problems(text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Run python training/trian.py", "no program training/trian.py"),
        ("python export/verify.py --loud V R", "export/verify.py has no flag --loud"),
        ("python training/train.py \\\n    --run-dri x", "training/train.py has no flag --run-dri"),
        ("python training/tables.py --dataset digits", "training/tables.py has no flag --dataset"),
        ("python -m consumers.abacus FILE", "no module consumers.abacus in export/"),
        ("pip install -e '.[traning]'", "no extra traning"),
        ("Run: pip install 'na-keras[export,serve]'", "no extra serve"),
        ("as docs/sesame.md says", "nothing at docs/sesame.md"),
        ("see protocols.py", "no file protocols.py"),
        ("see consumers/protocols.py", "no file consumers/protocols.py"),
        ("see SERVING.md", "no file SERVING.md"),
        ("Give --image-size=224.", "no program has a flag --image-size"),
        ("use na_keras.data.load_sauce", "no na_keras.data.load_sauce"),
        ("use na_keras.complexity", "no na_keras.complexity"),
    ],
)
def test_a_name_of_nothing_is_found(text, problem):
    assert problem in set(problems(text))


@pytest.mark.parametrize(
    "text",
    [
        "python training/train.py --run-dir runs/x --no-flip --learning-rate=0.1",
        "python -m consumers.protocol FILE",
        "pip install -e '.[train,export]', or pip install torch",
        "models/resnet/resnet_na4.py of the authors, https://example.org/docs/page.md",
        "na_keras.data.load_source, na_keras.ATTENTION and registered na_keras>SimAM; see protocol.py, README.md",
        "give --data-dir=DIR to a program under training/",
    ],
)
def test_what_exists_is_no_problem(text):
    assert not list(problems(text))
