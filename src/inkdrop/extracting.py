"""Features of real images: made a batch at a time, shared out over processes, and kept.

CACHE/features/KEY.safetensors holds the features of a set of images, named by all that they depend
on. It is written whole or not at all, and one that is not as it was written is made anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from .checkpoint import replace_synced
from .console import progress_bar
from .data.examples import Examples
from .data.places import cache_folder
from .evaluation.extractors import Extractor
from .evaluation.features import FeatureSet
from .processes import Processes
from .sharing import gathering, own_examples

FOLDER = "features"  # in the cache
_FORMAT = 1  # changes whenever the file does
_BATCH = 256  # not the user's choice: sums in float32 may differ with it in the last bit
_NOT_KEPT = "pixels"  # the extractor whose features cost no more than reading them
_VALUES, _LOGITS, _DIGEST = "values", "logits", "sha256"

Arrays = dict[str, NDArray[np.float32]]


def features_of(
    extractor: Extractor,
    examples: Examples,
    processes: Processes,
    console: Console | None = None,
    *,
    mirrored: bool = False,
    what: str = "real images",
) -> FeatureSet:
    """The features of all examples, on every process; from the cache where they are there.

    The processes share the batches: the features are those of one process, to the bit.

    Args:
        mirrored: of the images' mirror images.
    """
    count = len(examples)
    file = _file(extractor, examples, mirrored)
    kept = None if extractor.name == _NOT_KEPT else _read(file, count, extractor)
    if all(processes.gather_objects(kept is not None)):
        assert kept is not None
        return kept
    own = own_examples(processes, count, _BATCH)
    with progress_bar(console, what, len(own), "images") as advance:

        def batches() -> Iterator[Tensor]:
            for first in range(own.start, own.stop, _BATCH):
                images = examples.at(np.arange(first, min(first + _BATCH, own.stop)))
                yield images.flip(-1) if mirrored else images
                advance(len(images))

        own_part = collected(extractor, batches(), len(own), extractor.features, extractor.classes)
    made = gathered(own_part, processes)
    if processes.local_rank == 0 and extractor.name != _NOT_KEPT:
        with suppress(OSError):  # a cache that cannot be written to costs time only
            _write(file, made)
    return made


def collected(
    extract: Callable[[Tensor], FeatureSet],
    batches: Iterable[Tensor],
    count: int,
    features: int,
    classes: int | None,
) -> FeatureSet:
    """The features of examples (B, …), `count` in all, of which one batch is held at a time.

    Args:
        features, classes: D and K of what `extract` makes.
    """
    values = np.empty((count, features), np.float32)
    logits = None if classes is None else np.empty((count, classes), np.float32)
    done = 0
    for images in batches:
        found, rows = extract(images), slice(done, done + len(images))
        values[rows] = found.values
        if logits is not None:
            assert found.logits is not None
            logits[rows] = found.logits
        done += len(images)
    assert done == count
    return FeatureSet(values, logits)


def gathered(own: FeatureSet, processes: Processes) -> FeatureSet:
    """The features of all processes, in order, on each of them."""
    if processes.size == 1:
        return own
    gather = gathering(processes)
    values = gather(torch.from_numpy(np.asarray(own.values))).numpy()
    if own.logits is None:
        return FeatureSet(values, None)
    return FeatureSet(values, gather(torch.from_numpy(np.asarray(own.logits))).numpy())


def _file(extractor: Extractor, examples: Examples, mirrored: bool) -> Path:
    depends_on = (_FORMAT, examples.fingerprint, len(examples), extractor.fingerprint, mirrored)
    key = hashlib.sha256("\n".join(map(str, depends_on)).encode()).hexdigest()
    return cache_folder() / FOLDER / f"{key}.safetensors"


def _write(file: Path, made: FeatureSet) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {_VALUES: np.ascontiguousarray(made.values)}
    if made.logits is not None:
        arrays[_LOGITS] = np.ascontiguousarray(made.logits)
    replace_synced(file, safetensors.numpy.save(arrays, {_DIGEST: _digest(arrays)}))


def _read(file: Path, count: int, extractor: Extractor) -> FeatureSet | None:
    """What was kept; None if there is nothing, or it is not as it was written."""
    expected = {_VALUES: extractor.features}
    if extractor.classes is not None:
        expected[_LOGITS] = extractor.classes
    try:
        with safetensors.safe_open(file, "numpy") as opened:
            digest = (opened.metadata() or {}).get(_DIGEST)
            arrays: Arrays = {name: opened.get_tensor(name) for name in expected}
    except (OSError, safetensors.SafetensorError):
        return None
    fits = all(arrays[name].shape == (count, width) for name, width in expected.items())
    if not fits or digest != _digest(arrays):
        return None
    return FeatureSet(arrays[_VALUES], arrays.get(_LOGITS))


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(arrays[name].data)
    return digest.hexdigest()
