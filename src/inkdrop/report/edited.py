"""Pictures of edits: what was given and what came of it, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from . import style
from .pictures import grid

TILE = 128  # pixels that a small image's side is enlarged to, at least
_HEAD, _MARGIN, _LETTER = 30, 14, 7.5
_LONGEST = 18  # letters of a row's label

_PALE, _DARK = 200, 150  # the greys that stand for what is to be painted


def side_by_side(rows: Tensor, heads: Sequence[str], labels: Sequence[str]) -> Image.Image:
    """A row for each image, a column for each stage of its edit.

    Args:
        rows: uint8 (B, stages, C, H, W).
        heads: what stands above the columns.
        labels: what stands before the rows; shortened where they are long.
    """
    count, columns = rows.shape[:2]
    sheet = grid(rows.flatten(0, 1), columns, TILE)
    labels = [_short(label) for label in labels]
    before = max(map(len, labels)) * _LETTER + 2 * _MARGIN
    width = sheet.width / style.DENSITY + before + _MARGIN
    height = sheet.height / style.DENSITY + _HEAD + _MARGIN
    figure = style.new_figure(width, height)
    across = sheet.width / style.DENSITY / columns
    down = sheet.height / style.DENSITY / count
    for column, head in enumerate(heads):
        x = before + across * (column + 0.5)
        style.add_text(figure, x, _HEAD - 9, head, ha="center", va="baseline")
    for row, label in enumerate(labels):
        how = {"va": "center", "color": style.MUTED, "fontsize": style.SMALL_SIZE}
        style.add_text(figure, _MARGIN, _HEAD + down * (row + 0.5), label, **how)
    picture = style.to_image(figure)
    picture.paste(sheet, (round(before * style.DENSITY), round(_HEAD * style.DENSITY)))
    return picture


def masked(images: Tensor, paint: Tensor) -> Tensor:
    """Images (B, C, H, W) uint8 with a check of two greys where paint (H, W) is True."""
    height, width = images.shape[-2:]
    check = (torch.arange(height)[:, None] + torch.arange(width)) % 2
    greys = torch.where(check == 0, _PALE, _DARK).to(torch.uint8)
    return torch.where(paint, greys, images)


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST else "…" + label[1 - _LONGEST :]
