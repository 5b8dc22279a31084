"""How networks are told the timestep and the class."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inkdrop.errors import InkdropError
from inkdrop.networks.embedding import ConditionEmbedding, sinusoidal


@given(st.integers(0, 4000), st.integers(2, 64).map(lambda half: 2 * half))
def test_the_timestep_is_told_by_all_sines_then_all_cosines(t, dimensions):
    half = dimensions // 2
    row = sinusoidal(torch.tensor([t]), dimensions)[0]
    assert row.dtype == torch.float32
    assert row.shape == (dimensions,)
    for i in (0, half // 2, half - 1):
        angle = t * 10_000 ** (-i / (half - 1))
        # An angle of 4000 in float32 is known to 2e-4.
        assert row[i].item() == pytest.approx(math.sin(angle), abs=1e-3)
        assert row[half + i].item() == pytest.approx(math.cos(angle), abs=1e-3)


def test_no_two_timesteps_are_told_alike():
    told = sinusoidal(torch.arange(4000), 64).double()
    distances = torch.cdist(told, told) + 10 * torch.eye(4000)
    assert distances.min() > 0.1


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4, 5, 7, 64])
def test_any_number_of_dimensions_will_do(dimensions):
    embedding = ConditionEmbedding(dimensions, 6)
    out = embedding(torch.tensor([0, 5, 999]), None)
    assert out.shape == (3, 6)
    assert out.isfinite().all()
    assert embedding.dimensions >= dimensions


def test_time_and_class_are_told_together():
    embedding = ConditionEmbedding(8, 6, classes=3)
    t = torch.tensor([4, 4, 4, 5])
    out = embedding(t, torch.tensor([0, 1, 0, 0]))
    assert torch.equal(out[0], out[2])
    assert not torch.allclose(out[0], out[1])
    assert not torch.allclose(out[0], out[3])
    assert torch.equal(out, embedding(t, torch.tensor([0, 1, 0, 0], dtype=torch.int32)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_embedding_is_in_the_precision_of_its_weights(dtype):
    embedding = ConditionEmbedding(8, 6, classes=3).to(dtype)
    assert embedding(torch.tensor([4]), torch.tensor([2])).dtype == dtype


def test_a_condition_for_a_network_without_classes_is_an_error():
    with pytest.raises(InkdropError, match=r"takes no condition.*network.classes"):
        ConditionEmbedding(8, 6)(torch.tensor([4]), torch.tensor([2]))


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (None, "conditional on 3 classes: give condition"),
        (torch.tensor([0, 3]), "classes are 0 … 2, but condition holds 0 … 3"),
        (torch.tensor([-1, 1]), "classes are 0 … 2, but condition holds -1 … 1"),
        (torch.tensor([1]), r"2 class indices, .* got shape \(1,\)"),
        (torch.tensor(1), r"2 class indices, .* got shape \(\)"),
        (torch.tensor([[1], [2]]), r"got shape \(2, 1\)"),
        (torch.tensor([1.0, 2.0]), "one integer for each example, .* torch.float32"),
    ],
)
def test_a_condition_that_is_no_class_for_each_example_is_an_error(condition, message):
    with pytest.raises(InkdropError, match=message) as error:
        ConditionEmbedding(8, 6, classes=3)(torch.tensor([4, 5]), condition)
    assert "\n" not in str(error.value)
