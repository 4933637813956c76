"""Options that several commands share, each defined once, and how commands end."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from ascl.core.errors import DataError
from ascl.settings.base import Parser

if TYPE_CHECKING:
    from ascl.images.find import FoundImages, IdRule, Skipped


INCOMPLETE = 3  # exit status: done, but files that were meant could not be read


class Answer(NamedTuple):
    """The result of a command.

    Attributes:
        content: what `--json` prints instead of everything else; fit for JSON.
        status: exit status.
    """

    content: Any
    status: int = 0


def add_device(parser: Parser) -> None:
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N")


def add_batch_size(parser: Parser, default: int | None, help: str = "images per forward pass") -> None:
    parser.add_argument("--batch_size", type=PositiveInt, default=default, metavar="N", help=help)


def add_workers(parser: Parser, default: int = 2) -> None:
    parser.add_argument("--workers", type=NonNegativeInt, default=default, metavar="N",
                        help="processes that decode images; 0 = decode in the main process")


def add_ids(parser: Parser, default: str | None, null: str = "") -> None:
    parser.add_argument("--id", choices=["path", "stem"], default=default, help="id of an image: its path relative to "
                        "the folder that is given (path), or its file name without the suffix (stem)" + null)


def add_image_files(parser: Parser) -> None:
    """Add which files of a folder are images to read, and what happens to those that cannot be read."""
    parser.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help="leave out files and folders "
                        "of this name or relative path, with * and ? for any text; may be repeated")
    parser.add_argument("--strict", action="store_true", help="stop at the first file that cannot be read, instead of "
                        "listing such files at the end (exit status 3)")


def given_images(options: Namespace, *sources: str, ids: IdRule) -> FoundImages:
    """Return the images of the sources as the options of `add_image_files` want."""
    from ascl.images.find import images_of

    return images_of(*sources, ids=ids, exclude=options.exclude, strict=options.strict)


def print_left_out(found: FoundImages, skipped: Sequence[Skipped]) -> None:
    """Print what was passed over among the images that were found, and these that were skipped."""
    if found.passed_over:
        print(f"passed over: {found.passed_over_text()}", file=sys.stderr)
    if skipped:
        print(f"skipped {len(skipped):,} images:", file=sys.stderr)
        for one in skipped:
            print(f"  {one.path}: {one.reason}", file=sys.stderr)


def status_of(skipped: Sequence[Skipped]) -> int:
    """Return the exit status of a command that did its work and skipped these."""
    return INCOMPLETE if any(one.fault for one in skipped) else 0


def add_seed(parser: Parser, help: str) -> None:
    parser.add_argument("--seed", type=NonNegativeInt, default=0, metavar="N", help=help)


def add_run_data(parser: Parser, *, captions: bool = True) -> None:
    """Add options for data that are no longer where the run's settings say."""
    if captions:
        parser.add_argument("--captions", metavar="FILE", help="captions file or folder, if it has moved since "
                            "training; null = the run's data.captions")
        parser.add_argument("--scan_captions_per_image", type=PositiveInt, metavar="N",
                            help="captions per image of SCAN's text without an ids file; null = the run's "
                            "data.scan_captions_per_image")
    parser.add_argument("--features", nargs="+", metavar="FILE", help="feature files, if they have moved since "
                        "training; null = the run's data.features")


def run_data(options: Namespace) -> dict[str, Any]:
    """Return the options of `add_run_data` as settings that replace the run's."""
    names = ("captions", "features", "scan_captions_per_image")
    return {name: options[name] for name in names if options.get(name)}


def add_describer(parser: Parser, *, required: bool = False) -> None:
    """Add the choice of the model that describes images."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", required=required, metavar="NAME", help="a name of ascl models, whose weights are "
                       "downloaded if they are not here (sscd_disc_mixup, torchvision:resnet50, timm:NAME, phash); or "
                       "a path: a run folder, SSCD's file, or with --trust_code any TorchScript file that turns "
                       "normalized pixels into vectors")
    group.add_argument("--weights", help="backbone: default (the publisher's, downloaded), random:SEED or a path; "
                       "null = default")
    group.add_argument("--same_padding", action="store_true",
                       help="backbone: pad stride-2 convolutions as TensorFlow does, for weights converted from it")
    group.add_argument("--pool", choices=["gem", "class+gem"],
                       help="backbone: GeM pooling of the last map, or also the class token of a ViT; null = gem")
    group.add_argument("--normalize", choices=["imagenet", "half", "none"],
                       help="backbone, file: pixel scaling with which the weights were trained: ImageNet's mean and "
                       "std, half = [-1, 1], none = [0, 1]; null = imagenet")
    group.add_argument("--input_size", type=PositiveInt, metavar="N", help="side in pixels of the square that the "
                       "network sees; null = that of the run, 288 for other models")
    group.add_argument("--resize", choices=["squash", "crop"], help="squash the whole image to the square, or crop its "
                       "center; null = as the run does, squash for other models")
    group.add_argument("--trust_code", action="store_true", help="file: run the code in a TorchScript file that is not "
                       "SSCD's; it can read and write your files, and no index remembers this trust")
    group.add_argument("--ordered_norms", action="store_true", help="backbone, file: the weights were trained with "
                       "a norm-ratio loss, so that norms show who copied whom; runs of ascl copy train record it")


def chosen_describer(options: Namespace, recorded: Any = None) -> Any:
    """Return the options of `add_describer` as a `DescriberChoice`; None if they choose nothing.

    Args:
        recorded: the choice recorded in an index, which the options change.
    """
    from ascl.image_copy.descriptors.choice import DescriberChoice

    return DescriberChoice.from_options(vars(options), recorded)


@contextmanager
def ending(advice: str) -> Iterator[None]:
    """Add advice to the message of Ctrl-C, and make a library's `ValueError` about an option a one-line error."""
    try:
        yield
    except DataError:
        raise
    except ValueError as error:     # an argument came from an option
        raise DataError(str(error)) from error
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt(f"{stopped}\n{advice}".strip()) from None
