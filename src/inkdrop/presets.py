"""Configurations to start from."""

from __future__ import annotations

import math
from collections.abc import Callable

from .config import (
    Config,
    DataConfig,
    LoggingConfig,
    MLPConfig,
    ScheduleConfig,
    TrainingConfig,
    UNetConfig,
)
from .errors import unknown_name


def digits() -> Config:
    """1,797 handwritten digits of 8×8 pixels, inside scikit-learn: two minutes on two cores."""
    return Config(
        name="digits",
        prediction="velocity",
        data=DataConfig(source="digits"),
        schedule=ScheduleConfig(kind="cosine", timesteps=1000),
        network=UNetConfig(channels=32, multipliers=(1, 1), blocks=1),
        training=TrainingConfig(
            steps=2200,
            batch_size=64,
            learning_rate=2e-3,
            warmup_steps=100,
            decay="linear",
            ema_decay=0.998,
        ),
        logging=LoggingConfig(
            metrics_every=25, held_out_every=100, checkpoint_every=500, samples_every=500
        ),
    )


def mnist() -> Config:
    """MNIST, 60,000 handwritten digits of 28×28 pixels: a quarter of an hour on two cores."""
    return Config(
        name="mnist",
        prediction="velocity",
        timestep_sampler="stratified",
        data=DataConfig(source="mnist"),
        schedule=ScheduleConfig(kind="cosine", timesteps=1000),
        network=UNetConfig(channels=32, multipliers=(1, 2, 2), blocks=1, patch_size=2),
        training=TrainingConfig(
            steps=3600,
            batch_size=64,
            optimizer="muon",
            learning_rate=7e-3,
            warmup_steps=100,
            decay="linear",
            ema_decay=0.998,
        ),
        logging=LoggingConfig(
            metrics_every=25, held_out_every=225, checkpoint_every=450, samples_every=450
        ),
    )


def mnist_gpu() -> Config:
    """MNIST with a larger network: for a GPU, where it is meant to take a minute."""
    config = mnist()
    config.name = "mnist-gpu"
    config.network = UNetConfig(
        channels=64,
        multipliers=(1, 2, 2),
        blocks=2,
        attention_resolutions=(8,),
        head_channels=64,
        time_injection="scale-shift",
        patch_size=2,
    )
    config.training.steps, config.training.batch_size = 2500, 512
    return config


def fashion_mnist() -> Config:
    """Fashion-MNIST, 60,000 pictures of clothes of 28×28 pixels: as long as MNIST."""
    config = mnist()
    config.name = config.data.source = "fashion-mnist"
    return config


def cifar10() -> Config:
    """CIFAR-10, 60,000 colour photographs of 32×32 pixels, a smaller network: for a GPU."""
    return Config(
        name="cifar10",
        prediction="velocity",
        data=DataConfig(source="cifar10", horizontal_flip=True, held_out=512),
        schedule=ScheduleConfig(kind="cosine", timesteps=1000),
        network=UNetConfig(
            channels=96,
            multipliers=(1, 2, 2),
            blocks=2,
            attention_resolutions=(16,),
            head_channels=64,
            dropout=0.1,
            time_injection="scale-shift",
        ),
        training=TrainingConfig(
            steps=100_000,
            batch_size=128,
            learning_rate=4e-4,
            warmup_steps=1000,
            decay="cosine",
            ema_decay=0.9995,
        ),
        logging=LoggingConfig(
            metrics_every=50, held_out_every=1000, checkpoint_every=2500, samples_every=5000
        ),
    )


def folder(*paths: str) -> Config:
    """Any images of yours, --data PATH: size and network are proposed from what they are."""
    # In Python, folder("photos/") looks at them; without a path it is what suits 32×32.
    config = Config(
        name="folder",
        prediction="velocity",
        data=DataConfig(source="files", path=paths),
        schedule=ScheduleConfig(kind="cosine", timesteps=1000),
        network=UNetConfig(),
        logging=LoggingConfig(
            metrics_every=25, held_out_every=250, checkpoint_every=500, samples_every=1000
        ),
    )
    if not paths:
        return fitted(config, (3, 32, 32), 10_000)
    from .data.loading import look

    seen = look(config.data)
    return fitted(config, seen.shape, seen.train_count)


def fitted(config: Config, shape: tuple[int, ...], count: int) -> Config:
    """A configuration with the network and the length of training that suit such images.

    Args:
        shape: (C, H, W).
        count: how many there are to train on.
    """
    config = config.model_copy(deep=True)
    longest = max(shape[1:])
    if longest <= 12:
        network = UNetConfig(channels=32, multipliers=(1, 1), blocks=1)
    elif longest <= 16:
        network = UNetConfig(channels=32, multipliers=(1, 2), blocks=1)
    else:
        patch, channels = (2, 48) if longest <= 32 else (4, 64)
        deeper = () if longest <= 64 else (2,)
        network = UNetConfig(
            channels=channels, multipliers=(1, 2, 2, *deeper), blocks=1, patch_size=patch
        )
    config.network = network
    config.training = TrainingConfig(
        steps=max(3000, min(20_000, 50 * math.isqrt(count))),
        batch_size=64,
        learning_rate=1e-3,
        warmup_steps=100,
        decay="linear",
        ema_decay=0.998,
    )
    return config


def ho_cifar10() -> Config:
    """CIFAR-10 as in Ho et al. 2020, App. B: 35.7 M parameters, 800,000 steps; for a GPU."""
    return Config(
        name="ho-cifar10",
        prediction="noise",
        data=DataConfig(source="cifar10", horizontal_flip=True, held_out=512),
        schedule=ScheduleConfig(kind="linear", timesteps=1000),
        network=UNetConfig(
            channels=128,
            multipliers=(1, 2, 2, 2),
            blocks=2,
            attention_resolutions=(16,),
            dropout=0.1,
        ),
        training=TrainingConfig(
            steps=800_000,
            batch_size=128,
            optimizer="adam",
            learning_rate=2e-4,
            warmup_steps=5000,
            ema_decay=0.9999,
        ),
        logging=LoggingConfig(
            metrics_every=100, held_out_every=2000, checkpoint_every=5000, samples_every=20_000
        ),
    )


def points_gmm() -> Config:
    """Seven Gaussians in the plane, whose truth is known: under a minute on two cores."""
    return _points("points-gmm")


def points_swiss_roll() -> Config:
    """A spiral in the plane: under a minute on two cores."""
    return _points("points-swiss-roll")


def points_checkerboard() -> Config:
    """The dark squares of a board of 4×4: under a minute on two cores."""
    return _points("points-checkerboard")


def points_two_moons() -> Config:
    """Two interlocked half circles in the plane: under a minute on two cores."""
    return _points("points-two-moons")


def points_rings() -> Config:
    """Three concentric rings in the plane: under a minute on two cores."""
    return _points("points-rings")


def points_dial() -> Config:
    """The hand of a dial, told the angle it stands at: under a minute on two cores."""
    config = _points("points-dial")
    config.conditional = True
    return config


def _points(source: str) -> Config:
    return Config(
        name=source,
        prediction="velocity",
        data=DataConfig(source=source, held_out=2048),
        schedule=ScheduleConfig(kind="cosine", timesteps=200),
        network=MLPConfig(width=128, blocks=3, waves=64),
        training=TrainingConfig(
            steps=5000,
            batch_size=512,
            learning_rate=2e-3,
            warmup_steps=100,
            decay="linear",
            ema_decay=0.998,
        ),
        logging=LoggingConfig(
            metrics_every=50, held_out_every=250, checkpoint_every=1000, samples_every=1000
        ),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    "digits": digits,
    "mnist": mnist,
    "mnist-gpu": mnist_gpu,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "folder": folder,
    "ho-cifar10": ho_cifar10,
    "points-gmm": points_gmm,
    "points-swiss-roll": points_swiss_roll,
    "points-checkerboard": points_checkerboard,
    "points-two-moons": points_two_moons,
    "points-rings": points_rings,
    "points-dial": points_dial,
}


def preset(name: str) -> Config:
    """A fresh configuration by the preset's name."""
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]()
