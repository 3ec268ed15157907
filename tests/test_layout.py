"""Which part of the repository may import which, what lies where, and what an import costs; see CONTRIBUTING.md."""

import ast
import collections
import functools
import importlib.metadata
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Rooms of the library, and what each may import of the others. CONTRIBUTING.md shows the same arrows. A file beside the
# folders is a room as well; a new room needs a row here and a place in that drawing.
ARROWS = {
    "files": (),
    "text_table": (),
    "interleaved": (),
    "ratio_bars": ("interleaved",),
    "layers": (),
    "optimizers": (),
    "graph": ("layers",),
    "torch_weights": ("layers",),
    "model_files": ("files", "graph", "layers"),
    "pretrained": ("files", "graph", "layers", "model_files", "torch_weights"),
    "models": ("layers", "pretrained"),
    "networks": ("files", "graph", "layers", "model_files", "models", "pretrained"),
    "data": ("files",),
    "preprocessing": ("data",),
    "deploy": ("data", "files", "graph", "layers", "model_files", "models"),
    "detection": ("data", "deploy", "files", "layers", "models"),
    "training": ("na_keras",),
    "export": ("na_keras",),
}
# What else a room may import. Those of KERAS_ONLY run on every backend; `files` and `text_table` need nothing at all.
KERAS_ONLY = {"layers", "models", "optimizers", "graph", "torch_weights", "model_files", "pretrained", "networks"}
# In functions only, behind a check of the backend or of the file: gradients of grad_cam, `.pth` and `.h5` files (Keras
# itself needs h5py).
BACKENDS_IN_FUNCTIONS = {"graph": {"tensorflow", "jax", "torch"}, "torch_weights": {"torch"}}
BACKENDS_IN_FUNCTIONS["pretrained"] = {"h5py", "torch"}

# Packages that not everyone has: imported inside functions, so that nobody needs them who does not call these.
# flatbuffers is none of them: TensorFlow itself needs it.
OPTIONAL = {
    *("ai_edge_litert", "grpc", "jax", "matplotlib", "official", "onnxruntime", "openvino", "PIL", "scipy", "sklearn"),
    *("pycocotools", "tensorflow_datasets", "tensorflow_serving", "tf2onnx", "tf_keras", "torch"),
}
TENSORFLOW = {"keras", "numpy", "tensorflow", "flatbuffers"}
# Classes of tf_keras and configurations of Model Garden: who imports this folder asks for them.
OF_MODEL_GARDEN = "na_keras/detection/model_garden"

ABOUT_A_DOZEN = 13
LARGER_FOLDERS = {"na_keras/layers": "one file a module", "training": "one file a program, and what they share"}


def python_files(folder):
    return sorted(path for path in (ROOT / folder).rglob("*.py") if not {".venv", "build"} & set(path.parts))


@functools.cache
def tree(path):
    return ast.parse(path.read_text())


def imports(path, top_level_only=False):
    """Full names of everything a file imports: wherever in the file, or outside functions only."""
    package = [*path.relative_to(ROOT).parent.parts]
    waiting = list(tree(path).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module or "").split(".")]
            yield from (".".join(filter(None, [*module, alias.name])) for alias in node.names)
        elif not (top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            waiting.extend(ast.iter_child_nodes(node))


def top(name):
    return name.split(".")[0]


def rooms_of(name):
    """The room that an imported name of the library lies in; a public name of `na_keras` itself lies in several."""
    _, *rest = name.split(".")
    exported = {
        alias.asname or alias.name: node.module.split(".")[1]
        for node in tree(ROOT / "na_keras/__init__.py").body
        if isinstance(node, ast.ImportFrom) and node.module.startswith("na_keras.")
        for alias in node.names
    }
    if not rest:  # `import na_keras`
        return {"na_keras"}
    return {exported.get(rest[0], rest[0])}


def flat_modules(folder):
    """Names that a folder on the import path puts into the flat namespace: its files and its packages."""
    return {path.stem for path in (ROOT / folder).glob("*.py")} | {
        path.parent.name for path in (ROOT / folder).glob("*/__init__.py")
    }


def programs(folder):
    return [path for path in (ROOT / folder).glob("*.py") if 'if __name__ == "__main__"' in path.read_text()]


def closure(paths, folder, top_level_only=False):
    """`paths` and what they import of a folder of programs, also through each other: {file: names it imports}."""
    seen, waiting = {}, list(paths)
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen[path] = set(imports(path, top_level_only))
        for name in seen[path]:
            parts = name.split(".")
            for length in range(1, len(parts) + 1):
                stem = (ROOT / folder).joinpath(*parts[:length])
                waiting += [file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.exists()]
    return seen


# --- arrows --------------------------------------------------------------------------------------------------------


def library_rooms():
    folder = ROOT / "na_keras"
    names = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    return names - {"__init__"}


def test_every_room_of_the_library_has_its_arrows():
    assert library_rooms() <= set(ARROWS), "a new room: say in ARROWS, and in CONTRIBUTING.md, what it may import"


def test_no_arrow_leads_round_in_a_circle():
    below = {room: set(rooms) for room, rooms in ARROWS.items()}
    while below:
        lowest = [room for room, rooms in below.items() if not rooms & set(below)]
        assert lowest, below
        for room in lowest:
            del below[room]


def test_the_drawing_in_contributing_shows_the_same_arrows():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    drawing = re.search(r"<!-- arrows -->\n+(.*?)\n\n", text, re.DOTALL)
    assert drawing, "CONTRIBUTING.md needs <!-- arrows --> and below it lines `imported, ... <- importer, ...`"
    shown = set()
    for line in drawing[1].splitlines():
        if "<-" in line:
            imported, importers = (re.split(r"[,\s]+", side.strip()) for side in line.split("<-"))
            shown |= {(a.strip("/"), b.strip("/")) for a in imported for b in importers}
    table = {(imported, importer) for importer, rooms in ARROWS.items() for imported in rooms}
    existing = library_rooms() | {"training", "export", "na_keras"}
    assert shown == {(a, b) for a, b in table if {a, b} <= existing}


@pytest.mark.parametrize("room", sorted(set(ARROWS) - {"training", "export"}))
def test_a_room_imports_only_what_its_arrows_allow(room):
    files = python_files(f"na_keras/{room}") or [path for path in [ROOT / f"na_keras/{room}.py"] if path.exists()]
    outside = {"keras", "numpy"} if room in KERAS_ONLY else TENSORFLOW | OPTIONAL
    outside = set() if room in ("files", "text_table") else outside
    for path in files:
        for name in imports(path):
            if top(name) == "na_keras":
                assert rooms_of(name) <= {room, *ARROWS[room]}, (path, name)
            elif top(name) not in sys.stdlib_module_names:
                assert top(name) in outside | BACKENDS_IN_FUNCTIONS.get(room, set()), (path, name)
        for name in imports(path, top_level_only=True):
            assert top(name) in outside | {"na_keras", *sys.stdlib_module_names}, (path, name)


def test_the_library_never_imports_the_programs():
    forbidden = {"training", "export"} | flat_modules("training") | flat_modules("export")
    for path in python_files("na_keras"):
        assert not {top(name) for name in imports(path)} & forbidden, path


@pytest.mark.parametrize(("folder", "other"), [("training", "export"), ("export", "training")])
def test_training_and_export_never_import_each_other(folder, other):
    for path in python_files(folder):
        assert not {top(name) for name in imports(path)} & ({"training", "export"} | flat_modules(other)), path


@pytest.mark.parametrize("folder", ["training", "export"])
def test_packages_beside_the_programs_do_not_import_the_programs(folder):
    """But one: the client. A consumer asks a server with it, and it is of the consumers' kind."""
    names = {path.stem for path in programs(folder)} - {"serving_client"}
    assert names
    for path in set(python_files(folder)) - set((ROOT / folder).glob("*.py")):
        assert not {top(name) for name in imports(path)} & names, path


@pytest.mark.parametrize("path", [*programs("training"), *programs("export")], ids=lambda path: path.stem)
def test_programs_parse_their_arguments_before_they_import_tensorflow(path):
    """`--help` and a refused flag take a moment, not the seconds of `import keras`: nothing at the top leads there."""
    for file, names in closure([path], path.parent.name, top_level_only=True).items():
        assert not {top(name) for name in names} & {"keras", "tensorflow", "na_keras", *OPTIONAL}, (path, file)


# --- consumers -----------------------------------------------------------------------------------------------------

CONSUMERS = [*sorted((ROOT / "export/consumers").rglob("*.py")), ROOT / "export/serving_client.py"]


def test_consumers_and_the_client_never_import_this_library_or_keras():
    """That is their proof: what answers them is the exported file alone. Nor does anything that they import."""
    files = closure(CONSUMERS, "export")
    for path, names in files.items():
        assert not {top(name) for name in names} & {"na_keras", "keras", "tf_keras", *flat_modules("training")}, path
    others = {path.relative_to(ROOT / "export") for path in set(files) - set(CONSUMERS)}
    assert not others, f"the consumers' own folder and the client, nothing else of export/. Received: {others}"


def test_a_consumer_loads_neither_keras_nor_this_library():
    """At run time: with both made impossible, the LiteRT consumer starts and refuses a file that is not there."""
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('na_keras', 'keras', 'tf_keras', 'tensorflow')))\n"
        "import runpy, importlib, pathlib\n"
        "for path in pathlib.Path('consumers').glob('*.py'): importlib.import_module(f'consumers.{path.stem}')\n"
        "import serving_client\n"
        "sys.argv = ['litert_runtime', 'missing.tflite', 'missing.npz', 'answers.npz']\n"
        "del sys.modules['consumers.litert_runtime']\n"
        "runpy.run_module('consumers.litert_runtime', run_name='__main__')"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "export")
    assert "FileNotFoundError" in result.stderr and "missing.npz" in result.stderr, result.stderr


# --- where things lie ----------------------------------------------------------------------------------------------


def test_no_flat_name_occurs_twice_or_shadows_a_package():
    """The folders of programs and of test helpers are on one import path: who comes first there hides the others."""
    folders = [
        "training",
        "export",
        "tests",
        *(str(p.relative_to(ROOT)) for p in (ROOT / "tests").iterdir() if p.is_dir()),
    ]
    count = collections.Counter(name for folder in folders for name in flat_modules(folder))
    del count["conftest"]  # pytest keeps them apart
    assert [name for name, times in count.items() if times > 1] == []
    installed = set(importlib.metadata.packages_distributions()) | OPTIONAL | {"tensorflow", "datasets"}
    assert not set(count) & (installed | sys.stdlib_module_names | {"na_keras"})


def test_every_folder_of_the_library_is_a_package():
    folders = {path.parent for path in python_files("na_keras")}
    assert all((folder / "__init__.py").exists() for folder in folders)  # `packages = find:` drops others silently


def test_a_folder_holds_about_a_dozen_files():
    """As many as one takes in at a glance."""
    files = [path for folder in ("na_keras", "training", "export", "tests") for path in python_files(folder)]
    for folder, number in collections.Counter(str(path.parent.relative_to(ROOT)) for path in files).items():
        assert number <= ABOUT_A_DOZEN or folder in LARGER_FOLDERS, (folder, number)


def test_classes_that_keras_saves_live_in_the_library():
    """A saved model must load with `import na_keras` alone."""
    for path in [*python_files("training"), *python_files("export")]:
        assert "register_keras_serializable" not in path.read_text(), path


# --- what an import costs ------------------------------------------------------------------------------------------


def test_optional_packages_are_imported_where_they_are_used():
    for path in set(python_files("na_keras")) - set(python_files(OF_MODEL_GARDEN)):
        assert not {top(name) for name in imports(path, top_level_only=True)} & OPTIONAL, path


def test_without_litert_deploy_is_imported_and_tflite_says_what_to_install():
    program = (
        "import sys; sys.modules['ai_edge_litert'] = None\n"
        "from na_keras.deploy import deploy_copy, describe\n"
        "try: describe(b'TFL3')\n"
        "except ImportError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert "ai-edge-litert" in result.stdout and "pip install 'na-keras[export]'" in result.stdout
    assert len(result.stdout.splitlines()) == 1


def test_import_adds_nothing_but_itself_to_keras():
    """Keras itself loads TensorFlow, matplotlib and scikit-learn where it finds them."""
    program = (
        "import sys, keras; before = set(sys.modules)\n"
        "import na_keras; print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))\n"
        "print(*sorted(name for name in sys.modules if name.startswith('na_keras')))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    added, ours = result.stdout.splitlines()
    assert set(added.split()) <= {"na_keras", *sys.stdlib_module_names}
    lazy = {"preprocessing", "data", "deploy", "detection"}
    assert not lazy & {name.split(".")[1] for name in ours.split() if "." in name}
