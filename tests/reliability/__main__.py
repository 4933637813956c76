"""Damage inputs and kill programs for as long as one likes, and count what came of it.

  python -m tests.reliability --minutes 60            prints a table; adds rows to benchmarks/results.csv
  python -m tests.reliability --cases 2000 --kills 5  a short round; rows only to a given --results

Every case damages one small file of a kind that the project reads (flipped bits, cuts, moved and repeated blocks,
values of other types, pickles and archives that would run code) and reads it. What may happen: the file reads as before
or as another valid one, or it is refused by an error that names it. What may not: any other exception, a wrong answer
in silence, a hang, a dead process, code that ran. Every kill ends a command at a random moment; the same command is
then given again, and its result must be that of a run that nobody killed.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import torch

from ascl.core.provenance import environment
from benchmarks import results

from .damage import FAULTS, FINE, try_damage
from .kills import OUTCOMES, WORKS, try_kills
from .kinds import KINDS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after this time (default: %(default)s)")
    parser.add_argument("--cases", type=int, default=100_000, help="damaged inputs (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=1000, help="killed commands (default: %(default)s)")
    parser.add_argument("--kind", help="only kinds whose name contains this")
    parser.add_argument("--seed", type=int, default=0, help="of the damage and the moments (default: %(default)s)")
    parser.add_argument("--results", metavar="FILE", help="CSV for the rows (default: benchmarks/results.csv)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    until = time.time() + 60 * options.minutes
    kinds = [kind for kind in KINDS if not options.kind or options.kind in kind.name]
    works = [work for work in WORKS if not options.kind or options.kind in work.name]
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        counts: Counter[tuple[str, str]] = Counter()
        faults: list[str] = []
        record = scratch / "cases.jsonl"
        record.touch()
        if kinds and options.cases:
            try_damage(scratch, kinds, options.seed, until - 60 * options.minutes / 3, options.cases, record)
        names: dict[int, str] = {}
        for line in map(json.loads, record.read_text(encoding="utf-8").splitlines()):
            if "kind" in line:
                names[line["case"]] = line["kind"]
                continue
            counts[names[line["case"]], line["outcome"]] += 1
            if line["outcome"] in FAULTS:
                faults.append(f"case {line['case']}, {names[line['case']]}: {line['outcome']}: {line['said']}")
        kills: Counter[tuple[str, str]] = Counter()
        if works and options.kills:
            for name, times, result, said in try_kills(scratch, works, options.seed, until, options.kills):
                kills[name, result] += times
                if said:
                    faults.append(f"kill of {name}: {result}: {said}")
        os.chdir(home)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print("\n\n".join(faults[:50]))
    table = [("damaged input", counts, [*FINE, *FAULTS], [kind.name for kind in kinds]),
             ("killed command", kills, list(OUTCOMES),
              [work.name for work in works])]
    rows, commit = [], environment()["commit"]
    for what, found, outcomes, of in table:
        print(f"\n| {what} | tried | {' | '.join(outcomes)} |\n|---|{'--:|' * (len(outcomes) + 1)}")
        for name in [*of, "all"]:
            each = [sum(count for (kind, result), count in found.items() if result == one and name in (kind, "all"))
                    for one in outcomes]
            print(f"| {name} | {sum(each):,} | {' | '.join(map(str, each))} |")
            rows.append(results.Row(
                f"reliability, {what}, {name}: tried, then {', '.join(outcomes)}",
                " ".join(map(str, [sum(each), *each])), "cases", f"python -m tests.reliability --seed {options.seed}",
                results.hardware(torch.device("cpu")), commit, results.versions(), results.today(),
                f"largest process {peak:.2f} GiB"))
    print(f"\nlargest process: {peak:.2f} GiB; faults: {len(faults)}")
    if options.results or not options.kind:
        results.append(options.results or results.RESULTS, rows)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
