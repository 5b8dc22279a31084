"""A labelled mixture's closed forms, against the mixtures of its labels and Bayes' rule."""

import math

import pytest
import torch

from inkdrop.diffusion.oracle import ConditionalMixture, GaussianMixture
from inkdrop.diffusion.prediction import PREDICTIONS
from inkdrop.diffusion.schedule import NoiseSchedule
from inkdrop.errors import InkdropError

SCHEDULE = NoiseSchedule.linear()
MIXTURE = GaussianMixture(
    torch.tensor([[-1.0, 0.0], [0.8, -0.6], [0.5, 1.0], [0.0, 0.3]]).reshape(4, 1, 1, 2),
    torch.tensor([[[0.04, 0.01], [0.01, 0.09]]]).expand(4, 2, 2),
    [0.4, 0.2, 0.3, 0.1],
)
LABELS = torch.tensor([0, 1, 1, 5])  # two components of one class, and numbers left out
CLASSES = ConditionalMixture(MIXTURE, LABELS)
ANGLES = ConditionalMixture(
    MIXTURE, torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]), spread=0.6
)
T = torch.tensor([0, 300, 999, 500])
X = torch.randn(4, 1, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
NAN = [math.nan, math.nan]
CASES = [
    (CLASSES, torch.tensor([0, 1, 5, -1])),
    (ANGLES, torch.tensor([[0.9, 0.1], [0.0, -1.2], [5.0, 0.0], NAN])),
]
of_both = pytest.mark.parametrize(("labelled", "told"), CASES, ids=["classes", "vectors"])


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_a_class_is_the_mixture_of_its_components_and_none_is_all_of_them():
    close(CLASSES.given(1).weights, torch.tensor([0.0, 0.4, 0.6, 0.0], dtype=torch.float64))
    close(CLASSES.given(5).weights, torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64))
    for labelled, null in ((CLASSES, -1), (ANGLES, NAN)):
        close(labelled.given(null).weights, MIXTURE.weights)
    assert CLASSES.given(0).shape == (1, 1, 2)


def test_a_vector_weighs_the_components_by_bayes_rule():
    told = torch.tensor([0.4, 0.3], dtype=torch.float64)
    squares = ((ANGLES.labels - told) ** 2).sum(1)
    joint = MIXTURE.weights * torch.exp(-squares / (2 * 0.6**2))
    close(ANGLES.given(told).weights, joint / joint.sum())


@pytest.mark.parametrize("kind", PREDICTIONS)
@of_both
def test_each_row_is_the_estimate_of_its_labels_own_mixture(labelled, told, kind):
    found = labelled.denoiser(SCHEDULE, kind, learned_variance=True)(X, T, told)
    for i, (t, label) in enumerate(zip(T.tolist(), told, strict=True)):
        own = labelled.given(label).denoiser(SCHEDULE, kind, learned_variance=True)
        expected = own(X[i : i + 1], t)
        close(found.x_start[i : i + 1], expected.x_start)
        close(found.noise[i : i + 1], expected.noise)
        close(found.variance_fraction[i : i + 1], expected.variance_fraction)


@of_both
def test_told_nothing_it_is_the_mixtures_own_denoiser(labelled, told):
    denoiser, expected = labelled.denoiser(SCHEDULE), MIXTURE.denoiser(SCHEDULE)(X, T)
    null = denoiser.network.null_condition(told)
    assert null.shape == told.shape
    assert null.dtype == told.dtype
    for nothing in (None, null):
        close(denoiser(X, T, nothing).x_start, expected.x_start, 1e-13)


@of_both
def test_the_classifier_is_bayes_rule_on_the_noisy_densities(labelled, told):
    found = labelled.log_prob(SCHEDULE, X, T, told)
    for i, t in enumerate(T.tolist()):
        x, marginal = X[i : i + 1], MIXTURE.marginal(SCHEDULE, t)
        label = told[i]
        if label.isnan().all() or (labelled is CLASSES and label == -1):
            expected = torch.zeros(1, dtype=torch.float64)
        else:
            if labelled is CLASSES:
                prior = MIXTURE.weights[label == LABELS].sum()
            else:
                square = ((ANGLES.labels - label) ** 2).sum(1) / 0.6**2
                density = torch.exp(-square / 2) / (2 * math.pi * 0.6**2)
                prior = (MIXTURE.weights * density).sum()
            given = labelled.given(label).marginal(SCHEDULE, t).log_density(x)
            expected = given + prior.log() - marginal.log_density(x)
        close(found[i : i + 1], expected)


def test_the_probabilities_of_all_classes_sum_to_one_and_differentiate():
    x = X.clone().requires_grad_()
    each = [CLASSES.log_prob(SCHEDULE, x, T, torch.full((4,), label)) for label in (0, 1, 5)]
    total = torch.stack(each).exp().sum(0)
    close(total, torch.ones(4, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(each[1].sum(), x)
    for i, t in enumerate(T.tolist()):
        plain, told = (
            m.marginal(SCHEDULE, t).score(X[i : i + 1]) for m in (MIXTURE, CLASSES.given(1))
        )
        close(gradient[i : i + 1], told - plain)


def test_timesteps_are_those_of_the_network_whole_or_between():
    respaced = SCHEDULE.respaced([100, 300, 900])
    told, t = torch.tensor([0, 1]), torch.tensor([300, 900])
    close(CLASSES.log_prob(respaced, X[:2], t, told), CLASSES.log_prob(SCHEDULE, X[:2], t, told))
    whole = CLASSES.log_prob(SCHEDULE, X[:2], t.double(), told)
    close(whole, CLASSES.log_prob(SCHEDULE, X[:2], t, told))


@pytest.mark.parametrize(
    ("labels", "spread", "message"),
    [
        ([0, 1], None, r"labels must be \(4,\) integers, or \(4, V\) floats.*got \(2,\)"),
        ([0.0, 1.0, 2.0, 3.0], 0.1, r"got \(4,\) of torch.float32"),
        ([0, 1, -1, 2], None, "classes must be at least 0"),
        ([[0.0], [1.0], [2.0], [3.0]], None, "need a spread above 0, got None"),
        ([[0.0], [1.0], [2.0], [3.0]], -1.0, "need a spread above 0, got -1.0"),
        ([0, 1, 2, 3], 0.1, "classes have no spread"),
    ],
)
def test_labels_that_do_not_fit_are_an_error(labels, spread, message):
    with pytest.raises(InkdropError, match=message):
        ConditionalMixture(MIXTURE, labels, spread)


def test_a_condition_that_it_does_not_know_is_an_error():
    by_class, by_vector = CLASSES.denoiser(SCHEDULE), ANGLES.denoiser(SCHEDULE)
    with pytest.raises(InkdropError, match=r"has the classes \[0, 1, 5\], and -1 for none, got 2"):
        by_class(X, T, torch.tensor([0, 1, 2, -1]))
    with pytest.raises(InkdropError, match=r"condition must be \(B,\) classes, got \(4, 2\)"):
        by_class(X, T, X[:, 0, 0])
    with pytest.raises(InkdropError, match=r"condition must be \(B, 2\), got \(4,\)"):
        by_vector(X, T, T)
    with pytest.raises(InkdropError, match="unknown prediction"):
        CLASSES.denoiser(SCHEDULE, "epsilon")
