"""The average of the weights, against its closed form."""

import torch
from torch import nn

from inkdrop.training.ema import EMA


def test_the_average_is_the_weighted_sum_of_all_weights_seen() -> None:
    network = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(network.weight)
    ema = EMA(network, decay=0.9)
    values = [3.0, -1.0, 2.0, 5.0]
    expected = 0.0
    for step, value in enumerate(values):
        nn.init.constant_(network.weight, value)
        ema.update(network, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(
        ema.network.weight, torch.tensor([[expected]], dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_the_average_of_constant_weights_is_those_weights_and_needs_no_gradient() -> None:
    network = nn.Linear(3, 2)
    ema = EMA(network, decay=0.999)
    for step in range(5):
        ema.update(network, step)
    torch.testing.assert_close(ema.network.weight, network.weight, rtol=1e-6, atol=0)
    assert not any(p.requires_grad for p in ema.network.parameters())
    assert all(p.requires_grad for p in network.parameters())
    assert not ema.network.training
