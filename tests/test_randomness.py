"""Draws are named, not consumed."""

import random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from inkdrop.randomness import generator, image_noise, normal, torch_seeded

ADDRESS = {"seed": 3, "purpose": "test", "step": 5, "index": 7}


def test_an_address_names_one_draw():
    assert torch.equal(normal((64,), **ADDRESS), normal((64,), **ADDRESS))


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 4},
        {"seed": 3 + 2**32},
        {"seed": 3 + 2**64},
        {"seed": -3},
        {"purpose": "test2"},
        {"step": 6},
        {"index": 8},
        {"step": 7, "index": 5},
    ],
)
def test_another_address_names_another_draw(other):
    assert not torch.equal(normal((64,), **ADDRESS), normal((64,), **{**ADDRESS, **other}))


def test_the_parts_of_an_address_do_not_run_together():
    draws = [
        generator(1, "a", 2, 3).random(),
        generator(1, "a", 23).random(),
        generator(12, "a", 3).random(),
        generator(1, "a/2", 3).random(),
        generator(1, "a/2/3").random(),
    ]
    assert len(set(draws)) == len(draws)


def test_an_address_means_the_same_on_every_machine_and_in_every_release():
    """A change here changes every image of every seed."""
    expected = [-0.8430433, 1.0611748, -0.7497773, 0.1169926]
    assert normal((4,), 0, "sample start").tolist() == pytest.approx(expected, abs=1e-6)
    expected = [0.1756599, 1.4956701, 0.4229910, -0.2353697]
    drawn = image_noise((2,), 15, 2, 0, "sample start").flatten().tolist()
    assert drawn == pytest.approx(expected, abs=1e-6)


@given(first=st.integers(0, 70), count=st.integers(0, 40))
@settings(max_examples=300)
@example(first=0, count=0)
@example(first=15, count=2)
@example(first=32, count=16)
def test_image_noise_is_a_slice_of_the_noise_of_all_images(first, count):
    everything = image_noise((2, 3), 0, 110, seed=1, purpose="test", step=2)
    part = image_noise((2, 3), first, count, seed=1, purpose="test", step=2)
    assert torch.equal(part, everything[first : first + count])


def test_image_noise_differs_between_images_steps_purposes_and_seeds():
    noise = image_noise((8,), 0, 64, seed=1, purpose="test")
    assert len({tuple(row.tolist()) for row in noise}) == 64
    for other in ({"seed": 2}, {"purpose": "test2"}, {"step": 1}):
        drawn = image_noise((8,), 0, 64, **{"seed": 1, "purpose": "test", **other})
        assert not (drawn == noise).any()


def test_noise_is_standard_normal_and_independent():
    noise = image_noise((50,), 0, 4000, seed=0, purpose="test").double()
    n = noise.numel()
    assert noise.mean().abs() < 4 / n**0.5
    assert (noise.var() - 1).abs() < 4 * (2 / n) ** 0.5
    assert ((noise**4).mean() - 3).abs() < 4 * (96 / n) ** 0.5
    correlation = torch.corrcoef(noise.T) - torch.eye(50)
    assert correlation.abs().max() < 5 / 4000**0.5
    assert (noise[1:] * noise[:-1]).mean().abs() < 4 / n**0.5


def test_noise_is_float32_on_the_cpu():
    noise = image_noise((2,), 0, 3, seed=0, purpose="test")
    assert noise.dtype == torch.float32
    assert noise.shape == (3, 2)


def test_drawing_leaves_the_global_random_state_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    normal((4,), **ADDRESS)
    image_noise((4,), 0, 3, seed=0, purpose="test")
    generator(0, "test").random()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_torch_seeded_is_repeatable_and_addressed():
    def weights(**address):
        with torch_seeded(**{**ADDRESS, **address}):
            return nn.Linear(8, 8).weight.detach()

    assert torch.equal(weights(), weights())
    for other in ({"seed": 3 + 2**32}, {"purpose": "test2"}, {"step": 6}, {"index": 8}):
        assert not torch.equal(weights(), weights(**other))


def test_torch_seeded_puts_the_global_state_back():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    with torch_seeded(0, "test"):
        torch.rand(100)
    assert torch.equal(torch.rand(3), expected)


def test_torch_seeded_puts_the_global_state_back_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="stop"), torch_seeded(0, "test"):
        raise RuntimeError("stop")
    assert torch.equal(torch.get_rng_state(), before)
