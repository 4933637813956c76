"""Small programs that keep the contract of `ascl train` and `ascl eval` without a network, in a tenth of a second.

For the tests of what starts, resumes and divides runs; one test has the real programs. A file `hold` beside tools/
stops a training after its second step, for as long as it is there.
"""

import csv
import re
import time
from pathlib import Path

import yaml

from ascl.settings.base import to_dict
from ascl.settings.retrieval import Config

from ...warm_python import REPOSITORY, Program

OUT = Path("runs") / "ablation-tiny"

SETTINGS = """
dataset: tiny
data: {captions: data/captions.json, features: [data/regions.h5, data/globals.h5]}
train: {max_steps: 6, batch_size: 8}
"""

# A "weight" that takes a step at a time from the settings and the seed, so that a resume has something to get wrong.
TRAIN = '''
import json, os, sys, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np, yaml

# the settings as ascl.settings.retrieval reads them, without an import of ascl, which takes longer than all the rest
here = Path(__file__).resolve().parents[1]
words = [part for word in sys.argv[1:] for part in (word.split("=", 1) if word.startswith("--") else [word])]
given = dict(zip(words[::2], words[1::2]))
resumed = given.pop("--resume", None)
if resumed is None:
    settings = yaml.safe_load((here / "defaults.yaml").read_text())
    for group, values in yaml.safe_load((here / "configs" / "tiny.yaml").read_text()).items():
        settings[group] = settings[group] | values if isinstance(values, dict) else values
else:
    settings = yaml.safe_load((Path(resumed) / "settings.yaml").read_text()) | {"out": resumed}
for name, value in given.items():
    *groups, leaf = name[2:].split(".")
    group = settings[groups[0]] if groups else settings
    if isinstance(group[leaf], list):
        group[leaf] = value.strip("[]").split(",")
    else:
        group[leaf] = value if isinstance(group[leaf], str) else yaml.safe_load(value)
config = SimpleNamespace(**{k: SimpleNamespace(**v) if isinstance(v, dict) else v for k, v in settings.items()})
run = Path(config.out)
with open(here / "started.txt", "a") as file:
    file.write(f"{run.name} {resumed is not None}\\n")
mine = here / f"running-{run.name}"
if mine.exists() and Path("/proc", mine.read_text()).exists():
    (here / "TWICE").write_text(run.name)
mine.write_text(str(os.getpid()))
(here / f"environment-{run.name}.json").write_text(json.dumps(dict(os.environ)))
if config.loss.kind == "triplet":
    print("loading")
    sys.exit("ValueError: this one cannot be trained")
if resumed is None and (run / "last.pt").exists():
    sys.exit(f"error: {run} already holds a run")
run.mkdir(parents=True, exist_ok=True)

def save(name, **arrays):
    with open(run / "unfinished", "wb") as file:
        np.savez(file, **arrays)
    os.replace(run / "unfinished", run / name)

(run / "settings.yaml").write_text(yaml.safe_dump(settings))
if resumed is None:
    (run / "environment.json").write_text(json.dumps({"commit": "c", "python": "3", "torch": "2", "device": "CPU"}))
step, weight, lines = 0, 0.0, []
if resumed is not None:
    state = np.load(run / "last.pt")
    step, weight = int(state["step"]), float(state["weight"])
    lines = (run / "metrics.jsonl").read_text().splitlines()[:step]
different = sum(map(ord, str(settings["samples"]) + str(config.model.fusion))) % 97
while step < config.train.max_steps:
    if config.optimizer.lr > 1 and step == 3:
        sys.exit("error: the loss of step 4 (epoch 1, batch 4) is not finite: loss = nan; learning rate 2.")
    weight += np.random.default_rng([config.train.seed, different, step]).random()
    step += 1
    lines.append(json.dumps({"kind": "train", "step": step, "seconds": step / 2}))
    (run / "metrics.jsonl").write_text("\\n".join(lines) + "\\n")
    save("last.pt", step=step, weight=weight)
    while step == 2 and (here / "hold").exists():
        time.sleep(0.02)
# the best learning rate is 0.3 with generated negatives, and 0.1 without
best = 0.1 if config.samples.negatives == "none" else 0.3
lines.append(json.dumps({"kind": "validation", "step": step, "rsum": 100 - abs(config.optimizer.lr - best),
                         "seconds": step / 2}))
(run / "metrics.jsonl").write_text("\\n".join(lines) + "\\n")
save("best.pt", weight=weight)
mine.unlink()
'''

EVAL = '''
import argparse, json, sys
from pathlib import Path
import numpy as np
parser = argparse.ArgumentParser()
for name in ("--checkpoint", "--scores", "--split", "--out", "--captions", "--probe_captions"):
    parser.add_argument(name)
parser.add_argument("--features", nargs="+")
options = parser.parse_args()
owner = np.repeat(np.arange(20), 2)
if options.scores:
    if not Path(options.scores).exists():
        sys.exit(f"error: no score file at {options.scores}")
    seed, folder, name, about = 5, Path(options.out), Path(options.scores).stem, {"protocol": "ranking of given scores"}
    folder.mkdir(parents=True, exist_ok=True)
else:
    folder, name = Path(options.checkpoint), options.split
    seed = int(1e6 * float(np.load(folder / "best.pt")["weight"]))
    about = {"runs": [options.checkpoint], "split": options.split, "protocol": "all pairs"}
generator = np.random.default_rng(seed)
i2t, t2i = generator.integers(0, 14, 20), generator.integers(0, 14, 40)
found = {"i2t": i2t, "t2i": t2i}
report = {way: {f"r{k}": 100 * float((ranks < k).mean()) for k in (1, 5, 10)} for way, ranks in found.items()}
report["rsum"] = sum(sum(recalls.values()) for recalls in report.values())
probes = {"by_asymmetry": {kind: {"right": float(generator.random())} for kind in ("I", "II", "III")}, "kinds": {}}
queries = {"image_queries": np.arange(20), "text_queries": np.arange(40), "owner": owner}
np.savez(folder / f"ranks-{name}.npz", **found, **queries)
if options.probe_captions:
    about["probes"] = probes
(folder / f"eval-{name}.json").write_text(json.dumps({**about, "reports": {"full": report}}))
with open(Path(__file__).resolve().parents[1] / "evaluated.txt", "a") as file:
    file.write(f"{folder.name} {options.captions} {options.features}\\n")
'''


MAIN = """import runpy, sys
from pathlib import Path

name = sys.argv.pop(1)
sys.argv[0] = f"tools/{name}.py"
runpy.run_path(str(Path(__file__).with_name(f"{name}.py")), run_name="__main__")
"""


def make_place(folder: Path) -> Path:
    """A working folder with settings of a data set, where `python -m ascl train|eval` finds small programs."""
    (folder / "ascl").mkdir(parents=True)
    (folder / "configs").mkdir()
    (folder / "data").mkdir()
    (folder / "ascl" / "__init__.py").touch()         # a package, which comes before any other of its name
    (folder / "ascl" / "__main__.py").write_text(MAIN)
    (folder / "ascl" / "train.py").write_text(TRAIN)
    (folder / "ascl" / "eval.py").write_text(EVAL)
    (folder / "configs" / "tiny.yaml").write_text(SETTINGS)
    (folder / "defaults.yaml").write_text(yaml.safe_dump(to_dict(Config())))
    for name in ("captions.json", "regions.h5", "globals.h5"):
        (folder / "data" / name).write_text(name)
    return folder


def start(place, *more):
    """`ascl ablate` in a process of its own."""
    words = ["--dataset", "tiny", "--study", "table2", "--parallel", "1", *more]
    return Program(REPOSITORY / "tools" / "ablate.py", *words, cwd=place, environment={"ACCELERATE_USE_CPU": "true"})


def running(place):
    """Process numbers of the trainings that are at work."""
    found = [int(path.read_text()) for path in place.glob("running-*")]
    return [number for number in found if Path("/proc", str(number)).exists()]


def started(place):
    """[(run, resumed)] in order; empty where nothing was started."""
    path = place / "started.txt"
    return [tuple(line.split()) for line in path.read_text().splitlines()] if path.exists() else []


def tables(folder, study="table2"):
    """Markdown and CSV without the one column that is a matter of the clock, seconds."""
    text = re.sub(r"^(\|.* of \d+ \|) \d+ \|$", r"\1", (folder / f"{study}.md").read_text(), flags=re.MULTILINE)
    rows = list(csv.DictReader((folder / f"{study}.csv").open()))
    return text, [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def wait_for(condition, seconds=60):
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("waited in vain")
