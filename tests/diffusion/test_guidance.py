"""Guidance, held against mixtures whose classes, scores and classifiers are known exactly."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import inkdrop
from inkdrop.diffusion.denoiser import Denoiser
from inkdrop.diffusion.guidance import Guidance, classifier_guided, guided, through_x_start
from inkdrop.diffusion.likelihood import bits_per_dim, ode_likelihood
from inkdrop.diffusion.oracle import ConditionalMixture, GaussianMixture
from inkdrop.diffusion.prediction import PREDICTIONS
from inkdrop.diffusion.samplers import SAMPLERS, build_table, invert, sample, sample_steps
from inkdrop.diffusion.schedule import NoiseSchedule
from inkdrop.errors import InkdropError

SCHEDULE = NoiseSchedule.linear(1000)
SHORT = NoiseSchedule.cosine(20)
KEPT = list(range(4, 1000, 5))
MIXTURE = GaussianMixture(
    [[-1.0, 0.0, 0.5], [0.8, -0.6, 0.0], [0.5, 1.0, -0.5]],
    torch.diag_embed(torch.tensor([[0.04, 0.09, 0.25], [0.16, 0.04, 0.09], [0.09, 0.25, 0.04]])),
    [0.5, 0.2, 0.3],
)
LABELLED = ConditionalMixture(MIXTURE)
T = torch.tensor([0, 60, 250, 500, 800, 999])
CLASSES = torch.tensor([0, 1, 2, 1, 0, 2])
X = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def same(a, b, tolerance: float = 1e-10) -> None:
    close(a.x_start, b.x_start, tolerance)
    close(a.noise, b.noise, tolerance)


def sides(t=T):
    alpha, sigma = SCHEDULE.sqrt_alphas_cumprod, SCHEDULE.sqrt_one_minus_alphas_cumprod
    return alpha[t][:, None], sigma[t][:, None]


class Counting(nn.Module):
    """Another network, and how many rows it was asked about at each call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.rows = network, []
        self.null_condition = network.null_condition

    def forward(self, x, t, condition):
        self.rows.append(len(x))
        return self.network(x, t, condition)


def counted(schedule=SCHEDULE, prediction="noise", **kind) -> Denoiser:
    denoiser = LABELLED.denoiser(schedule, prediction, **kind)
    denoiser.network = Counting(denoiser.network)
    return denoiser


# What a guided estimate is ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_scale_one_is_the_conditional_estimate_and_scale_zero_the_unconditional_one(kind):
    denoiser = counted(prediction=kind)
    asked = denoiser.network.rows
    told = guided(denoiser, 1.0)(X, T, CLASSES)
    same(told, denoiser(X, T, CLASSES), 0)
    untold = guided(denoiser, 0.0)(X, T, CLASSES)
    same(untold, MIXTURE.denoiser(SCHEDULE, kind)(X, T), 1e-12)
    assert asked == [6, 6, 6]  # nobody is asked twice


@pytest.mark.parametrize("scale", [0.3, 1.5, 4, 7.5])
def test_the_guided_score_is_the_unconditional_one_and_scale_times_the_way_to_the_conditional(
    scale,
):
    estimate = guided(LABELLED.denoiser(SCHEDULE), scale)(X, T, CLASSES)
    for i, (t, label) in enumerate(zip(T.tolist(), CLASSES.tolist(), strict=True)):
        x = X[i : i + 1]
        plain = MIXTURE.marginal(SCHEDULE, t).score(x)
        told = LABELLED.given(label).marginal(SCHEDULE, t).score(x)
        score = -estimate.noise[i : i + 1] / SCHEDULE.sqrt_one_minus_alphas_cumprod[t]
        close(score, (1 - scale) * plain + scale * told)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_what_the_network_predicts_does_not_matter_and_image_and_noise_make_up_x_t(kind, rescale):
    guidance = Guidance(3.0, rescale=rescale)
    estimate = guided(LABELLED.denoiser(SCHEDULE, kind), guidance)(X, T, CLASSES)
    same(estimate, guided(LABELLED.denoiser(SCHEDULE), guidance)(X, T, CLASSES))
    alpha, sigma = sides()
    close(alpha * estimate.x_start + sigma * estimate.noise, X, 1e-12)


def test_the_network_is_asked_once_about_everything_twice():
    denoiser = counted()
    steered = guided(denoiser, 2.0)
    for ask in (steered, steered.ask, steered.predict):
        ask(X, T, CLASSES)
    steered.between(X, torch.tensor(400.5, dtype=torch.float64), CLASSES)
    assert denoiser.network.rows == [12] * 4


def test_an_output_asked_for_is_the_guided_one_and_can_be_estimated_from_later():
    for kind in PREDICTIONS:
        steered = guided(LABELLED.denoiser(SCHEDULE, kind), Guidance(2.0, rescale=0.5))
        output = steered.ask(X, T, CLASSES)
        same(steered.estimate(output, X, T), steered(X, T, CLASSES), 0)
        assert torch.equal(steered.predict(X, T, CLASSES), output.prediction)


# Rescaling ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_rescaled_fully_an_estimate_spreads_as_the_conditional_one_and_half_way_in_between(kind):
    denoiser = LABELLED.denoiser(SCHEDULE, kind)
    at = [
        guided(denoiser, Guidance(4.0, rescale=r))(X, T, CLASSES).x_start for r in (0.0, 0.5, 1.0)
    ]
    told = denoiser(X, T, CLASSES).x_start
    assert not torch.allclose(at[0].std(1), told.std(1), rtol=1e-3)
    close(at[2].std(1), told.std(1))
    close(at[1], (at[0] + at[2]) / 2)
    close(at[2] * at[0][:, :1], at[0] * at[2][:, :1])  # the same image but for a factor


def test_an_image_of_one_grey_or_one_number_is_rescaled_by_nothing():
    mixture = GaussianMixture([[-1.0], [1.0]], [[[0.04]], [[0.09]]], [0.4, 0.6])
    denoiser = ConditionalMixture(mixture).denoiser(SCHEDULE)
    x, classes = X[:, :1], CLASSES.clamp(max=1)
    plain, rescaled = (guided(denoiser, Guidance(3.0, None, r))(x, T, classes) for r in (0.0, 1.0))
    same(plain, rescaled)


# The interval -------------------------------------------------------------------------------------


def test_guidance_stays_in_its_interval_whose_ends_belong_to_it():
    denoiser = LABELLED.denoiser(SCHEDULE)
    told, everywhere = denoiser(X, T, CLASSES), guided(denoiser, 3.0)(X, T, CLASSES)
    steered = guided(denoiser, Guidance(3.0, (60, 500)))(X, T, CLASSES)
    inside = torch.tensor([False, True, True, True, False, False])
    assert torch.equal(steered.x_start[inside], everywhere.x_start[inside])
    assert torch.equal(steered.x_start[~inside], told.x_start[~inside])
    assert torch.equal(steered.noise[~inside], told.noise[~inside])
    left_out = guided(denoiser, Guidance(0.0, (60, 500)))(X, T, CLASSES)
    assert torch.equal(left_out.x_start[~inside], told.x_start[~inside])
    same_rows = MIXTURE.denoiser(SCHEDULE)(X, T).x_start[inside]
    close(left_out.x_start[inside], same_rows, 1e-13)


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_a_timestep_for_all_is_that_timestep_for_each_inside_the_interval_and_outside(scale):
    steered = guided(LABELLED.denoiser(SCHEDULE), Guidance(scale, (200, 600), rescale=0.5))
    for t in (199, 200, 600, 601):
        rows = steered(X, torch.full((6,), t), CLASSES)
        same(steered(X, t, CLASSES), rows, 1e-12)


def test_the_interval_means_the_same_under_a_respaced_schedule_and_between_timesteps():
    denoiser = counted()
    asked = denoiser.network.rows
    steered = guided(denoiser, Guidance(3.0, (200, 600)))
    respaced = steered.respaced(KEPT)
    assert respaced.schedule.timesteps == 200
    names = [199, 204, 599, 604]
    for name in names:
        asked.clear()
        estimate = respaced(X, KEPT.index(name), CLASSES)
        same(estimate, steered(X, name, CLASSES))
        assert asked == ([12, 12] if 200 <= name <= 600 else [6, 6])
    rows = torch.tensor([KEPT.index(name) for name in names])
    named = torch.tensor(names)
    same(respaced(X[:4], rows, CLASSES[:4]), steered(X[:4], named, CLASSES[:4]))
    other_way = guided(denoiser.respaced(KEPT), Guidance(3.0, (200, 600)))
    same(other_way(X[:4], rows, CLASSES[:4]), steered(X[:4], named, CLASSES[:4]))

    for wrapper, last in ((steered, 999), (respaced, 199)):
        asked.clear()
        for name in (199.0, 199.9, 200.1, 599.9, 600.1, 601.0):
            t = torch.tensor((name - 4) / 5 if last == 199 else name, dtype=torch.float64)
            wrapper.between(X, t, CLASSES)
        assert asked == [6, 6, 12, 12, 6, 6]


def test_at_a_whole_timestep_between_is_the_guided_denoiser_itself():
    steered = guided(LABELLED.denoiser(SCHEDULE), Guidance(3.0, rescale=0.4))
    for t in (0, 417, 999):
        between = steered.between(X, torch.tensor(float(t), dtype=torch.float64), CLASSES)
        same(between, steered(X, t, CLASSES), 1e-9)


def test_an_interval_that_no_timestep_lies_in_guides_nowhere_and_one_beyond_the_last_is_an_error():
    denoiser = LABELLED.denoiser(SCHEDULE)
    between_two = guided(denoiser.respaced(KEPT), Guidance(3.0, (200, 203)))
    same(between_two(X, 40, CLASSES), denoiser.respaced(KEPT)(X, 40, CLASSES), 0)
    steered = guided(denoiser, Guidance(3.0, (900, 999))).respaced([100, 500])
    same(steered(X, 1, CLASSES), denoiser(X, 500, CLASSES))
    with pytest.raises(InkdropError, match="begins after the schedule's last timestep, 999"):
        guided(denoiser, Guidance(3.0, (1000, 1200)))


# Sampling -----------------------------------------------------------------------------------------


def test_guided_by_one_samples_are_the_conditional_ones_and_by_zero_the_unconditional_ones():
    denoiser, classes = LABELLED.denoiser(SCHEDULE), torch.arange(64) % 3
    plain = sample(denoiser, condition=classes, steps=10)
    assert torch.equal(sample(denoiser, condition=classes, steps=10, guidance=1.0), plain)
    none = sample(MIXTURE.denoiser(SCHEDULE), n=64, steps=10)
    close(sample(denoiser, condition=classes, steps=10, guidance=0), none, 1e-6)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_guided_samples_are_of_their_class_and_by_more_than_one_tighter(scale):
    n = 3000
    classes = torch.arange(n) % 3
    x = sample(
        LABELLED.denoiser(SCHEDULE),
        condition=classes,
        guidance=scale,
        x_init=torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        sampler="unipc",
        steps=20,
    )
    for label in range(3):
        mine, true = x[classes == label], LABELLED.given(label).sample(200_000)
        if scale == 1:
            close(mine.mean(0), true.mean(0), 0.06)
            close(mine.std(0), true.std(0), 0.06)
        nearest = LABELLED.log_prob(
            SCHEDULE, mine, torch.zeros(len(mine), dtype=torch.long), classes[classes == label]
        )
        assert (nearest.exp() > 0.5).double().mean() > (0.98 if scale == 1 else 0.9999)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_can_be_guided_with_twice_the_rows_in_one_call_for_each_of_its_own(name):
    denoiser = counted(learned_variance=name == "ancestral-learned")
    table = build_table(SCHEDULE, name, steps=8)
    guidance = Guidance(3.0, (200, 700), rescale=0.3)
    x_init = X.clone()
    chosen = sample(denoiser, table=table, x_init=x_init, condition=CLASSES, guidance=guidance)
    asked = [12 if 200 <= t <= 700 else 6 for t in table.timesteps]
    assert denoiser.network.rows == asked
    assert {6, 12} == set(asked)
    one_by_one = sample(
        denoiser, table=table, x_init=x_init, condition=CLASSES, guidance=guidance, batch_size=1
    )
    close(one_by_one, chosen, 1e-9)
    wrapped = sample(guided(denoiser, guidance), table=table, x_init=x_init, condition=CLASSES)
    assert torch.equal(wrapped, chosen)


def test_a_guided_steps_estimates_are_the_guided_denoisers():
    denoiser = LABELLED.denoiser(SCHEDULE)
    steered, before = guided(denoiser, 2.5), X
    states = sample_steps(denoiser, x_init=X, condition=CLASSES, guidance=2.5, steps=5)
    for state in states:
        close(state.x_start, steered(before, state.timestep, CLASSES).x_start, 1e-12)
        before = state.x


def test_guided_inversion_leads_back_to_where_guided_sampling_started():
    denoiser, classes = LABELLED.denoiser(SCHEDULE), torch.ones(6, dtype=torch.long)
    x = LABELLED.given(1).sample(6)
    options = {"sampler": "unipc", "timesteps": list(range(999, -1, -3)), "order": 3}
    noise = invert(denoiser, x, condition=classes, guidance=1.5, clip=None, **options)
    back = sample(denoiser, x_init=noise, condition=classes, guidance=1.5, clip=None, **options)
    close(back, x, 5e-3)
    other = invert(denoiser, x, condition=classes, clip=None, **options)
    assert (noise - other).abs().max() > 0.1


def test_the_learned_variance_is_that_of_the_conditional_estimate():
    denoiser = LABELLED.denoiser(SCHEDULE, learned_variance=True)
    told, steered = denoiser(X, T, CLASSES), guided(denoiser, 3.0)(X, T, CLASSES)
    close(steered.variance_fraction, told.variance_fraction, 1e-13)
    untold = guided(denoiser, 0.0)(X, T, CLASSES)
    none = MIXTURE.denoiser(SCHEDULE, learned_variance=True)(X, T)
    close(untold.variance_fraction, none.variance_fraction, 1e-13)


def test_a_guided_denoiser_is_measured_like_any_other():
    denoiser = LABELLED.denoiser(SHORT)
    x = LABELLED.given(1).sample(4)
    told = torch.ones(4, dtype=torch.long)
    plain = bits_per_dim(denoiser, x, told)
    assert bits_per_dim(guided(denoiser, 1.0), x, told).total == plain.total
    none = bits_per_dim(MIXTURE.denoiser(denoiser.schedule), x)
    close(
        bits_per_dim(guided(denoiser, 0.0), x, told).per_timestep, none.per_timestep.double(), 1e-12
    )
    assert bits_per_dim(guided(denoiser, 3.0), x, told).total > plain.total


# Conditions of other kinds ------------------------------------------------------------------------


class Told(NamedTuple):
    """A condition of several parts."""

    classes: Tensor | None = None
    augmentation: Tensor | None = None
    vectors: Tensor | None = None


class PartsNetwork(nn.Module):
    """A network of one's own that is told a `Told`; x shifted by all it is told."""

    def forward(self, x, t, condition):
        classes, augmentation, vectors = condition
        assert augmentation is None
        return x + classes[:, None] + vectors.nan_to_num(-3.0).sum(1, keepdim=True)

    def null_condition(self, condition):
        return Told(
            torch.full_like(condition.classes, -1),
            None,
            torch.full_like(condition.vectors, math.nan),
        )


def test_a_condition_may_have_several_parts_and_parts_that_are_not_there():
    condition = Told(CLASSES, None, X[:, :2])
    denoiser = Denoiser(PartsNetwork(), SCHEDULE, shape=(3,))
    told, untold = (
        denoiser(X, T, c).noise for c in (condition, PartsNetwork().null_condition(condition))
    )
    close(guided(denoiser, 2.0)(X, T, condition).noise, 2 * told - untold)
    whole = sample(denoiser, condition=condition, guidance=2.0, steps=4, x_init=X)
    parts = sample(denoiser, condition=condition, guidance=2.0, steps=4, x_init=X, batch_size=4)
    close(whole, parts)
    assert len(sample(denoiser, condition=condition, guidance=2.0, steps=1)) == 6
    with pytest.raises(InkdropError, match="condition holds 6 examples, but n is 5"):
        sample(denoiser, n=5, condition=condition)
    uneven = Told(CLASSES, None, X[:4])
    with pytest.raises(InkdropError, match=r"a row for each example.*\(6,\), \(4, 3\)"):
        sample(denoiser, condition=uneven)


def test_vectors_guide_as_classes_do():
    places = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    labelled = ConditionalMixture(MIXTURE, places, spread=0.4)
    vectors = torch.tensor([[0.9, 0.1]] * 6, dtype=torch.float64)
    estimate = guided(labelled.denoiser(SCHEDULE), 2.0)(X, T, vectors)
    told = labelled.given(vectors[0]).denoiser(SCHEDULE)(X, T)
    untold = MIXTURE.denoiser(SCHEDULE)(X, T)
    close(estimate.x_start, 2 * told.x_start - untold.x_start)


def test_what_stands_for_no_condition_can_be_given():
    denoiser = LABELLED.denoiser(SCHEDULE)
    expected = guided(denoiser, 3.0)(X, T, CLASSES)
    for null in (torch.tensor(-1), torch.tensor([-1], dtype=torch.int32)):
        same(guided(denoiser, 3.0, null)(X, T, CLASSES), expected, 0)
    away = guided(denoiser, 3.0, torch.tensor(2))(X, T, CLASSES)  # a class to keep away from
    told, other = denoiser(X, T, CLASSES), denoiser(X, T, torch.full_like(CLASSES, 2))
    close(away.x_start, 3 * told.x_start - 2 * other.x_start)


# Classifier guidance ------------------------------------------------------------------------------


def exact_classifier(x_t, t, condition):
    return LABELLED.log_prob(SCHEDULE, x_t, t, condition)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_an_exact_classifier_makes_the_conditional_estimate_of_the_unconditional_one(kind):
    plain = MIXTURE.denoiser(SCHEDULE, kind)
    with torch.no_grad():  # as in sampling
        estimate = classifier_guided(plain, exact_classifier, 1.0)(X, T, CLASSES)
    same(estimate, LABELLED.denoiser(SCHEDULE, kind)(X, T, CLASSES))
    alpha, sigma = sides()
    close(alpha * estimate.x_start + sigma * estimate.noise, X, 1e-12)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_guided_by_an_exact_classifier_is_guided_without_one(scale):
    plain = classifier_guided(MIXTURE.denoiser(SCHEDULE), exact_classifier, scale)
    same(plain(X, T, CLASSES), guided(LABELLED.denoiser(SCHEDULE), scale)(X, T, CLASSES))


def test_a_network_that_is_told_the_condition_too_starts_from_the_conditional_estimate():
    denoiser = LABELLED.denoiser(SCHEDULE)
    both = classifier_guided(denoiser, exact_classifier, 2.0, tell=True)
    same(both(X, T, CLASSES), guided(denoiser, 3.0)(X, T, CLASSES))
    alone = classifier_guided(denoiser, exact_classifier, 2.0)
    same(alone(X, T, CLASSES), guided(denoiser, 2.0)(X, T, CLASSES))
    over = classifier_guided(guided(denoiser, 2.0), exact_classifier, 1.0, tell=True)
    same(over(X, T, CLASSES), guided(denoiser, 3.0)(X, T, CLASSES))


def test_a_classifier_guides_every_sampler_and_only_in_its_interval():
    denoiser, interval = LABELLED.denoiser(SCHEDULE), (200, 700)
    seen = []

    def classifier(x_t, t, condition):
        seen.extend(t.unique().tolist())
        return exact_classifier(x_t, t, condition)

    steered = classifier_guided(denoiser, classifier, 2.0, tell=True, interval=interval)
    for name in ("ddim", "ancestral", "heun"):
        table = build_table(SCHEDULE, name, steps=6)
        seen.clear()
        by_classifier = sample(steered, table=table, x_init=X, condition=CLASSES)
        assert seen == [t for t in table.timesteps if 200 <= t <= 700]
        guidance = Guidance(3.0, interval)
        close(
            by_classifier,
            sample(denoiser, table=table, x_init=X, condition=CLASSES, guidance=guidance),
            1e-8,
        )
    rows = guided(denoiser, Guidance(3.0, interval))(X, T, CLASSES)
    same(steered(X, T, CLASSES), rows)
    respaced, t = steered.respaced(KEPT), torch.tensor([0, 30, 80, 139, 150, 199])
    same(respaced(X, t, CLASSES), steered(X, torch.tensor(KEPT)[t], CLASSES))
    at = torch.tensor(400.5, dtype=torch.float64)
    same(steered.between(X, at, CLASSES), guided(denoiser, 3.0).between(X, at, CLASSES), 1e-9)


def test_a_guided_denoiser_has_the_derivatives_that_an_ode_likelihood_asks_for():
    denoiser = LABELLED.denoiser(SCHEDULE)
    by_classifier = classifier_guided(MIXTURE.denoiser(SCHEDULE), exact_classifier, 2.0)
    t, told = torch.tensor(300.5, dtype=torch.float64), CLASSES[:2]

    def slopes(steered):
        return torch.autograd.functional.jacobian(
            lambda x: steered.between(x, t, told).noise, X[:2]
        )

    by_two = slopes(guided(denoiser, 2.0))
    close(by_two, 2 * slopes(denoiser) - slopes(guided(denoiser, 0.0)))
    close(slopes(by_classifier), by_two)


def test_the_likelihood_of_a_denoiser_that_an_exact_classifier_guides_is_the_conditional_ones():
    def classifier(x_t, t, condition):
        return LABELLED.log_prob(SHORT, x_t, t, condition)

    x, told = LABELLED.given(1).sample(2), torch.ones(2, dtype=torch.long)
    steered = classifier_guided(MIXTURE.denoiser(SHORT), classifier, 1.0)
    options = {"divergence": "exact", "tolerance": 1e-3}
    by_classifier = ode_likelihood(steered, x, told, **options)
    exact = ode_likelihood(LABELLED.denoiser(SHORT), x, told, **options)
    close(by_classifier.log_density, exact.log_density, 0.02)


def test_a_classifier_works_in_inference_mode():
    plain = classifier_guided(MIXTURE.denoiser(SCHEDULE), exact_classifier, 2.0)
    expected = sample(plain, x_init=X, condition=CLASSES, steps=3)
    with torch.inference_mode():
        found = sample(plain, x_init=X.clone(), condition=CLASSES.clone(), steps=3)
    close(found.clone(), expected, 0)


class Linear(nn.Module):
    """Logits W x: float32, as classifiers are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 0.5]]))

    def forward(self, x):
        return x @ self.weight.T


@pytest.mark.parametrize("respaced", [False, True])
def test_a_classifier_of_clean_images_is_asked_of_the_estimate_and_seen_through_the_network(
    respaced,
):
    plain = MIXTURE.denoiser(SCHEDULE, "velocity")
    own = plain.respaced(KEPT) if respaced else plain
    log_prob = through_x_start(own, Linear().double())
    t = torch.tensor(KEPT)[torch.tensor([0, 30, 80, 139, 150, 199])]
    classes, step = torch.tensor([0, 1, 0, 1, 0, -1]), 1e-5
    x = X.clone().requires_grad_()
    value = log_prob(x, t, classes)
    logits = plain(X, t).x_start @ Linear().double().weight.T
    picked = logits.log_softmax(1).gather(1, classes.clamp(min=0)[:, None])[:, 0]
    close(value[:5], picked[:5])
    assert value[5] == 0  # nothing is told of the last, and nothing pulls it
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert (gradient[5] == 0).all()
    for axis in torch.eye(3, dtype=torch.float64):
        ahead, behind = (log_prob(X + d * step * axis, t, classes) for d in (1, -1))
        close((gradient * axis).sum(1), (ahead - behind) / (2 * step), 1e-6)


def test_guided_by_a_classifier_of_clean_images_samples_go_where_it_says():
    denoiser = LABELLED.denoiser(SCHEDULE)  # told nothing of the classes, which mean other things
    log_prob = through_x_start(denoiser, Linear())
    classes = torch.arange(40) % 2
    x = sample(
        classifier_guided(denoiser, log_prob, 4.0), condition=classes, steps=12, sampler="unipc"
    )
    assert (Linear()(x).argmax(1) == classes).double().mean() > 0.95
    at = torch.tensor(400.5, dtype=torch.float64)
    steered = classifier_guided(denoiser, through_x_start(denoiser, Linear().double()), 4.0)
    near = steered(X, 400, CLASSES.clamp(max=1)).x_start
    close(steered.between(X, at, CLASSES.clamp(max=1)).x_start, near, 0.02)


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": -1.0}, "guidance scale must be a number of at least 0 .*got -1.0"),
        ({"scale": math.nan}, "got nan"),
        ({"scale": math.inf}, "got inf"),
        ({"scale": "3"}, "got '3'"),
        ({"scale": True}, "got True"),
        ({"scale": 2.0, "rescale": 1.2}, "rescale must lie between 0 .* and 1 .*got 1.2"),
        ({"scale": 2.0, "rescale": math.nan}, "rescale must lie between 0"),
        ({"scale": 2.0, "interval": (5, 4)}, r"0 ≤ low ≤ high, got \(5, 4\)"),
        ({"scale": 2.0, "interval": (-1, 4)}, r"got \(-1, 4\)"),
        ({"scale": 2.0, "interval": (0.1, 0.4)}, r"two timesteps .*got \(0.1, 0.4\)"),
        ({"scale": 2.0, "interval": (1, 2, 3)}, r"got \(1, 2, 3\)"),
        ({"scale": 2.0, "interval": 5}, "got 5"),
    ],
)
def test_guidance_that_cannot_be_meant_is_an_error(wrong, message):
    with pytest.raises(InkdropError, match=message):
        Guidance(**wrong)


def test_a_list_from_a_file_is_an_interval_too():
    assert Guidance(2.0, [100, 200]) == Guidance(2, (100, 200))


def test_guidance_towards_nothing_is_an_error_before_the_network_is_asked():
    denoiser = counted()
    for scale in (0.0, 1.0, 3.0):
        with pytest.raises(InkdropError, match="needs something to guide towards: give condition"):
            sample(denoiser, n=4, guidance=scale)
        with pytest.raises(InkdropError, match="give condition"):
            guided(denoiser, scale)(X, T, Told())
    assert denoiser.network.rows == []


def test_a_network_without_a_null_condition_is_an_error_unless_none_is_needed():
    denoiser = Denoiser(nn.Identity(), SCHEDULE)
    with pytest.raises(InkdropError, match=r"Identity does not say .*null_condition\(condition\)"):
        guided(denoiser, 2.0)
    with pytest.raises(InkdropError, match="does not say what stands for no condition"):
        sample(denoiser, x_init=X, condition=CLASSES, guidance=2.0)
    guided(denoiser, 1.0)
    guided(denoiser, 2.0, null=torch.tensor(-1))


def test_a_networks_own_refusal_comes_before_any_work():
    denoiser = counted()

    def null_condition(condition):
        raise InkdropError("trained without label dropout")

    denoiser.network.null_condition = null_condition
    with pytest.raises(InkdropError, match="trained without label dropout"):
        sample_steps(denoiser, x_init=X, condition=CLASSES, guidance=2.0)
    assert denoiser.network.rows == []


@pytest.mark.parametrize(
    ("null", "message"),
    [
        (torch.tensor(math.nan), r"null condition is \(\) of torch.float32, but the condition is"),
        (torch.zeros(5, dtype=torch.long), r"null condition is \(5,\)"),
        (Told(), "conditions must be alike to stand in one batch, got .* and Told"),
        (-1, "conditions must be alike .* and int"),
    ],
)
def test_a_null_condition_of_another_kind_is_an_error(null, message):
    with pytest.raises(InkdropError, match=message):
        guided(LABELLED.denoiser(SCHEDULE), 2.0, null)(X, T, CLASSES)


def test_a_condition_that_is_no_tensor_is_an_error():
    for wrong in ([0, 1], CLASSES.numpy()):
        with pytest.raises(InkdropError, match="a condition is a tensor with a row for each"):
            sample(LABELLED.denoiser(SCHEDULE), condition=wrong, guidance=2.0)
    with pytest.raises(
        InkdropError, match=r"a row for each example in all of its parts, got .*\(\)"
    ):
        sample(LABELLED.denoiser(SCHEDULE), condition=torch.tensor(1))


def test_guidance_is_given_once():
    denoiser = LABELLED.denoiser(SCHEDULE)
    for steered in (guided(denoiser, 2.0), classifier_guided(denoiser, exact_classifier, 1.0)):
        with pytest.raises(InkdropError, match="guided already: give guidance once"):
            sample(steered, x_init=X, condition=CLASSES, guidance=2.0)


@pytest.mark.parametrize(
    ("log_prob", "message"),
    [
        (lambda x, t, c: x, r"one number for each of 6 examples, got \(6, 3\)"),
        (lambda x, t, c: None, "got NoneType"),
        (lambda x, t, c: x.detach().sum(1), "must be differentiable in x_t"),
        (lambda x, t, c: torch.ones(6, requires_grad=True), "must be differentiable in x_t"),
    ],
)
def test_a_classifier_that_gives_no_gradient_is_an_error(log_prob, message):
    with pytest.raises(InkdropError, match=message):
        classifier_guided(MIXTURE.denoiser(SCHEDULE), log_prob, 1.0)(X, T, CLASSES)


def test_a_classifier_guides_at_least_by_nothing_and_where_there_are_timesteps():
    plain = MIXTURE.denoiser(SCHEDULE)
    with pytest.raises(InkdropError, match=r"classifier guidance scale must be .* at least 0"):
        classifier_guided(plain, exact_classifier, -0.1)
    with pytest.raises(InkdropError, match="two timesteps with 0 ≤ low ≤ high"):
        classifier_guided(plain, exact_classifier, 1.0, interval=(3, 1))
    with pytest.raises(InkdropError, match="would guide nowhere"):
        classifier_guided(plain, exact_classifier, 1.0, interval=(1000, 1001))


def test_a_classifier_of_clean_images_needs_classes_and_logits():
    plain = MIXTURE.denoiser(SCHEDULE)
    for wrong in (None, X):
        with pytest.raises(InkdropError, match="guides towards classes: give condition"):
            classifier_guided(plain, through_x_start(plain, Linear().double()), 1.0)(X, T, wrong)
    log_prob = through_x_start(plain, lambda x: x[:, 0])
    with pytest.raises(InkdropError, match=r"must return \(B, K\) logits, got \(6,\)"):
        classifier_guided(plain, log_prob, 1.0)(X, T, CLASSES)


# Compiled, and as it is imported ------------------------------------------------------------------


class Affine(nn.Module):
    """A small conditional network that a compiler can follow."""

    def forward(self, x, t, condition):
        return torch.cos(t)[:, None].to(x) * x + condition[:, None]

    def null_condition(self, condition):
        return torch.full_like(condition, -1)


def test_rows_of_any_timestep_are_one_graph():
    denoiser = guided(Denoiser(Affine(), SCHEDULE), Guidance(3.0, (200, 700), rescale=0.5))
    ask = torch.compile(denoiser.ask, backend="eager", fullgraph=True)
    for t in (T, T.flip(0), torch.zeros_like(T)):
        close(ask(X, t, CLASSES).prediction, denoiser.ask(X, t, CLASSES).prediction)


def test_guidance_is_found_where_the_rest_is():
    assert inkdrop.Guidance is Guidance
    assert inkdrop.guidance.guided is guided
