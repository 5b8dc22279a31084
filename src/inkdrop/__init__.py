"""Denoising diffusion probabilistic models: train, sample, measure and look.

The names below are imported when they are first used, so that `import inkdrop` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import presets
    from .config import Config
    from .data.images import ImageSet, Source
    from .data.loading import load_data
    from .data.pixels import to_float, to_uint8
    from .data.points import PointSet
    from .diffusers_folder import from_diffusers
    from .diffusion import editing, forward, guidance, objectives, prediction, samplers
    from .diffusion.denoiser import Denoiser, Estimate
    from .diffusion.guidance import Guidance
    from .diffusion.likelihood import bits_per_dim, ode_likelihood
    from .diffusion.oracle import GaussianMixture
    from .diffusion.samplers import invert, sample, sample_steps
    from .diffusion.schedule import NoiseSchedule, ScheduleWarning
    from .errors import InkdropError
    from .evaluating import evaluate
    from .report import pictures, points
    from .report.compare import compare
    from .run import Run, load
    from .training.guards import TrainingDiverged
    from .training.trainer import train

__version__ = "0.1.0"

_MODULES = {
    "config": "config",
    "editing": "diffusion.editing",
    "forward": "diffusion.forward",
    "guidance": "diffusion.guidance",
    "objectives": "diffusion.objectives",
    "pictures": "report.pictures",
    "points": "report.points",
    "prediction": "diffusion.prediction",
    "presets": "presets",
    "samplers": "diffusion.samplers",
}
_HOMES = {
    "Config": "config",
    "Denoiser": "diffusion.denoiser",
    "Estimate": "diffusion.denoiser",
    "GaussianMixture": "diffusion.oracle",
    "Guidance": "diffusion.guidance",
    "ImageSet": "data.images",
    "InkdropError": "errors",
    "NoiseSchedule": "diffusion.schedule",
    "PointSet": "data.points",
    "Run": "run",
    "ScheduleWarning": "diffusion.schedule",
    "Source": "data.images",
    "TrainingDiverged": "training.guards",
    "bits_per_dim": "diffusion.likelihood",
    "compare": "report.compare",
    "evaluate": "evaluating",
    "from_diffusers": "diffusers_folder",
    "invert": "diffusion.samplers",
    "load": "run",
    "load_data": "data.loading",
    "ode_likelihood": "diffusion.likelihood",
    "sample": "diffusion.samplers",
    "sample_steps": "diffusion.samplers",
    "to_float": "data.pixels",
    "to_uint8": "data.pixels",
    "train": "training.trainer",
}

__all__ = [
    "Config",
    "Denoiser",
    "Estimate",
    "GaussianMixture",
    "Guidance",
    "ImageSet",
    "InkdropError",
    "NoiseSchedule",
    "PointSet",
    "Run",
    "ScheduleWarning",
    "Source",
    "TrainingDiverged",
    "bits_per_dim",
    "compare",
    "editing",
    "evaluate",
    "forward",
    "from_diffusers",
    "guidance",
    "invert",
    "load",
    "load_data",
    "objectives",
    "ode_likelihood",
    "pictures",
    "points",
    "prediction",
    "presets",
    "sample",
    "sample_steps",
    "samplers",
    "to_float",
    "to_uint8",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = import_module(f".{_MODULES[name]}", __name__)
    elif name in _HOMES:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
