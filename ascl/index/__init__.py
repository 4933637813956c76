"""One persistent index of vectors for both halves: records, vectors, search (exact and compressed), calibration.

Nothing here knows what the vectors show, nor what a copy is: that is the business of the rooms above.
"""

from typing import Literal

Metric = Literal["ip", "l2", "hamming"]
