"""Convert an index of version 2, which had no checksums of its records and only one path per image."""

from __future__ import annotations

import math
import os
from pathlib import Path

from ascl.core.errors import DataError
from ascl.index.places import relative_to
from ascl.index.records import TABLES, Database, checksum_of_numbers
from ascl.index.state import VERSION, Record, damaged
from ascl.index.vectors import checksum_of_file

OLD_COLUMNS = "row, id, path, sha256, size, norm"


def convert(database: Database) -> None:
    """Convert the database in place, in one transaction, unless another process has done so meanwhile.

    Raises:
        DataError: the database is damaged, or the folder cannot be written.
    """
    folder = database.path.parent
    if not os.access(folder, os.W_OK):
        raise DataError(f"{folder} is an index of version 2, which is converted when it is opened, and the folder "
                        "cannot be written: open it once where it can")
    with database.change():
        state, version = database.stored()
        if version == VERSION:
            return
        problem = database.check(state)
        if problem:
            raise damaged(database.path, problem)
        arrays, removed = database.arrays(None), database.removed()
        database.run("ALTER TABLE images RENAME TO before")
        database.run("DROP TABLE state")
        for name in ("images", "by_content", "state"):
            database.run(TABLES[name])
        database.insert((row, Record(image, os.fsdecode(path), relative_to(folder, os.fsdecode(path)), sha256, size,
                                     math.nan if norm is None else norm))
                        for row, image, path, sha256, size, norm in database.run(f"SELECT {OLD_COLUMNS} FROM before"))
        database.run("DROP TABLE before")
        database.save(state.after(removed_checksum=checksum_of_numbers(removed), arrays=database.save_arrays(arrays),
                                  compressed=with_checksum(state.compressed, folder)))


def with_checksum(compressed: dict | None, folder: Path) -> dict | None:
    """Return how the compressed index was built, with the checksum of its file; None if the file is not there."""
    if compressed is None or not (folder / compressed["file"]).is_file():
        return None
    return {**compressed, "checksum": checksum_of_file(folder / compressed["file"])}
