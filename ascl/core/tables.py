"""Markdown tables, written by one function for every report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]], *, text_columns: int = 1) -> str:
    """Return a Markdown table without a line break at its end.

    Args:
        header: names of the columns.
        rows: cells; pipes are escaped, line breaks become spaces.
        text_columns: the first `text_columns` columns are text, aligned left; the others are numbers, aligned right.

    Raises:
        ValueError: a row has more or fewer cells than the header.
    """
    rule = ["---" if column < text_columns else "--:" for column in range(len(header))]
    lines = []
    for row in (header, rule, *rows):
        if len(row) != len(header):
            raise ValueError(f"a row of {len(row)} cells under a header of {len(header)}: {list(row)}")
        cells = (str(cell).replace("|", "\\|").replace("\n", " ") for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
