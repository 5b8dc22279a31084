"""DDPM on MNIST from top to bottom, with nothing hidden: schedule, network, loss, loop, sampler.

    python examples/01_ddpm_mnist.py                    a few minutes on two CPU cores
    python examples/01_ddpm_mnist.py --data ~/mnist     your own copy of the four IDX files
    python examples/01_ddpm_mnist.py --steps 5000       longer, and better digits

It writes four pictures to mnist-pictures/: loss_curve.png, forward_strip.png, reverse_strip.png and
samples.png. Without MNIST it uses the small digits that are embedded, and says so.
The paper is Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic Models".
"""

import argparse
from pathlib import Path

import torch

import inkdrop
from inkdrop.config import UNetConfig
from inkdrop.data.pixels import to_float, to_uint8
from inkdrop.networks.unet import UNet
from inkdrop.report.charts import loss_curve
from inkdrop.report.pictures import forward_strip, grid, reverse_strip, save

parser = argparse.ArgumentParser(description="Train a small DDPM on MNIST.")
parser.add_argument(
    "--data", help="folder with MNIST's IDX files (default: $INKDROP_DATA, the hub)"
)
parser.add_argument("--out", type=Path, default=Path("mnist-pictures"), help="where pictures go")
parser.add_argument("--steps", type=int, default=1500, help="training steps")
parser.add_argument("--batch-size", type=int, default=64, help="images of a step")
parser.add_argument("--samples", type=int, default=64, help="images to generate")
options = parser.parse_args()
torch.manual_seed(0)

# 1. The images: uint8 outside, float in [-1, 1] inside.
try:
    source = inkdrop.load_data(options.data or "mnist")
except inkdrop.InkdropError as error:
    if options.data:
        raise SystemExit(f"{error}") from None
    print(f"MNIST is not to be had ({error});\nusing the embedded 8×8 digits instead")
    source = inkdrop.load_data("digits")
images = to_float(source.train.values)  # (N, 1, H, W)
shape = tuple(images.shape[1:])
print(f"{len(images):,} images of {shape[1]}×{shape[2]} pixels")

# 2. The noise schedule: β_1 … β_T, and with them ᾱ_t, the share of the image left at t (Eq. 4).
schedule = inkdrop.NoiseSchedule.linear(timesteps=300)


# 3. The forward process, in one line: x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε  (Eq. 4).
def q_sample(x_start: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    alpha_bar = schedule.alphas_cumprod[t].float().reshape(-1, 1, 1, 1)
    return alpha_bar.sqrt() * x_start + (1 - alpha_bar).sqrt() * noise


# 4. The network ε_θ(x_t, t): a small U-Net. Pixels go in by 2×2 patches when the image is large.
network = UNet(
    UNetConfig(channels=32, multipliers=(1, 2, 2), blocks=1, patch_size=2 if shape[1] > 8 else 1),
    image_channels=shape[0],
    image_size=shape[1:],
)
print(f"{sum(p.numel() for p in network.parameters()):,} parameters")

# 5. The training loop (Algorithm 1): noise an image, ask which noise it was, learn from the error.
optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.0)
decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=options.steps)
history = []
for step in range(1, options.steps + 1):
    x_start = images[torch.randint(len(images), (options.batch_size,))]
    t = torch.randint(schedule.timesteps, (options.batch_size,))
    noise = torch.randn_like(x_start)
    loss = ((network(q_sample(x_start, t, noise), t) - noise) ** 2).mean()  # L_simple, Eq. 14
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    decay.step()
    history.append({"step": step, "loss": loss.item()})
    if step % 50 == 0 or step == options.steps:
        recent = [row["loss"] for row in history[-50:]]
        print(f"step {step:5d}  loss {sum(recent) / len(recent):.4f}", flush=True)

# 6. The sampler (Algorithm 2): from pure noise back to an image, one small step at a time.
denoiser = inkdrop.Denoiser(network, schedule, prediction="noise", shape=shape)
for state in inkdrop.sample_steps(denoiser, n=options.samples, sampler="ancestral", seed=0):
    if state.timestep % 100 == 0:
        print(f"sampling: {state.timestep} timesteps to go")

# 7. Pictures.
forward = forward_strip(schedule, source.train.images[0])
reverse = reverse_strip(denoiser, n=3, sampler="ancestral")
save(loss_curve(history), options.out / "loss_curve.png", margin=32)
save(forward, options.out / "forward_strip.png", margin=32)
save(reverse, options.out / "reverse_strip.png", margin=32)
save(grid(to_uint8(state.x)), options.out / "samples.png")
print(f"pictures are in {options.out}: loss_curve, forward_strip, reverse_strip and samples")
