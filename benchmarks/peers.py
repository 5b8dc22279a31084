"""What is measured against: diffusers' networks, and what its own training script does in a step.

The networks are told as plain configurations, so that inkdrop's side of a benchmark runs where
diffusers is not installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkdrop.config import Config, DataConfig, LoggingConfig, ScheduleConfig, TrainingConfig
from inkdrop.environment import package_version

HAS_DIFFUSERS = all(map(importlib.util.find_spec, ("diffusers", "accelerate")))
MISSING = "diffusers is not installed: pip install 'inkdrop[bench]'"

# The defaults of diffusers' unconditional training script, which both sides train with.
LEARNING_RATE, BETAS, WEIGHT_DECAY, EPSILON = 1e-4, (0.95, 0.999), 1e-6, 1e-8
WARM_UP, GRADIENT_CLIP = 500, 1.0
EMA_DECAY, EMA_INVERSE_GAMMA, EMA_POWER = 0.9999, 1.0, 0.75
STEPS = 10_000  # of the learning rate's schedule, whose length costs nothing


@dataclass(frozen=True)
class Network:
    """A network of diffusers, and what it is measured on.

    Attributes:
        config: of its `UNet2DModel`, where it is not the default.
        shape: (C, H, W) of an image.
        batch_sizes: what it is trained with, by the kind of device.
    """

    config: Mapping[str, Any]
    shape: tuple[int, int, int]
    batch_sizes: Mapping[str, tuple[int, ...]]

    def build(self, seed: int = 0) -> Any:
        """The `UNet2DModel`, with random weights."""
        require_diffusers()
        from diffusers import UNet2DModel

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return UNet2DModel(**self.config)


NETWORKS = {
    # A small one, for digits.
    "a": Network(
        {
            "sample_size": 28,
            "in_channels": 1,
            "out_channels": 1,
            "layers_per_block": 2,
            "block_out_channels": (32, 64, 128),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        },
        (1, 28, 28),
        {"cpu": (64,), "cuda": (64,)},
    ),
    # That of Ho et al. 2020 for CIFAR-10, as google/ddpm-cifar10-32 has it.
    "b": Network(
        {
            "sample_size": 32,
            "in_channels": 3,
            "out_channels": 3,
            "layers_per_block": 2,
            "block_out_channels": (128, 256, 256, 256),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": None,
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-6,
            "mid_block_scale_factor": 1,
        },
        (3, 32, 32),
        {"cpu": (16,), "cuda": (128, 512)},
    ),
}


def require_diffusers() -> None:
    """End the program with one line where diffusers is missing."""
    if not HAS_DIFFUSERS:
        raise SystemExit(MISSING)


def peer_versions() -> dict[str, str]:
    """What is measured against, or that it is not."""
    if not HAS_DIFFUSERS:
        return {"diffusers": MISSING}
    return {name: package_version(name) for name in ("diffusers", "accelerate")}


def setting(device: str) -> dict[str, Any]:
    """What both sides run on, and as; for a result."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "precision": "bfloat16 by autocast" if device == "cuda" else "float32",
        "peers": peer_versions(),
    }


def averaged(network: Any) -> Any:
    """The average of a network's weights as diffusers' script keeps it."""
    from diffusers.training_utils import EMAModel

    return EMAModel(
        network.parameters(),
        decay=EMA_DECAY,
        use_ema_warmup=True,
        inv_gamma=EMA_INVERSE_GAMMA,
        power=EMA_POWER,
        model_cls=type(network),
        model_config=network.config,
    )


def random_images(name: str, count: int, seed: int = 0) -> Tensor:
    """Random images (N, H, W) or (N, H, W, C) uint8 of a network's shape, a training set for it."""
    channels, height, width = NETWORKS[name].shape
    generator = torch.Generator().manual_seed(seed)
    shape = (count, height, width, channels)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return images.squeeze(-1)


def inkdrop_config(
    name: str, batch_size: int, device: str = "auto", compiled: bool = False
) -> Config:
    """How inkdrop trains a network as diffusers' script does, with the log hardly written."""
    from inkdrop.networks.from_diffusers import unet_config_of

    return Config(
        name=f"network-{name}",
        prediction="noise",
        data=DataConfig(held_out=1),
        schedule=ScheduleConfig(kind="linear", timesteps=1000),
        network=unet_config_of(NETWORKS[name].config),
        training=TrainingConfig(
            steps=STEPS,
            batch_size=batch_size,
            optimizer="adamw",
            learning_rate=LEARNING_RATE,
            betas=BETAS,
            weight_decay=WEIGHT_DECAY,
            warmup_steps=WARM_UP,
            decay="cosine",
            gradient_clip=GRADIENT_CLIP,
            ema_decay=EMA_DECAY,
            compile="on" if compiled else "off",
            device=device,
        ),
        logging=LoggingConfig(
            metrics_every=STEPS, held_out_every=STEPS, checkpoint_every=STEPS, samples_every=0
        ),
    )


def inkdrop_network(name: str) -> nn.Module:
    """inkdrop's network of the same architecture, with random weights."""
    from inkdrop.build import build_network
    from inkdrop.networks.from_diffusers import unet_config_of

    network = build_network(unet_config_of(NETWORKS[name].config), NETWORKS[name].shape)
    return randomised(network)


def randomised(network: nn.Module) -> nn.Module:
    """The network, its layers that start at zero drawn too: its peers have none."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.any():
            module.reset_parameters()
    return network


class DiffusersTraining:
    """A training in progress, as diffusers' unconditional training script leads it.

    Its data loader is left out: a step is given its images, which only favours it.

    Args:
        network: a `UNet2DModel`.
        device: "cpu" or "cuda"; on a GPU it computes in bfloat16, as `--mixed_precision bf16`.
        compiled: by accelerate's own option for torch.compile.
    """

    def __init__(self, network: nn.Module, device: str, compiled: bool = False) -> None:
        require_diffusers()
        from accelerate import Accelerator
        from diffusers import DDPMScheduler
        from diffusers.optimization import get_scheduler

        self.accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision="bf16" if device == "cuda" else "no",
            dynamo_backend="inductor" if compiled else "no",
        )
        self.ema = averaged(network)
        self.scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=LEARNING_RATE,
            betas=BETAS,
            weight_decay=WEIGHT_DECAY,
            eps=EPSILON,
        )
        learning_rate = get_scheduler(
            "cosine", optimizer=optimizer, num_warmup_steps=WARM_UP, num_training_steps=STEPS
        )
        self.network, self.optimizer, self.learning_rate = self.accelerator.prepare(
            network, optimizer, learning_rate
        )
        self.ema.to(self.accelerator.device)
        self.network.train()
        # It holds its images and noise in the precision that it computes in.
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def step(self, images: Tensor) -> float:
        """One optimizer step on images (B, C, H, W) in [-1, 1]; its loss, which it logs."""
        images = images.to(self.accelerator.device, self.dtype)
        noise = torch.randn_like(images)
        t = torch.randint(
            self.scheduler.config.num_train_timesteps, (len(images),), device=images.device
        )
        noisy = self.scheduler.add_noise(images, noise, t)
        with self.accelerator.accumulate(self.network):
            loss = F.mse_loss(self.network(noisy, t).sample.float(), noise.float())
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.network.parameters(), GRADIENT_CLIP)
            self.optimizer.step()
            self.learning_rate.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.ema.step(self.network.parameters())
        return float(loss.detach().item())
