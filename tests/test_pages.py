"""What the pages show is so: Python runs, commands parse, links lead somewhere, tables are what the programs printed.

A block of a page is in one of three languages:

    ```python    run as it stands there: one namespace for all blocks of a page, in order, in an empty folder. A comment
                 behind print(...) is what it prints. Only weights="imagenet" runs as weights=None: no downloads
    ```bash      each command is read by its program's own argument parser; pip's extras are looked up in setup.cfg
    ```          a listing

A comment on the line before it says otherwise:

    <!-- NAME -->               the block is also run, by the file RUN_BY[NAME], which cuts it out by this comment
    <!-- not run: REASON -->    neither
"""

import configparser
import contextlib
import csv
import importlib
import io
import pathlib
import re
import shlex
import typing

import pytest
from programs import ROOT

from na_keras import ATTENTION

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "training/README.md", ROOT / "export/README.md"]
RUN_BY = {
    **dict.fromkeys(["demo", "test", "test-detection"], ".ci/run"),
    "machines": "tests/training/test_several_machines.py",
    **dict.fromkeys(["serve", "serve-container", "ask", "ask-grpc"], "tests/export/test_server_recipe.py"),
}
PROGRAMS = [
    f"{path.parent.name}/{path.name}"
    for folder in ("training", "export")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "__main__" in path.read_text()
]
SUBCOMMANDS = {"training/figures.py": ("loss", "heatmaps", "gates")}
EXTRAS = configparser.ConfigParser()
EXTRAS.read(ROOT / "setup.cfg")
EXTRAS = set(EXTRAS["options.extras_require"])

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


class Block(typing.NamedTuple):
    """A fenced block: its language, its text, the name or the reason in the comment before it, where it begins."""

    language: str
    text: str
    name: str
    reason: str
    line: int


def blocks(page):
    text = page.read_text("utf-8")
    found = []
    for match in re.finditer(r"^(?:<!-- (.*?) -->\n)?^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        comment, language, content = match.groups()
        reason = re.fullmatch(r"not run: (.+)", comment or "")
        name = "" if reason else comment or ""
        found.append(Block(language, content, name, reason[1] if reason else "", text[: match.start()].count("\n") + 1))
    assert text.count("```") == 2 * len(found), f"{page}: a fence is not closed, or a block is indented"
    return found


def prose(page):
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands(block):
    """The commands of a bash block as lists of words, without comments and without assignments before a command."""
    lines = block.text.replace("\\\n", " ").replace("&&\n", "&& ").splitlines()
    for command in (part for line in lines for part in line.split(" && ")):
        words = shlex.split(command, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if words:
            yield words


def parse(program, arguments):
    """Gives arguments to a program's own parser; returns its exit status, None where it found nothing to object to."""
    module = importlib.import_module(pathlib.Path(program).stem)
    try:
        module.parse_arguments(arguments)
    except SystemExit as end:
        return end.code or 0
    return None


@every_page
def test_python_runs_from_top_to_bottom(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language != "python" or block.reason:
            continue
        code = "\n" * block.line + block.text  # so that a traceback has the page's line numbers
        code = code.replace('weights="imagenet"', "weights=None")
        capsys.readouterr()
        exec(compile(code, page, "exec"), namespace)
        expected = re.findall(r"^print\(.*\)  # (.*)", block.text, re.MULTILINE)
        assert len(expected) == block.text.count("print("), f"{page}, line {block.line}: say what is printed"
        assert capsys.readouterr().out.splitlines() == expected, f"{page}, line {block.line}"


@every_page
def test_commands_are_what_the_programs_take(page, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for block in blocks(page):
        if block.language != "bash" or block.reason:
            continue
        for words in commands(block):
            if words[0] == "python" and words[1] in PROGRAMS:
                assert parse(words[1], words[2:]) is None, f"{page}: {shlex.join(words)}\n{capsys.readouterr().err}"
            elif words[:2] == ["pip", "install"]:
                extras = [
                    extra for word in words for found in re.findall(r"\[(.*)\]", word) for extra in found.split(",")
                ]
                assert set(extras) <= EXTRAS, f"{page}: {shlex.join(words)}"
            else:
                assert block.name, f"{page}: {shlex.join(words)}: say in a comment what runs it, or why nothing does"


@every_page
def test_every_block_is_checked_or_says_why_not(page):
    for block in blocks(page):
        assert block.language in ("python", "bash", ""), f"{page}, line {block.line}: no test reads {block.language}"
        assert block.language or "python " not in block.text, f"{page}, line {block.line}: a command is bash"
        assert not block.name or block.name in RUN_BY, f"{page}, line {block.line}: what runs {block.name}?"


def test_blocks_that_other_tests_run_are_there_once():
    names = [block.name for page in PAGES for block in blocks(page) if block.name]
    assert sorted(names) == sorted(RUN_BY)
    for name, runner in RUN_BY.items():
        assert re.search(rf"\b{name}\b", (ROOT / runner).read_text()), f"{runner} does not run {name}"


@pytest.fixture(scope="module")
def flags():
    """Every flag of every program."""
    known = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for program in PROGRAMS:
            for arguments in (["--help"], *([name, "--help"] for name in SUBCOMMANDS.get(program, ()))):
                output = io.StringIO()
                with contextlib.redirect_stdout(output):
                    assert parse(program, arguments) == 0
                known |= set(re.findall(r"--[a-z][a-z0-9-]*", output.getvalue()))
    return known


@every_page
def test_flags_and_commands_in_sentences_exist(page, flags, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    for code in re.findall(r"`([^`]+)`", prose(page)):
        words = code.split()
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", code):
            assert flag in flags or "_" in flag, f"{page}: no program has {flag}"  # with "_" they are another program's
        if words[0] == "python" and words[1] in PROGRAMS and len(words) > 2:
            assert parse(words[1], words[2:]) in (None, 0), f"{page}: {code}\n{capsys.readouterr().err}"
        for extra in re.findall(r"pip install -e '\.\[([\w,]+)\]'", code):
            assert set(extra.split(",")) <= EXTRAS, f"{page}: {code}"


def headings(page):
    """What a link may name of a page, as GitHub makes it of the headings."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page}: {target}"
        assert not anchor or anchor in headings(linked), f"{page}: {target}"


@every_page
def test_paths_in_sentences_exist(page):
    if page.name == "CHANGELOG.md":  # it names what was
        return
    for path in re.findall(r"`(?:python |bash )?((?:na_keras|training|export|tests|docs|\.ci)/[^`\s]*)", prose(page)):
        assert re.search("[A-Z]{3}", path.replace("README", "")) or (ROOT / path).exists(), f"{page}: {path}"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/index.md").read_text("utf-8")
    for page in PAGES:
        if page != ROOT / "README.md" and page.name != "index.md":
            assert f"({page.name})" in index or f"(../{page.relative_to(ROOT)})" in index, page


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_the_readme_has_every_module():
    table = [line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if line.startswith("| `")]
    for name, factory in ATTENTION.items():
        layer = getattr(factory, "func", factory).__name__
        assert any(line.startswith(f"| `{layer}` |") and f"`{name}`" in line for line in table), name


def test_the_tables_of_results_are_those_of_the_programs():
    """The paper's numbers as training/tables.py has them; the latencies as export/benchmark.py wrote them."""
    import tables

    text = (ROOT / "docs/results.md").read_text("utf-8")
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    for _, table in tables.CLASSIFICATION:
        for name, _, _, parameters, gflops, top1, top5 in table:
            paper = [name, parameters, gflops, top1, top5 or tables.PLACEHOLDER]
            assert paper in [[line[i] for i in (0, 1, 4, 8, 10)] for line in lines if len(line) == 12], name
    for detector, backbone, _, _, *precision, parameters, gmac in tables.TABLE_4:
        paper = [detector, backbone, parameters, gmac, *precision]
        assert paper in [[*line[:3], line[5], *line[9:]] for line in lines if len(line) == 15], (detector, backbone)
    with (ROOT / "docs/latency.csv").open(newline="") as file:
        measured = {(row["model"], row["kind"], row["batch"], row["attention"]): row for row in csv.DictReader(file)}
    names = {"resnet50": "ResNet50", "mobilenetv2": "MobileNetV2", "savedmodel": "SavedModel", "keras": "Keras"}
    for (model, kind, batch, attention), row in measured.items():
        if attention != "na":
            continue
        base, se = (measured[model, kind, batch, name] for name in ("none", "se"))
        number = lambda name, row=row: f"{float(row[name]):.3f}"  # noqa: E731
        expected = [f"{names[model]}, {names.get(kind, f'`{kind}`')}, {batch}", f"{float(base['milliseconds']):.1f}"]
        expected += [number("ratio", se), f"{number('ratio')} ({number('low')} .. {number('high')})"]
        expected += [f"{float(row['beside_se']):+.3f}"]
        (line,) = (line for line in lines if line[0] == expected[0])
        assert [*line[:5], line[6]] == [*expected, f"{float(row['megabytes']):.1f}"]
