"""WebDataset shards: tars in which the files of one sample share their name up to the first dot.

000017.jpg   the image
000017.cls   its class, a number or a name; or
000017.json  {"label": its class}
000017.txt   a caption, which is not used
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...errors import InkdropError
from .collection import MOST_CLASSES
from .trees import Tree, Unreadable, shown

_BESIDE = ("cls", "json", "txt")
_LABEL_KEYS = ("label", "class", "cls")  # in a .json, the first that is there
_LONGEST_LABEL = 1 << 20  # bytes of a file with it


@dataclass(frozen=True)
class Pairs:
    """The samples of shards.

    Attributes:
        label_files: per shard, per image the file that may name its class, or None.
        unused: the files that are neither.
    """

    label_files: list[list[str | None]]
    unused: list[str]


def pair_up(shards: Sequence[tuple[Tree, list[str], list[str]]]) -> Pairs | None:
    """The samples, given each tree with its images and other files; None if these are no shards.

    They are, if all are tars and there is a .cls beside an image, or a .json or .txt beside at
    least half of the images.

    Raises:
        InkdropError: if a sample has more than one image.
    """
    if any(tree.kind != "a tar" for tree, _, _ in shards):
        return None
    beside = [_beside(others) for _, _, others in shards]
    keys = [[_key(name)[0] for name in images] for _, images, _ in shards]
    paired = [[found.get(key, {}) for key in own] for found, own in zip(beside, keys, strict=True)]
    alone = sum(not files for own in paired for files in own)
    if not any("cls" in files for own in paired for files in own) and (
        alone * 2 > sum(map(len, paired))
    ):
        return None
    for (tree, images, _), own in zip(shards, keys, strict=True):
        _check_one_image_each(tree, images, own)
    label_files = [[files.get("cls") or files.get("json") for files in own] for own in paired]
    used = [set(own) for own in label_files]
    unused = [
        name
        for (_, _, others), own in zip(shards, used, strict=True)
        for name in others
        if name not in own
    ]
    return Pairs(label_files, unused)


def read_labels(
    parts: Mapping[str, Sequence[tuple[Tree, Sequence[str], Sequence[str | None]]]],
) -> dict[str, list[int] | list[str]] | None:
    """Each part's labels, all numbers or all names; None if there are none.

    Args:
        parts: of each part, the shards with their images and label files.

    Raises:
        InkdropError: if only some images have a label, only some labels are numbers, or one can
            be neither.
    """
    numbers: dict[str, list[int]] = {part: [] for part in parts}
    names: dict[str, list[str]] = {part: [] for part in parts}
    first: dict[str, str] = {}  # where the first label of each kind is
    for part, place, label in _all_labels(parts):
        if isinstance(label, int):
            first.setdefault("number", place)
            numbers[part].append(label)
        elif isinstance(label, str):
            first.setdefault("name", place)
            names[part].append(label)
        else:
            first.setdefault("none", place)
        if len(first) > 1:
            raise _mixed(first)
    if "none" in first:
        return None
    return {**numbers} if "number" in first else {**names}


def _key(name: str) -> tuple[str, str]:
    """What a sample's files share, and the rest of the name."""
    dot = name.find(".", name.rfind("/") + 1)
    return (name, "") if dot < 0 else (name[:dot], name[dot + 1 :].lower())


def _beside(others: Sequence[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for name in others:
        key, extension = _key(name)
        if extension in _BESIDE:
            found.setdefault(key, {})[extension] = name
    return found


def _check_one_image_each(tree: Tree, images: Sequence[str], keys: Sequence[str]) -> None:
    if len(set(keys)) == len(keys):
        return
    first: dict[str, str] = {}
    for name, key in zip(images, keys, strict=True):
        other = first.setdefault(key, name)
        if other != name:
            raise InkdropError(
                f"{shown(tree.path)}: the sample {shown(key)} has several images, {shown(other)} "
                f"and {shown(name)}: leave one for each sample"
            )


def _all_labels(
    parts: Mapping[str, Sequence[tuple[Tree, Sequence[str], Sequence[str | None]]]],
) -> Iterator[tuple[str, str, int | str | None]]:
    for part, shards in parts.items():
        for tree, images, label_files in shards:
            for image, label_file in zip(images, label_files, strict=True):
                place = f"{shown(tree.path)}, {shown(label_file or image)}"
                yield part, place, None if label_file is None else _label(tree, label_file, place)


def _label(tree: Tree, name: str, place: str) -> int | str | None:
    try:
        if tree.size(name) > _LONGEST_LABEL:
            raise InkdropError(f"{place}: too long for a label: {tree.size(name):,} bytes")
        content = tree.read(name)
    except Unreadable as error:
        raise InkdropError(f"{place}: the label cannot be read: {error.reason}") from error
    label = _from_json(content, place) if name.lower().endswith(".json") else _text(content, place)
    if label is None:
        return None
    if isinstance(label, str) and label.isascii() and label.isdigit() and len(label) < 12:
        label = int(label)
    if type(label) is int and 0 <= label < MOST_CLASSES:
        return label
    if isinstance(label, str) and label:
        return label
    raise InkdropError(
        f"{place}: the label {shown(repr(label)[:40])} is neither a number from 0 to "
        f"{MOST_CLASSES - 1:,} nor a name"
    )


def _text(content: bytes, place: str) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InkdropError(f"{place}: the label is no text") from error


def _from_json(content: bytes, place: str) -> object:
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InkdropError(f"{place}: this is no JSON: {shown(str(error)[:80])}") from error
    if not isinstance(facts, dict):
        return None
    return next((facts[key] for key in _LABEL_KEYS if key in facts), None)


def _mixed(first: Mapping[str, str]) -> InkdropError:
    if "none" in first:
        other = first.get("number") or first["name"]
        return InkdropError(
            f"{first['none']} has no label, but {other} has: give labels to all images or to none"
        )
    return InkdropError(
        f"the label in {first['number']} is a number, but in {first['name']} a name: give all "
        "labels as numbers or all as names"
    )
