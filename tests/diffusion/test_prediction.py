"""Noise, x_start, velocity and score say the same thing."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inkdrop.diffusion.prediction import PREDICTIONS, Pair, convert, from_pair, to_pair
from inkdrop.errors import InkdropError

values = st.floats(-3, 3).map(lambda x: torch.tensor([[x]], dtype=torch.float64))
# α = cos φ, σ = sin φ, away from the ends, where one of the two says nothing about x_t.
angles = st.floats(0.05, math.pi / 2 - 0.05).map(
    lambda angle: torch.tensor([[math.cos(angle)], [math.sin(angle)]], dtype=torch.float64)
)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@given(values, values, angles)
def test_each_kind_is_its_definition(x_start, noise, angle):
    alpha, sigma = angle[:1], angle[1:]
    pair = Pair(x_start, noise)
    x_t = alpha * x_start + sigma * noise
    close(from_pair("noise", pair, alpha, sigma), noise)
    close(from_pair("x_start", pair, alpha, sigma), x_start)
    close(from_pair("velocity", pair, alpha, sigma), alpha * noise - sigma * x_start)
    # The score is the gradient of log N(x_t; α x_0, σ² I).
    x = x_t.clone().requires_grad_()
    log_density = (-((x - alpha * x_start) ** 2) / (2 * sigma**2)).sum()
    (gradient,) = torch.autograd.grad(log_density, x)
    torch.testing.assert_close(
        from_pair("score", pair, alpha, sigma), gradient, rtol=1e-9, atol=1e-9
    )


@given(values, values, angles)
def test_velocity_is_the_derivative_of_x_t_along_the_angle(x_start, noise, angle):
    """With α = cos φ and σ = sin φ, v = dx_t/dφ (Salimans & Ho 2022, App. D)."""
    alpha, sigma = angle[:1], angle[1:]
    phi = torch.atan2(sigma, alpha).requires_grad_()
    (gradient,) = torch.autograd.grad((phi.cos() * x_start + phi.sin() * noise).sum(), phi)
    close(from_pair("velocity", Pair(x_start, noise), alpha, sigma), gradient)


@pytest.mark.parametrize("kind", PREDICTIONS)
@given(values, values, angles)
def test_every_kind_gives_back_the_pair_it_came_from(kind, x_start, noise, angle):
    alpha, sigma = angle[:1], angle[1:]
    x_t = alpha * x_start + sigma * noise
    value = from_pair(kind, Pair(x_start, noise), alpha, sigma)
    pair = to_pair(kind, value, x_t, alpha, sigma)
    close(pair.x_start, x_start)
    close(pair.noise, noise)


@pytest.mark.parametrize("kind", PREDICTIONS)
@given(values, values, angles)
def test_any_prediction_right_or_wrong_adds_up_to_x_t(kind, value, x_t, angle):
    alpha, sigma = angle[:1], angle[1:]
    pair = to_pair(kind, value, x_t, alpha, sigma)
    close(alpha * pair.x_start + sigma * pair.noise, x_t)


@pytest.mark.parametrize(("source", "target"), list(product(PREDICTIONS, PREDICTIONS)))
@given(values, values, angles)
def test_there_and_back_changes_nothing(source, target, value, x_t, angle):
    alpha, sigma = angle[:1], angle[1:]
    there = convert(value, source, target, x_t, alpha, sigma)
    # Either way through a score or across both kinds divides by α σ ≥ 0.05.
    back = convert(there, target, source, x_t, alpha, sigma)
    torch.testing.assert_close(back, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: to_pair("velocty", x, x, x, x),
        lambda x: from_pair("velocty", Pair(x, x), x, x),
        lambda x: convert(x, "noise", "velocty", x, x, x),
    ],
)
def test_an_unknown_kind_is_told_the_nearest(call):
    with pytest.raises(
        InkdropError, match=r"'velocty': did you mean 'velocity'. choose from noise, x_start"
    ):
        call(torch.ones(1, 1))
