"""Files that are replaced as a whole: a reader finds the old content or the new, never half of it. And their digest."""

import hashlib
import os
import pathlib


def sha256_of(path):
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_path(path):
    """The hidden file beside `path` that `replace_file` writes first; it keeps the ending, by which writers choose."""
    path = pathlib.Path(path)
    return path.with_name(f".tmp-{path.name}")


def replace_file(path, write):
    """Writes a file beside its place and renames it there when it is whole.

    Args:
        path: where the file goes; a file that is there already stays until the new one is complete.
        write: function of the path to write to, for example `model.save` or `lambda path: path.write_text(text)`.

    Raises:
        Whatever `write` raises, or OSError from the renaming; the old file is then unchanged and nothing is left over.
    """
    temporary = temporary_path(path)
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
