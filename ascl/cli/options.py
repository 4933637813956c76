"""Options that several commands share, each spelled and explained once, and what commands print alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from ascl.core.errors import DataError
from ascl.settings.base import Parser


class Answer(NamedTuple):
    """What a command ends with.

    Attributes:
        content: the result, fit for JSON; `--json` prints it in the place of everything else.
        status: exit status.
    """

    content: Any
    status: int = 0


def add_device(parser: Parser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")


def add_batch_size(parser: Parser, default: int | None, help: str = "images in a forward pass") -> None:
    parser.add_argument("--batch_size", type=PositiveInt, default=default, metavar="N", help=help)


def add_workers(parser: Parser, default: int = 2) -> None:
    parser.add_argument("--workers", type=NonNegativeInt, default=default, metavar="N",
                        help="processes that decode images; 0 = none")


def add_skip_unreadable(parser: Parser) -> None:
    parser.add_argument("--skip_unreadable", action="store_true",
                        help="leave images out that cannot be used, and list them, instead of stopping")


def add_seed(parser: Parser, help: str) -> None:
    parser.add_argument("--seed", type=NonNegativeInt, default=0, metavar="N", help=help)


def add_run_data(parser: Parser, *, captions: bool = True) -> None:
    """Where the data of a run lie now."""
    if captions:
        parser.add_argument("--captions", metavar="FILE", help="captions file or folder, where the run's has moved")
    parser.add_argument("--features", nargs="+", metavar="FILE", help="feature files, where the run's have moved")


def run_data(options: Namespace) -> dict[str, Any]:
    """What `add_run_data` took, as settings that replace the run's."""
    return {name: options[name] for name in ("captions", "features") if options.get(name)}


def add_describer(parser: Parser, *, required: bool = False, phash: bool = True) -> None:
    """The model that describes images."""
    group = parser.add_argument_group("model")
    source = group.add_mutually_exclusive_group(required=required)
    source.add_argument("--checkpoint", metavar="RUN", help="a run of ascl copy train, or one of its checkpoints")
    source.add_argument("--model", metavar="FILE", help="TorchScript file: normalized pixels -> vectors")
    source.add_argument("--backbone", metavar="NAME", help="a torchvision classifier, or timm:NAME, with GeM alone")
    if phash:
        source.add_argument("--method", choices=["phash"], help="perceptual hash of 64 bits, a baseline")
    group.add_argument("--weights", help="of --backbone: default (the publisher's, downloaded), random:SEED or a path; "
                       "null = default")
    group.add_argument("--same_padding", action="store_true", help="of --backbone: for weights from TensorFlow")
    group.add_argument("--pool", choices=["gem", "class+gem"], help="of --backbone; null = gem")
    group.add_argument("--normalize", choices=["imagenet", "half", "none"],
                       help="of --backbone and --model: what the weights were trained with; null = imagenet")
    group.add_argument("--input_size", type=PositiveInt, metavar="N",
                       help="side in pixels of the square; null = as the run says, else 288")
    group.add_argument("--resize", choices=["squash", "crop"], help="squash the whole image, or crop its center; "
                                                                    "null = "
                       "as the run says, else squash")
    group.add_argument("--ordered_norms", action="store_true", help="of --model and --backbone: it was trained with a "
                       "norm-ratio loss, so that norms tell who copied whom; a run of ascl copy train knows")


def chosen_describer(options: Namespace, recorded: Any = None) -> Any:
    """What `add_describer` took as a `DescriberChoice`, None where nothing was chosen.

    Args:
        recorded: the choice of an index, which the options only change.
    """
    from ascl.image_copy.descriptors.choice import DescriberChoice

    return DescriberChoice.from_options(vars(options), recorded)


@contextmanager
def ending(advice: str) -> Iterator[None]:
    """Let Ctrl-C end with what is left and what to do, and a value that the library refuses in one line."""
    try:
        yield
    except DataError:
        raise
    except ValueError as error:     # of arguments that came from options
        raise DataError(str(error)) from error
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt(f"{stopped}\n{advice}".strip()) from None
