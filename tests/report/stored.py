"""Evaluations that never were measured, for pages to show."""

from typing import Any

from inkdrop.evaluation.record import (
    ClassFigures,
    Evaluation,
    Figure,
    Memorisation,
    Nearest,
    Protocol,
)


def evaluation(distance: float = 12.5, more: bool = True, **protocol: Any) -> Evaluation:
    """An evaluation of this Fréchet distance, with all else that there can be or without."""
    chosen: dict[str, Any] = {
        "step": 1234,
        "weights": "ema",
        "sampler": "ddim",
        "timesteps": list(range(19, -1, -1)),
        "eta": 0.0,
        "order": None,
        "clip": "range",
        "guidance": None,
        "condition": "nothing",
        "samples": 1000,
        "seed": 0,
        "reference": {"name": "digits", "split": "train", "fingerprint": "a" * 64, "count": 1541},
        "extractor": {"name": "a classifier", "fingerprint": "b" * 64, "features": 128},
        "settings": {"confidence": 0.95, "neighbours": 3},
        "versions": {"inkdrop": "0.1.0"},
    }
    floor = {"train halves": 2.31, "train against held-out": 4.88}
    figures = {
        "frechet_distance": Figure(distance, 0.9 * distance, 1.1 * distance, None, floor),
        "precision": Figure(0.81, 0.78, 0.84, 0.0123, {"train halves": 0.9}),
        "coverage": Figure(None, note="refused: <too> few real images"),
    }
    if not more:
        return Evaluation(Protocol(**{**chosen, **protocol}), figures)
    return Evaluation(
        Protocol(**{**chosen, **protocol}),
        figures,
        [ClassFigures(k, 0.1 + 0.05 * k, 0.15, 0.9, 20.0 + k) for k in range(3)],
        accuracy=0.93,
        class_coverage=1.0,
        memorisation=Memorisation("none seen", "The evidence.", [nearest("pixels")]),
        likelihood={
            "train": {"bits_per_dim": 4.31, "standard_error": 0.05, "examples": 256},
            "held-out": {"bits_per_dim": 4.52, "standard_error": 0.07, "examples": 250},
            "terms": 100,
            "verdict": "no over-fitting seen",
        },
        command="inkdrop evaluate 'a name' --steps 20",
    )


def nearest(space: str) -> Nearest:
    samples = [1 + 0.02 * i for i in range(101)]
    return Nearest(space, samples, [1.1 * x for x in samples], 0.91, 0.023, 0.4, [(3, 17, 1.2)])


LIKELIHOOD = {
    "format_version": 1,
    "step": 1234,
    "weights": "ema",
    "split": "held-out",
    "examples": 128,
    "terms": 19,
    "variance": "posterior",
    "bits_per_dim": 4.6,
    "standard_error": 0.031,
    "prior": 0.001,
    "decoder": 1.2345,
    "per_timestep": [0.0, *(2.0 / 2**t for t in range(1, 20))],
}
