"""What is not finite is found where it began, told on one line, and not let through."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from inkdrop.errors import InkdropError
from inkdrop.training.guards import (
    MOST_ROLLBACKS,
    MOST_SKIPS,
    NonfinitePolicy,
    TrainingDiverged,
    describe_nonfinite,
    is_fault,
    largest_gradient,
    where_it_began,
)


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 0


class Blocks(nn.Module):
    """Three linear layers, after one of which something breaks on the way there or back."""

    def __init__(self, forward_at: int | None = None, backward_at: int | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(()))
        self.forward_at, self.backward_at = forward_at, backward_at

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == self.backward_at:
                x = BadGradient.apply(x)
        return x


def with_gradients(network: nn.Module) -> dict[str, nn.Parameter]:
    network(torch.ones(2, 3)).sum().backward()
    return dict(network.named_parameters())


def test_the_largest_gradient_is_a_layers_as_a_whole() -> None:
    network = Blocks()
    parameters = dict(network.named_parameters())
    assert largest_gradient(parameters) == ("none", 0.0)
    parameters["scale"].grad = torch.tensor(4.0)
    parameters["blocks.1.weight"].grad = torch.zeros(3, 3).index_put_(
        (torch.tensor([0]), torch.tensor([0])), torch.tensor(-3.0)
    )
    assert largest_gradient(parameters) == ("scale", 4.0)
    parameters["blocks.1.bias"].grad = torch.tensor([0.0, 0.0, 4.0])
    assert largest_gradient(parameters) == ("blocks.1", 5.0)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_gradient_that_breaks_on_the_way_back_is_found_where_it_began(at: int) -> None:
    layer, norm = largest_gradient(with_gradients(Blocks(backward_at=at)))
    assert layer == f"blocks.{at}"
    assert not math.isfinite(norm)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_finite_is_larger_than_any_number(value: float) -> None:
    parameters = dict(Blocks().named_parameters())
    parameters["blocks.0.weight"].grad = torch.full((3, 3), value)
    parameters["blocks.0.bias"].grad = torch.full((3,), math.nan)
    parameters["blocks.2.weight"].grad = torch.full((3, 3), 1e30)
    layer, norm = largest_gradient(parameters)
    assert layer == "blocks.0"
    assert math.isnan(norm)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_loss_that_is_not_finite_is_traced_to_the_layer(at: int) -> None:
    network = Blocks()
    x = torch.ones(2, 3)
    assert where_it_began(network, lambda: network(x)) is None
    with torch.no_grad():
        network.blocks[at].weight[0, 0] = math.nan
    assert where_it_began(network, lambda: network(x)) == f"blocks.{at}"
    assert not any(module._forward_hooks for module in network.modules())


def test_what_breaks_between_layers_is_their_modules_and_what_comes_from_outside_is_none() -> None:
    network = Blocks()
    with torch.no_grad():
        network.scale.fill_(math.inf)
    outer = nn.Sequential(nn.Identity(), network)
    assert where_it_began(outer, lambda: outer(torch.ones(2, 3))) == "1"
    assert where_it_began(network, lambda: network(torch.full((2, 3), math.nan))) is None
    with pytest.raises(ZeroDivisionError):
        where_it_began(network, lambda: 1 / 0)
    assert not any(module._forward_hooks for module in network.modules())


T, RATE = 100, 2e-3


def told(losses: list[float], t: list[int], norm: float = 1.0, **more) -> str:
    return describe_nonfinite(8, torch.tensor(losses), torch.tensor(t), T, norm, RATE, **more)


def test_a_loss_is_told_with_its_timestep_and_bin() -> None:
    assert told([1, math.nan, 2], [5, 37, 99]) == (
        "in step 8: the loss is nan at timestep 37 (bin 30…39), with learning rate 0.002"
    )
    assert "inf at timestep 30 (bin 30…39) and not finite for 1 more of 3 examples, all in" in told(
        [1, math.inf, math.nan], [5, 30, 39]
    )
    assert "all in this bin" not in told([1, math.inf, math.nan], [5, 30, 40])


def test_a_gradient_is_told_with_its_layer_and_the_loss_scale() -> None:
    assert told([1, 2], [5, 37], math.inf, scale=0.5, layer="up.2") == (
        "in step 8: the gradient's norm is inf, beginning in the layer up.2, with learning rate "
        "0.002 and loss scale 0.5"
    )


def test_an_overflow_in_float16_is_no_fault_while_the_scale_can_fall() -> None:
    good, bad = torch.tensor([1.0, 2.0]), torch.tensor([1.0, math.nan])
    assert not is_fault(good, 1.0, None)
    assert is_fault(good, math.nan, None)
    assert not is_fault(good, math.inf, 1024.0)
    assert is_fault(good, math.inf, 1.0)
    assert is_fault(bad, 1.0, 1024.0)


SAVED = Path("run/checkpoints/step-00000006")


def test_stopping_is_one_line_that_says_what_stands_and_what_to_try() -> None:
    with pytest.raises(TrainingDiverged) as caught:
        NonfinitePolicy().decide(8, told([math.nan], [3]), SAVED, 6)
    message = str(caught.value)
    assert message.startswith("training diverged in step 8: the loss is nan")
    assert f"the step was not taken and {SAVED} is the last good checkpoint" in message
    assert "--training.learning-rate" in message
    assert "\n" not in message
    with pytest.raises(TrainingDiverged, match="no checkpoint yet"):
        NonfinitePolicy().decide(8, "in step 8", None, 0)
    with pytest.raises(InkdropError, match="did you mean 'rollback'"):
        NonfinitePolicy("rolback")


def test_skipping_ends_after_ten_steps_in_a_row() -> None:
    policy = NonfinitePolicy("skip")
    for step in range(MOST_SKIPS):
        assert policy.decide(step, "in step", None, 0).action == "skip"
    policy.taken()
    for step in range(MOST_SKIPS):
        decision = policy.decide(step, "in step 7: nan", None, 0)
    assert decision.message == "in step 7: nan; the step is left out (20 so far)"
    with pytest.raises(TrainingDiverged, match="nor were the 10 before it"):
        policy.decide(10, "in step 10", None, 0)


def test_going_back_ends_after_three_times_and_meets_other_batches() -> None:
    policy = NonfinitePolicy("rollback")
    addresses = set(range(6, 9))  # steps 6, 7 and the bad 8
    for _ in range(MOST_ROLLBACKS):
        decision = policy.decide(8, "in step 8", SAVED, 6)
        assert decision.action == "rollback"
        assert "going back to step-00000006" in decision.message
        again = {step + policy.shift for step in range(6, 9)}
        assert not addresses & again
        addresses |= again
    with pytest.raises(TrainingDiverged, match="going back 3 times has not helped"):
        policy.decide(8, "in step 8", SAVED, 6)
    assert policy.decide(14, "in step 14", SAVED.with_name("step-00000012"), 12).action
    assert policy.rollbacks == 1


def test_there_may_be_nothing_to_go_back_to() -> None:
    with pytest.raises(TrainingDiverged, match="no checkpoint yet"):
        NonfinitePolicy("rollback").decide(8, "in step 8", None, 0)


def test_the_state_is_json_and_goes_on() -> None:
    policy = NonfinitePolicy("rollback")
    policy.decide(8, "in step 8", SAVED, 6)
    again = NonfinitePolicy("skip")
    again.restore(json.loads(json.dumps(policy.state())))
    assert again == NonfinitePolicy("skip", 0, 0, 1, "step-00000006", 3)
