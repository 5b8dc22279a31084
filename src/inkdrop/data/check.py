"""A look at every image before training: what there is, what is wrong, what is there twice.

    found ── examine (in parallel, each image once) ──▶ Facts ──▶ Check ──▶ kept as JSON

Nothing here imports torch: worker processes of the tests import it.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from ..console import progress_bar, say
from ..errors import InkdropError
from .checked import FORMAT_VERSION, Averages, Check, Flag, Part, three
from .facts import DIGEST, EXAMPLES, Facts, Where, examine
from .places import cache_folder
from .stored.collection import MOST_CLASSES, Arrays, Collection, Found

if TYPE_CHECKING:
    from rich.console import Console

_SIZES = 50  # sizes that are listed, the most common ones
_COPIES = 6  # of one image that are listed
_ALONE = 0.5  # seconds after which it is known how long the rest will take
_WORTH = 1.5  # seconds of work that starting other processes is worth
_TASK = 0.5  # seconds of work given to a process at a time, at least
_TASKS_EACH = 16  # at most, since each carries the collection with it
_UNIT = 2.0**-64  # of the sums in Facts

_Key = TypeVar("_Key")


def check(
    found: Found,
    *,
    console: Console | None = None,
    workers: int | None = None,
    refresh: bool = False,
) -> Check:
    """Look at every image, or remember what was seen when nothing has changed since.

    Args:
        console: where to show progress, if a person is watching.
        workers: processes at work; as many as there are cores by default. Sets that are looked at
            in a moment, or can only be read from the beginning, are left to this process.
        refresh: whether to look again in any case.

    Raises:
        InkdropError: if a part is empty, has a label too large to be a class, or changes while it
            is read.
    """
    collections = [part for part in found if part is not None]
    for collection in collections:
        if len(collection) == 0:
            raise InkdropError(f"{collection.name}: empty: there are no images")
        _check_labels(collection)
    kept_at = _kept_at(collections)
    known = None if refresh else _read(kept_at)
    if known is not None:
        return known
    started = perf_counter()
    total = sum(len(collection) for collection in collections)
    with progress_bar(console, "looking at", total, "images") as advance:
        facts = [_gathered(collection, workers, advance) for collection in collections]
    parts = [_part(c, f) for c, f in zip(collections, facts, strict=True)]
    leaks, pairs = _leaks(collections, facts) if len(parts) == 2 else (0, ())
    made = Check(
        FORMAT_VERSION,
        found.train.name,
        found.train.kind,
        tuple(dict.fromkeys(note for collection in collections for note in collection.notes)),
        parts[0],
        parts[1] if len(parts) == 2 else None,
        leaks,
        pairs,
        perf_counter() - started,
    )
    _write(kept_at, made, console)
    return made


def _check_labels(collection: Collection) -> None:
    labels = collection.labels
    if labels is not None and labels.max() >= MOST_CLASSES:
        first = int((labels >= MOST_CLASSES).argmax())
        raise InkdropError(
            f"{collection.name}: the label of image {first} is {labels[first]}, but labels must be "
            f"below {MOST_CLASSES:,}: number the classes from 0"
        )


# Going through the images


def _gathered(collection: Collection, workers: int | None, advance: Callable[[int], None]) -> Facts:
    """The facts of all images, by this process as long as more would not be faster."""
    from joblib import cpu_count

    total = len(collection)
    workers = cpu_count() if workers is None else max(1, workers)
    alone = workers == 1 or collection.sequential or isinstance(collection, Arrays)
    started = perf_counter()
    facts = examine(collection, 0, total, advance=advance, seconds=math.inf if alone else _ALONE)
    if not alone and facts.count < total:
        each = (perf_counter() - started) / max(1, facts.count)
        done = facts.count
        if each * (total - done) < _WORTH:
            facts.add(examine(collection, done, total, advance=advance))
        else:
            for more in _in_parallel(collection, done, each, workers):
                facts.add(more)
                advance(more.count)
    if facts.count != total:
        raise InkdropError(
            f"{collection.name}: {total:,} images were found but {facts.count:,} read: did it "
            "change meanwhile? try again"
        )
    return facts


def _in_parallel(collection: Collection, start: int, each: float, workers: int) -> Iterator[Facts]:
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    ranges = list(_ranges(start, len(collection), collection.block, each, workers))
    parallel = Parallel(n_jobs=workers, backend="loky", return_as="generator")
    try:
        yield from parallel(delayed(examine)(collection, a, b) for a, b in ranges)
    except TerminatedWorkerError as error:
        raise InkdropError(
            f"{collection.name}: a process that looks at images was killed, perhaps for lack of "
            "memory: try fewer workers"
        ) from error


def _ranges(
    start: int, total: int, block: int, each: float, workers: int
) -> Iterator[tuple[int, int]]:
    """Pieces of work that end where blocks end, unless blocks are too large to be shared out."""
    fair = math.ceil((total - start) / workers)
    size = max(math.ceil(_TASK / each), math.ceil(fair / _TASKS_EACH))
    size = min(math.ceil(size / block) * block, fair)
    while start < total:
        stop = min((start // size + 1) * size, total)
        yield start, stop
        start = stop


# From facts to a part


def _part(collection: Collection, facts: Facts) -> Part:
    labels = collection.labels
    usable = np.ones(facts.count, dtype=bool)
    usable[[bad.index for bad in facts.bad]] = False
    classes = None
    if labels is not None:
        counts = np.bincount(labels[usable], minlength=len(collection.class_names))
        classes = tuple(counts.tolist())
    repeated, groups = _duplicates(facts.digests, usable)
    found = _where(collection, [index for group in groups for index in group])
    sides: Counter[int] = Counter()
    for (width, height), n in facts.sizes.items():
        sides[min(width, height)] += n
    return Part(
        name=collection.name,
        count=facts.count,
        bad=tuple(facts.bad),
        sizes={f"{w}×{h}": n for (w, h), n in _ranked(facts.sizes)[:_SIZES]},
        distinct_sizes=len(facts.sizes),
        shorter_sides=dict(sorted(sides.items())),
        aspect=_aspect(facts.sizes),
        smallest=facts.smallest,
        largest=facts.largest,
        modes=dict(_ranked(facts.modes)),
        formats=dict(_ranked(facts.formats)),
        depths=dict(_ranked(facts.depths)),
        flags={flag: Flag(n, tuple(facts.examples[flag])) for flag, n in _ranked(facts.flags)},
        coloured=facts.coloured,
        classes=classes,
        class_names=tuple(collection.class_names),
        duplicates=repeated,
        duplicate_groups=tuple(tuple(found[index] for index in group) for group in groups),
        averages=_averages(facts),
        visible_luma=facts.luma * _UNIT / facts.visible if facts.visible else None,
        content=_content(collection, facts),
    )


def _ranked(counts: Mapping[_Key, int]) -> list[tuple[_Key, int]]:
    """The most common first; among equals in no order that depends on who counted."""
    return sorted(counts.items(), key=lambda entry: (-entry[1], str(entry[0])))


def _aspect(sizes: Mapping[tuple[int, int], int]) -> tuple[float, float, float]:
    if not sizes:
        return 0.0, 0.0, 0.0
    aspects = sorted((width / height, n) for (width, height), n in sizes.items())
    left = sum(sizes.values()) / 2
    middle = aspects[-1][0]
    for aspect, n in aspects:
        left -= n
        if left <= 0:
            middle = aspect
            break
    return aspects[0][0], middle, aspects[-1][0]


def _averages(facts: Facts) -> Averages | None:
    usable = facts.count - len(facts.bad)
    if usable == 0:
        return None
    sums = facts.moments

    def mean(total: int) -> float:
        return total / (usable << 64)

    return Averages(
        three(map(mean, sums.first)),
        three(map(mean, sums.second)),
        three(map(mean, sums.cross)),
        mean(sums.clear),
        mean(sums.clear_squared),
    )


def _content(collection: Collection, facts: Facts) -> str:
    digest = hashlib.sha256(facts.digests)
    if collection.labels is not None:
        digest.update(b"labels" + collection.labels.astype("<i8").tobytes())
    for name in collection.class_names:
        digest.update(f"class {name}\n".encode(errors="replace"))
    return digest.hexdigest()


# What is there twice


def _firsts(digests: bytes | bytearray) -> NDArray[np.int64]:
    """For every image the index of the first one equal to it; its own if there is none."""
    words = np.frombuffer(digests, dtype="<u8").reshape(-1, DIGEST // 8)
    order = np.lexsort((words[:, 1], words[:, 0]))  # keeps equal ones in their order
    arranged = words[order]
    starts = np.ones(len(words), dtype=bool)
    starts[1:] = (arranged[1:] != arranged[:-1]).any(axis=1)
    firsts = np.empty(len(words), dtype=np.int64)
    firsts[order] = order[np.flatnonzero(starts)][np.cumsum(starts) - 1]
    return firsts


def _duplicates(
    digests: bytes | bytearray, usable: NDArray[np.bool_]
) -> tuple[int, list[list[int]]]:
    """How many images repeat an earlier one, and the first groups of equal ones."""
    firsts = _firsts(digests)
    repeats = np.flatnonzero((firsts != np.arange(len(firsts))) & usable)
    groups = []
    for first in np.unique(firsts[repeats])[:EXAMPLES].tolist():
        copies = repeats[firsts[repeats] == first][: _COPIES - 1]
        groups.append([first, *copies.tolist()])
    return len(repeats), groups


def _leaks(
    collections: list[Collection], facts: list[Facts]
) -> tuple[int, tuple[tuple[Where, Where], ...]]:
    """How many test images are also among the training images, and the first pairs."""
    known = facts[0].count
    firsts = _firsts(facts[0].digests + facts[1].digests)[known:]
    usable = np.ones(len(firsts), dtype=bool)
    usable[[bad.index for bad in facts[1].bad]] = False
    leaked = np.flatnonzero((firsts < known) & usable)
    first = leaked[:EXAMPLES].tolist()
    originals = _where(collections[0], firsts[first].tolist())
    copies = _where(collections[1], first)
    return len(leaked), tuple((originals[int(firsts[i])], copies[i]) for i in first)


def _where(collection: Collection, indices: Iterable[int]) -> dict[int, Where]:
    """What images are called, by their indices."""
    wanted = sorted(set(indices))
    if collection.sequential and wanted:
        named = enumerate(collection.read(0, wanted[-1] + 1))
        return {i: Where(i, item.place) for i, item in named if i in wanted}
    return {i: Where(i, next(iter(collection.read(i, i + 1))).place) for i in wanted}


# Keeping it


def _kept_at(collections: list[Collection]) -> Path:
    facts = [FORMAT_VERSION, PIL.__version__, Image.MAX_IMAGE_PIXELS]
    text = "\n".join([*map(str, facts), *(c.identity() for c in collections)])
    return cache_folder() / "checks" / f"{hashlib.sha256(text.encode()).hexdigest()}.json"


def _read(path: Path) -> Check | None:
    """A check that was kept; None if there is none, or it is damaged or of another version."""
    from pydantic import TypeAdapter

    try:
        known = TypeAdapter(Check).validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return known if known.format_version == FORMAT_VERSION else None


def _write(path: Path, made: Check, console: Console | None) -> None:
    from pydantic import TypeAdapter

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with open(descriptor, "wb") as file:
                file.write(TypeAdapter(Check).dump_json(made))
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        say(console, f"  this check cannot be kept in {path.parent}: {error.strerror}")
