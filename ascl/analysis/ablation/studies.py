"""The ablation studies and their variants. Command line help needs them, so nothing slow is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class StudyVariant:
    """One row of a study: its settings in addition to those of the data set.

    settings: by dotted name, as on the command line; a `model.kind` implies its own loss and samples.
    """

    label: str
    settings: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in sorted(self.settings.items()))

    @property
    def words(self) -> tuple[str, ...]:
        """The settings as words of a command line."""
        return tuple(f"--{name}={value}" for name, value in self.settings.items())

    @property
    def is_baseline(self) -> bool:
        """Whether the variant is another model than AsCL."""
        return self.settings.get("model.kind", "ascl") != "ascl"


OURS = StudyVariant("AsCL")

# The other variants of a study are compared with its first one.
STUDIES: dict[str, tuple[StudyVariant, ...]] = {
    # AsCL, table 2
    "table2": (
        OURS,
        StudyVariant("w/o Pos", {"samples.positives": "none"}),
        StudyVariant("w/o Neg", {"samples.negatives": "none"}),
        StudyVariant("w/o P&N", {"samples.positives": "none", "samples.negatives": "none"}),
        StudyVariant("w/o MF", {"model.fusion": "false"}),
        StudyVariant("w triplet loss", {"loss.kind": "triplet"}),
    ),
    # AsCL, figure 3, left and right
    "positives": tuple(
        StudyVariant(label, {"samples.positives": positives, "samples.negatives": "mixture"})
        for label, positives in (("none", "none"), ("long", "concatenate"), ("short", "keywords"), ("both", "both"))
    ),
    "negatives": tuple(
        StudyVariant(negatives, {"samples.positives": "both", "samples.negatives": negatives})
        for negatives in ("none", "shuffle", "dropout", "gaussian", "cutoff", "mixture")
    ),
    "fusion": (
        StudyVariant("with fusion", {"model.fusion": "true"}),
        StudyVariant("without fusion", {"model.fusion": "false"}),
        StudyVariant("without projections", {"model.projections": "false", "model.tied_key_value": "false"}),
        StudyVariant("key = value", {"model.tied_key_value": "true"}),
        *(StudyVariant(f"u1 = {weight}", {"model.local_weight": weight})
          for weight in ("0", "0.2", "0.4", "0.6", "0.8", "1")),
    ),
    "loss": (
        OURS,
        *(StudyVariant(f"temperature {temperature}", {"loss.kind": "contrastive", "loss.temperature": temperature})
          for temperature in ("0.01", "0.02", "0.05", "0.1", "0.2")),
        StudyVariant("triplet", {"loss.kind": "triplet"}),
    ),
    "baselines": (
        OURS,
        *(StudyVariant(label, {"model.kind": kind}) for label, kind in (
            ("two towers", "two_tower"), ("VSE++", "vse"), ("VSE-infinity", "vse_infinity"),
            ("SCAN text-to-image", "scan_t2i"), ("SCAN image-to-text", "scan_i2t"), ("CLIP-style", "clip"),
            ("IMRAM", "imram"), ("DSRAN", "dsran"), ("DIME", "dime"),
        )),
    )}
# every method and ablation in one table, and captions alone with the hardest negatives, without and with a student
CAPTIONS_ONLY = {"samples.positives": "none", "samples.negatives": "none", "loss.kind": "triplet"}
STUDIES["methods"] = (*STUDIES["table2"], StudyVariant("w/o P&N w triplet loss", CAPTIONS_ONLY),
                      StudyVariant("w/o P&N w triplet loss and student", CAPTIONS_ONLY | {
                          "model.student_dim": "256", "train.candidates": "3"}),
                      *STUDIES["baselines"][1:])
