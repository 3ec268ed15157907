"""Keras' private records are read in one file, and every other private member that we use is listed."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECORDS = {"_keras_history", "_inbound_nodes", "_outbound_nodes", "_nodes_by_depth", "_operations_by_depth", "_nodes"}
RECORDS |= {"_operations", "_layers", "_flatten_layers", "_functional"}
# file -> private members of other libraries that it uses; the file says why
LISTED = {
    "na_keras/graph/calls.py": {"_keras_history", "_inbound_nodes", "_flatten_layers"},
    "na_keras/graph/copying.py": {"_output_shape"},
    "na_keras/optimizers.py": {"_use_weight_decay", "_get_variable_index", "_momentums", "_velocities"},
}


def private(name):
    return name.startswith("_") and not name.endswith("__")


def foreign_private_members(path):
    """Private attributes that a file uses and does not define, and private modules that it imports from."""
    used, defined, modules = set(), set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and private(node.attr):
            (defined if isinstance(node.ctx, ast.Store) else used).add(node.attr)
        elif isinstance(node, ast.FunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            modules |= {name for name in names if any(map(private, name.split("."))) or name.startswith("keras.src")}
    return used - defined | modules


def test_private_members_of_other_libraries_are_used_only_where_listed():
    found = {}
    for folder in ("na_keras", "training", "export"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if members := foreign_private_members(path):
                found[str(path.relative_to(ROOT))] = members
    assert found == LISTED


def test_nothing_but_the_graph_walk_names_keras_records():
    """Not even in a string, as getattr takes it."""
    for folder in ("na_keras", "training", "export"):
        for path in (ROOT / folder).rglob("*.py"):
            constants = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
            assert not constants & RECORDS, path
