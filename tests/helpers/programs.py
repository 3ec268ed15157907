"""Runs the repository's programs as a person does: by path, in a process of their own."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(program, *arguments, check=True, **options):
    """The finished process of `python program arguments...`, output captured as text, run from the checkout's root."""
    command = [sys.executable, str(ROOT / program), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)
    if check and result.returncode:
        raise AssertionError(f"{' '.join(command)}\nexit {result.returncode}\n{result.stdout}\n{result.stderr}")
    return result


def error_of(program, *arguments):
    """The one-line message with which a program refuses its arguments."""
    result = run(program, *arguments, check=False)
    assert result.returncode not in (0, -9), result.stdout
    assert "Traceback" not in result.stderr, result.stderr
    return result.stderr
