"""Evaluate a run or given scores and write the results: recalls, and further metrics that the data set allows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ascl.analysis import leakage
from ascl.analysis.binding import BindingReport, binding_report
from ascl.analysis.labels import LabelReport, coco_ids, corrected_labels, may_be_coco_test
from ascl.analysis.probes.caption_variants import caption_variants
from ascl.analysis.probes.probes import ProbeReport, ProbeTexts, group_scores, group_truth, probe_report, probe_texts
from ascl.analysis.probes.scene_variants import scene_variants
from ascl.core.errors import DataError
from ascl.core.files import atomic_path, make_folder, write_text
from ascl.core.provenance import environment
from ascl.data.captions import CaptionSet
from ascl.data.split import build_split
from ascl.data.stores.open import FeatureStore
from ascl.models import AsCL, EncodedImages, EncodedTexts, RetrievalModel
from ascl.retrieval import build, fold_report, rank_report, ranks, score_all_pairs
from ascl.retrieval.multi_positive import MultiPositiveReport, multi_positive_report
from ascl.retrieval.ranking import Ranks
from ascl.retrieval.report import FoldReport, RetrievalReport, recall_report
from ascl.retrieval.score_files import read_owner, read_scores
from ascl.retrieval.train import report_truncated
from ascl.scenes.render import DATASET_FILE, Scene, load_scene_records, truth_matrix
from ascl.settings.retrieval import Config

Reports = dict[str, RetrievalReport | FoldReport]
Section = LabelReport | MultiPositiveReport | ProbeReport | BindingReport      # a table in addition to the recalls

TITLES = {"multi_positive": "every true pair counts: mAP@R and R-Precision", "eccv": "labels of ECCV Caption",
          "cxc": "labels of CxC (Crisscrossed Captions)", "binding": "binding: scenes that hold the same things",
          "probes": "probes of asymmetry"}


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation, as printed and saved.

    ranks: of the full set. owner: (N_texts,) image of each text. about: provenance of the recalls. captions: None for
    given scores, which have no names. sections: by keys of TITLES. notes: what was not computed, and why.
    """

    reports: Reports
    ranks: Ranks
    owner: np.ndarray
    about: dict[str, Any]
    captions: CaptionSet | None = None
    sections: dict[str, Section] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def evaluate_runs(runs: list[str], split: str | None, *, folds: int | None, overrides: dict[str, Any],
                  scoring: dict[str, Any] | None = None, save_scores: Path | None = None, probes: bool = False,
                  probe_captions: int | None = None) -> Evaluation:
    """Evaluate one run, or the averaged scores of several runs, with all metrics that the data set allows.

    Args:
        runs: run folders or checkpoints. Data and split are the first one's.
        split: None = the test split of the settings.
        folds: also report the mean over this many consecutive folds (COCO 1K: 5 folds of the 5K images).
        overrides: data settings that replace the run's, by field name (such as the new place of moved features).
        scoring: `backend`, `dtype`, `block` of `score_all_pairs`. Probes always use the defaults.
        save_scores: also write the score matrix, the owners and COCO's ids there, as `evaluate_given` reads them.
        probes: also generate variants of captions and count those in the right order; see `analysis.probes`.
        probe_captions: probe this many captions only, evenly spread over the split.
    """
    loaded = load_split(runs[0], split, overrides)
    config, captions, scoring = loaded.config, loaded.captions, scoring or {}
    scenes = known_scenes(config, loaded.split, captions)
    texts = None
    if probes:
        variants = caption_variants(captions) if scenes is None else scene_variants(captions, scenes)
        texts = probe_texts(captions, variants, limit=probe_captions)
    scores, probe_scores = score_split(loaded, scoring, texts)
    for run in runs[1:]:
        more = score_split(replace(loaded, model=build.load_run(run)[0]), scoring, texts)
        scores += more[0]
        probe_scores += more[1]
    scores /= len(runs)
    notes: list[str] = []
    ids = known_coco_ids(captions, notes) if may_be_coco_test(captions) else None
    if save_scores is not None:
        save_given(save_scores, scores, captions.owner, ids)
    about = {"runs": runs, "dataset": config.dataset, "split": loaded.split, "protocol": "all pairs",
             "scoring": {name: str(value) for name, value in scoring.items()},
             "captions": config.data.captions, "features": config.data.features, **environment()}
    truth = None if scenes is None else truth_matrix(captions.captions, scenes)
    evaluation = evaluate_scores(scores, captions.owner, about, folds=folds, truth=truth, captions=captions)
    evaluation.notes.extend(notes)
    if scenes is not None and truth is not None and (binding := binding_report(scores, captions, scenes, truth)):
        evaluation.sections["binding"] = binding
    if ids is not None:
        add_corrected_labels(evaluation, scores, ids)
    if texts is not None:
        exact = None if scenes is None else group_truth(texts, scenes)
        evaluation.sections["probes"] = probe_report(texts, probe_scores / len(runs), exact)
    return evaluation


def bar(total: int, what: str, unit: str = "pairs") -> tqdm:
    """Return a progress bar that is shown on terminals only."""
    return tqdm(total=total, desc=what, unit=f" {unit}", unit_scale=True, disable=None)


@dataclass(frozen=True, eq=False)
class RunSplit:
    """The model of a run, and the captions and features of one split of its data."""

    model: RetrievalModel
    config: Config
    split: str
    captions: CaptionSet
    store: FeatureStore

    def encode(self) -> tuple[EncodedImages, EncodedTexts]:
        """Encode every image and every text, on the GPU if there is one."""
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        return build.encode_split(self.model, self.captions, self.store)


def load_split(run: str | Path, split: str | None, overrides: dict[str, Any], *, validation: bool = False) -> RunSplit:
    """Load a run's model with a split of its data.

    Args:
        run: run folder or checkpoint.
        split: None = the test split of the settings; with `validation`, the validation split.
        overrides: data settings that replace the run's, by field name (such as the new place of moved features).
        validation: also restrict the validation split to the images that training validated on.
    """
    model, config = build.load_run(run)
    data = replace(config.data, **overrides)
    config = replace(config, data=data)
    split = split or (data.val if validation else data.test)
    images = data.val_images if validation and split == data.val else None
    captions, store = build_split(config, split, captions_per_image=data.captions_per_image, images=images)
    return RunSplit(model, config, split, captions, store)


def score_split(loaded: RunSplit, scoring: dict[str, Any],
                probes: ProbeTexts | None = None) -> tuple[torch.Tensor, np.ndarray]:
    """Return the scores (N_images, N_texts), and `group_scores` of the probes, or (0, 0) without probes."""
    model, (images, texts) = loaded.model, loaded.encode()
    with bar(len(images) * len(texts), "scoring") as shown:
        scores = score_all_pairs(model, images, texts, progress=shown.update, **scoring)
    probe_scores = np.zeros((0, 0), dtype=np.float32)
    if probes is not None:
        with bar(len(probes.texts), "probes", "texts") as shown:
            probe_scores = group_scores(model, images, probes, progress=shown.update)
    report_truncated(model)
    return scores, probe_scores


def evaluate_scores(scores: Any, owner: np.ndarray, about: dict[str, Any], *, folds: int | None,
                    truth: np.ndarray | None = None, captions: CaptionSet | None = None) -> Evaluation:
    """Return the recalls of the full set, of its folds if requested, and with all right pairs if `truth` is given."""
    counted = ranks(scores, owner)
    reports: Reports = {"full": recall_report(counted)}
    if folds is not None:
        reports[f"{folds} folds"] = fold_report(scores, owner, folds)
    evaluation = Evaluation(reports, counted, owner, about, captions)
    if without := counted.images - len(np.unique(owner)):
        evaluation.notes.append(f"{without:,} of {counted.images:,} images have no text: they are candidates only.")
    if truth is not None:
        reports["every true pair counts"] = rank_report(scores, owner, truth=truth)
        evaluation.sections["multi_positive"] = multi_positive_report(scores, truth)
    return evaluation


def evaluate_given(path: str, *, folds: int | None, owner: str | None = None,
                   captions_per_image: int | None = None) -> Evaluation:
    """Evaluate the scores in `path`, written by another program; see `read_scores`.

    If the file also holds COCO's numbers, `image_ids` (N_images,) and `caption_ids` (N_texts,), ECCV Caption and CxC
    are computed too.

    Args:
        folds: also report the mean over this many consecutive folds.
        owner: file with the image of each text, see `read_owner`.
        captions_per_image: where each image has this many texts, in its order.
    """
    given = read_scores(path, None if owner is None else read_owner(owner), captions_per_image=captions_per_image)
    scores = given.scores
    about = {"scores": path, "protocol": "ranking of given scores", **environment()}
    evaluation = evaluate_scores(scores, given.owner, about, folds=folds)
    evaluation.notes.extend(f"{path}: {note}" for note in given.notes)
    ids = [numbers for numbers in (given.image_ids, given.caption_ids) if numbers is not None]
    if len(ids) == 2:
        shapes = [each.shape for each in ids]
        if any(each.dtype.kind not in "iu" for each in ids) or shapes != [(count,) for count in scores.shape]:
            raise DataError(f"{path}: image_ids and caption_ids must be COCO's numbers, one integer per row and column "
                            f"of scores {scores.shape}, not {[f'{n.dtype} {n.shape}' for n in ids]}")
        evaluation.sections.update(corrected_labels(scores, *(numbers.tolist() for numbers in ids)))
    return evaluation


def save_given(path: Path, scores: torch.Tensor, owner: np.ndarray,
               ids: tuple[list[int], list[int]] | None = None) -> None:
    """Write scores as `evaluate_given` reads them. ids: COCO's numbers of images and captions, if known."""
    arrays: dict[str, Any] = {"scores": scores.numpy(), "owner": owner}
    if ids is not None:
        arrays |= {"image_ids": np.array(ids[0]), "caption_ids": np.array(ids[1])}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def known_coco_ids(captions: CaptionSet, notes: list[str]) -> tuple[list[int], list[int]] | None:
    """Return COCO's numbers of images and captions, or None; then the reason is added to `notes`."""
    try:
        return coco_ids(captions)
    except DataError as error:
        notes.append(f"ECCV Caption and CxC were not computed: {error}")
        return None


def add_corrected_labels(evaluation: Evaluation, scores: torch.Tensor, ids: tuple[list[int], list[int]]) -> None:
    """Add ECCV Caption and CxC to an evaluation, or a note why they cannot be computed."""
    try:
        evaluation.sections.update(corrected_labels(scores, *ids))
    except DataError as error:
        evaluation.notes.append(f"ECCV Caption and CxC were not computed: {error}")


def known_scenes(config: Config, split: str, captions: CaptionSet) -> list[Scene] | None:
    """Return the scene of each image of generated scenes, where the truth of any text is known; else None."""
    if Path(config.data.captions).name != DATASET_FILE:
        return None
    records = {record.image_id: record for record in load_scene_records(config.data.captions, split)}
    return [records[image_id] for image_id in captions.image_ids]


@torch.no_grad()
def evaluate_paired(run: str, split: str | None, *, overrides: dict[str, Any]) -> dict[str, RetrievalReport]:
    """Return the recalls of the leaking protocol and of the honest one, for the same model; see `analysis.leakage`."""
    loaded = load_split(run, split, overrides)
    model, owner = loaded.model, loaded.captions.owner
    if not isinstance(model, AsCL) or not model.fusion:
        raise DataError(f"{run}: the model has no cross-modal fusion, so the paired protocol does not apply; give a "
                        "run of AsCL with fusion")
    scores = leakage.protocols(model, *loaded.encode(), owner)
    return {name: rank_report(matrix, owner) for name, matrix in scores.items()}


def markdown(reports: Mapping[str, RetrievalReport | FoldReport]) -> str:
    """Return the tables in Markdown, each under its name."""
    return "\n\n".join(f"### {name}\n\n{report.to_markdown()}" for name, report in reports.items()) + "\n"


def evaluation_markdown(evaluation: Evaluation) -> str:
    """Return the tables of recalls, the other sections and the notes, in Markdown."""
    sections = [f"\n### {TITLES[name]}\n\n{section.to_markdown()}" for name, section in evaluation.sections.items()]
    return "\n".join([markdown(evaluation.reports), *sections, *(f"{note}\n" for note in evaluation.notes)])


def save_evaluation(evaluation: Evaluation, folder: Path, name: str) -> list[Path]:
    """Write eval-`name`.json, eval-`name`.md and ranks-`name`.npz into `folder`, and return their paths.

    The ranks are those of the full set, 0 = best: `i2t` (Q_images,) and `t2i` (Q_texts,), `image_queries` and
    `text_queries` (which image or text each entry is), `owner` (N_texts,), and, if known, `image_ids` (N_images,) and
    `captions` (N_texts,).
    """
    make_folder(folder)
    saved = [folder / f"eval-{name}.json", folder / f"eval-{name}.md", folder / f"ranks-{name}.npz"]
    content = {**evaluation.about, "reports": {key: report.to_dict() for key, report in evaluation.reports.items()},
               **{key: section.to_dict() for key, section in evaluation.sections.items()}}
    if evaluation.notes:
        content["notes"] = evaluation.notes
    ranked = evaluation.ranks
    arrays: dict[str, Any] = {"i2t": ranked.i2t, "t2i": ranked.t2i, "image_queries": ranked.image_queries,
                              "text_queries": ranked.text_queries, "owner": evaluation.owner}
    if evaluation.captions is not None:
        arrays |= {name: np.array(getattr(evaluation.captions, name)) for name in ("image_ids", "captions")}
    with atomic_path(saved[2]) as path, path.open("wb") as file:
        np.savez_compressed(file, **arrays)
    write_text(saved[0], json.dumps(content, indent=2) + "\n")
    write_text(saved[1], evaluation_markdown(evaluation))
    return saved
