"""Edits, against what a Gaussian's conditionals say they should be."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import inkdrop
from inkdrop.diffusion.editing import (
    Average,
    Grey,
    Mask,
    Operator,
    Projected,
    inpaint,
    interpolate,
    interpolate_seeds,
    levels_reached,
    reconstruct,
    remaining,
    resampled,
    restore,
    slerp,
    strength_timestep,
    vary,
)
from inkdrop.diffusion.forward import q_posterior
from inkdrop.diffusion.oracle import GaussianMixture
from inkdrop.diffusion.samplers import (
    SAMPLERS,
    SamplerTable,
    build_table,
    ddim,
    initial_noise,
    sample,
    sample_steps,
)
from inkdrop.diffusion.schedule import NoiseSchedule
from inkdrop.errors import InkdropError

SCHEDULE = NoiseSchedule.cosine(1000)
MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.25, 0.2], [0.2, 0.25]], dtype=torch.float64)
EXACT = GaussianMixture(MEAN[None], COVARIANCE[None], [1.0]).denoiser(SCHEDULE)
SECOND = torch.tensor([False, True])  # the number that is painted

RULES = [
    ("ancestral", {}),
    ("ancestral-beta", {}),
    ("ddim", {}),
    ("ddim", {"eta": 0.5}),
    ("dpm-solver++", {"order": 2}),
    ("dpm-solver++", {"order": 3}),
    ("unipc", {"order": 1}),
    ("unipc", {"order": 2}),
    ("unipc", {"order": 3}),
    ("heun", {}),
]
rules = pytest.mark.parametrize(
    ("name", "options"), RULES, ids=[" ".join([n, *map(str, o.values())]) for n, o in RULES]
)


def variance_made(table: SamplerTable, variance: float) -> float:
    """What a table makes of N(0, variance) with its perfect, linear denoiser: no draw is needed."""
    registers = table.M.shape[1]
    covariance = torch.zeros(registers, registers, dtype=torch.float64)
    covariance[0, 0] = 1
    for t, M, v, s in zip(table.timesteps, table.M, table.v, table.s, strict=True):
        alpha = SCHEDULE.sqrt_alphas_cumprod[t]
        gain = alpha * variance / (alpha**2 * variance + SCHEDULE.one_minus_alphas_cumprod[t])
        step = M.clone()
        step[:, 0] += v * gain
        covariance = step @ covariance @ step.T + torch.outer(s, s)
    return covariance[0, 0].item()


# Tables


@rules
def test_the_levels_of_a_table_are_its_schedules(name: str, options: dict) -> None:
    table = build_table(SCHEDULE, name, 12, **options)
    for made in (table, resampled(table, SCHEDULE, 3, jump=2)):
        expected = SCHEDULE.sqrt_alphas_cumprod[list(made.timesteps[1:])]
        reached = levels_reached(made, SCHEDULE)
        assert (reached[:-1] - expected).abs().max() < 1e-12
        assert abs(reached[-1] - 1) < 1e-12


@rules
@pytest.mark.parametrize("jump", [1, 3])
def test_resampling_keeps_what_a_perfect_model_makes(name: str, options: dict, jump: int) -> None:
    errors = []
    for steps in (25, 400):
        table = resampled(build_table(SCHEDULE, name, steps, **options), SCHEDULE, 3, jump)
        errors.append(abs(variance_made(table, 0.25) - 0.25))
    assert errors[1] < 0.02
    assert errors[1] < max(errors[0] / 2, 1e-3)


def test_resampling_leaves_white_noise_white_exactly() -> None:
    table = build_table(SCHEDULE, "ancestral-beta", 20)
    for jump in (1, 4):
        again = resampled(table, SCHEDULE, 5, jump)
        assert abs(variance_made(again, 1.0) - variance_made(table, 1.0)) < 1e-12


def test_a_row_that_goes_back_up_draws_from_the_forward_process() -> None:
    table = ddim(SCHEDULE, [900, 500, 100], eta=0.3)
    again = resampled(table, SCHEDULE, 2)
    assert again.timesteps == (900, 900, 500, 500, 100)
    kept = SCHEDULE.alphas_cumprod[900] / SCHEDULE.alphas_cumprod[500]
    assert torch.allclose(again.M[0], kept.sqrt() * table.M[0])
    assert torch.allclose(again.v[0], kept.sqrt() * table.v[0])
    assert torch.allclose(again.s[0] ** 2, kept * table.s[0] ** 2 + 1 - kept)
    for field in ("M", "v", "s"):  # then down, as before
        assert torch.equal(getattr(again, field)[[1, 3, 4]], getattr(table, field))


def test_stretches_are_counted_from_the_image_and_the_last_step_is_taken_once() -> None:
    table = ddim(SCHEDULE, [900, 700, 500, 300, 100])
    assert resampled(table, SCHEDULE, 2, 3).timesteps == (
        *(900, 900),
        *(700, 500, 300, 700, 500, 300),
        100,
    )
    assert len(resampled(ddim(SCHEDULE, [999]), SCHEDULE, 9)) == 1
    assert resampled(table, SCHEDULE, 1) is table


def test_heuns_two_rows_are_one_step() -> None:
    table = build_table(SCHEDULE, "heun", timesteps=[900, 500, 100])
    assert resampled(table, SCHEDULE, 2).timesteps == (900, 500, 900, 500, 500, 100, 500, 100, 100)
    assert remaining(table, SCHEDULE, 700).timesteps == (500, 100, 100)


@rules
def test_the_rows_that_remain_begin_like_a_table_of_their_own(name: str, options: dict) -> None:
    timesteps = [900, 700, 500, 300, 100]
    table = build_table(SCHEDULE, name, timesteps=timesteps, **options)
    rest = remaining(table, SCHEDULE, 599)
    if options.get("order", 1) == 1 or (name, options["order"]) == ("dpm-solver++", 2):
        own = build_table(SCHEDULE, name, timesteps=timesteps[2:], **options)
        assert variance_made(rest, 0.3) == pytest.approx(variance_made(own, 0.3), rel=1e-9)
    assert rest.timesteps[0] == 500
    assert abs(levels_reached(rest, SCHEDULE)[-1] - 1) < 1e-12


def test_what_cannot_be_resampled_says_so() -> None:
    learned = build_table(SCHEDULE, "ancestral-learned", 5)
    with pytest.raises(InkdropError, match="learned variance"):
        resampled(learned, SCHEDULE, 2)
    table = build_table(SCHEDULE, "ddim", 5)
    with pytest.raises(InkdropError, match="made for this schedule"):
        resampled(table, NoiseSchedule.linear(1000), 2)
    with pytest.raises(InkdropError, match="made for this schedule"):
        remaining(table, NoiseSchedule.cosine(50), 2)
    for times, jump in ((0, 1), (2, 0)):
        with pytest.raises(InkdropError, match="at least 1"):
            resampled(table, SCHEDULE, times, jump)
    with pytest.raises(InkdropError, match="or more steps"):
        remaining(table, SCHEDULE, 3)


# Measurements


@pytest.mark.parametrize(
    "operator",
    [Grey(), Grey((1.0, -2.0, 0.5)), Average(2), Average(4), Mask(torch.rand(8, 4) > 0.5)],
    ids=["grey", "weights", "average 2", "average 4", "mask"],
)
def test_a_measurement_of_its_pseudo_inverse_is_itself(operator: Operator) -> None:
    x, w = (
        torch.randn(2, 3, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 1)
    )
    y = operator.apply(x)
    back = operator.pseudo_inverse(y)
    assert torch.allclose(operator.apply(back), y, atol=1e-14)
    assert torch.allclose(operator.pseudo_inverse(operator.apply(back)), back, atol=1e-14)
    # A⁺A is symmetric, which makes the change to an image the least there is.
    other = operator.pseudo_inverse(operator.apply(w))
    assert torch.allclose((back * w).sum(), (x * other).sum())
    fitted = operator.projected(w, y)
    assert torch.allclose(operator.apply(fitted), y, atol=1e-14)


def test_wrong_measurements_are_told() -> None:
    x = torch.zeros(1, 3, 6, 6)
    with pytest.raises(InkdropError, match="5 divides"):
        Average(5).apply(x)
    with pytest.raises(InkdropError, match="grey of 3 channels"):
        Grey().apply(x[:, :1])
    with pytest.raises(InkdropError, match="bool"):
        Mask(torch.ones(2))
    with pytest.raises(InkdropError, match="not all zero"):
        Grey((0.0, 0.0))
    with pytest.raises(InkdropError, match="denoiser's are"):
        restore(EXACT, Average(2), torch.zeros(1, 1, 4, 4))


def test_a_projected_estimate_still_adds_up_to_x_t() -> None:
    x_t = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([[0.7, 0.0]], dtype=torch.float64).expand(4, 2)
    found = Projected(EXACT, Mask(~SECOND), y)(x_t, 300)
    assert (found.x_start[:, 0] == 0.7).all()
    assert torch.equal(found.x_start[:, 1], EXACT(x_t, 300).x_start[:, 1])
    again = SCHEDULE.sqrt_alphas_cumprod[300] * found.x_start
    again = again + SCHEDULE.sqrt_one_minus_alphas_cumprod[300] * found.noise
    assert torch.allclose(again, x_t)


def test_known_numbers_step_by_the_true_posterior() -> None:
    projected = Projected(EXACT, Mask(~SECOND), torch.tensor([[0.7, 0.0]], dtype=torch.float64))
    x = torch.tensor([[1.1, -0.4]], dtype=torch.float64)
    t = torch.tensor([SCHEDULE.timesteps - 1])
    table = build_table(SCHEDULE, "ancestral")
    state = next(sample_steps(projected, table=table, x_init=x, clip=None, seed=5))
    other = next(sample_steps(projected, table=table, x_init=x, clip=None, seed=6))
    truth = q_posterior(SCHEDULE, torch.full_like(x, 0.7), x, t)
    z = inkdrop.randomness.image_noise((2,), 0, 1, 5, "sample step", 0).double()
    assert torch.allclose(state.x[:, 0], (truth.mean + truth.variance.sqrt() * z)[:, 0])
    assert not torch.equal(state.x, other.x)


# Inpainting and restoring


def conditional(mean: Tensor, covariance: Tensor, A: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x given A x = y."""
    gain = covariance @ A.T @ torch.linalg.inv(A @ covariance @ A.T)
    return mean + gain @ (y - A @ mean), covariance - gain @ A @ covariance


def test_inpainting_approaches_the_conditional_and_needs_resampling_for_it() -> None:
    n = 250
    images = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    A = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    mean, covariance = conditional(MEAN, COVARIANCE, A, images[0, :1])
    spread = covariance[1, 1].sqrt()
    error = 3 * spread / n**0.5

    def painted(resamplings: int) -> Tensor:
        made = inpaint(EXACT, images, SECOND, n=n, steps=25, resamplings=resamplings)
        assert made.shape == (1, n, 2)
        assert (made[..., 0] == 1).all()
        return made[0, :, 1]

    once, often = painted(1), painted(25)
    assert (often.mean() - mean[1]).abs() < error
    assert (once.mean() - mean[1]).abs() > 3 * error
    assert 0.7 < often.std() / spread < 1.15


def test_inpainting_a_mixture_chooses_the_component_that_the_rest_shows() -> None:
    means = torch.tensor([[-0.8, -0.6], [0.8, 0.6]], dtype=torch.float64)
    covariances = 0.01 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    mixture = GaussianMixture(means, covariances, [0.9, 0.1]).denoiser(SCHEDULE)
    images = torch.tensor([[0.8, 0.0], [-0.8, 0.0]], dtype=torch.float64)
    made = inpaint(mixture, images, SECOND, n=100, steps=25, resamplings=5)[..., 1]
    assert ((made[0] > 0).float().mean(), (made[1] < 0).float().mean()) == (1, 1)
    assert (made.mean(1) - torch.tensor([0.6, -0.6])).abs().max() < 0.05


def test_a_restored_gaussian_has_the_conditional_mean_given_its_measurement() -> None:
    n = 200
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(12, 12, dtype=torch.float64, generator=generator) / 6
    covariance = root @ root.T + 0.02 * torch.eye(12, dtype=torch.float64)
    mean = torch.randn(12, dtype=torch.float64, generator=generator) / 4
    exact = GaussianMixture(mean.reshape(1, 3, 2, 2), covariance[None], [1.0]).denoiser(SCHEDULE)
    basis = torch.eye(12, dtype=torch.float64).reshape(12, 3, 2, 2)
    x = mean.reshape(1, 3, 2, 2) + 0.3
    operator = Average(2)
    A = operator.apply(basis).flatten(1).T
    y = operator.apply(x)
    expected, spread = conditional(mean, covariance, A, y.flatten())

    def error(resamplings: int) -> float:
        """Of the mean, in standard errors."""
        made = restore(exact, operator, y, n=n, clip=None, steps=25, resamplings=resamplings)[0]
        assert (operator.apply(made) - y).abs().max() < 1e-13
        apart = made.flatten(1).mean(0) - expected
        return (apart / spread.diagonal().sqrt() * n**0.5).abs().max().item()

    assert error(1) > 6
    assert error(25) < 3


def images_like_ours(n: int) -> tuple[inkdrop.Denoiser, Tensor]:
    """A denoiser of colour images that would leave [-1, 1], and images."""
    mean = torch.linspace(-1.2, 1.2, 12).reshape(1, 3, 2, 2)
    exact = GaussianMixture(mean, 0.3 * torch.eye(12)[None], [1.0]).denoiser(SCHEDULE)
    x = torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return exact, x


@pytest.mark.parametrize("operator", [Grey(), Average(2)], ids=["grey", "average"])
@pytest.mark.parametrize("clip", ["range", "dynamic"])
def test_clipped_images_keep_range_and_measurement(operator: Operator, clip: str) -> None:
    exact, x = images_like_ours(3)
    y = operator.apply(x)
    made = restore(exact, operator, y, n=2, clip=clip, steps=5, resamplings=2)
    assert (operator.apply(made.flatten(0, 1)) - y.repeat_interleave(2, 0)).abs().max() < 1e-5
    assert made.abs().max() < 1.01


def test_the_known_pixels_come_out_to_the_bit_whatever_the_sampler() -> None:
    exact, x = images_like_ours(2)
    mask = torch.tensor([[True, False], [False, False]])
    hidden = torch.where(mask, torch.nan, x)
    for name, options in RULES:
        how = {"steps": 5, "resamplings": 2, **options}
        made = inpaint(exact, hidden, mask, sampler=name, n=2, **how)
        kept = (~mask).expand(3, 2, 2)
        assert torch.equal(made[:, :, kept], x[:, None].expand(2, 2, 3, 2, 2)[:, :, kept])
        assert made.isfinite().all()


def test_masks_may_differ_between_images() -> None:
    exact, x = images_like_ours(2)
    mask = torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    mask[0, 0, 0, 0] = mask[1, 0, 1, 1] = True
    made = inpaint(exact, x, mask, steps=4, resamplings=1, batch_size=1)[:, 0]
    assert torch.equal(made != x, mask.expand_as(x))


def test_wrong_masks_are_told() -> None:
    x = torch.zeros(2, 3, 2, 2)
    for mask, message in (
        (torch.zeros(2, 2, dtype=torch.bool), "nothing to paint"),
        (torch.ones(2, 2, dtype=torch.bool), "sample instead"),
        (torch.zeros(3, 5, dtype=torch.bool), "must broadcast"),
        (torch.zeros(2, 2), "must be bool"),
    ):
        with pytest.raises(InkdropError, match=message):
            inpaint(images_like_ours(1)[0], x, mask)


# Addresses


@pytest.mark.parametrize("edit", ["vary", "inpaint", "restore"])
def test_results_do_not_depend_on_batches_or_company(edit: str) -> None:
    exact, x = images_like_ours(3)
    mask = torch.tensor([[True, False], [False, False]])

    def made(images: Tensor, **how: object) -> Tensor:
        shared = {"steps": 5, "n": 6, "seed": 4, "sampler": "ancestral", **how}
        if edit == "vary":
            return vary(exact, images, 0.7, **shared)
        if edit == "inpaint":
            return inpaint(exact, images, mask, resamplings=2, **shared)
        return restore(exact, Grey(), Grey().apply(images), resamplings=2, **shared)

    together = made(x)
    assert together.shape == (3, 6, 3, 2, 2)
    assert torch.equal(made(x, batch_size=4), together)
    assert torch.equal(made(x[1:], first_index=1), together[1:])
    assert not torch.equal(made(x, seed=5), together)
    assert not torch.equal(together[:, 0], together[:, 1])


def test_misspelt_options_are_not_swallowed() -> None:
    with pytest.raises(TypeError, match="stepz"):
        vary(EXACT, torch.zeros(1, 2), stepz=3)  # type: ignore[call-arg]
    with pytest.raises(InkdropError, match="a table has its own"):
        vary(EXACT, torch.zeros(1, 2), table=ddim(SCHEDULE, [900]), steps=3)
    with pytest.raises(InkdropError, match="condition holds 3 rows"):
        vary(EXACT, torch.zeros(2, 2), condition=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InkdropError, match="no images"):
        vary(EXACT, torch.zeros(0, 2))


# Variations


def test_varying_from_the_noisiest_timestep_is_sampling() -> None:
    nothing = torch.zeros(5, 2, dtype=torch.float64)
    made = vary(EXACT, nothing, 1.0, sampler="ancestral", steps=20, seed=3)[:, 0]
    noise = initial_noise(5, (2,), 3).double()
    x_init = noise * SCHEDULE.sqrt_one_minus_alphas_cumprod[-1]
    assert torch.equal(made, sample(EXACT, sampler="ancestral", steps=20, seed=3, x_init=x_init))
    exact, x = images_like_ours(4)
    varied = vary(exact, x, 1.0, steps=20, seed=3)[:, 0]
    assert (varied - sample(exact, n=4, steps=20, seed=3)).abs().max() < 0.01


def test_the_weaker_the_variation_the_nearer_it_stays() -> None:
    x = torch.tensor([[0.9, -0.9]], dtype=torch.float64)
    apart = [
        (vary(EXACT, x, strength, n=64)[0] - x).norm(dim=1).mean()
        for strength in (0.1, 0.3, 0.6, 1.0)
    ]
    assert apart == sorted(apart)
    assert apart[0] < 0.3
    assert vary(EXACT, x, timestep=350).shape == (1, 1, 2)


@pytest.mark.parametrize(("strength", "timestep"), [(1.0, 999), (0.6, 599), (0.55, 549), (1e-9, 0)])
def test_strength_is_a_share_of_the_timesteps(strength: float, timestep: int) -> None:
    assert strength_timestep(strength, SCHEDULE) == timestep


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.01, float("nan")])
def test_a_strength_out_of_range_is_told(strength: float) -> None:
    with pytest.raises(InkdropError, match="strength must lie"):
        vary(EXACT, torch.zeros(1, 2), strength)


# There and back


def test_reconstruction_is_as_accurate_as_the_solver() -> None:
    x = torch.tensor([[0.5, 0.1], [-0.4, -0.6]], dtype=torch.float64)

    def error(sampler: str, steps: int) -> float:
        found = reconstruct(EXACT, x, sampler, steps, timesteps="log-snr")
        assert torch.allclose(found.error, (found.images - x).square().mean(1).sqrt())
        return found.error.max().item()

    first, second = error("ddim", 40), error("ddim", 80)
    assert 0.4 < second / first < 0.65  # of first order
    for sampler in ("dpm-solver++", "unipc", "heun"):
        assert error(sampler, 40) < first / 15


def test_slerp_turns_evenly_and_keeps_the_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).reshape(4, 1, 1, 1)
    ways = torch.stack([slerp(a, b, share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)])
    assert torch.allclose(ways[0], a)
    assert torch.allclose(ways[-1], b)
    norms = ways.flatten(2).norm(dim=2)
    assert torch.allclose(norms, norms[:1].expand_as(norms))
    units = ways.flatten(2) / norms[..., None]
    turns = (units[1:] * units[:-1]).sum(2).arccos()
    assert torch.allclose(turns, turns[:1].expand_as(turns))
    longer = slerp(a, 3 * b, 0.5).flatten(1).norm(dim=1)
    assert torch.allclose(longer, 2 * norms[0])


def test_slerp_of_one_direction_is_a_line_and_of_opposite_ones_an_error() -> None:
    a = torch.tensor([[1.0, 2.0]])
    assert torch.allclose(slerp(a, 2 * a, 0.5), 1.5 * a)
    assert torch.equal(slerp(a, a, 0.3), a)
    with pytest.raises(InkdropError, match="opposite"):
        slerp(a, -a, 0.5)


def test_a_way_between_images_begins_and_ends_at_their_reconstructions() -> None:
    a, b = (torch.tensor(x, dtype=torch.float64) for x in ([[0.5, 0.1]], [[-0.4, -0.6]]))
    way = interpolate(EXACT, a, b, 5, steps=30)
    assert way.shape == (1, 5, 2)
    for end, at in ((a, 0), (b, 4)):
        assert torch.allclose(way[:, at], reconstruct(EXACT, end, steps=30).images)
    with pytest.raises(InkdropError, match="must be alike"):
        interpolate(EXACT, a, b[:, :1], 5)
    with pytest.raises(InkdropError, match="at least 2"):
        interpolate(EXACT, a, b, 1)


def test_a_way_between_seeds_begins_and_ends_at_their_samples() -> None:
    way = interpolate_seeds(EXACT, 3, 8, 4, steps=20)
    assert way.shape == (4, 2)
    for seed, at in ((3, 0), (8, 3)):
        assert torch.allclose(way[at], sample(EXACT, n=1, steps=20, seed=seed)[0], atol=1e-6)
    with pytest.raises(InkdropError, match="deterministic"):
        interpolate_seeds(EXACT, 3, 8, sampler="ancestral")


# Conditions


class Told(torch.nn.Module):
    """Answers the class it is told, as x̂₀."""

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        return condition.to(x).reshape(-1, 1).expand_as(x).clone()

    def null_condition(self, condition: Tensor) -> Tensor:
        return torch.zeros_like(condition)


def test_conditions_and_guidance_are_handed_on() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        denoiser = inkdrop.Denoiser(Told(), SCHEDULE, "x_start", (2,))
    told = torch.tensor([1, 3])
    x = torch.zeros(2, 2)
    how = {"condition": told, "steps": 4, "n": 2, "batch_size": 3}
    plain = vary(denoiser, x, **how)
    assert torch.allclose(plain, told.float().reshape(2, 1, 1).expand(2, 2, 2))
    assert torch.allclose(vary(denoiser, x, guidance=2.0, **how), 2 * plain)
    painted = inpaint(denoiser, x, SECOND, guidance=2.0, **how)
    assert torch.allclose(painted[..., 1], 2 * plain[..., 1])
    assert (painted[..., 0] == 0).all()
    way = interpolate_seeds(denoiser, 0, 1, 3, condition=told[1:], guidance=2.0, steps=4)
    assert torch.allclose(way, torch.full((3, 2), 6.0))


def test_every_sampler_is_tried() -> None:
    assert {name for name, _ in RULES} | {"ancestral-learned"} == set(SAMPLERS)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: vary(EXACT, torch.zeros(1, 2, dtype=torch.uint8)), "floating point"),
        (lambda: vary(EXACT, torch.zeros(1, 3)), r"of examples \(2,\), but these are \(3,\)"),
        (lambda: reconstruct(EXACT, torch.zeros(1, 3)), r"of examples \(2,\)"),
        (lambda: interpolate_seeds(EXACT, 0, 1, condition=torch.zeros(2)), "one row"),
        (lambda: vary(EXACT, torch.zeros(1, 2), 0.01, steps=5), "strength 0.01 is timestep"),
    ],
)
def test_images_that_are_not_the_models_are_told(edit: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(InkdropError, match=message):
        edit()
