"""Read the data of each plot from finished runs and studies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ascl.analysis import diagnostics
from ascl.analysis.ablation.studies import STUDIES
from ascl.analysis.ablation.table import read_table
from ascl.analysis.evaluation import RunSplit, bar, evaluate_paired, load_split
from ascl.analysis.figures import draw
from ascl.analysis.figures.draw import Drawing
from ascl.analysis.query_ranks import QueryRanks, read_ranks
from ascl.analysis.run_files import RECALLS, read_evaluation, recalls_of, validations_of
from ascl.core.errors import DataError
from ascl.core.reading import read_json
from ascl.models import AsCL
from ascl.settings.base import read_settings
from ascl.settings.retrieval import Config
from ascl.training.log import METRICS, read_metrics

LAST_LENGTHS = (6, 8, 10, 12, 15)           # bins of words: up to 6, 7-8, 9-10, 11-12, 13-15, 16 or more
WEIGHTS = tuple(round(0.1 * tenth, 1) for tenth in range(11))


class RunGroup(NamedTuple):
    """Runs that differ only in their seed, with one label."""

    label: str
    runs: tuple[Path, ...]


def run_groups(sources: Sequence[str], only: Sequence[str] = ()) -> list[RunGroup]:
    """Return the runs of each source: `RUN`, `LABEL=RUN,RUN,...`, the CSV of a study, or a folder of `ascl ablate`.

    A CSV stands for its variants, a folder for those of all its studies.

    Args:
        only: labels to keep, in this order; empty = all.

    Raises:
        DataError, FileNotFoundError: a run or file does not exist, a label is unknown or names different runs, or two
            runs of one label have the same seed.
    """
    groups: dict[str, tuple[Path, ...]] = {}
    for label, runs in (named for source in sources for named in _named_runs(source)):
        known = groups.setdefault(label, runs)      # studies share variants, so the same runs may come twice
        if {run.resolve() for run in known} != {run.resolve() for run in runs}:
            raise DataError(f"two sources are called {label!r}: rename one, as in NAME=RUN")
    for label in only:
        if label not in groups:
            raise DataError(f"{label!r}: no such label; choose from {', '.join(map(repr, groups))}")
    chosen = [RunGroup(label, groups[label]) for label in only or groups]
    for group in chosen:
        if not group.runs:
            raise DataError(f"{group.label!r} names no run: give {group.label}=RUN,RUN")
        of_seed: dict[int, Path] = {}
        for run in group.runs:
            if not (run / "settings.yaml").is_file():
                raise DataError(f"{run} is not a run, because it has no settings.yaml: train one with ascl train "
                                f"--dataset NAME --out {run}")
            known_run = of_seed.setdefault(seed := _setting(run, "train.seed"), run)
            if known_run is not run:
                raise DataError(f"{known_run} and {run}, both {group.label!r}, have the seed {seed}: give runs that "
                                "differ only in their seed")
    return chosen


def _named_runs(source: str) -> list[tuple[str, tuple[Path, ...]]]:
    """Return (label, its runs) for each label of one source."""
    label, equals, runs = source.partition("=")
    tables = [Path(source)] if source.endswith(".csv") else [
        table for study in STUDIES if (table := Path(source) / f"{study}.csv").is_file()]
    if tables:
        of_label: dict[str, dict[Path, None]] = {}
        for row in (row for table in tables for row in read_table(table)):
            of_label.setdefault(row["label"], {})[Path(row["run"])] = None
        return [(label, tuple(of)) for label, of in of_label.items()]
    if equals and not Path(source).exists():
        return [(label, tuple(Path(run) for run in dict.fromkeys(runs.split(",")) if run))]
    return [(Path(source).resolve().name, (Path(source),))]


def _setting(run: Path, name: str) -> Any:
    """Return one setting of a run, by dotted name."""
    settings = read_settings(Config, run / "settings.yaml")
    if name not in settings:
        raise DataError(f"{run / 'settings.yaml'} has no {name}, so it was not written by `ascl train`: give a run of "
                        "`ascl train`")
    return settings[name]


def _seeds_of(groups: Sequence[RunGroup]) -> str:
    """Return a line on the seeds of all groups, once if they agree."""
    seeds = {group.label: _seeds_text(_setting(run, "train.seed") for run in group.runs) for group in groups}
    every = list(dict.fromkeys(seeds.values()))
    return every[0] if len(every) == 1 else "; ".join(f"{label}, {text}" for label, text in seeds.items())


def _seeds_text(seeds: Iterable[object]) -> str:
    names = sorted({str(seed) for seed in seeds}, key=lambda name: (len(name), name))
    return f"seed{'s' if len(names) > 1 else ''} {', '.join(names)}"


def samples(sources: Sequence[str]) -> Drawing:
    """Draw AsCL's figure 3. sources: output folder of `ascl ablate`, or its positives.csv and negatives.csv."""
    panels, rows = {}, []
    titles = {"positives": "(a) Positives: Asymmetry-II and III", "negatives": "(b) Negatives: Asymmetry-I"}
    for study, title in titles.items():
        found = _study(sources, study)
        panels[title] = [draw.Values(label, tuple(_number(row, "rsum") for row in found if row["label"] == label))
                         for label in dict.fromkeys(row["label"] for row in found)]
        rows += found
    return draw.draw_samples(panels, _about_study(rows))


def against_setting(sources: Sequence[str], setting: str) -> Drawing:
    """Draw the recall of models trained with different values of one setting.

    Args:
        sources: as for `samples`.
        setting: `loss.temperature` (study `loss`) or `model.local_weight` (study `fusion`).
    """
    study, title, x_label, log = {
        "loss.temperature": ("loss", "temperature", "temperature of the loss (no unit)", True),
        "model.local_weight": ("fusion", "local weight", "u1, the weight of the local score (0 to 1)", False),
    }[setting]
    points: dict[float, list[dict[str, float]]] = {}
    rows = []
    for row in _study(sources, study):
        values = dict(part.split("=", 1) for part in row["variant"].split() if "=" in part)
        if setting not in values:
            continue
        try:
            at = float(values[setting])
        except ValueError:
            raise DataError(f"study {study}, variant {row['variant']!r}: its {setting} is not a number; write the "
                            "table again with `ascl ablate`") from None
        points.setdefault(at, []).append({name: _number(row, name) for name in RECALLS})
        rows.append(row)
    if len(points) < 2:
        raise DataError(f"the study {study} has {len(points)} finished values of {setting}, but a curve needs two: "
                        f"continue with ascl ablate --dataset NAME --study {study}")
    return draw.draw_against([draw.RecallCurve("trained at each", points)], x_label=x_label, log=log,
                             title=f"Recall by the {title} in training\n{_about_study(rows)}")


def _study(sources: Sequence[str], study: str) -> list[dict[str, str]]:
    """Return the rows of one study, from CSV files and from STUDY.csv in folders, without duplicate runs."""
    of_seed: dict[tuple[str, str], dict[str, str]] = {}
    looked = []
    for source in map(Path, sources):
        in_folder = source.is_dir() or not source.suffix
        path = source / f"{study}.csv" if in_folder else source
        looked.append(str(path))
        if in_folder and not path.is_file():
            continue
        for row in read_table(path):
            if row["study"] == study:
                known = of_seed.setdefault((row["label"], row["seed"]), row)
                if Path(known["run"]).resolve() != Path(row["run"]).resolve():
                    raise DataError(f"{known['run']} and {row['run']}, both {row['label']!r}, have the seed "
                                    f"{row['seed']}: plot tables of different ablations separately")
    if not of_seed:
        raise DataError(f"no run of the study {study} in {', '.join(looked)}: run ascl ablate --dataset NAME "
                        f"--study {study}")
    return list(of_seed.values())


def _number(row: dict[str, str], name: str) -> float:
    try:
        return float(row[name])
    except ValueError:
        raise DataError(f"study {row['study']}, variant {row['label']!r}, seed {row['seed']}: {name} is {row[name]!r}, "
                        "not a number; write the table again with `ascl ablate`") from None


def _about_study(rows: Sequence[dict[str, str]]) -> str:
    """Return data set, split, sizes and seeds of the runs behind some rows, as far as their folders exist."""
    tested = _TestedOn()
    for run in dict.fromkeys(Path(row["run"]) for row in rows):
        if (run / "settings.yaml").is_file():
            split = _setting(run, "data.test")
            if (evaluation := run / f"eval-{split}.json").is_file():
                full = read_evaluation(evaluation, whole=True)["reports"]["full"]
                tested.add(run, split, full["images"], full["texts"])
    return f"{tested.place}; " * bool(tested.place) + _seeds_text(row["seed"] for row in rows)


class _TestedOn:
    """The test set of the runs in one plot, which must be the same for all."""

    place = ""

    def add(self, run: Path, split: str, images: int, texts: int) -> None:
        """Add a run; raise DataError if its test set differs from that of earlier runs."""
        place = f"{_setting(run, 'dataset') or 'data'}, {split} split, {images:,} images and {texts:,} texts"
        if self.place and self.place != place:
            raise DataError(f"{run} was tested on {place}, earlier runs on {self.place}: draw them in separate plots")
        self.place = place

    def load(self, run: Path, *arguments: Any, **options: Any) -> RunSplit:
        """Return `load_split` of a run, and add its split."""
        loaded = load_split(run, *arguments, **options)
        self.add(run, loaded.split, len(loaded.captions.image_ids), len(loaded.captions.captions))
        return loaded


def alignment(groups: Sequence[RunGroup], split: str | None, *, overrides: dict[str, Any]) -> Drawing:
    """Draw AsCL's figure 4: alignment and uniformity."""
    variants, tested = [], _TestedOn()
    for group in groups:
        seeds, stands_in = [], False
        for run in group.runs:
            loaded = tested.load(run, split, overrides)
            vectors = diagnostics.item_vectors(loaded.model, *loaded.encode())
            seeds.append(diagnostics.geometry(vectors.images, vectors.texts, loaded.captions.owner))
            stands_in |= not vectors.decide_score
        variants.append(draw.VariantGeometry(group.label, tuple(map(str, group.runs)), tuple(seeds), stands_in))
    return draw.draw_geometry(variants, f"{tested.place}; {_seeds_of(groups)}")


def local_weight(groups: Sequence[RunGroup], split: str | None, *, overrides: dict[str, Any]) -> Drawing:
    """Draw recall against u1 for models trained at one u1 and scored at others.

    split: None = the images that the runs were validated on in training, because test data must not select settings.
    """
    curves, tested, student = [], _TestedOn(), ""
    for group in groups:
        trained_at = {_setting(run, "model.local_weight") for run in group.runs}
        points: dict[float, list[dict[str, float]]] = {weight: [] for weight in sorted({*WEIGHTS, *trained_at})}
        for run in group.runs:
            loaded = tested.load(run, split, overrides, validation=True)
            if not isinstance(loaded.model, AsCL):
                raise DataError(f"{run} is of kind {loaded.config.model.kind}, which has no local weight: leave it out")
            images, texts = loaded.encode()
            student = " (without the student)" if images.student is not None else student
            with bar(2 * len(images) * len(texts), f"scoring {run}") as shown:
                scores = diagnostics.local_and_global_scores(loaded.model, images, texts, progress=shown.update)
            reports = diagnostics.recall_by_local_weight(*scores, loaded.captions.owner, list(points))
            for of_weight, report in zip(points.values(), reports, strict=True):
                of_weight.append(recalls_of(report.to_dict()))
        mark = trained_at.pop() if len(trained_at) == 1 else None
        curves.append(draw.RecallCurve(group.label, points, mark))
    title = f"Recall by the local weight in scoring{student}\n{tested.place}; {_seeds_of(groups)}"
    return draw.draw_against(curves, title=title, mark_label="u1 in training",
                             x_label="u1, the weight of the local score (0 to 1); not retrained")


def leak(groups: Sequence[RunGroup], split: str | None, *, overrides: dict[str, Any]) -> Drawing:
    """Draw the honest evaluation next to the one that sees the answer."""
    variants, tested = {}, _TestedOn()
    for group in groups:
        by_protocol: dict[str, list[dict[str, float]]] = {}
        for run in group.runs:
            for protocol, report in evaluate_paired(str(run), split, overrides=overrides).items():
                by_protocol.setdefault(protocol, []).append(recalls_of(report.to_dict()))
            tested.add(run, split or _setting(run, "data.test"), report.images, report.texts)
        variants[group.label] = [draw.ProtocolRecalls(name, "PAIRED" in name, tuple(seeds))
                                 for name, seeds in by_protocol.items()]
    return draw.draw_leak(variants, f"{tested.place}; {_seeds_of(groups)}")


def lengths(groups: Sequence[RunGroup], split: str | None, *, last_lengths: Sequence[int] = LAST_LENGTHS,
            sample: int | None = None, seed: int = 0) -> Drawing:
    """Draw AsCL's figure 5, from the `ranks-SPLIT.npz` of the runs.

    The intervals are for the queries that are drawn, so they show how much recalls change from sample to sample.

    Args:
        sample: draw only this many queries, the same of all runs; 1,000 in the paper. None = all. seed: of the sample.

    Raises:
        DataError: runs have other queries, or there are fewer queries than `sample`.
    """
    split = split or _setting(groups[0].runs[0], "data.test")
    first = _ranks(groups[0].runs[0], split)
    words = np.array([diagnostics.count_words(first.caption(query)) for query in first.text_queries])
    queries = np.arange(len(words))
    if sample is not None:
        if sample > len(queries):
            raise DataError(f"a sample of {sample:,} queries, but {groups[0].runs[0]} ranked only {len(queries):,}: "
                            "take fewer, or all")
        queries = np.random.default_rng(seed).choice(queries, sample, replace=False)
    variants = {}
    for group in groups:
        of_runs = []
        for run in group.runs:
            ranks = _ranks(run, split)
            if not first.same_queries(ranks):
                raise DataError(f"{run} was evaluated on other queries than {groups[0].runs[0]}: draw runs of "
                                "different data sets or splits separately")
            of_runs.append(ranks.t2i[queries])
        variants[group.label] = diagnostics.recall_by_length(np.stack(of_runs), words[queries], last_lengths)
    tested = _TestedOn()
    tested.add(groups[0].runs[0], split, first.images, len(first.owner))
    part = "" if sample is None else f"; a sample of {sample:,} queries (seed {seed})"
    return draw.draw_lengths(variants, f"{tested.place}; {_seeds_of(groups)}{part}")


def _ranks(run: Path, split: str) -> QueryRanks:
    path = run / f"ranks-{split}.npz"
    command = f"ascl eval --checkpoint {run} --split {split}"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: run {command}")
    ranks = read_ranks(path)
    if ranks.captions is None:
        raise DataError(f"{path} holds no captions, so query lengths are unknown: evaluate again with {command}")
    return ranks


class _Validated:
    """What the validations of the runs in one plot are of, which must be the same for all."""

    of: str | None = None

    def read(self, run: Path, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return a run's validations with an Rsum; raise DataError if they are of something else than earlier ones."""
        validations, of = validations_of(records)
        if self.of not in (None, of):
            raise DataError(f"{run} has the validation Rsum{of or ' of the whole split'}, earlier runs have that"
                            f"{self.of or ' of the whole split'}: draw them in separate plots")
        self.of = of
        return [record for record in validations if record["rsum"] is not None]


def curves(groups: Sequence[RunGroup]) -> Drawing:
    """Draw training curves from the metrics.jsonl of the runs."""
    found, validated = [], _Validated()
    for group in groups:
        for run in group.runs:
            records = read_metrics(run / METRICS)
            loss, rsum = (tuple((record["step"], record[name]) for record in of_kind if record.get(name) is not None)
                          for of_kind, name in ((records, "loss"), (validated.read(run, records), "rsum")))
            if not loss:
                raise DataError(f"{run / METRICS} has no training records yet: train longer, or leave {run} out")
            found.append(draw.RunCurve(group.label, str(run), loss, rsum))
    datasets = ", ".join(dict.fromkeys(_setting(run, "dataset") or "data" for group in groups for run in group.runs))
    return draw.draw_curves(found, f"{datasets}; {_seeds_of(groups)}", validated.of or "")


def times(groups: Sequence[RunGroup]) -> Drawing:
    """Draw the best validation so far against the time of training, from the metrics.jsonl of the runs."""
    found, validated, places, devices = [], _Validated(), dict[str, Path](), dict[str, None]()
    for group in groups:
        for run in group.runs:
            validations = validated.read(run, read_metrics(run / METRICS))
            if not validations:
                raise DataError(f"{run / METRICS} has no validation yet: train longer, or leave {run} out")
            if any(record.get("seconds") is None for record in validations):
                raise DataError(f"{run / METRICS} does not say how many seconds of training a validation came after, "
                                f"as an earlier version wrote it: train {run} again, or leave it out")
            places.setdefault(f"{_setting(run, 'dataset') or 'data'}, {_setting(run, 'data.val')} split", run)
            devices[str(read_json(run / "environment.json", dict, "train the run again").get("device"))] = None
            found.append(draw.TimeCurve(group.label, str(run), tuple(
                (float(record["seconds"]), float(record["rsum"])) for record in validations)))
    if len(places) > 1:
        where = "; ".join(f"{run}: {place}" for place, run in places.items())
        raise DataError(f"runs that were validated on different data cannot be compared: {where}")
    return draw.draw_times(found, f"{next(iter(places))}; {_seeds_of(groups)}; {' and '.join(devices)}",
                           validated.of or "")
