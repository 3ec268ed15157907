"""Tables as text: aligned for a terminal, in Markdown, or as comma-separated values. Pure Python."""

import csv
import io

STYLES = ("plain", "markdown", "csv")


def text_table(header, rows, style="plain"):
    """A table whose first column is set to the left and whose others, numbers as a rule, to the right.

    Args:
        header: names of the columns.
        rows: one sequence of values per line, each as long as the header; what is no string is shown by `str`.
        style: "plain" (aligned with spaces), "markdown" or "csv".

    Returns:
        String without a newline at its end.

    Raises:
        ValueError: an unknown style, or a row that is not as long as the header.
    """
    if style not in STYLES:
        raise ValueError(f"style must be one of {STYLES}. Received: {style!r}")
    lines = [[str(value) for value in line] for line in (header, *rows)]
    for line in lines:
        if len(line) != len(lines[0]):
            raise ValueError(f"Expected {len(lines[0])} values in each row, as in the header. Received: {line}")
    if style == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        return text.getvalue().removesuffix("\n")
    if style == "markdown":
        lines = [[value.replace("|", r"\|") for value in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    if style == "plain":
        return "\n".join("  ".join(line).rstrip() for line in cells)
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (cells[0], rule, *cells[1:]))
