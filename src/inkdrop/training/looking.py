"""What looks at a training and draws it, and changes nothing of what is learnt."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import Config
from ..data.examples import Examples, to_x_start
from ..data.pixels import to_uint8
from ..diffusion.denoiser import Denoiser
from ..diffusion.objectives import Objective
from ..diffusion.samplers import sample
from ..errors import InkdropError
from ..processes import Processes
from ..randomness import normal
from ..run import conditions
from .early import SHORTEST, WeightsWatch, look
from .losses import LossWindow

_PREVIEW_IMAGES, _PREVIEW_POINTS, _PREVIEW_STEPS = 64, 2000, 50
_LOOKED_AT, _STEPS_TO_LOOK = 64, 20  # samples early in training, and of DDIM for each
_SOME = 256  # examples that stand for all
_REFERENCE = 10_000  # training images that samples are held against


@dataclass(frozen=True)
class Setting:
    """Where and with whom a training computes.

    Attributes:
        autocast: what a network is asked within.
        batch_size: of all processes together.
    """

    processes: Processes
    device: torch.device
    dtype: torch.dtype
    autocast: Callable[[], AbstractContextManager[Any]]
    batch_size: int


class Looking:
    """Held-out losses, pictures of samples, warnings and evaluations of a training.

    All of it is of the averaged weights, and of examples, noise and samples that are the same
    however far training is.

    Args:
        averaged: the denoiser with the averaged weights.
        network: the one that is trained.
        held_out: in memory; None for none.
        vectors: that samples are told, of a run that is told vectors.
    """

    def __init__(
        self,
        config: Config,
        setting: Setting,
        averaged: Denoiser,
        network: nn.Module,
        objective: Objective,
        train_set: Examples,
        held_out: Examples | None,
        vectors: Tensor | None,
        out: Path,
    ) -> None:
        self.config, self.setting = config, setting
        self.averaged = averaged
        self.train_set, self.held_out = train_set, held_out
        self._network = network
        self._objective = objective
        self._vectors = vectors
        self._out = out
        self._watch: WeightsWatch | None = WeightsWatch(network, averaged.network)
        self.frechet = Frechet(train_set, setting) if config.logging.evaluate_every else None

    @torch.no_grad()
    def held_out_row(self, step: int) -> dict[str, Any]:
        """The loss on held-out examples, at timesteps and noise that are always the same."""
        held_out, setting = self.held_out, self.setting
        assert held_out is not None
        count, timesteps = len(held_out), self.averaged.schedule.timesteps
        own = self._rows_of_equal_shares(count)
        x_start = to_x_start(held_out.values)
        noise = normal(tuple(x_start.shape), 0, "held-out noise")
        t = torch.arange(count) * timesteps // count
        condition = held_out.labels_at(range(count)) if self.config.told else None
        losses = []
        for rows in torch.split(own, max(1, setting.batch_size // setting.processes.size)):
            with setting.autocast():
                part = self._objective(
                    self.averaged,
                    x_start[rows].to(setting.device, setting.dtype),
                    t[rows].to(setting.device),
                    noise[rows].to(setting.device, setting.dtype),
                    None if condition is None else condition[rows].to(setting.device),
                )
            losses.append(part.to(setting.dtype))
        window = LossWindow()
        gathered = setting.processes.gather_equal(torch.cat(losses))[:count].cpu()
        window.add(gathered, t, timesteps)
        return {
            "step": step,
            "held_out_loss": window.loss,
            "held_out_loss_by_timestep": window.by_timestep(),
        }

    def evaluation_row(self, step: int) -> dict[str, Any]:
        """The Fréchet distance of samples; None where some are not finite."""
        assert self.frechet is not None
        logging = self.config.logging
        count = logging.evaluate_samples
        x = self._own_samples(count, logging.evaluate_steps)
        return {
            "step": step,
            "frechet_distance": self.frechet.of(x, count),
            "evaluation_samples": count,
            "extractor": self.frechet.name,
        }

    def write_samples(self, step: int) -> None:
        """The same samples of seed 0 as training goes: a grid of images, or points in the plane."""
        if not self._pictured:
            return
        images = self.train_set.noun == "image"
        x = self.sampled(_PREVIEW_IMAGES if images else _PREVIEW_POINTS)
        if not self.setting.processes.first:
            return
        from ..report.pictures import grid, save  # Matplotlib takes as long as a step or two
        from ..report.points import frame_of, scatter

        picture = self._out / "samples" / "training" / f"step-{step:08d}.png"
        if images:
            save(grid(to_uint8(x)), picture)
        else:
            save(scatter(x, frame_of(self.train_set.values)), picture)

    def look_early(self, step: int, total: int, fraction: float) -> list[str]:
        """What is wrong for certain with a few samples, or with weights that stand still."""
        found = [self._watch.look(self._network, self.averaged.network)] if self._watch else []
        self._watch = None
        warnings = [warning for warning in found if warning]
        if self._pictured and total >= SHORTEST:
            images = self.train_set.noun == "image"
            x = self.sampled(_LOOKED_AT if images else _PREVIEW_POINTS, _STEPS_TO_LOOK)
            warnings += look(x, to_x_start(self.some_data()), step, fraction)
        return warnings

    def some_data(self) -> Tensor:
        """Some of the data, as it is kept."""
        if self.held_out is not None:
            return self.held_out.values
        return self.train_set.at(range(min(_SOME, len(self.train_set))))

    def sampled(self, count: int, steps: int = _PREVIEW_STEPS) -> Tensor:
        """Samples 0 … count - 1 of seed 0, on every process's CPU."""
        own = self._own_samples(count, steps)
        return self.setting.processes.gather_equal(own)[:count].cpu()

    @torch.no_grad()
    def _own_samples(self, count: int, steps: int) -> Tensor:
        """This process's of them: as many as the others', so that the last may have some more."""
        share = -(-count // self.setting.processes.size)
        first = self.setting.processes.rank * share
        with self.setting.autocast():
            return sample(
                self.averaged,
                share,
                "ddim",
                min(steps, self.averaged.schedule.timesteps),
                condition=conditions(self.config, first, share, self._vectors),
                batch_size=self.setting.batch_size if self.train_set.noun == "image" else None,
                first_index=first,
            )

    @property
    def _pictured(self) -> bool:
        """Whether examples can be drawn: images, or points in the plane."""
        shape = self.train_set.shape
        return len(shape) == 3 or shape == (2,)

    def _rows_of_equal_shares(self, count: int) -> Tensor:
        """This process's of `count` rows, as many as the others': the last may come up again.

        Sharded networks must be asked equally often by all.
        """
        share = -(-count // self.setting.processes.size)
        first = self.setting.processes.rank * share
        return torch.arange(first, first + share).clamp(max=count - 1)


class Frechet:
    """Fréchet distances of samples to training images, as cheap as they come.

    In the features of the classifier of these images where one is kept, else in pixels, of which
    large images have an 8×8 thumbnail's.

    Attributes:
        name: of the extractor.
        fingerprint: of it, and of what is compared with: distances of one compare.

    Raises:
        InkdropError: for what are no images.
    """

    def __init__(self, train_set: Examples, setting: Setting) -> None:
        if train_set.noun != "image":
            raise InkdropError(
                f"evaluations while training are of images, and {train_set.name} holds "
                f"{train_set.noun}s: leave --evaluate-every out; inkdrop evaluate measures them too"
            )
        from ..measuring import cheap_extractor, kept_extractor

        self._setting = setting
        chosen = kept_extractor(train_set.fingerprint, str(setting.device))
        told = setting.processes.gather_objects(None if chosen is None else chosen.fingerprint)
        if chosen is None or len(set(told)) > 1:  # or one machine's cache has it, another's not
            chosen = cheap_extractor(train_set.shape)
        self._extractor = chosen
        self.name, self.fingerprint = chosen.name, chosen.fingerprint
        count = min(len(train_set), _REFERENCE)
        self._reference = train_set
        if count < len(train_set):
            self._reference = train_set.take(np.arange(count) * len(train_set) // count)
        self._real: Any = None

    def check(self, samples: int) -> None:
        """Refuse so few samples, or training images, that they have no distance."""
        from ..evaluation.figures import frechet_refusal

        why = frechet_refusal(len(self._reference), samples, self._extractor.features)
        if why:
            raise InkdropError(
                f"no Fréchet distance while training: {why.removeprefix('refused: ')}; set "
                "--logging.evaluate-samples, or leave --evaluate-every out"
            )

    def of(self, own: Tensor, count: int) -> float | None:
        """The distance of the first `count` samples of all processes' own (n, C, H, W)."""
        from ..evaluation.distances import frechet_of_moments, moments

        processes = self._setting.processes
        finite = torch.tensor([bool(own.isfinite().all())])
        if not processes.gather_equal(finite).all():
            return None
        if self._real is None:
            self._real = moments(self._features_of_reference())
        values = [
            torch.from_numpy(self._extractor(to_uint8(part)).values)
            for part in torch.split(own, self._setting.batch_size)
        ]
        features = processes.gather_equal(torch.cat(values))[:count].numpy()
        return max(0.0, frechet_of_moments(self._real, moments(features)))

    def _features_of_reference(self) -> Any:
        from ..extracting import features_of

        return features_of(self._extractor, self._reference, self._setting.processes).values
