"""A persistent index of vectors, for retrieval and copy detection: records, vectors, search, calibration.

Nothing here knows what the vectors mean or what a copy is; the rooms above do.
"""

from typing import Literal

Metric = Literal["ip", "l2", "hamming"]
