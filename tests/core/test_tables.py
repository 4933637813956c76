"""Markdown tables: as many cells in every row, whatever the cells hold."""

import pytest

from ascl.core.tables import markdown_table


def test_a_table_is_its_cells():
    table = markdown_table(["name", "what", "n"], [["a|b", "x\ny", 3], ["", None, 1.5]], text_columns=2)
    assert table.splitlines() == [
        "| name | what | n |", "| --- | --- | --: |", "| a\\|b | x y | 3 |", "|  | None | 1.5 |"]


def test_a_table_without_rows_is_its_header():
    assert markdown_table(["a", "b"], []) == "| a | b |\n| --- | --: |"


def test_a_row_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="1 cells under a header of 2"):
        markdown_table(["a", "b"], [["x"]])
