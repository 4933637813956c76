"""Self-contained HTML pages from the templates of a package."""

from __future__ import annotations

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

NOT_IN_HTML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: object) -> str:
    """Return a text with U+FFFD for each character that is invalid in HTML."""
    return NOT_IN_HTML.sub("\ufffd", str(text))


@cache
def templates_of(package: str) -> Environment:
    """Return the templates beside a package's modules; they escape everything that they are given."""
    templates = Environment(
        loader=PackageLoader(package, ""), autoescape=True, trim_blocks=True, undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else printable(value))
    templates.filters["number"] = lambda value: f"{value:,}"
    return templates
