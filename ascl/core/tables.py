"""Tables as text: one writer of Markdown for every report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]], *, text_columns: int = 1) -> str:
    """Return a Markdown table without a line break at its end.

    Args:
        header: names of the columns.
        rows: cells; a pipe or a line break in one is escaped.
        text_columns: how many of the first columns are text, on the left; the others are numbers, on the right.

    Raises:
        ValueError: a row with more or fewer cells than the header.
    """
    rule = ["---" if column < text_columns else "--:" for column in range(len(header))]
    lines = []
    for row in (header, rule, *rows):
        if len(row) != len(header):
            raise ValueError(f"a row of {len(row)} cells under a header of {len(header)}: {list(row)}")
        cells = (str(cell).replace("|", "\\|").replace("\n", " ") for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
