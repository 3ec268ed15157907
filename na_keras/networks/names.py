"""What a command may write where a network or an attention module is named."""

import difflib
import importlib
import inspect
import os
import pathlib
import re
import sys
from typing import NamedTuple

import keras

from na_keras.layers import ATTENTION
from na_keras.models import MODELS
from na_keras.pretrained import one_line

APPLICATIONS = "keras.applications."
ENDINGS = (".keras", ".h5")


class NetworkName(NamedTuple):
    """A name that the grammar allows.

    Attributes:
        kind: "ours", "applications" or "file".
        text: as it is recorded: "ResNet50", "keras.applications.ResNet50", the path as it was given.
        builder: function that builds it; None of a file.
    """

    kind: str
    text: str
    builder: object = None

    @property
    def path(self):
        """Of a file."""
        return pathlib.Path(self.text).expanduser()


def application_builders():
    """{name: builder} of everything in keras.applications that builds a classifier."""
    found = {}
    for name, builder in vars(keras.applications).items():
        if name[0].isupper() and callable(builder):
            if {"include_top", "input_tensor", "classes"} <= set(inspect.signature(builder).parameters):
                found[name] = builder
    return found


def near(text, names):
    """ "Did you mean ...?" of a wrong name, with a space before; empty if none is near."""
    lower = {name.lower().rpartition(".")[2]: name for name in names}
    found = difflib.get_close_matches(text.lower(), lower, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(lower[name] for name in found)}?" if found else ""


def network_name(text):
    """What a network is named by.

    Raises:
        ValueError: none of this library's names, of keras.applications, and no file of a model; near names are given.
    """
    path, lower = pathlib.Path(text).expanduser(), text.lower()
    if path.exists():
        if path.is_file() and path.suffix in ENDINGS:
            return NetworkName("file", text)
        what = "a folder" if path.is_dir() else "another file"
        raise ValueError(
            f"model: {text} is a path here, and a path that exists is taken first. Expected that of a .keras or .h5 "
            f"file. Received: {what}"
        )
    builders = application_builders()
    if lower.startswith(APPLICATIONS):
        asked = lower.removeprefix(APPLICATIONS)
        for name, builder in builders.items():
            if name.lower() == asked:
                return NetworkName("applications", APPLICATIONS + name, builder)
        raise ValueError(
            f"model must be a builder of keras.applications. Received: {text!r}.{near(asked, builders)} There are: "
            f"{', '.join(sorted(builders))}"
        )
    for name, builder in MODELS.items():
        if name.lower() == lower:
            return NetworkName("ours", name, builder)
    if path.suffix in ENDINGS:
        raise ValueError(f"model: there is no file {text}.")
    raise ValueError(
        f"model must be one of {sorted(MODELS)}, keras.applications.NAME, or the path of a .keras or .h5 file. "
        f"Received: {text!r}.{near(text, [*(APPLICATIONS + name for name in builders), *MODELS])}"
    )


def import_modules(names):
    """Imports modules that register a user's classes, from where Python finds them or from the current folder.

    Raises:
        ValueError: no such module, or an error in it.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names or ():
        if not re.fullmatch(r"\w+(\.\w+)*", name):
            raise ValueError(f"import: expected a module's name, as in my_layers or package.module. Received: {name!r}")
        try:
            importlib.import_module(name)
        except Exception as error:
            raise ValueError(f"import: {name} cannot be imported: {type(error).__name__}: {one_line(error)}") from error


def check_attention(text):
    """Raises ValueError on what is no name of an attention module, nor `package.module:Class`; imports nothing."""
    if text is None or text in ATTENTION or re.fullmatch(r"\w+(\.\w+)*:\w+", text):
        return
    raise ValueError(
        f"attention must be one of {[None, *ATTENTION]}, or package.module:Class of your own. Received: {text!r}."
        f"{near(text, ATTENTION)}"
    )


def resolve_attention(text):
    """What `na_keras.get_attention` takes: None, a name, or the class of `package.module:Class`.

    Raises:
        ValueError: none of these; a module that cannot be imported, or that has no such class.
    """
    check_attention(text)
    if text is None or text in ATTENTION:
        return text
    module, _, name = text.partition(":")
    import_modules([module])
    found = getattr(sys.modules[module], name, None)
    if not callable(found):
        raise ValueError(f"attention: there is no class {name} in {module}. Received: {text!r}")
    return found
