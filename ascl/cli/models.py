"""`ascl models`: what can be named as the model that describes images."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from ascl.cli.options import Answer
from ascl.core.errors import DataError
from ascl.settings.base import Parser

if TYPE_CHECKING:
    from ascl.image_copy.descriptors.at_hand import Model

WIDTH = 100     # of the list of names


def models_parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description="List what --model takes in ascl copy and ascl extract descriptors: SSCD's "
                    "published files with their addresses, your training runs, backbones of torchvision and timm, and "
                    "the perceptual hash; and which of them are on this machine. The network is never asked, and "
                    "nothing is downloaded until a command names it.")
    parser.add_argument("--runs", default="runs", metavar="FOLDER", help="folder in which your training runs are")
    return parser


def models(options: Namespace) -> Answer:
    from ascl.image_copy.descriptors.at_hand import best_at_hand, models
    from ascl.image_copy.descriptors.published import models_folder

    found = models(options.runs)
    try:
        default, _, why = best_at_hand(options.runs)
    except DataError as error:
        default, why = None, f"none: {error}"
    listed = [one for one in found if one.at_hand or not one.name.startswith("torchvision:")]
    rows = [[one.name, state(one), one.about] for one in listed]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for row in rows:
        print(f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}")
    rest = [one.name.removeprefix("torchvision:") for one in found if one not in listed]
    print(textwrap.fill(f"torchvision: to download, by name: {', '.join(rest)}", WIDTH, subsequent_indent="  "))
    print("timm:NAME: any model of timm, to download")
    print(f"files of SSCD: from {found[0].source.rpartition('/')[0]}/ to {models_folder()}")
    print(f"without --model, an index takes {why}")
    return Answer({"models": [asdict(one) for one in found], "default": default, "folder": models_folder()})


def state(model: Model) -> str:
    if model.at_hand:
        return "here"
    return "pip install imagehash" if model.bytes is None else f"to download, {model.bytes / 1e6:.0f} MB"
