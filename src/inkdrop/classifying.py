"""A classifier of the data's own classes: trained once for a set of images, kept, found again.

It is named by the fingerprint of the images it was trained on, which a run of these images knows,
and lies in CACHE/classifiers/FINGERPRINT: classifier.json and weights.safetensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError
from torch import Tensor

from .build import choose_device
from .checkpoint import looks_like_pickle, naming, sync_folder, write_part, write_synced
from .console import counted, duration, progress_bar, say
from .data.augment import Augmentation
from .data.examples import Examples, to_x_start
from .data.loading import load_source
from .data.places import CACHE_VARIABLE, cache_folder
from .data.stream import Stream, held_out_split
from .environment import describe
from .errors import InkdropError, unknown_name
from .folders import make_empty, remove, writing_place
from .networks.classifier import FEATURES, Classifier
from .presets import PRESETS, preset
from .randomness import generator, torch_seeded
from .run import load, read_config

_FORMAT = "inkdrop classifier"
_FORMAT_VERSION = 1  # changes whenever the files of a classifier do
_FACTS, _WEIGHTS, _DIGEST = "classifier.json", "weights.safetensors", "sha256"
_INPUT = "pixels / 127.5 - 1"  # what it is shown: part of its fingerprint

_BATCH, _AT_ONCE = 128, 500  # images of a training step, and of one that only asks
_GREY_SEEN, _COLOUR_SEEN = 480_000, 1_000_000  # images, in the whole training
_FEWEST_EPOCHS, _MOST_EPOCHS = 8, 40
_LEARNING_RATE, _MOMENTUM, _WEIGHT_DECAY = 0.1, 0.9, 5e-4
_WARMUP = 0.2  # of all steps
_SMOOTHING = 0.05  # of the labels
_TURN, _ZOOM, _SHEAR, _STRETCH, _SHIFT = math.radians(10), 0.1, 0.1, 0.08, 0.07
_PATIENCE = 1.0  # seconds after which waiting for another process is worth a word
_HARDLY_BETTER = 0.1  # than always naming the most frequent class


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier that is kept in a folder.

    Attributes:
        network: in evaluation mode, its weights not to be trained.
        path: the folder.
        shape: (C, H, W) of the images.
        classes: K.
        accuracy: the share of held-out images that it knows the class of.
        data: the fingerprint of the images that it was trained on.
        fingerprint: of its weights and of what images are made into before it sees them.
        protocol: how it was trained: epochs, seed, horizontal_flip and all else that it depends on.
    """

    network: Classifier
    path: Path
    shape: tuple[int, int, int]
    classes: int
    accuracy: float
    data: str
    fingerprint: str
    protocol: dict[str, Any]


def train_classifier(
    examples: Examples,
    held_out: Examples,
    out: str | Path | None = None,
    *,
    epochs: int | None = None,
    seed: int = 0,
    horizontal_flip: bool = False,
    refresh: bool = False,
    device: str = "auto",
    console: Console | None = None,
) -> TrainedClassifier:
    """Train a classifier of labelled images and keep it; or find it, where it was trained before.

    Args:
        examples: what to train on; a run's own, `run.load_data().train`, so that the run finds it.
        held_out: what its accuracy is measured on.
        out: the folder; the one in the cache where `find_classifier` looks, if not given.
        epochs: passes over the examples; by default what 480,000 images are (a million in colour),
            but from 8 to 40.
        seed: names every draw.
        horizontal_flip: mirror half of the images, where that leaves them what they are.
        refresh: train again, and replace the one that is kept.
        console: is told what is done and found.

    Raises:
        InkdropError: for examples that are no images with classes, a folder in use, or one that
            keeps a classifier of other images or settings; all before any work.
    """
    _check(examples, held_out)
    if epochs is not None and epochs < 1:
        raise InkdropError(f"epochs must be at least 1, got {epochs}")
    if epochs is None:
        epochs = _usual_epochs(examples)
    protocol = _protocol(epochs, seed, horizontal_flip)
    chosen = choose_device(device)
    folder = _place(examples.fingerprint) if out is None else Path(out)
    waiting = _locked(folder, console) if out is None else contextlib.nullcontext()
    with waiting:
        kept = None if refresh else _kept(folder, examples, protocol)
        _check_free(folder)
        if kept is None:
            with _writing(folder) as writing:
                network, facts = _made(examples, held_out, protocol, chosen, console)
                _write(writing, facts, network)
                _put_in_place(writing, folder)
        made = load_classifier(folder, device)
        if kept is not None:
            say(
                console,
                f"a classifier of {examples.name} was trained with these settings before, and "
                f"knows {made.accuracy:.2%} of {_told_of(kept)}; --refresh trains it anew",
            )
        return made


def train_for(
    target: str,
    *,
    data: tuple[str, ...] = (),
    out: str | Path | None = None,
    epochs: int | None = None,
    seed: int = 0,
    refresh: bool = False,
    device: str = "auto",
    console: Console | None = None,
) -> TrainedClassifier:
    """`train_classifier` for a run's own data, or a preset's.

    They are split as for the training of a run. The accuracy is that on the whole test set, or on
    what is set aside where there is none. Images are mirrored where the configuration says so.

    Args:
        target: a run folder, or the name of a preset.
        data: where the images lie, if not where training found them or in the preset's own place.
        The rest is as for `train_classifier`.

    Raises:
        InkdropError: as it does, or for a target that is neither.
    """
    if epochs is not None and epochs < 1:
        raise InkdropError(f"epochs must be at least 1, got {epochs}")
    choose_device(device)
    if (Path(target) / "config.json").exists():
        run = load(target, device=device)
        config = run.config.data
        source, train, held_out = run.load_data(data)
    elif target in PRESETS:
        config = preset(target).data
        if data:
            config.path = data
        source = load_source(config, console).source
        train, held_out = held_out_split(source.train, source.test, config.held_out)
    else:
        if Path(target).exists() or len(Path(target).parts) > 1:
            read_config(Path(target))  # says what it is not
        raise unknown_name("preset or run folder", target, PRESETS)
    tested = held_out if source.test is None else source.test
    if tested is None:
        raise InkdropError(
            f"{train.name} has {counted(len(train), train.noun)}, too few to set some aside that a "
            "classifier could be tested on: give at least ten"
        )
    return train_classifier(
        train,
        tested,
        out,
        epochs=epochs,
        seed=seed,
        horizontal_flip=config.horizontal_flip,
        refresh=refresh,
        device=device,
        console=console,
    )


def find_classifier(data_fingerprint: str) -> Path | None:
    """The folder of the classifier trained on these images (`Run.fingerprint`), or None."""
    folder = _place(data_fingerprint)
    return folder if (folder / _FACTS).exists() else None


def load_classifier(path: str | Path, device: str = "auto") -> TrainedClassifier:
    """A classifier from its folder, after checking that its files are what was written.

    Raises:
        InkdropError: for a folder that holds none, or a damaged one.
    """
    folder, chosen = Path(path), choose_device(device)
    facts = _facts(folder)
    file = folder / _WEIGHTS
    try:
        content = file.read_bytes()
    except OSError as error:
        raise _damaged(folder, f"{_WEIGHTS} cannot be read ({error.strerror})") from None
    if looks_like_pickle(content):
        raise InkdropError(
            f"{file} is a pickle, which inkdrop never loads because a pickle can run any code; "
            "only safetensors are read"
        )
    if hashlib.sha256(content).hexdigest() != facts["files"][_WEIGHTS]["sha256"]:
        raise _damaged(folder, f"the content of {_WEIGHTS} is not what was written")
    shape, classes = tuple(facts["shape"]), facts["classes"]
    with torch.device("meta"):  # which draws no weights
        network = Classifier(shape, classes)
    try:
        network.load_state_dict(safetensors.torch.load(content), assign=True)
    except (SafetensorError, ValueError, RuntimeError):
        raise InkdropError(
            f"{file} does not fit the classifier of this inkdrop; train it anew: inkdrop "
            "classifier train … --refresh"
        ) from None
    network.requires_grad_(False).eval().to(chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainedClassifier(
        network,
        folder,
        shape,
        classes,
        facts["accuracy"],
        facts["data"],
        facts["fingerprint"],
        facts["protocol"],
    )


def show_classifiers(console: Console) -> None:
    """Print what classifiers the cache keeps."""
    folders = sorted(path.parent for path in _places().glob(f"*/{_FACTS}"))
    table = Table(box=None, pad_edge=False)
    for title in ("data", "images", "classes", "accuracy", "epochs", "seed", "trained", "folder"):
        table.add_column(title, no_wrap=title == "folder", overflow="ignore")
    faults = []
    for folder in folders:
        try:
            facts = _facts(folder)
        except InkdropError as error:
            faults.append(str(error))
            continue
        protocol = facts["protocol"]
        row = (
            facts["name"],
            f"{facts['examples']:,}",
            str(facts["classes"]),
            f"{facts['accuracy']:.2%}",
            str(protocol["epochs"]),
            str(protocol["seed"]),
            f"{facts['started'][:10]}, {duration(facts['seconds'])}",
        )
        table.add_row(*map(Text, (*row, folder.name[:12])))
    if table.row_count:
        console.print(table)
    for fault in faults:
        say(console, f"warning: {fault}")
    say(
        console,
        f"{counted(table.row_count, 'classifier')} in {_places()}"
        + ("" if folders else "; inkdrop classifier train digits makes one"),
    )


# ---- training ------------------------------------------------------------------------------------


def _protocol(epochs: int, seed: int, horizontal_flip: bool) -> dict[str, Any]:
    return {
        "epochs": epochs,
        "seed": seed,
        "horizontal_flip": horizontal_flip,
        "batch_size": _BATCH,
        "learning_rate": _LEARNING_RATE,
        "momentum": _MOMENTUM,
        "weight_decay": _WEIGHT_DECAY,
        "warmup": _WARMUP,
        "label_smoothing": _SMOOTHING,
        "turn": round(math.degrees(_TURN), 6),
        "zoom": _ZOOM,
        "shear": _SHEAR,
        "stretch": _STRETCH,
        "shift": _SHIFT,
    }


def _usual_epochs(examples: Examples) -> int:
    seen = _GREY_SEEN if examples.shape[0] == 1 else _COLOUR_SEEN
    return max(_FEWEST_EPOCHS, min(_MOST_EPOCHS, -(-seen // len(examples))))


def _check(examples: Examples, held_out: Examples) -> None:
    if examples.noun != "image":
        raise InkdropError(
            f"{examples.name} holds {examples.noun}s: a classifier is for images with classes"
        )
    if examples.classes is None or held_out.classes is None:
        raise InkdropError(
            f"{examples.name} has no classes to train a classifier on: give images with labels, "
            "such as a folder with a folder for each class"
        )
    if examples.classes < 2:
        raise InkdropError(
            f"{examples.name} has one class, and a classifier needs two: give images of several"
        )
    if held_out.shape != examples.shape:
        raise InkdropError(
            f"held-out images of {held_out.shape} do not fit those of {examples.shape} that the "
            "classifier is trained on"
        )


def _made(
    examples: Examples,
    held_out: Examples,
    protocol: dict[str, Any],
    device: torch.device,
    console: Console | None,
) -> tuple[Classifier, dict[str, Any]]:
    """A trained classifier, and what is to be known of it."""
    classes, epochs = examples.classes, protocol["epochs"]
    assert classes is not None
    say(
        console,
        f"a classifier of {examples.name}: {counted(len(examples), 'image')} of {classes} classes, "
        f"{counted(epochs, 'epoch')} on {device.type}",
    )
    about = describe(device)
    began = time.perf_counter()
    network = _trained(examples, classes, protocol, device, console)
    right, usual = _asked(network, held_out, device)
    seconds = time.perf_counter() - began
    say(
        console,
        f"{right:.2%} of {counted(len(held_out), 'held-out image')} are given their class, "
        f"after {duration(seconds)}",
    )
    if right < min(usual + _HARDLY_BETTER, 0.5 + usual / 2):
        say(
            console,
            f"warning: naming the most frequent class would be right for {usual:.2%}: figures in "
            "this classifier's features would mean little; more --epochs may help",
        )
    return network, {
        "name": examples.name,
        "shape": list(examples.shape),
        "classes": classes,
        "features": FEATURES,
        "accuracy": right,
        "data": examples.fingerprint,
        "examples": len(examples),
        "held_out": {"data": held_out.fingerprint, "examples": len(held_out)},
        "protocol": protocol,
        "seconds": seconds,
        **about,
    }


def _trained(
    examples: Examples,
    classes: int,
    protocol: dict[str, Any],
    device: torch.device,
    console: Console | None,
) -> Classifier:
    seed = protocol["seed"]
    with torch_seeded(seed, "classifier: weights"):
        network = Classifier(examples.shape, classes)
    network.train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    flips = Augmentation(horizontal_flip=protocol["horizontal_flip"])
    stream = Stream(examples, _BATCH, seed, flips, device=device)
    total = -(-protocol["epochs"] * len(examples) // _BATCH)
    # What scales and shifts is kept from decay, which would only draw it to zero.
    scales = [weights for weights in network.parameters() if weights.ndim == 1]
    others = [weights for weights in network.parameters() if weights.ndim > 1]
    groups: list[dict[str, Any]] = [
        {"params": others, "weight_decay": _WEIGHT_DECAY},
        {"params": scales},
    ]
    optimizer = torch.optim.SGD(groups, lr=_LEARNING_RATE, momentum=_MOMENTUM, nesterov=True)
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    with exact, progress_bar(console, "training", total * _BATCH, "images") as advance:
        for step in range(total):
            batch = stream.batch(step)
            assert batch.labels is not None
            varied = _varied(batch.x_start, seed, step).contiguous(
                memory_format=torch.channels_last
            )
            for group in optimizer.param_groups:
                group["lr"] = _LEARNING_RATE * _one_cycle(step / total)
            loss = F.cross_entropy(network(varied), batch.labels, label_smoothing=_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            advance(_BATCH)
    if not all(bool(weights.isfinite().all()) for weights in network.state_dict().values()):
        raise InkdropError(
            f"the classifier of {examples.name} diverged: its weights are no numbers; try another "
            "--seed"
        )
    return network.eval()


def _one_cycle(done: float) -> float:
    """The learning rate's share of the highest: up along a line, then down along a cosine."""
    if done < _WARMUP:
        return done / _WARMUP
    return (1 + math.cos(math.pi * (done - _WARMUP) / (1 - _WARMUP))) / 2


def _varied(x: Tensor, seed: int, step: int) -> Tensor:
    """Each image turned, zoomed, sheared, stretched and moved a little; edges are repeated.

    Bilinear, since the images are only recognised, never generated.
    """
    draws = generator(seed, "classifier: augmentation", step).uniform(-1, 1, (6, len(x)))
    angle, zoom, shear = _TURN * draws[0], np.exp(_ZOOM * draws[1]), _SHEAR * draws[2]
    stretch = np.exp(_STRETCH * draws[3])
    cosine, sine = np.cos(angle), np.sin(angle)
    across, down = 2 * _SHIFT * draws[4:]  # an image is 2 wide and high
    rows = [[cosine * zoom * stretch, shear - sine * zoom, across]]
    rows += [[sine * zoom, cosine * zoom / stretch, down]]
    affine = torch.from_numpy(np.array(rows, dtype=np.float32)).permute(2, 0, 1).to(x.device)
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, "bilinear", "border", align_corners=False)


def _asked(network: Classifier, held_out: Examples, device: torch.device) -> tuple[float, float]:
    """The share of images that are given their class, and the share of the most frequent one."""
    right, seen = 0, torch.zeros(0, dtype=torch.int64)
    with torch.inference_mode():
        for x, labels in _batches(held_out, device):
            right += int((network(x).argmax(dim=1) == labels).sum())
            seen = torch.cat([seen, labels.cpu()])
    return right / len(held_out), int(seen.bincount().max()) / len(held_out)


def _batches(examples: Examples, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for first in range(0, len(examples), _AT_ONCE):
        index = np.arange(first, min(first + _AT_ONCE, len(examples)))
        labels = examples.labels_at(index)
        assert labels is not None
        yield to_x_start(examples.at(index).to(device)), labels.to(device)


# ---- the folder ----------------------------------------------------------------------------------


def _places() -> Path:
    return cache_folder() / "classifiers"


def _place(fingerprint: str) -> Path:
    return _places() / fingerprint


def _told_of(facts: dict[str, Any]) -> str:
    return counted(facts["held_out"]["examples"], "held-out image")


def _kept(folder: Path, examples: Examples, protocol: dict[str, Any]) -> dict[str, Any] | None:
    """The facts of the classifier in a folder, if it is the one wanted; None where there is none.

    Raises:
        InkdropError: if it is another one.
    """
    if not (folder / _FACTS).exists():
        return None
    facts = _facts(folder)
    if facts["data"] != examples.fingerprint:
        raise InkdropError(
            f"{folder} keeps a classifier of other images ({facts['name']}); choose another folder "
            "with --out"
        )
    settings = facts["protocol"]
    changed = [
        f"{name} {settings.get(name)}, not {value}"
        for name, value in protocol.items()
        if settings.get(name) != value
    ]
    if changed:
        raise InkdropError(
            f"{folder} keeps a classifier of these images that was trained otherwise "
            f"({'; '.join(changed)}): --refresh replaces it, --out DIR keeps both"
        )
    return facts


def _check_free(folder: Path) -> None:
    """Only an empty folder or one with a classifier, however damaged, is written into."""
    if not folder.exists() or (folder / _FACTS).exists():
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise InkdropError(f"{folder} exists and keeps no classifier; choose another folder")


@contextmanager
def _locked(folder: Path, console: Console | None) -> Iterator[None]:
    """Alone with a folder of the cache; who needs the same classifier waits, and then finds it."""
    lock = filelock.FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=_PATIENCE)
        except filelock.Timeout:
            say(console, "waiting for another process, which trains a classifier of these images")
            lock.acquire()
    except OSError as error:
        raise _no_place(folder, error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _writing(folder: Path) -> Iterator[Path]:
    """A folder beside the one that is to be, made before the training that it is for."""
    writing = writing_place(folder)
    try:
        make_empty(writing)
    except OSError as error:
        raise _no_place(folder, error) from error
    try:
        yield writing
    finally:
        remove(writing)


def _no_place(folder: Path, error: OSError) -> InkdropError:
    return InkdropError(
        f"cannot keep a classifier in {folder.parent} ({error.strerror or error}): choose another "
        f"folder with --out, or for all that is kept with {CACHE_VARIABLE}"
    )


def _write(writing: Path, facts: dict[str, Any], network: Classifier) -> None:
    with naming(writing):
        files = write_part(writing, "weights", network.state_dict())
    content = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "fingerprint": _fingerprint(files[_WEIGHTS]["sha256"]),
        **facts,
        "files": files,
    }
    content = json.loads(json.dumps(content))  # as it will be read
    content[_DIGEST] = _digest(content)
    write_synced(writing / _FACTS, json.dumps(content, indent=1).encode())
    sync_folder(writing)


def _put_in_place(writing: Path, folder: Path) -> None:
    """Move a folder that is written to its place, and remove the one that was there."""
    replaced = folder.with_name(f".removing-{folder.name}")
    remove(replaced)
    if folder.exists():
        folder.rename(replaced)
    writing.rename(folder)
    sync_folder(folder.parent)
    remove(replaced)


def _fingerprint(weights: str) -> str:
    """Of a classifier, whose weights' names and sizes say what its network is."""
    return hashlib.sha256(f"classifier {_FORMAT_VERSION}\n{_INPUT}\n{weights}".encode()).hexdigest()


def _facts(folder: Path) -> dict[str, Any]:
    """classifier.json of a folder, as it was written."""
    file = folder / _FACTS
    if not folder.is_dir():
        raise InkdropError(f"there is no classifier {folder}; `inkdrop classifier train` makes one")
    if not file.exists():
        raise InkdropError(f"{folder} is not a classifier: it has no {_FACTS}")
    try:
        facts: dict[str, Any] = json.loads(file.read_bytes())
        ours = facts["format"] == _FORMAT
    except (ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise _damaged(folder, f"{_FACTS} is damaged or not inkdrop's")
    if facts.get("format_version") != _FORMAT_VERSION:
        raise InkdropError(
            f"{file} is of format version {facts.get('format_version')}, and this inkdrop reads "
            f"{_FORMAT_VERSION}; train it anew: inkdrop classifier train … --refresh"
        )
    if facts.get(_DIGEST) != _digest(facts):
        raise _damaged(folder, f"the content of {_FACTS} is not what was written")
    return facts


def _digest(facts: dict[str, Any]) -> str:
    content = {key: value for key, value in facts.items() if key != _DIGEST}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _damaged(folder: Path, what: str) -> InkdropError:
    return InkdropError(
        f"the classifier {folder} is damaged: {what}; train it anew: inkdrop classifier train … "
        "--refresh"
    )
