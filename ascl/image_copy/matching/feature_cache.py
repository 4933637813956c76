"""Local features of the images of an index, and how its images are related, kept beside it.

So each picture is read once, and each pair compared once. The file is a cache: what is missing, damaged or of another
version is computed again, and it may be deleted.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from ascl.image_copy.matching.geometry import Relation
from ascl.image_copy.matching.local_features import LocalFeatures

FEATURES = "local-features.sqlite"
VERSION = 1             # of what `local_features` and `relate` find; a file of another version is made anew
TABLES = {"features": "sha256 BLOB PRIMARY KEY, checksum INTEGER, data BLOB",
          "relations": "query BLOB, reference BLOB, checksum INTEGER, json TEXT, PRIMARY KEY (query, reference)"}
PATIENCE = 30.0         # seconds to wait while another process writes


class FeatureCache:
    """Local features by the SHA-256 of the picture's file, in a folder that may be read-only or fail.

    Several processes may use one. A failure of the disk makes it slower, and is no error.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FEATURES
        self._connection = self._open()

    def _open(self) -> sqlite3.Connection | None:
        for _ in range(2):
            try:
                connection = sqlite3.connect(self.path, PATIENCE, isolation_level=None, check_same_thread=False)
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                other = connection.execute("PRAGMA user_version").fetchone()[0] not in (0, VERSION)
                for name, columns in TABLES.items():
                    if other:
                        connection.execute(f"DROP TABLE IF EXISTS {name}")
                    connection.execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns})")
                connection.execute(f"PRAGMA user_version = {VERSION}")
                return connection
            except sqlite3.OperationalError:        # read-only, full, or locked for long
                return None
            except sqlite3.DatabaseError:           # damaged
                for suffix in ("", "-wal", "-shm"):
                    with suppress(OSError):
                        self.path.with_name(self.path.name + suffix).unlink()
        return None

    def get(self, sha256: bytes) -> LocalFeatures | None:
        """Return the features of a file; None if they are not there, or damaged."""
        if self._connection is None:
            return None
        try:
            held = self._connection.execute("SELECT checksum, data FROM features WHERE sha256 = ?", [sha256]).fetchone()
        except sqlite3.DatabaseError:
            return None
        if held is None or not isinstance(held[1], bytes) or zlib.crc32(held[1]) != held[0]:
            return None
        return LocalFeatures.from_bytes(held[1])

    def put(self, sha256: bytes, features: LocalFeatures) -> None:
        """Keep the features of a file."""
        data = features.to_bytes()
        if self._connection is not None:
            with suppress(sqlite3.DatabaseError):
                self._connection.execute("INSERT OR REPLACE INTO features VALUES (?, ?, ?)",
                                         [sha256, zlib.crc32(data), data])

    def missing(self, wanted: Collection[bytes]) -> set[bytes]:
        """Return those of some SHA-256 for which nothing is kept and something could be."""
        if self._connection is None:
            return set()
        try:
            return set(wanted) - {one for (one,) in self._connection.execute("SELECT sha256 FROM features")}
        except sqlite3.DatabaseError:
            return set()

    def relations(self, pairs: Iterable[tuple[bytes, bytes]]) -> dict[tuple[bytes, bytes], Relation | None]:
        """Return (SHA-256 of the query, of the reference) -> how they are related, of those pairs that are kept."""
        found = dict[tuple[bytes, bytes], Relation | None]()
        if self._connection is None:
            return found
        with suppress(sqlite3.DatabaseError):
            for pair in pairs:
                held = self._connection.execute("SELECT checksum, json FROM relations WHERE query = ? AND "
                                                "reference = ?", pair).fetchone()
                if held is not None and isinstance(held[1], str) and zlib.crc32(held[1].encode()) == held[0]:
                    found[pair] = Relation.from_dict(json.loads(held[1]))
        return found

    def put_relations(self, related: dict[tuple[bytes, bytes], Relation | None]) -> None:
        """Keep how pairs are related, all or none."""
        texts = {pair: json.dumps(None if one is None else one.to_dict()) for pair, one in related.items()}
        if self._connection is not None:
            with suppress(sqlite3.DatabaseError):
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    self._connection.executemany("INSERT OR REPLACE INTO relations VALUES (?, ?, ?, ?)", (
                        (*pair, zlib.crc32(text.encode()), text) for pair, text in texts.items()))
                    self._connection.execute("COMMIT")
                finally:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")

    def keep_only(self, wanted: Collection[bytes]) -> int:
        """Forget the features of all other files, give their space back, and return how many they were."""
        if self._connection is None:
            return 0
        try:
            held = [one for (one,) in self._connection.execute("SELECT sha256 FROM features")]
            gone = set(held) - set(wanted)
            if gone:
                for table, column in (("features", "sha256"), ("relations", "query"), ("relations", "reference")):
                    self._connection.executemany(f"DELETE FROM {table} WHERE {column} = ?", [[one] for one in gone])
                self._connection.execute("VACUUM")
        except sqlite3.DatabaseError:
            return 0
        return len(gone)
