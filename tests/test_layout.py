"""Which part of the repository may import which; see CONTRIBUTING.md."""

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PURE = {"keras", "na_keras", "numpy", *sys.stdlib_module_names}  # what layers and models may import: any backend
RANK = {"na_keras.layers": 0, "na_keras.models": 1}  # a lower rank never imports a higher one


def imports(path):
    """Full names of everything a file imports, wherever in the file."""
    package = [*path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module or "").split(".")]
            yield from (".".join(filter(None, [*module, alias.name])) for alias in node.names)


def modules(folder):
    """Names that a folder of programs puts into the flat namespace: its files and its packages."""
    return {path.stem for path in (ROOT / folder).glob("*.py")} | {
        path.parent.name for path in (ROOT / folder).glob("*/__init__.py")
    }


def test_programs_are_independent_and_shadow_nothing():
    assert not modules("training") & modules("export")  # both folders are on pytest's path
    installed = {"keras", "tensorflow", "numpy", "official", "tensorflow_datasets", "datasets", "matplotlib"}
    assert not (modules("training") | modules("export")) & (installed | sys.stdlib_module_names)
    for folder, other in (("training", "export"), ("export", "training")):
        for path in (ROOT / folder).rglob("*.py"):
            tops = {name.split(".")[0] for name in imports(path)}
            assert not tops & ({"training", "export"} | modules(other)), path


def test_the_library_never_imports_the_programs_and_layers_need_keras_only():
    programs = {"training", "export"} | modules("training") | modules("export")
    for path in (ROOT / "na_keras").rglob("*.py"):
        package = ".".join(path.relative_to(ROOT).parts[:2])
        for name in imports(path):
            top, *rest = name.split(".")
            assert top not in programs, (path, name)
            if package in RANK:
                assert top in PURE, (path, name)
                assert top != "na_keras" or RANK.get(f"na_keras.{rest[0]}", 9) <= RANK[package], (path, name)


def test_every_folder_of_the_library_is_a_package():
    folders = {path.parent for path in (ROOT / "na_keras").rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)  # `packages = find:` drops others silently


def test_classes_that_keras_saves_live_in_the_library():
    """A saved model must load with `import na_keras` alone."""
    for folder in ("training", "export"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "register_keras_serializable" not in path.read_text(), path


def test_optional_packages_are_imported_where_they_are_used():
    """Inside functions: at the top of a file they would be needed by everyone."""
    optional = {"tensorflow_datasets", "matplotlib", "sklearn", "ai_edge_litert", "official", "tf_keras", "torch"}
    for path in (ROOT / "na_keras").rglob("*.py"):
        top_level = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        for node in top_level:
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not {name.split(".")[0] for name in names if name} & optional, path


def test_import_adds_nothing_but_itself_to_keras():
    """Keras itself loads matplotlib and scikit-learn where they are installed."""
    program = (
        "import sys, keras; before = set(sys.modules)\n"
        "import na_keras; print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))\n"
        "print(*sorted(name for name in sys.modules if name.startswith('na_keras')))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    added, ours = result.stdout.splitlines()
    assert set(added.split()) <= {"na_keras", *sys.stdlib_module_names}
    assert not {"na_keras.preprocessing", "na_keras.data", "na_keras.detection"} & set(ours.split())
