"""A sheet of images as they would be trained on, and of what is odd about others.

title
cats   ▢ ▢ ▢ ▢ ▢ ▢     as trained on, by classes where there are few
dogs   ▢ ▢ ▢ ▢ ▢ ▢
─────────────────
odd    ▢ ▢ ▢           as stored, with their names
bad    a.jpg: cut off
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..data.checked import Check, Part
from ..data.decode import BadImage, decode
from ..data.facts import CONSTANT, TRANSPARENT, WRONG_NAME, Where
from ..data.stored.collection import Collection, Found, Item
from ..data.transform import Transform
from . import style

_IMAGES = 64  # as they are trained on, about, where they are not shown by classes
_ROWS = 20  # classes that get a row each
_COLUMNS = 12
_MARGIN, _GAP = 28, 4  # CSS pixels, as all lengths here
_NAMES = 132  # the column of names on the left
_TILE = 64
_STORED = 80  # a tile of images as they are stored
_STORED_GAP, _PAIR_GAP = 16, 16
_ODD_COLUMNS = 8
_CAPTION = 22
_TITLE, _SUBTITLE, _HEADING = 40, 30, 46
_BAD, _BAD_LINE = 12, 21
_LETTER = 6.6  # of small text, about
_CHECKS = (236, 250)  # the greys beneath transparent pixels

# Device pixels
_SQUARE = 12
_BOX = _TILE * style.DENSITY
_PIXELATED = 2  # times enlarged, from where on the pixels are shown as squares

Pixels = NDArray[np.uint8]


def contact_sheet(found: Found, check: Check, transform: Transform | None = None) -> Image.Image:
    """A picture of about 64 images spread over the training set, and of those that are odd.

    Args:
        check: of what was found; of its beginning, for images from there.
        transform: how they are shown; as they are stored where there is none.
    """
    sheet = _Sheet()
    sheet.title(check.name, _subtitle(check, transform))
    _draw_trained(sheet, found.train, check.train, transform)
    rows = [row for row in _odd_rows(found, check) if row.pictures]
    if rows:
        sheet.heading("worth a look, as they are stored")
        for row in rows:
            sheet.row(row)
    if check.bad:
        sheet.heading("cannot be used")
        _draw_bad(sheet, check)
    return sheet.drawn()


def _subtitle(check: Check, transform: Transform | None) -> str:
    words = [f"{check.train.count:,} images"]
    if check.test is not None:
        words.append(f"{check.test.count:,} test images")
    if check.train.classes is not None:
        words.append(f"{len(check.train.classes):,} classes")
    text = ", ".join(words)
    if transform is None:
        return f"{text}; below, some of them as they are stored"
    channels = {1: "grey", 3: "colour", 4: "colour with transparency"}[transform.channels]
    size = f"{transform.width}×{transform.height}"
    return f"{text}; below, some of them as they are trained on: {size}, {channels}"


# What goes where


@dataclass(frozen=True)
class _Row:
    name: str
    count: str
    pictures: list[Image.Image]
    captions: list[str]
    joined: bool = False  # whether pictures come in pairs of the same


@dataclass
class _Sheet:
    """Pictures and texts at places that move down, drawn at the end."""

    width: float = 2 * _MARGIN + _NAMES + _COLUMNS * (_TILE + _GAP) - _GAP
    y: float = _MARGIN
    texts: list[partial[None]] = field(default_factory=list)
    pictures: list[tuple[Image.Image, float, float]] = field(default_factory=list)
    rules: list[float] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, **how: object) -> None:
        self.texts.append(partial(_add_text, x=x, y=y, text=text, how=how))

    def title(self, title: str, subtitle: str) -> None:
        self.text(_MARGIN, self.y + 18, title, fontsize=24)
        self.y += _TITLE
        self.text(_MARGIN, self.y + 6, subtitle, color=style.MUTED)
        self.y += _SUBTITLE

    def heading(self, text: str) -> None:
        self.y += _HEADING / 2
        self.rules.append(self.y)
        self.text(_MARGIN, self.y + 28, text)
        self.y += _HEADING

    def tiles(
        self, name: str, tiles: Sequence[Image.Image], left: float, tile: float, gap: float
    ) -> None:
        """One row of pictures of the same height."""
        height = tiles[0].height / style.DENSITY
        if name:
            self.text(_MARGIN, self.y + height / 2, _cut(name, _NAMES), va="center_baseline")
        for i, picture in enumerate(tiles):
            self.pictures.append((picture, left + i * (tile + gap), self.y))
        self.y += height + gap

    def row(self, row: _Row) -> None:
        """Pictures in boxes of one size, each with its name beneath."""
        middle = self.y + _STORED / 2
        small = {"fontsize": style.SMALL_SIZE, "color": style.MUTED}
        self.text(_MARGIN, middle - 3, row.name)
        self.text(_MARGIN, middle + 15, row.count, **small)
        tiny = {**small, "fontsize": 11.5, "ha": "center"}
        x = _MARGIN + _NAMES + _STORED / 2.0
        for i, (picture, caption) in enumerate(zip(row.pictures, row.captions, strict=True)):
            width, height = (side / style.DENSITY for side in picture.size)
            self.pictures.append((picture, x - width / 2, middle - height / 2))
            self.text(x, self.y + _STORED + 15, _cut(caption, _STORED + 8, 5.4), **tiny)
            x += (_STORED + _STORED_GAP) / 2
            if row.joined and i % 2 == 0:
                self.text(x, middle, "=", ha="center", va="center", color=style.MUTED)
            elif row.joined:
                x += _PAIR_GAP
            x += (_STORED + _STORED_GAP) / 2
        self.y += _STORED + _CAPTION + 10

    def drawn(self) -> Image.Image:
        figure = style.new_figure(self.width, self.y + _MARGIN)
        for add in self.texts:
            add(figure)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # names in any script
            sheet = style.to_image(figure)
        for picture, x, y in self.pictures:
            sheet.paste(picture, (round(x * style.DENSITY), round(y * style.DENSITY)))
        for y in self.rules:
            left, right = _MARGIN * style.DENSITY, sheet.width - _MARGIN * style.DENSITY
            sheet.paste(style.RULE, (left, round(y * style.DENSITY), right, round(y * 2) + 2))
        return sheet


def _add_text(figure: Figure, x: float, y: float, text: str, how: dict[str, object]) -> None:
    look = {"fontfamily": [style.FONT, "DejaVu Sans"], "parse_math": False, **how}
    style.add_text(figure, x, y, text, **look)


def _draw_trained(
    sheet: _Sheet, collection: Collection, part: Part, transform: Transform | None
) -> None:
    by_class = part.classes is not None and 1 < len(part.classes) <= _ROWS
    left = _MARGIN + (_NAMES if by_class else 0)
    room = sheet.width - left - _MARGIN
    tile: float = _TILE
    if transform is not None:
        tile = _size_of_tile(transform.width, transform.height)[0] / style.DENSITY
    columns = max(1, int((room + _GAP) / (tile + _GAP)))
    gap = (room - columns * tile) / max(1, columns - 1)
    if by_class:
        rows = _class_rows(collection, part, columns)
    else:
        rows = [("", _spread(_usable(part), columns * max(1, round(_IMAGES / columns))))]
    pictures = _pictures(collection, [i for _, indices in rows for i in indices], transform)
    for name, indices in rows:
        tiles = [pictures[i] for i in indices if i in pictures]
        for start in range(0, len(tiles), columns):
            sheet.tiles(name, tiles[start : start + columns], left, tile, gap)


def _class_rows(collection: Collection, part: Part, each: int) -> list[tuple[str, list[int]]]:
    assert collection.labels is not None
    assert part.classes is not None
    usable = _usable(part)
    labels = collection.labels[usable]
    names = part.class_names or tuple(map(str, range(len(part.classes))))
    return [(name, _spread(usable[labels == k], each)) for k, name in enumerate(names)]


def _usable(part: Part) -> NDArray[np.int64]:
    return np.setdiff1d(np.arange(part.count), sorted(part.skipped)).astype(np.int64)


def _spread(indices: NDArray[np.int64], count: int) -> list[int]:
    if len(indices) <= count:
        return [int(i) for i in indices]
    return [int(i) for i in indices[np.linspace(0, len(indices) - 1, count).round().astype(int)]]


def _odd_rows(found: Found, check: Check) -> Iterable[_Row]:
    collections = (found.train, found.test)
    for flag, name in (
        (CONSTANT, "nearly one colour"),
        (WRONG_NAME, "named wrongly"),
        (TRANSPARENT, "transparent"),
    ):
        pictures: list[Image.Image] = []
        captions: list[str] = []
        for collection, part in zip(collections, check.parts, strict=False):
            if flag in part.flags and collection is not None:
                examples = part.flags[flag].examples[: _ODD_COLUMNS - len(pictures)]
                _add_stored(pictures, captions, collection, examples)
        count = sum(part.flagged(flag) for part in check.parts)
        yield _Row(name, f"{count:,}", pictures, captions)
    for collection, part, which in zip(collections, check.parts, ("", "test "), strict=False):
        if part.duplicates and collection is not None:
            pairs = [
                pair for group in part.duplicate_groups[: _ODD_COLUMNS // 2] for pair in group[:2]
            ]
            pictures, captions = [], []
            _add_stored(pictures, captions, collection, pairs)
            yield _Row(f"{which}twice", f"{part.duplicates:,}", pictures, captions, joined=True)
    if check.leaks and found.test is not None:
        pictures, captions = [], []
        for train, test in check.leak_pairs[: _ODD_COLUMNS // 2]:
            _add_stored(pictures, captions, found.test, [test])
            _add_stored(pictures, captions, found.train, [train])
        yield _Row("test in train", f"{check.leaks:,}", pictures, captions, joined=True)


def _add_stored(
    pictures: list[Image.Image],
    captions: list[str],
    collection: Collection,
    examples: Sequence[Where],
) -> None:
    box = _STORED * style.DENSITY
    drawn = _pictures(collection, [where.index for where in examples], None, box)
    for where in examples:
        if where.index in drawn:
            pictures.append(drawn[where.index])
            captions.append(where.place.rpartition("/")[2])


def _draw_bad(sheet: _Sheet, check: Check) -> None:
    width = sheet.width - 2 * _MARGIN
    small = {"fontsize": style.SMALL_SIZE}
    sheet.y -= 4
    for bad in check.bad[:_BAD]:
        place = _cut(bad.place, width / 2)
        sheet.text(_MARGIN, sheet.y + 12, place, **small)
        reason = _cut(bad.reason, width / 2)
        sheet.text(_MARGIN + width / 2, sheet.y + 12, reason, color=style.ACCENT, **small)
        sheet.y += _BAD_LINE
    if len(check.bad) > _BAD:
        more = f"… and {len(check.bad) - _BAD:,} more"
        sheet.text(_MARGIN, sheet.y + 12, more, color=style.MUTED, **small)
        sheet.y += _BAD_LINE


def _cut(text: str, width: float, letter: float = _LETTER) -> str:
    """Text that fits in about `width` CSS pixels: its end is kept, where names differ."""
    letters = int(width / letter)
    return (
        text
        if len(text) <= letters
        else f"{text[: letters // 3]}…{text[-(letters * 2 // 3 - 1) :]}"
    )


# Images


def _pictures(
    collection: Collection,
    indices: Sequence[int],
    transform: Transform | None,
    box: int = _BOX,
) -> dict[int, Image.Image]:
    """Images by their index, in device pixels; those that cannot be read any more are left out."""
    wanted = sorted(set(indices))
    pictures = {}
    for index, item in _items(collection, wanted):
        try:
            image = decode(item)
        except BadImage:
            continue
        pictures[index] = _tile(_shown(image, transform), box)
    return pictures


def _items(collection: Collection, wanted: Sequence[int]) -> Iterator[tuple[int, Item]]:
    if collection.sequential and wanted:
        asked = frozenset(wanted)
        for i, item in enumerate(collection.read(0, wanted[-1] + 1)):
            if i in asked:
                yield i, item
        return
    for i in wanted:
        for item in collection.read(i, i + 1):
            yield i, item


def _shown(image: Image.Image, transform: Transform | None) -> Image.Image:
    """As it is trained on; or upright, in its own size, with its transparency."""
    if transform is None:
        width, height = ImageOps.exif_transpose(image).size
        transform = Transform(height, width, 4)
    pixels = transform(image)
    return Image.fromarray(
        np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    )


def _tile(image: Image.Image, box: int) -> Image.Image:
    """As large as fits the box; on a chequerboard where it is transparent."""
    size = _size_of_tile(*image.size, box)
    small = size[0] >= image.width * _PIXELATED
    image = image.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
    if image.mode != "RGBA":
        return image.convert("RGB")
    board = Image.fromarray(_chequerboard(*image.size)).convert("RGBA")
    return Image.alpha_composite(board, image).convert("RGB")


def _size_of_tile(width: int, height: int, box: int = _BOX) -> tuple[int, int]:
    """Of small images a whole multiple, so that every pixel can be seen."""
    factor = box / max(width, height)
    if factor >= _PIXELATED:
        factor = int(factor)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _chequerboard(width: int, height: int) -> Pixels:
    y, x = np.mgrid[:height, :width] // _SQUARE
    squares: Pixels = np.array(_CHECKS, dtype=np.uint8)[(x + y) % 2]
    return squares
