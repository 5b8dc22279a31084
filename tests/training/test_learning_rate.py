"""The learning rate as a function of the step."""

import pytest

from inkdrop.config import TrainingConfig
from inkdrop.training.learning_rate import learning_rate_factor


def factor(step: int, **training: object) -> float:
    return learning_rate_factor(TrainingConfig(**training), step, total=100)  # type: ignore[arg-type]


def test_warmup_rises_in_equal_steps_and_ends_at_the_full_rate() -> None:
    assert [factor(s, warmup_steps=4) for s in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_linear_decay_falls_to_the_final_rate() -> None:
    training = {"decay": "linear", "learning_rate": 1e-2, "final_learning_rate": 1e-3}
    assert factor(0, **training) == 1
    assert factor(50, **training) == pytest.approx(0.55)
    assert factor(100, **training) == pytest.approx(0.1)


def test_cosine_decay_is_half_way_in_the_middle() -> None:
    assert factor(0, decay="cosine") == 1
    assert factor(50, decay="cosine") == pytest.approx(0.5)
    assert factor(100, decay="cosine") == pytest.approx(0)


def test_a_constant_rate_is_constant() -> None:
    assert {factor(s) for s in range(100)} == {1.0}
