"""What a checkpoint must hold of a training, and how it is put back.

Everything else is a pure function of the seed and the step.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint import PARTS
from ..diffusion.timestep_sampling import TimestepSampler
from ..sharded_files import read_shards_into, shard_names, share_like
from .ema import EMA
from .parallel import load_full

TIMESTEPS_PART = "timesteps"  # for a timestep sampler that remembers losses

Tensors = dict[str, dict[str, Tensor]]


class TrainingState:
    """The tensors that training changes, by part and name: whole, however many processes there are.

    Args:
        network: the trained network.
        ema: its average.
        optimizer: of its parameters.
        timestep_sampler: which may remember losses.
    """

    def __init__(
        self,
        network: nn.Module,
        ema: EMA,
        optimizer: torch.optim.Optimizer,
        timestep_sampler: TimestepSampler,
    ) -> None:
        self.network = network
        self.ema = ema
        self.optimizer = optimizer
        self.timestep_sampler = timestep_sampler
        self.parameters = dict(network.named_parameters())

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of a checkpoint of this training."""
        return (*PARTS, TIMESTEPS_PART) if self.timestep_sampler.state() else PARTS

    @property
    def buffers(self) -> frozenset[str]:
        """The names of tensors that nobody trains, which may hold anything."""
        return frozenset(name for name, _ in self.network.named_buffers())

    def tensors(self) -> Tensors:
        """All of them, as they are."""
        tensors: Tensors = {
            "weights": dict(self.network.state_dict()),
            "ema": dict(self.ema.network.state_dict()),
            "optimizer": self._moments(),
        }
        if history := self.timestep_sampler.state():
            tensors[TIMESTEPS_PART] = {k: torch.from_numpy(v) for k, v in history.items()}
        return tensors

    def restore(self, tensors: Tensors) -> None:
        """Put back what `tensors` returned."""
        load_full(self.network, tensors["weights"])
        load_full(self.ema.network, tensors["ema"])
        self._load_moments(tensors["optimizer"])
        self.restore_history(tensors)

    def restore_history(self, tensors: Tensors) -> None:
        """Put back what the timestep sampler remembers, if it does."""
        if TIMESTEPS_PART in tensors:
            history = tensors[TIMESTEPS_PART]
            self.timestep_sampler.restore({k: v.numpy() for k, v in history.items()})

    def restore_shards(self, path: Path) -> None:
        """Put back a checkpoint in shards: each process reads its parts alone. Collective."""
        read_shards_into(path / "weights", dict(self.network.state_dict()))
        read_shards_into(path / "ema", dict(self.ema.network.state_dict()))
        moments: dict[str, Tensor] = {}
        for key in shard_names(path / "optimizer"):
            kind, name = key.split("/", 1)
            parameter = self.parameters[name].detach()
            moments[key] = torch.zeros(()) if kind == "step" else torch.zeros_like(parameter)
        read_shards_into(path / "optimizer", moments)
        self._load_moments(moments)

    def _moments(self) -> dict[str, Tensor]:
        """The optimizer's state by KIND/PARAMETER."""
        return {
            f"{kind}/{name}": value
            for name, parameter in self.parameters.items()
            for kind, value in self.optimizer.state.get(parameter, {}).items()
        }

    def _load_moments(self, moments: dict[str, Tensor]) -> None:
        index = {name: i for i, name in enumerate(self.parameters)}
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in moments.items():
            kind, name = key.split("/", 1)
            parameter = self.parameters[name]
            like_it = value.shape == parameter.shape  # else the count of steps
            shared = share_like(value, parameter) if like_it else value
            state.setdefault(index[name], {})[kind] = shared
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
