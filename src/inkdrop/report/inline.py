"""Pictures inside a page, and as files beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from ..checkpoint import replace_synced
from . import pictures, style

Picture = Figure | Image.Image


@dataclass(frozen=True)
class Inline:
    """An image inside the page: a data: address, and its size in CSS pixels."""

    source: str
    width: int
    height: int


def inline(content: bytes, density: int = 1) -> Inline:
    """A PNG or GIF file, `density` of its pixels to a CSS pixel."""
    image = Image.open(io.BytesIO(content))
    mime = Image.MIME[image.format or "PNG"]
    source = f"data:{mime};base64,{base64.b64encode(content).decode()}"
    return Inline(source, image.width // density, image.height // density)


def keep(
    folder: Path, drawn: Mapping[str, Picture], narrow: Mapping[str, Picture]
) -> dict[str, Inline]:
    """Write pictures as PNG files, and give them back for the page.

    Args:
        drawn: pictures by their names.
        narrow: other versions of some of them for a phone, which only the page has, as NAME_narrow.
    """
    inlined = {}
    for name, picture in drawn.items():
        content = pictures.png(picture)
        replace_synced(folder / f"{name}.png", content)
        inlined[name] = inline(content, style.DENSITY)
    for name, picture in narrow.items():
        inlined[f"{name}_narrow"] = inline(pictures.png(picture), style.DENSITY)
    return inlined
