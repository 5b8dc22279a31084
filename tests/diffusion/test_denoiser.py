"""One question, the same answer whatever the network predicts."""

import numpy as np
import pytest
import torch
from torch import nn

from inkdrop.diffusion.denoiser import Denoiser, evaluating
from inkdrop.diffusion.prediction import PREDICTIONS
from inkdrop.diffusion.schedule import NoiseSchedule
from inkdrop.errors import InkdropError

SCHEDULES = [NoiseSchedule.linear(), NoiseSchedule.cosine(100)]


def images(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Scaled(nn.Module):
    """A network of one's own: one weight, and it notes what it was asked."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5, dtype=dtype))
        self.calls = []

    def forward(self, x, t, condition):
        self.calls.append((x, t, condition))
        return self.weight * x


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_estimate_is_the_posterior_mean_whatever_the_network_predicts(
    gaussian, target, schedule, kind
):
    last = schedule.timesteps - 1
    t = torch.tensor([0, 1, last // 2, last - 1, last])
    x_t = images(5, 3)
    mean, variance = target
    alpha, sigma = schedule.alphas_cumprod[t, None].sqrt(), (1 - schedule.alphas_cumprod[t, None])
    precision = 1 / variance + alpha**2 / sigma
    x_start = (mean / variance + alpha * x_t / sigma) / precision
    noise = (x_t - alpha * x_start) / sigma.sqrt()

    estimate = gaussian(schedule, kind)(x_t, t)
    # A noise prediction is divided by α, 1.5e-5 at the end of the cosine schedule.
    tolerance = 1e-10 if kind in ("x_start", "velocity") else 1e-9
    torch.testing.assert_close(estimate.x_start, x_start, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(estimate.noise, noise, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        alpha * estimate.x_start + sigma.sqrt() * estimate.noise, x_t, rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize(
    "t",
    [
        7,
        torch.tensor(7),
        torch.full((4,), 7),
        torch.full((4,), 7, dtype=torch.int32),
        torch.full((4,), 7, dtype=torch.uint8),
        np.full(4, 7),
        np.int64(7),
    ],
    ids=lambda t: f"{type(t).__name__}-{getattr(t, 'dtype', '')}{getattr(t, 'shape', '')}",
)
def test_one_timestep_for_all_is_that_timestep_for_each(gaussian, t):
    denoiser, x_t = gaussian(SCHEDULES[0]), images(4, 3)
    estimate = denoiser(x_t, t)
    expected = denoiser(x_t, torch.tensor([7, 7, 7, 7]))
    assert torch.equal(estimate.x_start, expected.x_start)
    assert torch.equal(estimate.noise, expected.noise)
    for asked in denoiser.network.asked:
        assert asked.dtype == torch.int64
        assert asked.tolist() == [7, 7, 7, 7]


def test_a_respaced_schedule_tells_the_network_the_timestep_it_was_trained_under(gaussian):
    schedule = SCHEDULES[0]
    kept = [3, 500, 998]
    respaced = gaussian(schedule.respaced(kept), trained_under=schedule)
    x_t = images(3, 3)
    estimate = respaced(x_t, torch.tensor([0, 1, 2]))
    assert respaced.network.asked[-1].tolist() == kept
    expected = gaussian(schedule)(x_t, torch.tensor(kept))
    torch.testing.assert_close(estimate.x_start, expected.x_start, rtol=1e-14, atol=0)
    torch.testing.assert_close(estimate.noise, expected.noise, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("asked_in", [torch.float32, torch.float64])
def test_the_network_works_in_its_weights_precision_and_the_answer_is_in_the_questions(
    weights, asked_in
):
    network = Scaled(weights)
    denoiser = Denoiser(network, SCHEDULES[0])
    x_t = images(2, 3).to(asked_in)
    estimate = denoiser(x_t, 5)
    assert network.calls[0][0].dtype == weights
    assert estimate.x_start.dtype == estimate.noise.dtype == asked_in
    assert denoiser.predict(x_t, 5).dtype == asked_in


def test_a_module_of_ones_own_of_any_shape_will_do():
    network = Scaled()
    denoiser = Denoiser(network, SCHEDULES[0], prediction="noise", shape=[3, 5, 7])
    condition = torch.tensor([1, 0])
    x_t = images(2, 3, 5, 7).float()
    estimate = denoiser(x_t, torch.tensor([0, 999]), condition)
    assert torch.equal(estimate.noise, 0.5 * x_t)
    assert estimate.x_start.shape == x_t.shape
    assert network.calls[0][2] is condition
    assert denoiser.shape == (3, 5, 7)
    assert denoiser.device == torch.device("cpu")


def test_gradients_flow_to_the_network_and_to_the_image():
    network = Scaled(torch.float64)
    x_t = images(2, 3).requires_grad_()
    Denoiser(network, SCHEDULES[0])(x_t, 500).x_start.sum().backward()
    assert network.weight.grad.abs() > 0
    assert (x_t.grad != 0).all()


def test_a_schedule_first_used_in_inference_mode_can_be_trained_with_afterwards():
    denoiser = Denoiser(Scaled(), NoiseSchedule.linear(), prediction="velocity")
    with torch.inference_mode():
        denoiser(images(2, 3), 5)
    denoiser(images(2, 3), 5).x_start.sum().backward()
    assert denoiser.network.weight.grad.abs() > 0


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (1000, "t must lie in 0 … 999, got 1000 … 1000"),
        (-1, "t must lie in 0 … 999, got -1 … -1"),
        (torch.tensor([0, 1000]), "got 0 … 1000"),
        (torch.tensor([1, 2, 3]), r"t has shape \(3,\), but x_t holds 2"),
        (torch.tensor([[1], [2]]), r"t has shape \(2, 1\)"),
        (0.5, "t must hold integers, got torch.float32"),
        (torch.tensor([1.0, 2.0]), "t must hold integers"),
        (torch.tensor([True, False]), "t must hold integers, got torch.bool"),
    ],
)
def test_a_timestep_that_is_none_is_an_error(t, message):
    denoiser = Denoiser(Scaled(), SCHEDULES[0])
    for ask in (denoiser, denoiser.predict):
        with pytest.raises(InkdropError, match=message):
            ask(images(2, 3), t)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x[:, :1], r"given \(2, 3\) and returned \(2, 1\)"),
        (lambda x: x[:1], r"returned \(1, 3\)"),
        (lambda x: (x,), "returned tuple"),
        (lambda x: None, "returned NoneType"),
    ],
)
def test_a_network_that_answers_in_another_shape_is_an_error(answer, message):
    network = Scaled()
    network.forward = lambda x, t, condition: answer(x)
    with pytest.raises(InkdropError, match=message):
        Denoiser(network, SCHEDULES[0])(images(2, 3), 0)


def test_an_unknown_prediction_is_told_the_nearest():
    with pytest.raises(InkdropError, match="'epsilon': choose from noise, x_start, velocity"):
        Denoiser(Scaled(), SCHEDULES[0], prediction="epsilon")
    with pytest.raises(InkdropError, match="did you mean 'x_start'"):
        Denoiser(Scaled(), SCHEDULES[0], prediction="xstart")


# A learned variance -------------------------------------------------------------------------------


class Halves(Scaled):
    """½ x, and after it a raw variance from -1 to 1."""

    def forward(self, x, t, condition):
        raw = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype).reshape(x.shape[1:])
        return torch.cat([super().forward(x, t, condition), raw.expand_as(x)], dim=1)


@pytest.mark.parametrize("shape", [(5,), (3, 2, 4)])
def test_the_second_half_of_the_channels_is_the_variance(shape):
    network, x_t = Halves(), images(2, *shape).float()
    denoiser = Denoiser(network, SCHEDULES[0], "noise", learned_variance=True)
    output, estimate = denoiser.ask(x_t, 5), denoiser(x_t, 5)
    assert torch.equal(denoiser.predict(x_t, 5), 0.5 * x_t)
    assert torch.equal(output.prediction, 0.5 * x_t)
    for fraction in (output.variance_fraction, estimate.variance_fraction):
        expected = torch.linspace(0, 1, x_t[0].numel()).reshape(shape).expand_as(x_t)
        torch.testing.assert_close(fraction, expected)
    plain = Denoiser(Scaled(), SCHEDULES[0])(x_t, 5)
    assert torch.equal(estimate.x_start, plain.x_start)
    assert torch.equal(estimate.noise, plain.noise)
    assert plain.variance_fraction is None


def test_a_network_without_the_variance_it_should_learn_is_an_error_and_so_is_one_too_many():
    message = r"returned \(2, 3\); it must return prediction and learned variance .*\(2, 6\)"
    with pytest.raises(InkdropError, match=message):
        Denoiser(Scaled(), SCHEDULES[0], learned_variance=True)(images(2, 3), 5)
    with pytest.raises(InkdropError, match=r"given \(2, 3\) and returned \(2, 6\)"):
        Denoiser(Halves(), SCHEDULES[0])(images(2, 3), 5)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_an_output_asked_for_once_can_be_estimated_from_later(kind):
    denoiser, x_t, t = Denoiser(Scaled(), SCHEDULES[0], kind), images(2, 3), torch.tensor([0, 999])
    later, now = denoiser.estimate(denoiser.ask(x_t, t), x_t, t), denoiser(x_t, t)
    assert torch.equal(later.x_start, now.x_start)
    assert torch.equal(later.noise, now.noise)


def test_a_respaced_denoiser_is_the_same_network_under_the_respaced_schedule():
    network = Halves()
    denoiser = Denoiser(network, SCHEDULES[0], "velocity", (3,), learned_variance=True)
    respaced, x_t = denoiser.respaced([3, 500, 998]), images(3, 3)
    assert respaced.network is network
    assert (respaced.prediction, respaced.shape) == ("velocity", (3,))
    estimate = respaced(x_t, torch.tensor([0, 1, 2]))
    assert network.calls[-1][1].tolist() == [3, 500, 998]
    expected = denoiser(x_t, torch.tensor([3, 500, 998]))
    torch.testing.assert_close(estimate.x_start, expected.x_start, rtol=1e-14, atol=1e-14)
    assert torch.equal(estimate.variance_fraction, expected.variance_fraction)


# Between timesteps --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("schedule", [SCHEDULES[0], SCHEDULES[0].respaced([3, 500, 998])])
def test_at_a_whole_timestep_between_is_the_denoiser_itself(kind, schedule):
    denoiser, x_t = Denoiser(Scaled(torch.float64), schedule, kind), images(4, 3)
    for t in (0, 1, schedule.timesteps - 1):
        between = denoiser.between(x_t, torch.tensor(float(t), dtype=torch.float64))
        told = denoiser.network.calls[-1][1]
        assert told.tolist() == [schedule.network_timesteps[t].item()] * 4
        exact = denoiser(x_t, t)
        torch.testing.assert_close(between.x_start, exact.x_start, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(between.noise, exact.noise, rtol=1e-10, atol=1e-10)


def test_between_two_timesteps_the_network_is_told_what_lies_between_their_names():
    denoiser = Denoiser(Scaled(), SCHEDULES[0].respaced([3, 500, 998]))
    condition = torch.tensor([1, 0])
    denoiser.between(images(2, 3), torch.tensor(1.25, dtype=torch.float64), condition)
    assert denoiser.network.calls[0][1].tolist() == [624.5, 624.5]
    assert denoiser.network.calls[0][2] is condition


def test_each_module_is_evaluated_inside_and_as_it_was_outside_even_after_an_error():
    network = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(1, 1)))
    network[1].eval()

    def fail_inside():
        with evaluating(network):
            assert not any(module.training for module in network.modules())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert [m.training for m in (network, network[0], network[1], network[1][0])] == [
        True,
        True,
        False,
        False,
    ]
