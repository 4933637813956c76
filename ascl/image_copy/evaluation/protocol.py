"""How candidates are found among descriptors, with the published settings.

A published number depends on the protocol as much as on the model: which pairs are candidates, what a tie costs, which
background set is used. So the report contains all of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ascl.index.exact import Metric

DISC_CANDIDATES = 500_000  # the challenge's limit for all queries together


@dataclass(frozen=True)
class BackgroundScore:
    """Score normalization: subtract weight * mean of the start..end largest background scores."""

    name: str
    weight: float
    start: int
    end: int

    def __str__(self) -> str:
        return (f"{self.name}: score - beta * mean of the query's background scores at places {self.start} to "
                f"{self.end} (from 0), beta {self.weight:g}")


@dataclass(frozen=True)
class NegativeSubtraction:
    """Negative embedding subtraction; see `subtract_negatives`."""

    beta: float
    neighbours: int
    iterations: int

    def __str__(self) -> str:
        return (f"negative embedding subtraction of queries and references: beta {self.beta:g}, k {self.neighbours}, "
                f"{self.iterations} iteration(s)")


SSCD = BackgroundScore("sscd", weight=1.0, start=0, end=2)
ISC = BackgroundScore("isc", weight=2.0, start=9, end=9)
ISC_WINNER = NegativeSubtraction(beta=0.35, neighbours=10, iterations=1)


@dataclass(frozen=True)
class Protocol:
    """How candidates are found among descriptors."""

    candidates: Literal["global", "per query"] = "global"  # the best pairs over all queries, or the best of each
    limit: int = DISC_CANDIDATES  # number of best pairs
    normalization: BackgroundScore | NegativeSubtraction | None = None  # by the background; None = none
    whiten: int | None = None  # dimensions to whiten to, by the background's principal components; None = no whitening
    device: str = "cpu"  # where blocks are scored, "cpu" or "cuda"

    @property
    def metric(self) -> Metric:
        """Return "ip" for normalized scores, which are inner products, else "l2", the challenge's rule."""
        return "ip" if isinstance(self.normalization, BackgroundScore) else "l2"

    def rule(self) -> str:
        """Return the rule for candidates in words."""
        if self.candidates == "global":
            return f"the {self.limit:,} best pairs over all queries"
        return f"the {self.limit} best references of each query"
