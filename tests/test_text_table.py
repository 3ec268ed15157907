"""na_keras.text_table: the same rows for a terminal, for Markdown and for a spreadsheet."""

import pytest

from na_keras.text_table import text_table

HEADER, ROWS = ("network", "ms"), [("a, b|c", 1.5), ("longer name", 12)]


def test_numbers_are_aligned_to_the_right():
    assert text_table(HEADER, ROWS).splitlines() == ["network       ms", "a, b|c       1.5", "longer name   12"]


def test_markdown_and_csv_quote_what_would_separate_cells():
    assert text_table(HEADER, ROWS, "markdown").splitlines() == [
        "| network     |  ms |",
        "| ----------- | --: |",
        r"| a, b\|c     | 1.5 |",
        "| longer name |  12 |",
    ]
    assert text_table(HEADER, ROWS, "csv").splitlines() == ["network,ms", '"a, b|c",1.5', "longer name,12"]


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match="style must be one of .*'csv'.*Received: 'html'"):
        text_table(HEADER, ROWS, "html")
    with pytest.raises(ValueError, match="Expected 2 values in each row"):
        text_table(HEADER, [("a",)])
