"""Pages from templates."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from .. import __version__
from . import style


def render_template(name: str, /, **context: Any) -> str:
    """A page's HTML; all that is put into it is text, and nothing may be missing."""
    environment = Environment(
        loader=PackageLoader("inkdrop.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(name).render(**context, style=style, version=__version__)
