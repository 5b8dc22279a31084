"""What becomes of a step whose loss or gradient is not a finite number, and how it is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..config import ON_NONFINITE
from ..errors import InkdropError, unknown_name
from ..metrics import bin_label, timestep_bin
from ..sharded_files import local

MOST_SKIPS = 10  # steps in a row that are left out
MOST_ROLLBACKS = 3  # to one checkpoint
_ORDINARY_SCALE = 1.0  # above it, float16 overflows because of the scale, which then falls


class TrainingDiverged(InkdropError):
    """The loss or the gradient is no longer a finite number; the step was not taken."""


def is_fault(losses: Tensor, norm: float, scale: float | None) -> bool:
    """Whether a step may not be taken.

    A gradient that overflows in float16 is ordinary: the scaler leaves that step out and lowers its
    scale. It is a fault once the scale no longer multiplies.

    Args:
        losses: (B,), of all processes.
        norm: of the gradient, unscaled.
        scale: of the loss; None where it is not scaled.
    """
    if not losses.isfinite().all():
        return True
    return not math.isfinite(norm) and (scale is None or scale <= _ORDINARY_SCALE)


def largest_gradient(parameters: Mapping[str, nn.Parameter]) -> tuple[str, float]:
    """The layer with the largest gradient, and the norm of it.

    A layer is the module that holds the parameters: `up.0.conv` for `up.0.conv.weight`. What is not
    finite is larger than all else. It spreads from the output to the input, so of several such
    layers the one that was made last is told: the nearest to where it began, in a network whose
    layers are made in the order they are used. Of a parameter in shards, this process's counts.

    Args:
        parameters: by name, in the order of `named_parameters`.

    Returns:
        ("none", 0.0) where nothing has a gradient.
    """
    names, norms = [], []
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            gradient = local(parameter.grad.detach())
            wide = torch.float32 if gradient.device.type == "mps" else torch.float64
            names.append(name.rpartition(".")[0] or name)
            norms.append(torch.linalg.vector_norm(gradient, dtype=wide))
    if not norms:
        return "none", 0.0
    layers: dict[str, float] = {}
    for name, norm in zip(names, torch.stack(norms).tolist(), strict=True):
        # Not math.hypot, for which NaN beside infinity is infinity.
        layers[name] = math.sqrt(layers.get(name, 0.0) ** 2 + norm**2)
    broken = [name for name, norm in layers.items() if not math.isfinite(norm)]
    worst = broken[-1] if broken else max(layers, key=layers.__getitem__)
    return worst, layers[worst]


@torch.no_grad()
def where_it_began(network: nn.Module, again: Callable[[], object]) -> str | None:
    """The layer that made values that are not finite out of values that are.

    Where a loss is not finite all gradients are NaN and tell nothing, so the forward pass is looked
    at: `again` computes the same loss once more.

    Returns:
        Its name; None if no layer did, so that the objective, or what the network was given, did.
    """
    found: list[str] = []

    def watching(name: str) -> Callable[..., None]:
        def look(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not found and not _finite(output) and _finite(args) and _finite(kwargs):
                found.append(name)

        return look

    hooks = [
        module.register_forward_hook(watching(name or type(network).__name__), with_kwargs=True)
        for name, module in network.named_modules()
    ]
    try:
        again()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _finite(value: Any) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))


def describe_nonfinite(
    step: int,
    losses: Tensor,
    t: Tensor,
    timesteps: int,
    norm: float,
    learning_rate: float,
    scale: float | None = None,
    layer: str | None = None,
) -> str:
    """What is not finite, and where, on one line that begins with "in step".

    Args:
        losses, t: (B,), of all processes.
        timesteps: of the schedule.
        norm: of the gradient.
        scale: of the loss; None where it is not scaled.
        layer: where it began; None where that is not known.
    """
    losses, t = losses.cpu(), t.cpu()
    bad = ~losses.isfinite()
    if bad.any():
        bins = [timestep_bin(int(at), timesteps) for at in t[bad]]
        label = bin_label(bins[0], timesteps)
        what = f"the loss is {losses[bad][0].item()} at timestep {int(t[bad][0])} (bin {label})"
        if len(bins) > 1:
            what += f" and not finite for {len(bins) - 1} more of {len(losses)} examples"
            what += ", all in this bin" if len(set(bins)) == 1 else ""
    else:
        what = f"the gradient's norm is {norm}"
    where = f", beginning in the layer {layer}" if layer else ""
    scaled = f" and loss scale {scale:,g}" if scale is not None else ""
    return f"in step {step}: {what}{where}, with learning rate {learning_rate:.3g}{scaled}"


class Decision(NamedTuple):
    """What to do instead of a step, "skip" or "rollback", and what to tell."""

    action: str
    message: str


@dataclass
class NonfinitePolicy:
    """Whether training stops, leaves a step out or goes back, when a step cannot be taken.

    All but `choice` is state, which a checkpoint keeps; going back must not restore it.

    Attributes:
        choice: "stop", "skip" or "rollback".
        skipped: steps left out so far.
        skipped_in_a_row: of these, since a step was last taken.
        rollbacks: how often training went back to `checkpoint`.
        checkpoint: the name of the checkpoint it last went back to.
        shift: what is added to a step to address its draws. After going back, training meets
            examples and noise that it has not seen: the same ones would lead to the same end.

    Raises:
        InkdropError: for an unknown choice.
    """

    choice: str = "stop"
    skipped: int = 0
    skipped_in_a_row: int = 0
    rollbacks: int = 0
    checkpoint: str | None = None
    shift: int = 0

    def __post_init__(self) -> None:
        if self.choice not in ON_NONFINITE:
            raise unknown_name("--on-nonfinite", self.choice, ON_NONFINITE)

    def taken(self) -> None:
        """A step was taken."""
        self.skipped_in_a_row = 0

    def decide(
        self, step: int, description: str, checkpoint: Path | None, saved_step: int
    ) -> Decision:
        """What to do instead of step `step`.

        Args:
            step: the step that cannot be taken, from 0.
            description: as `describe_nonfinite` gives it.
            checkpoint: the newest whole one; None if there is none yet.
            saved_step: the step it goes on from.

        Raises:
            TrainingDiverged: if training is to stop, also because skipping or going back has not
                helped.
        """
        if self.choice == "skip" and self.skipped_in_a_row < MOST_SKIPS:
            self.skipped_in_a_row += 1
            self.skipped += 1
            return Decision("skip", f"{description}; the step is left out ({self.skipped} so far)")
        if self.choice == "rollback" and checkpoint is not None:
            if checkpoint.name != self.checkpoint:
                self.checkpoint, self.rollbacks = checkpoint.name, 0
            if self.rollbacks < MOST_ROLLBACKS:
                self.rollbacks += 1
                self.shift += step + 1 - saved_step
                return Decision(
                    "rollback",
                    f"{description}; going back to {checkpoint.name} and on with other batches "
                    f"(time {self.rollbacks} of at most {MOST_ROLLBACKS})",
                )
        stands = f"{checkpoint} is the last good checkpoint" if checkpoint else "no checkpoint yet"
        raise TrainingDiverged(
            f"training diverged {description}; the step was not taken{self._in_vain()} and "
            f"{stands}; try a lower --training.learning-rate or longer --training.warmup-steps in "
            "a new --out folder"
        )

    def _in_vain(self) -> str:
        if self.choice == "skip":
            return f", nor were the {MOST_SKIPS} before it,"
        if self.choice == "rollback" and self.rollbacks:
            return f", going back {self.rollbacks} times has not helped,"
        return ""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: JSON."""
        return {key: value for key, value in asdict(self).items() if key != "choice"}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        for key in self.state():
            setattr(self, key, state[key])
