"""What a study shows while it runs."""

import io

import pytest

from study.cells import Board, in_words
from study.record import Cell, Study


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def study(tmp_path):
    """Two modules, two seeds, one cell finished."""
    study = Study(tmp_path)
    study.content = {"recipe": {"epochs": 4}, "attention": ["none", "na"], "seeds": [0, 1]}
    study.histories = {Cell("none", 0): [{"epoch": str(epoch), "validation_top1": ".625"} for epoch in range(1, 5)]}
    directory = study.directory_of(Cell("na", 0))
    directory.mkdir(parents=True)
    (directory / "history.csv").write_text("epoch,loss\n1,2\n2,1\n")
    return study


def test_a_terminal_has_one_table_that_stands_still(study):
    board = Board(study, study.cells, Terminal())
    board.show({Cell("na", 0)}, "na-0 begins.")
    board.states[Cell("none", 1)] = "failed"
    board.show({Cell("na", 0)}, "none-1 failed: no memory")
    first, second = board.stream.getvalue().split("\x1b[4A\x1b[J")  # up by the lines of the table, and cleared
    assert [line.split() for line in first.splitlines()] == [
        ["na-0", "begins."],
        ["seed", "0", "seed", "1"],
        ["none", "62.50", "."],
        ["na", "2/4", "."],
        ["1", "of", "4", "cells", "finished,", "1", "running"],
    ]
    assert second.splitlines()[0] == "none-1 failed: no memory"
    assert second.splitlines()[2].split() == ["none", "62.50", "failed"]


def test_a_file_has_a_line_for_each_event(study):
    board = Board(study, study.cells, io.StringIO())
    board.show(set())
    board.show({Cell("na", 0)}, "na-0 begins.")
    assert board.stream.getvalue() == "na-0 begins. (1 of 4 cells finished, 1 running)\n"


def test_the_time_to_go_counts_epochs(study, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("study.cells.time.monotonic", lambda: now[0])
    board = Board(study, study.cells, io.StringIO())
    path = study.directory_of(Cell("na", 0)) / "history.csv"
    path.write_text(path.read_text() + "3,.5\n")
    now[0] += 600  # for one epoch, and 9 are left
    assert board.time_to_go() == ", about 1 h 30 min to go"
    board.states[Cell("na", 1)] = "failed"  # 4 of which will not come
    assert board.time_to_go() == ", about 50 min to go"


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "1 min"), (150, "2 min"), (3600, "1 h 00 min"), (7500, "2 h 05 min")]
)
def test_durations_are_in_minutes(seconds, text):
    assert in_words(seconds) == text
