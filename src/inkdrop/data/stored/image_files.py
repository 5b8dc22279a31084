"""Image files in folders and archives: which files they are, their parts and their classes.

    photos/cats/1.png, photos/dogs/1.png             classes cats and dogs
    photos/train/cats/1.png, photos/test/cats/2.png  the same in two parts
    photos/1.png, photos/2.png                       no classes
    shards/0.tar: 17.png, 17.cls                     WebDataset shards

Nothing here imports torch: it runs in worker processes.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from itertools import accumulate
from posixpath import commonpath, dirname

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import InkdropError
from .collection import Collection, Found, Item
from .shards import pair_up, read_labels
from .trees import TAR_NAMES, Tree, Unreadable, counted, natural_key, open_tree, shown

_PARTS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}
_FILES = ("file", "files")

# What Pillow lists beside images: documents, films and scientific data it only hands on.
_NO_PICTURES = {"BUFR", "EPS", "FLI", "GRIB", "HDF5", "IPTC", "MPEG", "PALM", "PDF", "WMF"}
# No image is called so; and captions can lie beside millions of images, each slow to open.
_TEXTS = {".cls", ".csv", ".html", ".json", ".jsonl", ".md", ".tsv", ".txt", ".xml", ".yaml"}
_STARTS = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|II[*+]\0|MM\0[*+]|RIFF....WEBP|qoif"
    rb"|BM....\0\0\0\0....[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"
    rb"|P[1-7][ \t\r\n]+[0-9#]|P7\nWIDTH|....ftypavi[fs]|\0\0\0\x0cjP  \r\n\x87\n|8BPS\0\x01",
    re.DOTALL,
)

# What systems leave in folders unasked; so do all whose names start with a dot.
_LITTER_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini"}
_LITTER_FOLDERS = ("__MACOSX/", "@eaDir/", "$RECYCLE.BIN/")


class ImageFiles(Collection):
    """The image files of one part, "train" or "test", of trees; made by `find_images`.

    Pickles without its files and labels, which are found again where they are needed.
    """

    def __init__(
        self, trees: tuple[Tree, ...], part: str, layout: _Layout, classes: _Classes, name: str
    ) -> None:
        runs = layout.parts[part]
        self._trees = trees
        self._part = part
        self._count = sum(len(run.names) for run in runs)
        self._set_name = name
        self.name = f"{name} (test)" if part == "test" else name
        self.kind = _in_words([run.tree for run in runs], layout.shards)
        self.labels = classes.labels[part]
        self.class_names = classes.names
        self.notes = classes.notes[part] if part == "test" else layout.notes + classes.notes[part]

    @cached_property
    def labels(self) -> NDArray[np.int64] | None:  # type: ignore[override]
        """As found by `find_images`; found once more in another process, if it asks."""
        return _find_classes(_lay_out(self._trees), self._set_name).labels[self._part]

    def __len__(self) -> int:
        return self._count

    def read(self, start: int, stop: int) -> Iterator[Item]:
        """Images start … stop - 1: the files' bytes.

        Raises:
            InkdropError: in another process, if the files have changed since they were found.
        """
        for i in range(start, stop):
            run, name = self._at(i)
            place = shown(self._prefixes[run.tree] + name)
            try:
                yield Item(place, run.tree.read(name))
            except Unreadable as error:
                yield Item(place, None, error.reason)

    def identity(self) -> str:
        """Of the trees' and the part's name."""
        digest = hashlib.sha256(self._part.encode())
        for tree in self._trees:
            digest.update(tree.identity().encode())
        return digest.hexdigest()

    def _at(self, i: int) -> tuple[_Run, str]:
        runs, stops = self._runs
        which = bisect_right(stops, i)
        return runs[which], runs[which].names[i - (stops[which - 1] if which else 0)]

    @cached_property
    def _runs(self) -> tuple[tuple[_Run, ...], list[int]]:
        runs = _lay_out(self._trees).parts[self._part]
        return runs, list(accumulate(len(run.names) for run in runs))

    @cached_property
    def _prefixes(self) -> dict[Tree, str]:
        """What tells equal names in several trees apart; nothing, if there is one tree only."""
        if len(self._trees) == 1:
            return {self._trees[0]: ""}
        paths = [tree.path.absolute() for tree in self._trees]
        parents = set.intersection(*(set(path.parents) for path in paths))  # none across drives
        skip = max((len(parent.parts) for parent in parents), default=0)
        return {
            tree: "/".join(path.parts[skip:]) + "/"
            for tree, path in zip(self._trees, paths, strict=True)
        }

    def __getstate__(self) -> dict[str, object]:
        found_again = ("labels", "_runs", "_prefixes")
        return {key: value for key, value in self.__dict__.items() if key not in found_again}


def find_images(trees: Sequence[Tree]) -> Found | None:
    """The image files of trees taken together, in parts and classes; None if there are none.

    Files are images by their extension, or else by their first bytes. A folder of nothing but
    tars is taken as these tars.

    Raises:
        InkdropError: if an archive is damaged, the test images have classes that the training
            images lack, a sample of a shard has several images, or only some have a label.
    """
    if not trees:
        return None
    trees, name = tuple(trees), _name(trees)
    tree, times = Counter(trees).most_common(1)[0]
    if times > 1:
        raise InkdropError(f"{shown(tree.path)} is given {times} times: give it once")
    layout = _lay_out(trees)
    if not layout.parts and len(trees) == 1 and tree.kind == "a folder":
        trees, notes = _tars_in(tree)
        layout = _lay_out(trees)
        layout = replace(layout, notes=notes + layout.notes)
    if not layout.parts:
        return None
    classes = _find_classes(layout, name)
    train, *tests = (ImageFiles(trees, part, layout, classes, name) for part in layout.parts)
    return Found(train, tests[0] if tests else None)


# Which files are images


@cache
def image_extensions() -> frozenset[str]:
    """The extensions, in lower case and with the dot, of the images that Pillow reads."""
    known = Image.registered_extensions()
    return frozenset(extension for extension, kind in known.items() if kind not in _NO_PICTURES)


def looks_like_an_image(start: bytes) -> bool:
    """Whether a file that starts with these 32 bytes is an image of one of the usual formats."""
    return _STARTS.match(start) is not None


@dataclass(frozen=True)
class _Sorted:
    """The names in a tree."""

    tree: Tree
    images: list[str]
    litter: list[str]
    others: list[str]


def _sort(tree: Tree) -> _Sorted:
    extensions = image_extensions()
    found = _Sorted(tree, [], [], [])
    for name in tree.names:
        if _is_litter(name):
            found.litter.append(name)
            continue
        extension = name[name.rfind(".") :].lower()
        if extension in extensions or (extension not in _TEXTS and _looks_right(tree, name)):
            found.images.append(name)
        else:
            found.others.append(name)
    return found


def _is_litter(name: str) -> bool:
    return (
        name.startswith(".")
        or "/." in name
        or any(folder in name for folder in _LITTER_FOLDERS)
        or name[name.rfind("/") + 1 :].lower() in _LITTER_FILES
    )


def _looks_right(tree: Tree, name: str) -> bool:
    try:
        return looks_like_an_image(tree.head(name))
    except Unreadable:
        return False


def _tars_in(folder: Tree) -> tuple[tuple[Tree, ...], tuple[str, ...]]:
    """The tars in a folder without images, and a note of what else there is."""
    tars: list[Tree] = []
    others = []
    for name in folder.names:
        named_so = name.lower().endswith(TAR_NAMES) and not _is_litter(name)
        found = open_tree(folder.path / name) if named_so else None
        if found is not None and found.kind == "a tar":
            tars.append(found)
        else:
            others.append(name)
    left_out = (f"left out, as no tars: {counted(others, *_FILES)}",) if others else ()
    return tuple(tars), folder.notes + left_out


# Which parts and classes they make up


@dataclass(frozen=True)
class _Run:
    """Images of one tree and one part.

    Attributes:
        tree: what they are in.
        names: what they are called there, in order.
        within: how many characters of the names are the folder that makes them a part.
        label_files: of shards, per image the file that may name its class.
    """

    tree: Tree
    names: list[str]
    within: int = 0
    label_files: list[str | None] | None = None


@dataclass(frozen=True)
class _Layout:
    """The runs of "train" and then perhaps "test"; no parts at all, if there are no images."""

    parts: dict[str, tuple[_Run, ...]]
    notes: tuple[str, ...]
    shards: bool = False


@lru_cache(maxsize=2)  # in a worker process it is asked for with every task
def _lay_out(trees: tuple[Tree, ...]) -> _Layout:
    found = [_sort(tree) for tree in trees]
    if not any(one.images for one in found):
        return _Layout({}, ())
    pairs = pair_up([(one.tree, one.images, one.others) for one in found])
    if pairs is None:
        parts, left_out = _split_files([(one.tree, one.images) for one in found if one.images])
        others = [name for one in found for name in one.others]
    else:
        shards = zip(found, pairs.label_files, strict=True)
        runs = [_Run(one.tree, one.images, 0, labels) for one, labels in shards if one.images]
        parts, left_out = _split_shards(runs)
        others = pairs.unused
    notes = [note for tree in trees for note in tree.notes]
    if litter := [name for one in found for name in one.litter]:
        notes.append(f"left out, as hidden or the system's own: {counted(litter, *_FILES)}")
    if others:
        notes.append(f"left out, as no images: {counted(others, *_FILES)}")
    return _Layout(parts, (*notes, *left_out), pairs is not None)


_Parts = dict[str, tuple[_Run, ...]]


def _split_files(sets: Sequence[tuple[Tree, list[str]]]) -> tuple[_Parts, list[str]]:
    """Train and test by the trees' own names, else by the topmost folders; else all is train."""
    parts: dict[str, list[_Run]] = defaultdict(list)
    roles = [_role(tree.path.absolute().name.partition(".")[0]) for tree, _ in sets]
    if _are_parts(roles):
        for role, (tree, names) in zip(roles, sets, strict=True):
            folder = _wrapping(names).partition("/")[0]
            within = len(folder) + 1 if role and _role(folder) == role else 0
            parts[role].append(_Run(tree, names, within))
        return _chosen(parts)
    within = len(_wrapping([name for _, names in sets for name in (min(names), max(names))]))
    folders = [_by_folder(names, within) for _, names in sets]
    if not _are_parts([_role(folder) for one in folders for folder in one]):
        return {"train": tuple(_Run(tree, names, within) for tree, names in sets)}, []
    for (tree, _), one in zip(sets, folders, strict=True):
        for folder, names in one.items():
            parts[_role(folder)].append(_Run(tree, names, within + len(folder) + 1))
    return _chosen(parts)


def _split_shards(runs: Sequence[_Run]) -> tuple[_Parts, list[str]]:
    """Train and test by words in the names of the shards, or of the folders they lie in."""
    parts: dict[str, list[_Run]] = defaultdict(list)
    for run in runs:
        path = run.tree.path
        words = re.split("[^a-z]+", f"{path.name} {path.parent.name}".lower())
        parts[next(filter(None, map(_role, words)), "")].append(run)
    return _chosen(parts) if _are_parts(parts) else ({"train": tuple(runs)}, [])


def _role(word: str) -> str:
    return _PARTS.get(word.lower(), "")


def _are_parts(roles: Iterable[str]) -> bool:
    """One folder called "train" may be a class of vehicles; with "test" beside it, it is not."""
    return {"train", "test"} <= {"test" if role == "val" else role for role in roles}


def _chosen(parts: dict[str, list[_Run]]) -> tuple[_Parts, list[str]]:
    notes = []
    validation = parts.get("val", [])
    if validation and "test" not in parts:
        notes.append("the validation images are taken as test images, for there are no others")
    elif validation:
        names = counted(_all_names(validation), "image", "images")
        notes.append(f"not used, for there are test images: the validation set, {names}")
    if "" in parts:
        names = counted(_all_names(parts[""]), "image", "images")
        notes.append(f"left out, as neither in the training nor in the test set: {names}")
    test = parts.get("test", validation)
    return {"train": tuple(parts["train"]), "test": tuple(test)}, notes


def _all_names(runs: Iterable[_Run]) -> list[str]:
    return [name for run in runs for name in run.names]


def _wrapping(names: Sequence[str]) -> str:
    """The folders that all names lie in, with the "/" at their end."""
    folder = commonpath([dirname(min(names)), dirname(max(names))])
    return f"{folder}/" if folder else ""


def _by_folder(names: Iterable[str], within: int) -> dict[str, list[str]]:
    """Names by the first folder after `within` characters; "" for those in none."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[_folder(name, within)].append(name)
    return found


def _folder(name: str, within: int) -> str:
    end = name.find("/", within)
    return name[within:end] if end >= 0 else ""


@dataclass(frozen=True)
class _Classes:
    """What the parts' images are labelled as."""

    labels: dict[str, NDArray[np.int64] | None]
    names: tuple[str, ...]
    notes: dict[str, tuple[str, ...]]


def _find_classes(layout: _Layout, name: str) -> _Classes:
    return _shard_classes(layout, name) if layout.shards else _folder_classes(layout, name)


def _shard_classes(layout: _Layout, name: str) -> _Classes:
    notes: dict[str, tuple[str, ...]] = dict.fromkeys(layout.parts, ())
    shards = {
        part: [(run.tree, run.names, run.label_files or []) for run in runs]
        for part, runs in layout.parts.items()
    }
    found = read_labels(shards)
    if found is None:
        files = [file for _, _, files in shards["train"] for file in files if file]
        if files:
            notes["train"] = (f"no labels, for there are none in {counted(files, *_FILES)}",)
        return _Classes(dict.fromkeys(layout.parts), (), notes)
    numbers, names = _numbered(found, name)
    return _Classes({**numbers}, names, notes)


def _folder_classes(layout: _Layout, name: str) -> _Classes:
    """The first folders within each part, if they are two or more and hold all of its images."""
    notes: dict[str, tuple[str, ...]] = dict.fromkeys(layout.parts, ())
    folders = {
        part: [_folder(file, run.within) for run in runs for file in run.names]
        for part, runs in layout.parts.items()
    }
    for part in list(folders):
        if not all(folders[part]):
            if any(folders[part]):
                notes[part] = (_beside_folders(layout.parts[part], folders[part]),)
            del folders[part]
    unlabelled = _Classes(dict.fromkeys(layout.parts), (), notes)
    if "train" not in folders or len(set(folders["train"])) < 2:
        return unlabelled
    if "test" in layout.parts and "test" not in folders and not notes["test"]:
        notes["test"] = ("no labels, for these images do not lie in class folders",)
    numbers, names = _numbered(folders, name)
    return _Classes({**unlabelled.labels, **numbers}, names, notes)


def _beside_folders(runs: Sequence[_Run], folders: Sequence[str]) -> str:
    files = (file for run in runs for file in run.names)
    outside = [file for file, folder in zip(files, folders, strict=True) if not folder]
    inside = sorted(set(folders) - {""}, key=natural_key)
    return (
        f"no labels, for beside {counted(inside, 'folder', 'folders')} there lie "
        f"{counted(outside, 'image', 'images')}"
    )


def _numbered(
    labels: Mapping[str, Sequence[int] | Sequence[str]], name: str
) -> tuple[dict[str, NDArray[np.int64]], tuple[str, ...]]:
    """Each part's labels as numbers, and what the numbers mean if they were names.

    Raises:
        InkdropError: if the training images lack a class of the test images.
    """
    if isinstance(labels["train"][0], int):
        return {part: np.array(own, np.int64) for part, own in labels.items()}, ()
    known = sorted({str(label) for label in labels["train"]}, key=natural_key)
    unknown = {str(label) for label in labels.get("test", ())}.difference(known)
    if unknown:
        raise InkdropError(
            f"{name}: the test images have {counted(sorted(unknown), 'class', 'classes')} which "
            f"the training images lack: those have {counted(known, 'class', 'classes')}"
        )
    number = {label: i for i, label in enumerate(known)}
    numbers = {
        part: np.fromiter((number[str(label)] for label in own), np.int64, len(own))
        for part, own in labels.items()
    }
    return numbers, tuple(map(shown, known))


# How messages call them


def _name(trees: Sequence[Tree]) -> str:
    first = shown(trees[0].path.name or trees[0].path.absolute().name)
    return first if len(trees) == 1 else f"{first} and {len(trees) - 1:,} more"


def _in_words(trees: Sequence[Tree], shards: bool) -> str:
    """Such as "a zip of images", "2 zips and 1 folder of images", "WebDataset shards (12 tars)"."""
    nouns = Counter(tree.kind.removeprefix("a ") for tree in dict.fromkeys(trees))
    several = [f"{n:,} {noun}{'s' if n > 1 else ''}" for noun, n in sorted(nouns.items())]
    if shards:
        return f"WebDataset shards ({several[0]})"
    if len(several) == 1 and nouns.total() == 1:
        return f"{trees[0].kind} of images"
    return f"{' and '.join(several)} of images"
