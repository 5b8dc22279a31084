"""Samples beside the training examples that are most like them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from ..errors import InkdropError
from ..evaluation.measures import in_short
from . import pictures, style

WIDTH = 460  # CSS pixels: half a page, and a phone's whole screen
_ACROSS = 6  # pairs in a line
_LINE_GAP = 14


def draw_pairs(
    samples: Tensor, nearest: Tensor, distances: Sequence[float], width: int = WIDTH
) -> Image.Image:
    """Each sample above its nearest training example, with their distance beneath.

    Args:
        samples, nearest: uint8 (P, C, H, W), P at least 1.
        distances: of the P pairs, in whatever unit they were measured.
        width: about the width, in CSS pixels; large images make a wider picture.

    Raises:
        InkdropError: if there are not as many of each.
    """
    if not len(samples) == len(nearest) == len(distances) > 0:
        raise InkdropError(
            "a picture of pairs needs as many samples as neighbours and distances, and one at "
            f"least, got {len(samples)}, {len(nearest)} and {len(distances)}"
        )
    lines = []
    for first in range(0, len(samples), _ACROSS):
        pairs = slice(first, first + _ACROSS)
        shown = [in_short(distance) for distance in distances[pairs]]
        # A last line that is not full has tiles as large as the others'.
        share = len(shown) / min(_ACROSS, len(samples))
        lines.append(
            pictures.strip(
                [samples[pairs], nearest[pairs]],
                row_labels=["sample", "training"],
                group=2,
                strip_width=round(pictures.WORD_LABELS + share * (width - pictures.WORD_LABELS)),
                feet=("distance", shown),
                label_width=pictures.WORD_LABELS,
            )
        )
    gap = style.DENSITY * _LINE_GAP
    size = (
        max(line.width for line in lines),
        sum(line.height for line in lines) + gap * (len(lines) - 1),
    )
    picture, top = Image.new("RGB", size, style.PAPER), 0
    for line in lines:
        picture.paste(line, (0, top))
        top += line.height + gap
    return picture
