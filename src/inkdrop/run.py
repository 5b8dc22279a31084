"""A run is a folder, and the folder is enough.

RUN/config.json         the configuration
RUN/environment.json    versions, machine and command of every session that trained it
RUN/checkpoints/        step-…/: weights, averaged weights, optimizer; the newest, and the best
                        damaged-…/: one that is not as it was written, set aside
RUN/.training.lock      held by whoever trains in it
RUN/metrics.jsonl       one JSON object a line
RUN/data.json           what the images were found to be, which were skipped, what was done to them
RUN/example.png         a held-out image, for pictures
RUN/vectors.safetensors vectors of training examples, which samples are told where none is given
RUN/samples/            images and grids
RUN/timesteps.json      what `inkdrop fit` measured, for fitted timesteps
RUN/likelihood.json     what `inkdrop likelihood` measured
RUN/evaluation.json     what `inkdrop evaluate` measured, one after the other
RUN/edits/              what `inkdrop edit` made
RUN/pictures/, RUN/report.html
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from .build import build_denoiser, build_schedule, choose_device
from .checkpoint import (
    FORMAT_VERSION,
    best_checkpoint,
    check_version,
    finished_checkpoints,
    looks_like_pickle,
    newest_checkpoint,
    read_checkpoint,
    read_manifest,
    replace_synced,
)
from .config import Config
from .console import counted
from .data.checked import Check
from .data.examples import Examples
from .data.images import Source
from .data.loading import load_own, load_source
from .data.pixels import to_picture
from .data.proposal import Proposal
from .data.stream import held_out_split
from .diffusion.denoiser import Denoiser
from .diffusion.fitting import PathErrors, StepTerms, fit_path, fit_timesteps
from .diffusion.samplers import build_table, step_count
from .diffusion.solvers import SamplerTable
from .diffusion.spacing import FITTED
from .errors import InkdropError, unknown_name
from .metrics import read_metrics
from .randomness import generator

DATA_FILE = "data.json"
FITTED_FILE = "timesteps.json"
VECTORS_FILE = "vectors.safetensors"
WEIGHTS = {"ema": "ema", "raw": "weights"}
_KEPT_VECTORS, _FEWEST_VECTORS, _KEPT_NUMBERS = 4096, 64, 2**18


class RunData(NamedTuple):
    """All of a run's data; what it was trained on, and what was set aside for its held-out loss."""

    source: Source
    train: Examples
    held_out: Examples | None


class Run:
    """A trained (or half-trained) run, read from its folder.

    Args:
        path: the folder.
        network: the module, for a run that trained one's own.
        device: where denoisers are put; "auto" takes the best there is.
        checkpoint: "newest", "best" (the lowest held-out loss), or a step that one was kept of.

    Raises:
        InkdropError: when the folder is missing, holds no run or no such checkpoint, or is from a
            newer version.
    """

    def __init__(
        self,
        path: str | Path,
        network: nn.Module | None = None,
        device: str = "auto",
        checkpoint: str = "newest",
    ) -> None:
        self.path = Path(path)
        self.config = read_config(self.path)
        self.checkpoint = _chosen_checkpoint(self.path / "checkpoints", checkpoint)
        manifest = read_manifest(self.checkpoint)
        self.step: int = manifest["step"]
        self.shape: tuple[int, ...] = tuple(manifest["state"]["shape"])
        self.fingerprint: str = manifest["state"]["data"]
        self._network = network
        self.device = device

    @cached_property
    def denoiser(self) -> Denoiser:
        """The denoiser with the averaged (EMA) weights, in evaluation mode."""
        return self.load_denoiser("ema")

    def load_denoiser(self, weights: str = "ema") -> Denoiser:
        """A denoiser with the "ema" or the "raw" weights of the run's checkpoint."""
        if weights not in WEIGHTS:
            raise InkdropError(f"weights must be ema or raw, got {weights!r}")
        part = WEIGHTS[weights]
        tensors = read_checkpoint(self.checkpoint, (part,)).tensors[part]
        denoiser = build_denoiser(self.config, self.shape, self._network)
        try:
            denoiser.network.load_state_dict(tensors)
        except RuntimeError as error:
            reason = str(error).replace("\n\t", " ").split("\n")[0]
            raise InkdropError(
                f"{self.checkpoint / part}.safetensors does not fit the network: {reason}"
            ) from None
        denoiser.network.to(choose_device(self.device)).eval()
        return denoiser

    def load_data(self, path: Sequence[str] = (), source: Any = None) -> RunData:
        """The data that this run was trained on, split as it was for training.

        Args:
            path: where it lies, if not where training found it.
            source: the data itself, where it is the user's own, as for `train`.

        Raises:
            InkdropError: if it is other data, or the user's own and not given.
        """
        data = self.config.data
        if source is not None:
            loaded = load_own(source, data)
        else:
            loaded = load_source(data.model_copy(update={"path": tuple(path) or data.path}))
        source = loaded.source
        train, held_out = held_out_split(source.train, source.test, data.held_out)
        if train.fingerprint != self.fingerprint:
            raise InkdropError(
                f"{self.path} was trained on other data than this ({train.name}): give that it was "
                "trained on"
            )
        return RunData(source, train, held_out)

    def fitted_timesteps(self, count: int, kind: str = "fitted") -> list[int]:
        """The `count` falling timesteps that suit this model best: see `inkdrop fit`.

        Args:
            kind: "fitted" has the least variational bound; "fitted-path" keeps a deterministic
                sampler nearest to its path.

        Raises:
            InkdropError: if they were never fitted, or to another checkpoint.
        """
        if kind not in FITTED:
            raise unknown_name("kind of fitted timesteps", kind, FITTED)
        file = self.path / FITTED_FILE
        if not file.exists():
            raise InkdropError(
                f"{self.path} has no fitted timesteps yet; `inkdrop fit {self.path}` fits them"
            )
        content = _json(file)
        if content["step"] != self.step:
            raise InkdropError(
                f"{file} was fitted to step {content['step']:,}, but the checkpoint is of "
                f"step {self.step:,}; `inkdrop fit {self.path}` fits it again"
            )
        if kind == "fitted-path":
            return fit_path(_path_errors(content["path"]), count)
        terms = StepTerms(
            np.array(content["x_start_mse"]), np.array(content["decoder"]), content["examples"]
        )
        return fit_timesteps(build_schedule(self.config.schedule), terms, count)

    def table(
        self,
        sampler: str = "ddim",
        steps: int | None = None,
        *,
        evaluations: int | None = None,
        timesteps: str | Sequence[int] | None = None,
        eta: float | None = None,
        order: int | None = None,
    ) -> SamplerTable:
        """`samplers.build_table` for this run, which knows its fitted timesteps.

        Args:
            timesteps: also "fitted", "fitted-path", or a list written as text, "999,700,400".
            The rest is as for `sample`.
        """
        schedule = build_schedule(self.config.schedule)
        if isinstance(timesteps, str) and timesteps[:1].isdecimal():
            timesteps = _listed(timesteps)
        if isinstance(timesteps, str) and timesteps in FITTED:
            count = step_count(schedule, sampler, steps, evaluations)
            timesteps = self.fitted_timesteps(count, timesteps)
            steps = evaluations = None
        return build_table(
            schedule,
            sampler,
            steps,
            evaluations=evaluations,
            timesteps=timesteps,
            eta=eta,
            order=order,
        )

    @cached_property
    def vectors(self) -> Tensor:
        """Vectors of training examples (K, V) float32, for samples where none is given.

        Raises:
            InkdropError: for a run that is told none, or whose folder has lost them.
        """
        return read_vectors(self.path)

    def conditions(self, first: int, count: int, told: Told | None = None) -> Tensor | None:
        """What images first … first + count - 1 are told; None for an unconditional run.

        Classes (count,) or vectors (count, V). Where nothing is asked for, all classes take turns,
        or the vectors that the run keeps of its training examples.

        Raises:
            InkdropError: for what this run cannot be told.
        """
        if told is None or told == Told():
            vectors = self.vectors if self.config.told == "vector" else None
            return conditions(self.config, first, count, vectors)
        return told.of(self.config, first, count)

    def told(self, classes: Sequence[str | int] = (), vector: Sequence[float] = ()) -> Told | None:
        """What words ask for: the names or numbers of classes, "all" or "none"; or a vector.

        None where there are no words. A name that is a number is taken for the name.

        Raises:
            InkdropError: for a class that is not known by that name.
        """
        words = [str(word) for word in classes]
        if not words and not vector:
            return None
        numbers = tuple(float(value) for value in vector) or None
        if not words:
            return Told(None, numbers)
        if len(words) == 1 and words[0] in ("all", "none"):
            return Told(words[0], numbers)
        names = self.class_names

        def index(word: str) -> int:
            if word in names:
                return names.index(word)
            if word in ("all", "none"):
                raise InkdropError(f"class {word} stands alone, got {' '.join(words)}")
            try:
                return int(word)
            except ValueError:
                if names:
                    raise unknown_name("class", word, names) from None
                raise InkdropError(
                    f"a class is a number from 0, or all or none, got {word!r}"
                ) from None

        return Told(tuple(map(index, words)), numbers)

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the data call the classes, in order; none where they do not say."""
        file = self.path / DATA_FILE
        if not file.exists():
            return ()
        try:
            return tuple(map(str, _json(file)["check"]["train"]["class_names"]))
        except (KeyError, TypeError):
            return ()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return read_metrics(self.path / "metrics.jsonl")

    @property
    def environment(self) -> dict[str, Any]:
        """environment.json."""
        return read_environment(self.path)

    @property
    def example(self) -> Tensor | None:
        """A held-out image, uint8 (C, H, W), or None."""
        path = self.path / "example.png"
        if not path.exists():
            return None
        pixels = np.array(Image.open(path))
        return torch.from_numpy(pixels).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)


@dataclass(frozen=True)
class Told:
    """What the images of a run are to be told.

    Attributes:
        classes: these in turn; for "all", image i is told class i % K, and is one of row i // K of
            images that start from the same noise; for "none", none is told.
        vector: one for all.
    """

    classes: tuple[int, ...] | str | None = None
    vector: tuple[float, ...] | None = None

    def of(self, config: Config, first: int, count: int, classes: int | None = None) -> Tensor:
        """What images first … first + count - 1 of a run of this configuration are told.

        Args:
            classes: of a classifier, for a run that is told nothing itself.

        Raises:
            InkdropError: if it cannot be told that.
        """
        self.check(config, classes)
        if self.vector is not None:
            return torch.tensor(self.vector, dtype=torch.float32).repeat(count, 1)
        if self.classes == "none":
            numbers = config.network.vector if config.network else None
            nothing = torch.full((count,), -1)
            return nothing if numbers is None else torch.full((count, numbers), math.nan)
        turns = torch.tensor(self.turns(config, classes))
        return turns[torch.arange(first, first + count) % len(turns)]

    def turns(self, config: Config, classes: int | None = None) -> tuple[int, ...]:
        """The classes that images are told in turn; none where they are told something else."""
        if isinstance(self.classes, tuple):
            return self.classes
        every = self.vector is None and self.classes != "none"
        return tuple(range(_classes(config) or classes or 0)) if every else ()

    def check(self, config: Config, classes: int | None = None) -> None:
        """Raise an InkdropError if a run of this configuration cannot be told that."""
        network, numbers = config.network, config.network.vector if config.network else None
        known = _classes(config) or classes
        if self.classes is not None and self.vector is not None:
            raise InkdropError("a class and a vector were given: give one of them")
        if known is None and numbers is None:
            raise InkdropError(
                "this run is told no class or vector: train one with --conditional that is"
            )
        if self.vector is not None:
            self._check_vector(self.vector, numbers)
        elif self.classes == "none":
            if network is None or not config.label_dropout:
                raise InkdropError(
                    "this run was trained without label dropout, so that it must be told a label: "
                    "train one with --label-dropout 0.1 to leave it out"
                )
        elif known is None and self.classes is not None:
            raise InkdropError(
                f"this run is told vectors of {counted(numbers or 0, 'number')}, not a class: give "
                "vector"
            )
        elif isinstance(self.classes, str):
            if self.classes != "all":
                raise InkdropError(f"class must be numbers, all or none, got {self.classes!r}")
        else:
            for wanted in self.classes or ():
                if not 0 <= wanted < (known or 0):
                    raise InkdropError(f"the classes are 0 … {(known or 0) - 1}, got {wanted}")

    def _check_vector(self, vector: tuple[float, ...], numbers: int | None) -> None:
        words = " ".join(f"{value:g}" for value in vector)
        if numbers is None:
            raise InkdropError(f"this run is told a class, not a vector (got {words}): give class")
        if len(vector) != numbers:
            raise InkdropError(
                f"this run is told vectors of {counted(numbers, 'number')}, got {len(vector)}: "
                f"{words}"
            )
        if not all(map(math.isfinite, vector)):
            raise InkdropError(f"the numbers of a vector must be finite, got {words}")


def _classes(config: Config) -> int | None:
    return config.network.classes if config.network else None


def conditions(config: Config, first: int, count: int, vectors: Tensor | None) -> Tensor | None:
    """What images first … first + count - 1 are told: all classes, or these vectors, in turn."""
    index = torch.arange(first, first + count)
    if classes := _classes(config):
        return index % classes
    if config.told == "vector":
        assert vectors is not None
        return vectors[index % len(vectors)]
    return None


def kept_vectors(examples: Examples) -> Tensor:
    """Vectors (K, V) that a run keeps of its training examples, in an order drawn by lot.

    As many as 4,096 and as a quarter of a million numbers, but 64 in any case. The first few are
    then as good as any: data are often sorted.
    """
    assert examples.labels is not None
    n, numbers = examples.labels.shape
    count = min(n, _KEPT_VECTORS, max(_FEWEST_VECTORS, _KEPT_NUMBERS // numbers))
    chosen = generator(0, "kept vectors").permutation(n)[:count]
    return examples.labels[torch.from_numpy(chosen)].cpu()


def write_vectors(path: Path, vectors: Tensor) -> None:
    """Write vectors.safetensors."""
    replace_synced(path / VECTORS_FILE, safetensors.torch.save({"vectors": vectors.contiguous()}))


def read_vectors(path: Path) -> Tensor:
    """vectors.safetensors of a run folder, (K, V) float32."""
    file = path / VECTORS_FILE
    if not file.exists():
        raise InkdropError(
            f"{file} is missing: it keeps the vectors that samples are told; put a copy of it "
            "back, or give the run's `inkdrop train` command again, which writes it"
        )
    try:
        return safetensors.torch.load(file.read_bytes())["vectors"]
    except (SafetensorError, KeyError):
        raise InkdropError(
            f"{file} is damaged: it holds no vectors; put a copy of it back"
        ) from None


def read_config(path: Path) -> Config:
    """The configuration of a run folder."""
    file = path / "config.json"
    if not path.exists():
        raise InkdropError(f"there is no run folder {path}; `inkdrop train` makes one")
    if not file.exists():
        raise InkdropError(f"{path} is not a run folder: it has no config.json")
    try:
        content = json.loads(file.read_bytes())
        values = content["config"]
    except (ValueError, KeyError, TypeError):
        raise InkdropError(
            f"{file} is damaged or not inkdrop's: it holds no configuration; put a copy of it back"
        ) from None
    check_version(file, content)
    try:
        return Config(**values)
    except (InkdropError, TypeError) as error:
        raise InkdropError(f"{file} does not describe a run: {error}") from None


def write_fitted(run: Run, terms: StepTerms, errors: PathErrors, protocol: dict[str, Any]) -> Path:
    """Keep what timesteps are fitted to, beside how it was measured."""
    file = run.path / FITTED_FILE
    content = {
        "format_version": FORMAT_VERSION,
        "step": run.step,
        **protocol,
        "examples": terms.examples,
        "x_start_mse": terms.x_start_mse.tolist(),
        "decoder": terms.decoder.tolist(),
        "path": {
            "examples": errors.examples,
            "timesteps": errors.timesteps,
            "step": [_short(row[i + 1 :]) for i, row in enumerate(errors.step)],
            "last": _short(errors.last),
        },
    }
    replace_synced(file, json.dumps(content, indent=1).encode())
    return file


def write_config(path: Path, config: Config) -> None:
    """Write config.json."""
    content = {"format_version": FORMAT_VERSION, "config": config.model_dump(mode="json")}
    replace_synced(path / "config.json", json.dumps(content, indent=1).encode())


def write_data(path: Path, check: Check, proposal: Proposal) -> None:
    """Write data.json: what the images were found to be, what was skipped, and what was done."""
    content = {
        "format_version": FORMAT_VERSION,
        "transform": asdict(proposal.transform),
        "proposed": list(proposal.reasons),
        "check": check.to_json(),
    }
    replace_synced(path / DATA_FILE, json.dumps(content, indent=1).encode())


def write_example(path: Path, image: Tensor) -> None:
    """Keep an image, uint8 (C, H, W), as example.png, where PNG has such images."""
    if image.shape[0] in (1, 3, 4):
        file = io.BytesIO()
        to_picture(image).save(file, "PNG")
        replace_synced(path / "example.png", file.getvalue())


def read_environment(path: Path) -> dict[str, Any]:
    """environment.json of a run folder; no sessions where there is none."""
    file = path / "environment.json"
    if not file.exists():
        return {"sessions": []}
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
        content["sessions"][:]
    except (ValueError, KeyError, TypeError):
        raise InkdropError(
            f"{file} is damaged: it holds no sessions; delete it, nothing depends on it"
        ) from None
    return content


def _json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
    except ValueError:
        raise InkdropError(f"{file} is damaged: it holds no JSON; delete it") from None
    check_version(file, content)
    return content


def _short(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _path_errors(content: dict[str, Any]) -> PathErrors:
    size = len(content["timesteps"])
    step = np.full((size, size), np.inf)
    for i, row in enumerate(content["step"]):
        step[i, i + 1 :] = row
    timesteps, last = tuple(content["timesteps"]), np.array(content["last"])
    return PathErrors(timesteps, step, last, content["examples"])


def _listed(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InkdropError(
            f"timesteps must be a spacing's name or a list such as 999,700,400, got {text!r}"
        ) from None


def _chosen_checkpoint(folder: Path, which: str) -> Path:
    newest = newest_checkpoint(folder)
    if newest is None:
        raise _no_checkpoint(folder)
    if which == "newest":
        return newest
    if which == "best":
        best = best_checkpoint(folder)
        if best is None:
            raise InkdropError(f"no checkpoint in {folder} has a held-out loss: choose newest")
        return best
    kept = {read_manifest(path)["step"]: path for path in finished_checkpoints(folder)}
    if not which.isdecimal() or int(which) not in kept:
        raise InkdropError(
            f"checkpoint must be newest, best or a step that one was kept of "
            f"({', '.join(map(str, kept))}), got {which!r}"
        )
    return kept[int(which)]


def _no_checkpoint(folder: Path) -> InkdropError:
    for path in sorted(folder.glob("*")) if folder.exists() else []:
        if path.is_file() and looks_like_pickle(path.read_bytes()[:16]):
            return InkdropError(
                f"{folder} has no checkpoint of inkdrop's, only {path.name}: a pickle, which "
                "inkdrop never loads because a pickle can run any code"
            )
    return InkdropError(
        f"{folder.parent} has no checkpoint yet; give its `inkdrop train` command again to train it"
    )


def load(
    path: str | Path,
    network: nn.Module | None = None,
    device: str = "auto",
    checkpoint: str = "newest",
) -> Run:
    """Open a run folder: `load("runs/digits").denoiser`. The arguments are those of `Run`."""
    return Run(path, network, device, checkpoint)
