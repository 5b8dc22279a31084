"""A network trained on a mixture comes down to the oracle's best loss, at every timestep."""

from pathlib import Path

import torch

import inkdrop
from inkdrop.config import Config, MLPConfig, ScheduleConfig, TrainingConfig
from inkdrop.data.images import Source
from inkdrop.data.points import PointSet
from inkdrop.diffusion.denoiser import Denoiser
from inkdrop.randomness import normal
from inkdrop.training.trainer import Trainer, train

T = 40
MIXTURE = inkdrop.GaussianMixture(
    means=[[0.9, 0.3], [-0.7, -0.6], [-0.2, 0.8]],
    covariances=[
        [[0.04, 0.02], [0.02, 0.05]],
        [[0.03, 0.0], [0.0, 0.09]],
        [[0.02, -0.01], [-0.01, 0.03]],
    ],
    weights=[0.3, 0.4, 0.3],
)


def excess(denoiser: Denoiser, t: int, n: int = 20_000) -> tuple[float, float]:
    """The loss at t above the oracle's on the same draws, and the error of that difference.

    Its mean is E‖ε̂ - E[ε|x_t]‖², which is never negative.
    """
    exact = MIXTURE.denoiser(denoiser.schedule, prediction=denoiser.prediction)
    x_start, noise = MIXTURE.sample(n, seed=5).float(), normal((n, 2), 5, "excess")
    at = torch.full((n,), t)
    with torch.no_grad():
        mine, best = (
            inkdrop.objectives.simple(d, x_start, at, noise).double() for d in (denoiser, exact)
        )
    difference = mine - best
    return difference.mean().item(), (difference.std() / n**0.5).item()


def test_a_trained_network_approaches_the_best_loss_at_every_timestep_from_above(
    tmp_path: Path,
) -> None:
    config = Config(
        name="mixture",
        prediction="noise",
        timestep_sampler="stratified",
        schedule=ScheduleConfig(kind="linear", timesteps=T),
        network=MLPConfig(width=64, blocks=2),
        training=TrainingConfig(
            steps=1500, batch_size=512, learning_rate=3e-3, warmup_steps=50, decay="linear"
        ),
    )
    config.logging.samples_every = 0
    config.training.ema_decay = 0.99
    points = PointSet(MIXTURE.sample(50_000).float(), None, "a mixture")
    source = Source(points, None)
    untrained = Trainer(config, tmp_path / "untrained", source=source).averaged
    trained = train(config, tmp_path / "run", source=source, progress=False).denoiser
    best = MIXTURE.best_loss(trained.schedule, n=4000).value
    for t in range(T):
        above, error = excess(trained, t)
        assert above > -4 * error, f"below the best loss at t = {t}"
        assert above < 0.03 * best[t] + 0.004, f"far above the best loss at t = {t}"
        assert above < 0.2 * excess(untrained, t)[0]
