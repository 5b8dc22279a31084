"""Edits of images as files: the results, a picture of before and after, and the protocol."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from .checkpoint import FORMAT_VERSION, write_synced
from .console import counted, say
from .data.decode import BadImage, decode
from .data.pixels import to_float, to_picture, to_uint8
from .data.stored.collection import Item
from .data.transform import Transform
from .diffusion import editing
from .diffusion.clipping import chosen_clip
from .diffusion.denoiser import Denoiser
from .diffusion.samplers import INVERTIBLE, inversion_spacing
from .diffusion.schedule import checked_count
from .errors import InkdropError, unknown_name
from .folders import appearing, check_unused
from .report.edited import masked, side_by_side
from .report.pictures import save
from .run import DATA_FILE, Run
from .steering import Steering, steering

PICTURE = "before-and-after.png"
HELD_OUT = "held-out:"
_FITS = ("crop", "pad", "stretch")
_COUNT = 4  # results for each image, where it is not said
_FRAMES = 9  # of an interpolation
_STRENGTH, _FACTOR, _RESAMPLINGS = 0.6, 2, 10
_STEPS = 50  # of an inversion, and of an edit that keeps measurements
_WHITE = 255
_NAMED, _LONGEST = 3, 60  # images, and letters of each, in the name of a folder


class Given(NamedTuple):
    """Images to be edited.

    Attributes:
        pixels: (B, C, H, W) uint8, of the run's shape.
        names: what to call them.
        labels: the class (B,) or vector (B, V) of each, where the run's data tell.
        changes: what was done to each to bring it to the run's shape; "" for nothing.
    """

    pixels: Tensor
    names: list[str]
    labels: Tensor | None
    changes: list[str]


class Made(NamedTuple):
    """What came of an edit.

    Attributes:
        results: (B, n, C, H, W) uint8.
        stages: (B, stages, C, H, W) uint8, all that the picture shows.
        heads: what stands above the stages.
        facts: for the protocol.
    """

    results: Tensor
    stages: Tensor
    heads: list[str]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What the options of an edit are, `None` for those that were not given."""

    n: int | None = None
    strength: float | None = None
    mask: str | None = None
    box: tuple[int, int, int, int] | None = None
    resamplings: int | None = None
    jump: int | None = None
    factor: int | None = None
    seeds: tuple[int, int] | None = None
    sampler: str | None = None
    steps: int | None = None
    evaluations: int | None = None
    timesteps: str | None = None
    eta: float | None = None
    order: int | None = None
    clip: str | None = None


_SAMPLED = {"n", "sampler", "steps", "evaluations", "timesteps", "eta", "order", "clip"}
_KEPT = _SAMPLED | {"resamplings", "jump"}
_INVERTED = {"sampler", "steps", "timesteps", "order"}


def write_edit(
    run: Run,
    operation: str,
    images: Sequence[str] = (),
    *,
    fit: str | None = None,
    classes: Sequence[str | int] = (),
    vector: Sequence[float] = (),
    guidance: float | None = None,
    guidance_interval: Sequence[int] | None = None,
    guidance_rescale: float | None = None,
    classifier_guidance: float | None = None,
    classifier: str | Path | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    weights: str = "ema",
    batch_size: int = 256,
    data: Sequence[str] = (),
    console: Console | None = None,
    **options: Any,
) -> Path:
    """Edit images with a run, and write results, before-and-after.png and edit.json, or nothing.

    Args:
        operation: a name in `OPERATIONS`.
        images: files, or "held-out:3" for the run's own held-out image 3.
        fit: how images of another size are made to fit: crop, pad or stretch; by default as the
            run's own were, where it keeps that.
        classes … classifier: what the images are told and how results are guided, see `steering`;
            held-out images are told their own class or vector where none is named, others none.
        seed: names the results.
        out: a folder that does not exist or is empty. By default one in RUN/edits named after the
            edit, the images, the options given and the seed, which replaces what an earlier call
            left there.
        data: where the run's data lies now, for held-out images.
        options: fields of `Settings`.

    Returns:
        The folder.

    Raises:
        InkdropError: for a wrong argument or a folder in use, before any work is done.
    """
    if operation not in OPERATIONS:
        raise unknown_name("edit", operation, OPERATIONS)
    chosen = OPERATIONS[operation]
    settings = Settings(**options)
    _check_settings(operation, chosen, settings, images)
    checked_count("batch_size", batch_size)
    if len(run.shape) != 3:
        raise InkdropError(
            f"edit works on images (C, H, W), but this run's examples have the shape {run.shape}; "
            "inkdrop.editing works on any"
        )
    if operation == "colourise" and run.shape[0] != 3:
        kind = "grey" if run.shape[0] == 1 else f"of {run.shape[0]} channels"
        raise InkdropError(f"colourise needs a run of RGB images, but this run's are {kind}")
    if out is not None:
        check_unused(Path(out))
    plan = _planned(run, chosen, settings)
    given = None
    if not settings.seeds:
        # An image that is to be enlarged may be small already.
        factor = settings.factor or _FACTOR if operation == "upscale" else 1
        given = _given(run, images, fit, data, _checked_factor(run, factor), console)
    asked = {
        "classes": classes,
        "vector": vector,
        "guidance": guidance,
        "guidance_interval": guidance_interval,
        "guidance_rescale": guidance_rescale,
        "classifier_guidance": classifier_guidance,
        "classifier": classifier,
    }
    steered, told = _steered(run, given, operation, weights, asked)

    stem = _stem_of(settings, images)
    words = [operation, stem, *_words(settings, fit), *steered.words, f"seed{seed}"]
    folder = run.path / "edits" / "-".join(words) if out is None else Path(out)
    work = _Work(run, steered.denoiser, given, told, settings, plan, seed, batch_size)
    with appearing(folder) as writing:
        if console is not None and console.is_terminal:
            with console.status(chosen.doing):
                made = chosen.work(work)
        else:
            made = chosen.work(work)
        protocol = {
            "format_version": FORMAT_VERSION,
            "run": str(run.path),
            "step": run.step,
            "weights": weights,
            "edit": operation,
            "images": list(images),
            "changes": [] if given is None else given.changes,
            "seed": seed,
            **steered.facts,
            "told": None if told is None else told.tolist(),
            **plan.facts,
            **made.facts,
        }
        one_way = operation == "interpolate"  # whose columns say what it leads from and to
        stems = [stem] if given is None or one_way else [_stem(name) for name in given.names]
        labels = [""] if given is None or one_way else [_label(name) for name in given.names]
        save(side_by_side(made.stages, made.heads, labels), writing / PICTURE)
        protocol["files"] = _write(writing, made, stems)
        write_synced(writing / "edit.json", json.dumps(protocol, indent=1).encode())
    return folder


# The edits


class _Plan(NamedTuple):
    """What is settled before any image is looked at.

    Attributes:
        how: how to sample, or to invert and sample back, for `editing`.
        facts: the same for the protocol.
        paint: where to paint, bool (H, W), for inpaint.
    """

    how: dict[str, Any]
    facts: dict[str, Any]
    paint: Tensor | None


def _planned(run: Run, chosen: Operation, settings: Settings) -> _Plan:
    paint = _paint(settings, run.shape) if "mask" in chosen.takes else None
    plan = _sampled if "clip" in chosen.takes else _inverted
    return _Plan(*plan(run, chosen, settings), paint)


def _sampled(
    run: Run, chosen: Operation, settings: Settings
) -> tuple[dict[str, Any], dict[str, Any]]:
    sampler = settings.sampler or chosen.sampler
    steps = settings.steps
    if chosen.steps and (steps, settings.evaluations, settings.timesteps) == (None, None, None):
        steps = min(chosen.steps, run.config.schedule.timesteps)
    table = run.table(
        sampler,
        steps,
        evaluations=settings.evaluations,
        timesteps=settings.timesteps,
        eta=settings.eta,
        order=settings.order,
    )
    clip = chosen_clip(settings.clip or "auto", run.shape)
    facts = {
        "sampler": sampler,
        "timesteps": list(dict.fromkeys(table.timesteps)),
        "eta": settings.eta,
        "order": settings.order,
        "clip": clip,
    }
    return {"table": table, "clip": clip}, facts


def _inverted(
    run: Run, chosen: Operation, settings: Settings
) -> tuple[dict[str, Any], dict[str, Any]]:
    sampler, total = settings.sampler or chosen.sampler, run.config.schedule.timesteps
    # Two seeds lead to what `sample` makes of them; an inversion must end at timestep 0.
    spacing = settings.timesteps or (None if settings.seeds else inversion_spacing(sampler))
    steps = settings.steps
    if steps is None and not (spacing or "")[:1].isdecimal():
        steps = min(chosen.steps or total, total)
    table = run.table(sampler, steps, timesteps=spacing, order=settings.order)
    visited = list(dict.fromkeys(table.timesteps))
    if not settings.seeds and len(visited) < 2:
        raise InkdropError("an inversion needs at least 2 timesteps: where it starts and ends")
    how = {"sampler": sampler, "timesteps": visited, "order": settings.order}
    return how, how


@dataclass(frozen=True)
class _Work:
    run: Run
    denoiser: Denoiser
    given: Given | None
    condition: Tensor | None
    settings: Settings
    plan: _Plan
    seed: int
    batch_size: int

    @property
    def images(self) -> Given:
        assert self.given is not None
        return self.given

    @property
    def n(self) -> int:
        return _COUNT if self.settings.n is None else self.settings.n

    @property
    def how(self) -> dict[str, Any]:
        """How to sample, or to invert and sample back."""
        return {**self.plan.how, "condition": self.condition, "batch_size": self.batch_size}


def _vary(work: _Work) -> Made:
    strength = _STRENGTH if work.settings.strength is None else work.settings.strength
    x = to_float(work.images.pixels)
    made = editing.vary(work.denoiser, x, strength, n=work.n, seed=work.seed, **work.how)
    results = to_uint8(made.cpu())
    stages = torch.cat([work.images.pixels[:, None], results], 1)
    facts = {"n": work.n, "strength": strength}
    return Made(results, stages, ["given", *_numbered(work.n)], facts)


def _inpaint(work: _Work) -> Made:
    paint, pixels = work.plan.paint, work.images.pixels
    assert paint is not None
    again = _again(work.settings)
    made = editing.inpaint(
        work.denoiser, to_float(pixels), paint, n=work.n, seed=work.seed, **again, **work.how
    )
    results = to_uint8(made.cpu())
    stages = torch.cat([pixels[:, None], masked(pixels, paint)[:, None], results], 1)
    facts = {"n": work.n, "mask": work.settings.mask, "box": work.settings.box, **again}
    return Made(results, stages, ["given", "to paint", *_numbered(work.n)], facts)


def _colourise(work: _Work) -> Made:
    x = to_float(work.images.pixels)
    operator = editing.Grey()
    y = operator.apply(x)
    results, facts = _restored(work, operator, y)
    grey = to_uint8(y).expand_as(x)
    stages = torch.cat([work.images.pixels[:, None], grey[:, None], results], 1)
    facts["grey"] = list(operator.weights)
    return Made(results, stages, ["given", "grey", *_numbered(work.n)], facts)


def _upscale(work: _Work) -> Made:
    factor = work.settings.factor or _FACTOR
    operator = editing.Average(factor)
    y = operator.apply(to_float(work.images.pixels))
    results, facts = _restored(work, operator, y)
    small = to_uint8(operator.pseudo_inverse(y))
    stages = torch.cat([work.images.pixels[:, None], small[:, None], results], 1)
    facts["factor"] = factor
    return Made(results, stages, ["given", f"1/{factor}", *_numbered(work.n)], facts)


def _restored(work: _Work, operator: editing.Operator, y: Tensor) -> tuple[Tensor, dict[str, Any]]:
    again = _again(work.settings)
    made = editing.restore(
        work.denoiser, operator, y, n=work.n, seed=work.seed, **again, **work.how
    )
    return to_uint8(made.cpu()), {"n": work.n, **again}


def _interpolate(work: _Work) -> Made:
    count = _FRAMES if work.settings.n is None else work.settings.n
    shares = [f"{i / (count - 1):.0%}" for i in range(count)]
    facts: dict[str, Any] = {"n": count}
    if work.settings.seeds:
        a, b = work.settings.seeds
        made = editing.interpolate_seeds(work.denoiser, a, b, count, **work.how)
        results = to_uint8(made.cpu())[None]
        return Made(results, results, shares, {**facts, "seeds": [a, b]})
    x = to_float(work.images.pixels)
    results = to_uint8(editing.interpolate(work.denoiser, x[:1], x[1:], count, **work.how).cpu())
    ends = work.images.pixels[:, None]
    stages = torch.cat([ends[:1], results, ends[1:]], 1)
    return Made(results, stages, ["given", *shares, "given"], facts)


def _reconstruct(work: _Work) -> Made:
    pixels = work.images.pixels
    found = editing.reconstruct(work.denoiser, to_float(pixels), **work.how)
    results = to_uint8(found.images.cpu())
    # Three standard deviations of noise, from black to white.
    noise = to_uint8(found.latents.cpu() / 3)
    stages = torch.stack([pixels, noise, results], 1)
    facts = {
        "error": found.error.tolist(),
        "levels": [127.5 * error for error in found.error.tolist()],
    }
    return Made(results[:, None], stages, ["given", "noise", "again"], facts)


class Operation(NamedTuple):
    """An edit by name.

    Attributes:
        work: does it.
        doing: what it does, while it does.
        takes: the options it has, of those in `Settings`.
        sampler, steps: what it samples with where not given; None for the sampler's own steps.
    """

    work: Callable[[_Work], Made]
    doing: str
    takes: set[str]
    sampler: str = "ddim"
    steps: int | None = _STEPS


OPERATIONS = {
    "vary": Operation(_vary, "varying", _SAMPLED | {"strength"}, steps=None),
    "inpaint": Operation(_inpaint, "painting", _KEPT | {"mask", "box"}, "ancestral"),
    "interpolate": Operation(_interpolate, "interpolating", _INVERTED | {"n", "seeds"}),
    "reconstruct": Operation(_reconstruct, "inverting", _INVERTED),
    "colourise": Operation(_colourise, "colouring", _KEPT, "ancestral"),
    "upscale": Operation(_upscale, "enlarging", _KEPT | {"factor"}, "ancestral"),
}


def _check_settings(
    operation: str, chosen: Operation, settings: Settings, images: Sequence[str]
) -> None:
    for name, value in vars(settings).items():
        if value is not None and name not in chosen.takes:
            takers = [other for other, op in OPERATIONS.items() if name in op.takes]
            raise InkdropError(
                f"{operation} has no {'-n' if name == 'n' else f'--{name}'}: leave it out, it is "
                f"an option of {', '.join(takers)}"
            )
    for name in ("n", "resamplings", "jump", "factor"):
        value = getattr(settings, name)
        if value is not None:
            checked_count(name, value)
    if settings.factor == 1:
        raise InkdropError("factor 1 enlarges nothing: give at least 2")
    if operation == "interpolate" and settings.n == 1:
        raise InkdropError("-n must be at least 2 for interpolate, both ends, got 1")
    if settings.strength is not None and not 0 < settings.strength <= 1:
        raise InkdropError(f"strength must lie above 0 and up to 1, got {settings.strength}")
    sampler = settings.sampler
    if "eta" not in chosen.takes and sampler is not None and sampler not in INVERTIBLE:
        raise unknown_name("deterministic sampler", sampler, INVERTIBLE)
    if operation == "inpaint" and (settings.mask is None) == (settings.box is None):
        raise InkdropError(
            "inpaint needs --mask FILE, an image that is white where to paint, or --box LEFT TOP "
            "RIGHT BOTTOM in pixels: one of the two"
        )
    if settings.seeds is not None:
        if images:
            raise InkdropError("interpolate is between two images or --seeds A B: give one pair")
    elif operation == "interpolate" and len(images) != 2:
        raise InkdropError(
            f"interpolate needs two images, or --seeds A B instead, got {len(images)}"
        )
    elif not images:
        raise InkdropError(
            f"{operation} needs an image: a file, or {HELD_OUT}0 for the first of the run's "
            "held-out images"
        )


def _again(settings: Settings) -> dict[str, Any]:
    times = _RESAMPLINGS if settings.resamplings is None else settings.resamplings
    return {"resamplings": times, "jump": settings.jump or 1}


def _words(settings: Settings, fit: str | None) -> list[str]:
    """The options that were given, for the name of a folder."""
    words = [] if fit is None else [fit]
    for name, value in vars(settings).items():
        if value is None or name == "seeds":
            continue
        if name in ("sampler", "timesteps"):
            words.append(value)
        elif name == "mask":
            words.append(f"mask-{_stem(value)}")
        elif name == "box":
            words.append("box" + ",".join(map(str, value)))
        else:
            words.append(f"clip-{value}" if name == "clip" else f"{name}{value:g}")
    return words


def _stem_of(settings: Settings, images: Sequence[str]) -> str:
    """What is edited, for the name of a folder."""
    if settings.seeds:
        return "seeds-{}-{}".format(*settings.seeds)
    if len(images) <= _NAMED:
        return "-".join(map(_stem, images))
    return f"{_stem(images[0])}-and-{len(images) - 1}-more"


# What is given


def _given(
    run: Run,
    images: Sequence[str],
    fit: str | None,
    data: Sequence[str],
    factor: int,
    console: Console | None,
) -> Given:
    if fit is not None and fit not in _FITS:
        raise unknown_name("fit", fit, _FITS)
    held_out = _held_out(run, images, data)
    pixels: list[Tensor] = []
    labels: list[Tensor] = []
    changes: list[str] = []
    for name in images:
        if name in held_out:
            shown, label = held_out[name]
            pixels.append(shown)
            labels += [] if label is None else [label]
            changes.append("")
            continue
        image = _opened(name)
        shown, change = _fitted(run, name, image, fit, factor)
        pixels.append(shown)
        changes.append(change)
        if change:
            say(console, f"{name}: {change}")
    told = torch.stack(labels) if len(labels) == len(images) else None
    return Given(torch.stack(pixels), list(images), told, changes)


def _held_out(
    run: Run, images: Sequence[str], data: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """The images that are named held-out:NUMBER, and their classes () or vectors (V,)."""
    names = [name for name in images if name.startswith(HELD_OUT)]
    if not names:
        return {}
    for name in names:
        if not name.removeprefix(HELD_OUT).isdecimal():
            raise InkdropError(f"a held-out image is {HELD_OUT}NUMBER, from 0, got {name!r}")
    examples = run.load_data(data).held_out
    if examples is None:
        raise InkdropError(f"{run.path} set no images aside: give files")
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    for name in names:
        index = int(name.removeprefix(HELD_OUT))
        if index >= len(examples):
            raise InkdropError(f"{name}: the run's held-out images are 0 … {len(examples) - 1}")
        labels = examples.labels_at([index])
        found[name] = examples.at([index])[0], None if labels is None else labels[0]
    return found


def _opened(name: str) -> Image.Image:
    path = Path(name)
    if not name or not path.exists():
        raise InkdropError(
            f"there is no image {name or repr(name)}; the run's held-out images are {HELD_OUT}0, "
            f"{HELD_OUT}1, …"
        )
    if path.is_dir():
        raise InkdropError(
            f"{name} is a folder: give image files, such as {name.rstrip('/')}/*.png"
        )
    try:
        return decode(Item(name, path.read_bytes()))
    except BadImage as error:
        raise InkdropError(f"{name}: {error.reason}") from None


def _fitted(
    run: Run, name: str, image: Image.Image, fit: str | None, factor: int
) -> tuple[Tensor, str]:
    """The pixels (C, H, W) in the run's shape, and what was done for that."""
    channels, height, width = run.shape
    small = Transform(height // factor, width // factor, channels)
    if factor > 1 and image.size == (small.width, small.height) and fit is None:
        steps = small.changes(*image.size, image.mode)
        pixels = torch.from_numpy(small(image))
        shown = pixels.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        return shown, "; ".join([*steps, f"taken for one of 1/{factor}"])
    transform = _recorded(run)
    if fit is not None:
        background = transform.background if transform else (255, 255, 255)
        transform = Transform(height, width, channels, fit, background)
    own = Transform(height, width, channels)
    steps = own.changes(*image.size, image.mode)
    if not steps:
        return torch.from_numpy(own(image)), ""
    if transform is None:
        what = {1: "grey", 3: "RGB", 4: "RGBA"}.get(channels, f"{channels} channels")
        raise InkdropError(
            f"{name} is {image.width}×{image.height} in mode {image.mode}, but this run takes "
            f"{width}×{height} {what}: convert it, or give --fit crop, pad or stretch"
        )
    return torch.from_numpy(transform(image)), "; ".join(transform.changes(*image.size, image.mode))


def _recorded(run: Run) -> Transform | None:
    """What was done to the images that the run was trained on, where it keeps that."""
    file = run.path / DATA_FILE
    if not file.exists():
        return None
    try:
        kept = json.loads(file.read_bytes())["transform"]
        kept["background"] = tuple(kept["background"])
        return Transform(**kept)
    except (ValueError, KeyError, TypeError):
        raise InkdropError(
            f"{file} is damaged: it holds no transform; delete it, and give --fit"
        ) from None


def _checked_factor(run: Run, factor: int) -> int:
    _, height, width = run.shape
    if height % factor or width % factor:
        raise InkdropError(
            f"factor {factor} does not divide this run's images of {width}×{height} pixels; choose "
            "one that divides both"
        )
    return factor


def _paint(settings: Settings, shape: tuple[int, ...]) -> Tensor:
    """Where to paint, bool (H, W)."""
    _, height, width = shape
    if settings.box is not None:
        left, top, right, bottom = settings.box
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise InkdropError(
                f"--box {left} {top} {right} {bottom} must be LEFT TOP RIGHT BOTTOM with "
                f"0 ≤ LEFT < RIGHT ≤ {width} and 0 ≤ TOP < BOTTOM ≤ {height}"
            )
        paint = torch.zeros(height, width, dtype=torch.bool)
        paint[top:bottom, left:right] = True
        name = "--box"
    else:
        assert settings.mask is not None
        name = settings.mask
        paint = _mask(name, _opened(name), height, width)
    if not paint.any():
        raise InkdropError(f"{name} is black everywhere: there is nothing to paint")
    if paint.all():
        raise InkdropError(f"{name} covers the whole image, so nothing is known: inkdrop sample")
    return paint


def _mask(name: str, image: Image.Image, height: int, width: int) -> Tensor:
    if image.size != (width, height):
        raise InkdropError(
            f"{name} is {image.width}×{image.height}, but this run's images are {width}×{height}: "
            "a mask must have their size"
        )
    levels = np.asarray(image.convert("RGB" if image.mode == "P" else image.mode))
    if image.mode not in ("1", "L", "P", "RGB"):
        raise InkdropError(
            f"{name} is in mode {image.mode}: save the mask in plain black and white, 8 bits, "
            "without transparency"
        )
    if levels.ndim == 3 and not (levels == levels[..., :1]).all():
        raise InkdropError(f"{name} has colours: a mask is white where to paint, black elsewhere")
    levels = levels[..., 0] if levels.ndim == 3 else levels
    if levels.dtype == bool:
        return torch.from_numpy(levels.copy())
    if not np.isin(levels, (0, _WHITE)).all():
        between = int(levels[(levels != 0) & (levels != _WHITE)][0])
        raise InkdropError(
            f"{name} has greys such as {between}: a mask is white (255) where to paint, black (0) "
            "elsewhere, without soft edges"
        )
    return torch.from_numpy(levels == _WHITE)


def _steered(
    run: Run, given: Given | None, operation: str, weights: str, asked: dict[str, Any]
) -> tuple[Steering, Tensor | None]:
    """The denoiser, and what it is told of each of the edit's images (or of a way between two)."""
    guides = asked["guidance"] is not None or asked["classifier_guidance"] is not None
    if run.config.told is None and asked["classifier_guidance"] is None:
        return steering(run, weights, **asked), None
    count = 1 if given is None or operation == "interpolate" else len(given.names)
    classes = asked["classes"]
    if "all" in classes:
        raise InkdropError("--class all is for samples: name one class for the images, or several")
    if len(classes) > count:
        of = "one way" if operation == "interpolate" else counted(count, "image")
        raise InkdropError(f"{len(classes)} classes are too many for {of}: {' '.join(classes)}")
    own = None
    if not classes and not asked["vector"]:
        own = _own(run, given, count)
        if own is None:
            own = _nothing(run, guides, count)
    steered = steering(run, weights, **asked)
    return steered, steered.condition(0, count) if own is None else own


def _own(run: Run, given: Given | None, count: int) -> Tensor | None:
    """The classes or vectors that the given images have in the run's data, if they serve."""
    labels = None if given is None else given.labels
    if labels is None or labels.is_floating_point() != (run.config.told == "vector"):
        return None
    alike = bool((labels == labels[:1]).all())
    return labels[:count] if len(labels) == count or alike else None


def _nothing(run: Run, guides: bool, count: int) -> Tensor:
    """What tells nothing of images."""
    what = "vector" if run.config.told == "vector" else "class"
    if guides:
        raise InkdropError(
            f"guidance needs something to guide towards, and these images have no {what} that is "
            f"known, or not the same: give --{what}"
        )
    if not run.config.label_dropout:
        raise InkdropError(
            f"this run must be told a {what}, and these images have none that is known, or not the "
            f"same: give --{what}"
        )
    told = run.conditions(0, count, run.told(("none",)))
    assert told is not None
    return told


# What is written


def _write(folder: Path, made: Made, stems: Sequence[str]) -> list[str]:
    """Write the results as PNG files, and return their names."""
    files = []
    for i, (stem, results) in enumerate(zip(stems, made.results, strict=True)):
        for j, image in enumerate(results):
            files.append(f"{i:03d}-{stem}-{j:02d}.png")
            to_picture(image).save(folder / files[-1])
    return files


def _numbered(count: int) -> list[str]:
    return [str(i + 1) for i in range(count)]


def _label(name: str) -> str:
    return name if name.startswith(HELD_OUT) else Path(name).stem


def _stem(name: str) -> str:
    """An image's name, as part of another file's."""
    return re.sub(r"[^\w.-]+", "-", _label(name)).strip("-.")[:_LONGEST] or "image"
