"""A training run and an evaluation, from settings to files: what `tools/train.py` and `tools/eval.py` call."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tqdm import tqdm

from ascl import build
from ascl.analysis import leakage
from ascl.config import Config, to_dict
from ascl.data.captions import CaptionSet
from ascl.data.feature_store import FeatureStore
from ascl.environment import environment, refused_settings
from ascl.errors import DataError
from ascl.files import atomic_path, write_text
from ascl.models import AsCL, RetrievalModel
from ascl.retrieval import fold_report, rank_all_pairs, rank_report, score_all_pairs
from ascl.retrieval.encode import check_dimensions
from ascl.retrieval.ranking import FoldReport, RetrievalReport
from ascl.training.distributed import make_accelerator
from ascl.training.loop import LoopSettings, Progress, check_start, fit

Reports = dict[str, RetrievalReport | FoldReport]


def train(config: Config, *, resume: bool = False) -> Progress:
    """Train one model and leave everything in `config.out`: checkpoints, metrics, settings, environment.

    Raises:
        DataError, FileNotFoundError: data or settings that do not fit, before the first step.
    """
    out = Path(config.out)
    accelerator = make_accelerator(mixed_precision=config.train.mixed_precision)
    captions, store = build.build_split(config, config.data.train)
    val_captions, val_store = build.build_split(
        config, config.data.val, captions_per_image=config.data.captions_per_image, images=config.data.val_images
    )
    val_store.rows(val_captions.image_ids)                                  # all there: asked now, not after hours
    torch.manual_seed(config.train.seed)                                    # of the fresh weights
    assert store.region_dim is not None and store.global_dim is not None            # `build_split` refuses data without
    with refused_settings():
        model = build.build_model(config, store.region_dim, store.global_dim)
        check_dimensions(model, val_store)
        build.fit_standardization(model, captions, store)
        objective = build.build_objective(config)
        pairs = build.build_pairs(config, captions, store)
        batches = build.TrainBatches(config, pairs, accelerator.process_index, accelerator.num_processes)
        learning_rate = build.build_schedule(config, batches.steps_per_epoch)
        optimizer = build.build_optimizer(config, model)
    settings = LoopSettings(
        epochs=config.train.epochs, steps_per_epoch=batches.steps_per_epoch, seed=config.train.seed,
        max_steps=config.train.max_steps, clip_norm=config.optimizer.clip_norm,
        validate_every=config.train.validate_every, checkpoint_every=config.train.checkpoint_every,
        log_every=config.train.log_every,
    )
    saved = partial(build.is_saved, config)
    check_start(accelerator, model, optimizer, settings=settings, folder=out, resume=resume, saved=saved)
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "settings.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
        if not resume:                      # a resumed run keeps what it was started with; its log has the rest
            write_text(out / "environment.json", json.dumps(environment(), indent=2) + "\n")
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        print(f"{len(captions.image_ids)} images, {len(captions.captions)} captions; {trained / 1e6:.1f} M trained "
              f"parameters; {settings.total_steps} steps of {config.train.batch_size} pairs; run folder {out}")

    def validate(model: RetrievalModel) -> dict[str, float]:
        images, texts = build.encode_split(model, val_captions, val_store)
        return figures(rank_all_pairs(model, images, texts, val_captions.owner))

    progress = fit(
        accelerator, model, optimizer, train_batches=batches, step_loss=objective, validate=validate,
        learning_rate=learning_rate, settings=settings, folder=out, resume=resume, saved=saved,
        extra={"settings": to_dict(config), "region_dim": store.region_dim, "global_dim": store.global_dim},
    )
    if accelerator.is_main_process:
        report_truncated(model)
    return progress


def figures(report: RetrievalReport) -> dict[str, float]:
    """A report as flat names for the log."""
    flat = {"rsum": report.rsum}
    for name, recalls in (("i2t", report.i2t), ("t2i", report.t2i)):
        flat |= {f"{name}_r1": recalls.r1, f"{name}_r5": recalls.r5, f"{name}_r10": recalls.r10,
                 f"{name}_median_rank": recalls.median_rank}
    return flat


def report_truncated(model: RetrievalModel) -> None:
    """Say how many texts were longer than the encoder takes."""
    count = getattr(model.text, "truncated", 0)
    if count:
        print(f"{count} texts were longer than the text encoder's limit and were cut (counted once per encoding)")


def on_best_device(model: RetrievalModel) -> RetrievalModel:
    """On the GPU where there is one."""
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def evaluate_runs(
    runs: list[str], split: str | None, *, folds: int | None, overrides: dict[str, Any],
    scoring: dict[str, Any] | None = None, save_scores: Path | None = None,
) -> tuple[Reports, dict[str, Any]]:
    """Recalls of one run, or of several by their averaged scores.

    Args:
        runs: run folders or checkpoints. Data and split are the first one's.
        split: None = the test split of the settings.
        folds: also the mean over so many consecutive folds (COCO 1K: 5 of the 5K images).
        overrides: data settings that replace the run's, by field name (features moved to another place).
        scoring: `backend`, `dtype`, `block` of `score_all_pairs`.
        save_scores: also write the matrix and the owners there, as `load_scores` reads them.

    Returns:
        Reports by name, and what they were made of.
    """
    model, config = build.load_run(runs[0])
    config = replace(config, data=replace(config.data, **overrides))
    split = split or config.data.test
    captions, store = build.build_split(config, split, captions_per_image=config.data.captions_per_image)
    scoring = scoring or {}
    scores = score_split(model, captions, store, scoring)
    for run in runs[1:]:
        scores += score_split(build.load_run(run)[0], captions, store, scoring)
    scores /= len(runs)
    if save_scores is not None:
        with atomic_path(save_scores) as path, path.open("wb") as file:
            np.savez(file, scores=scores.numpy(), owner=captions.owner)
    about = {"runs": runs, "dataset": config.dataset, "split": split, "protocol": "all pairs",
             "scoring": {name: str(value) for name, value in scoring.items()},
             "captions": config.data.captions, "features": config.data.features, **environment()}
    return reports_of(scores, captions.owner, folds=folds, truth=known_truth(config, split, captions)), about


def score_split(
    model: RetrievalModel, captions: CaptionSet, store: FeatureStore, scoring: dict[str, Any]
) -> torch.Tensor:
    """(N_images, N_texts) scores of one model on a split, with a bar of progress on a terminal."""
    images, texts = build.encode_split(on_best_device(model), captions, store)
    with tqdm(total=len(images) * len(texts), desc="scoring", unit=" pairs", unit_scale=True, disable=None) as bar:
        scores = score_all_pairs(model, images, texts, progress=bar.update, **scoring)
    report_truncated(model)
    return scores


def reports_of(scores: Any, owner: np.ndarray, *, folds: int | None, truth: np.ndarray | None = None) -> Reports:
    """The full set, its folds where asked for, and the recalls by the whole truth where it is known."""
    reports: Reports = {"full": rank_report(scores, owner)}
    if folds is not None:
        reports[f"{folds} folds"] = fold_report(scores, owner, folds)
    if truth is not None:
        reports["every true pair counts"] = rank_report(scores, owner, truth=truth)
    return reports


def known_truth(config: Config, split: str, captions: CaptionSet) -> np.ndarray | None:
    """(N_images, N_texts) bool where the data set can say of any caption and image whether they fit: `scenes`."""
    if config.dataset != "scenes":
        return None
    from ascl.data.scenes import load_scene_records, truth_matrix

    records = {record.image_id: record for record in load_scene_records(config.data.captions, split)}
    return truth_matrix(captions.captions, [records[image_id] for image_id in captions.image_ids])


@torch.no_grad()
def evaluate_paired(run: str, split: str | None, *, overrides: dict[str, Any]) -> Reports:
    """The leak diagnostic beside the honest numbers of the same model; see `analysis.leakage`."""
    model, config = build.load_run(run)
    if not isinstance(model, AsCL) or not model.fusion:
        raise DataError(f"{run}: its items never meet before the score, so the paired protocol does not apply")
    config = replace(config, data=replace(config.data, **overrides))
    captions, store = build.build_split(
        config, split or config.data.test, captions_per_image=config.data.captions_per_image
    )
    images, texts = build.encode_split(on_best_device(model), captions, store)
    paired_global = leakage.paired_global_scores(model, images, texts, captions.owner)
    scores = {
        "all pairs (honest)": score_all_pairs(model, images, texts),
        "PAIRED (sees the answer)": leakage.paired_scores(model, images, texts, captions.owner, paired_global),
        "PAIRED, global score alone (sees the answer)": paired_global,
    }
    return {name: rank_report(matrix, captions.owner) for name, matrix in scores.items()}


def markdown(reports: Reports) -> str:
    """All tables, each under its name."""
    return "\n\n".join(f"### {name}\n\n{report.to_markdown()}" for name, report in reports.items()) + "\n"


def save_reports(reports: Reports, about: dict[str, Any], folder: Path, name: str) -> list[Path]:
    """`name`.json and `name`.md in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**about, "reports": {key: report.to_dict() for key, report in reports.items()}}
    write_text(folder / f"{name}.json", json.dumps(content, indent=2) + "\n")
    write_text(folder / f"{name}.md", markdown(reports))
    return [folder / f"{name}.json", folder / f"{name}.md"]
