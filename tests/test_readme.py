"""What the README shows runs as it stands there."""

import re

import pytest
from programs import ROOT, run

README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"python ((?:training|export)/\w+\.py)([^&`\n]*)", README)


def test_there_is_something_to_run():
    assert len(PYTHON) >= 2 and len(COMMANDS) >= 4


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.splitlines()[1])
def test_python_snippets_run(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    for expected in re.findall(r"print\(.*?\)  # (.*)", code):
        assert capsys.readouterr().out.strip() == expected


@pytest.mark.parametrize("program", sorted({program for program, _ in COMMANDS}))
def test_commands_name_programs_and_flags_that_exist(program):
    known, helped = run(program, "--help").stdout, set()
    for name, arguments in COMMANDS:
        if name == program:
            word = arguments.split()[0] if arguments.split() else "--"
            if not word.startswith("-") and word not in helped:  # a sub-command has flags of its own
                helped.add(word)
                known += run(program, word, "--help").stdout
            for flag in re.findall(r"--[a-z-]+", arguments):
                assert flag in known, (program, flag)


def test_files_it_shows_exist():
    for path in re.findall(r"docs/\w+\.\w+", README):
        assert (ROOT / path).exists(), path
