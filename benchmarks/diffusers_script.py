"""What diffusers' unconditional training script does for its user, as a program that is measured.

    python benchmarks/diffusers_script.py --data mnist --network a --steps 200 --out runs/peer
    python benchmarks/diffusers_script.py --data cifar10 --network b --batch 128 --flip \\
        --seconds 1200 --session-seconds 500 --out runs/peer    # again and again until finished
    python benchmarks/diffusers_script.py --quick

A set of PNGs kept by `datasets`, decoded and transformed an image at a time; a shuffling DataLoader
that works in the main process unless --workers says otherwise; Accelerator, DDPMScheduler, AdamW,
a cosine schedule with warm-up, EMAModel, a progress bar and TensorBoard at every step, all with
that script's defaults; the state saved every --checkpoint-every steps and at the end, then the
pipeline with the averaged weights. Its grids of samples (1,000 network evaluations every tenth
epoch) are left out, and numpy makes the tensors, for torchvision need not be there: both spare it
work. With --seconds the schedule goes by the share of the time that has passed.

With --session-seconds it stops after so many, and the same command goes on.
Writes into --out the pipeline, state/, logs/ and timings.json.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import resource
import shutil
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peers import (
    BETAS,
    EPSILON,
    GRADIENT_CLIP,
    LEARNING_RATE,
    NETWORKS,
    WARM_UP,
    WEIGHT_DECAY,
    averaged,
    require_diffusers,
)

TIMESTEPS = 1000
CHECKPOINT_EVERY = 500  # steps


def prepare(data: str, folder: Path) -> None:
    """Write a set's training images into a folder, as `datasets` keeps a set of PNGs."""
    import datasets
    from PIL import Image

    from inkdrop.config import DataConfig
    from inkdrop.data.loading import load_source
    from inkdrop.data.stream import held_out_split

    datasets.disable_progress_bars()
    config = DataConfig(source=data)
    source = load_source(config).source
    images, _ = held_out_split(source.train, source.test, config.held_out)

    def png(pixels: np.ndarray) -> dict[str, Any]:
        encoded = io.BytesIO()
        Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(
            encoded, "png"
        )
        return {"bytes": encoded.getvalue(), "path": None}

    def rows() -> Any:
        for first in range(0, len(images), 1000):
            for pixels in images.at(range(first, min(first + 1000, len(images)))).numpy():
                yield {"image": png(pixels)}

    features = datasets.Features({"image": datasets.Image()})
    with tempfile.TemporaryDirectory() as cache:
        made = datasets.Dataset.from_generator(rows, features=features, cache_dir=cache)
        made.save_to_disk(folder)


class Clock:
    """The steps and seconds of a training, over all its sessions."""

    def __init__(self, steps: int | None, limit: float | None) -> None:
        self.total, self.limit = steps, limit
        self.step, self.seconds, self.images = 0, 0.0, 0

    @property
    def progress(self) -> float:
        """The share of the training that is done."""
        if self.limit is not None:
            return min(1.0, self.seconds / self.limit)
        assert self.total is not None
        return min(1.0, self.step / self.total)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "seconds": self.seconds, "images": self.images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.seconds = state["step"], state["seconds"]
        self.images = state["images"]


def loader(options: argparse.Namespace) -> tuple[torch.utils.data.DataLoader[Any], tuple[int, ...]]:
    """The batches, and the shape (C, H, W) of an image."""
    import datasets

    if options.prepared is None:
        options.prepared = options.out / "data"
    if not options.prepared.exists():
        prepare(options.data, options.prepared)
    images = datasets.load_from_disk(options.prepared)

    def transform(rows: dict[str, list[Any]]) -> dict[str, list[torch.Tensor]]:
        tensors = []
        for image in rows["image"]:
            pixels = np.asarray(image, dtype=np.float32) / 127.5 - 1
            pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
            if options.flip and torch.rand(()) < 0.5:
                pixels = pixels[..., ::-1]
            tensors.append(torch.from_numpy(np.ascontiguousarray(pixels)))
        return {"input": tensors}

    images.set_transform(transform)
    batches = torch.utils.data.DataLoader(
        images, batch_size=options.batch, shuffle=True, num_workers=options.workers
    )
    return batches, tuple(images[0]["input"].shape)


def network_config(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """The configuration of a network of `peers.NETWORKS` for images (C, H, W)."""
    channels, height, width = shape
    size = height if height == width else (height, width)
    fitted = {"in_channels": channels, "out_channels": channels, "sample_size": size}
    return {**NETWORKS[name].config, **fitted}


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Train for as long as this session may; what timings.json holds."""
    from accelerate import Accelerator
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
    from tqdm.auto import tqdm

    process_began = time.perf_counter()
    tracked = find_spec("tensorboard") is not None
    accelerator = Accelerator(
        cpu=options.device == "cpu",
        mixed_precision=options.mixed_precision,
        log_with="tensorboard" if tracked else None,
        project_dir=options.out / "logs",
    )
    if tracked:
        accelerator.init_trackers("train")
    torch.manual_seed(options.seed)
    batches, shape = loader(options)
    unet = UNet2DModel(**network_config(options.network, shape))
    ema = averaged(unet)
    scheduler = DDPMScheduler(num_train_timesteps=TIMESTEPS)
    optimizer = torch.optim.AdamW(
        unet.parameters(),
        lr=options.learning_rate,
        betas=BETAS,
        weight_decay=WEIGHT_DECAY,
        eps=EPSILON,
    )
    clock = Clock(options.steps, options.seconds)

    def factor(step: int) -> float:
        warmup = min(1.0, (step + 1) / max(1, options.warmup))
        return warmup * (1 + math.cos(math.pi * clock.progress)) / 2

    model, optimizer, batches, learning_rate = accelerator.prepare(
        unet, optimizer, batches, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    )
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(ema, clock)
    state = options.out / "state"
    if state.exists():
        accelerator.load_state(str(state))
        ema.to(accelerator.device)
        torch.manual_seed(options.seed + clock.step)  # another order than the last session's
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    # It holds its images and noise in the precision that it computes in.
    dtype = torch.bfloat16 if options.mixed_precision == "bf16" else torch.float32
    session_began, before = time.perf_counter(), clock.seconds

    def may_go_on() -> bool:
        passed = time.perf_counter() - session_began
        return clock.progress < 1 and (
            options.session_seconds is None or passed < options.session_seconds
        )

    model.train()
    while may_go_on():
        bar = tqdm(total=len(batches))
        for batch in batches:
            clean = batch["input"].to(dtype)
            noise = torch.randn_like(clean)
            t = torch.randint(0, TIMESTEPS, (len(clean),), device=clean.device)
            noisy = scheduler.add_noise(clean, noise, t)
            with accelerator.accumulate(model):
                predicted = model(noisy, t).sample
                loss = F.mse_loss(predicted.float(), noise.float())
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
                optimizer.step()
                learning_rate.step()
                optimizer.zero_grad()
            ema.step(model.parameters())
            bar.update(1)
            clock.step += 1
            clock.images += len(clean)
            if clock.step % options.checkpoint_every == 0:
                accelerator.save_state(str(state))
            logs = {
                "loss": loss.detach().item(),
                "lr": learning_rate.get_last_lr()[0],
                "step": clock.step,
                "ema_decay": ema.cur_decay_value,
            }
            bar.set_postfix(**logs)
            accelerator.log(logs, step=clock.step)
            clock.seconds = before + time.perf_counter() - session_began
            if not may_go_on():
                break
        bar.close()

    accelerator.save_state(str(state))
    finished = clock.progress >= 1
    if finished:
        ema.copy_to(unet.parameters())
        DDPMPipeline(unet=accelerator.unwrap_model(model), scheduler=scheduler).save_pretrained(
            options.out
        )
    ended = time.perf_counter()
    if tracked:
        accelerator.end_training()
    on_gpu = accelerator.device.type == "cuda"
    with_checkpoints = before + ended - session_began
    return {
        "finished": finished,
        "steps": clock.step,
        "images": clock.images,
        "training_seconds": round(clock.seconds, 3),
        "seconds_with_last_checkpoint": round(with_checkpoints, 3),
        "images_per_second": round(clock.images / with_checkpoints, 2),
        "seconds_before_training": round(session_began - process_began, 3),
        "parameters": sum(p.numel() for p in unet.parameters()),
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "device": str(accelerator.device),
        "mixed_precision": options.mixed_precision,
        "logged_to": "tensorboard" if tracked else "nowhere: tensorboard is not installed",
        "settings": {
            name: getattr(options, name)
            for name in ("data", "network", "batch", "flip", "workers", "learning_rate", "warmup")
        },
    }


def parsed() -> argparse.Namespace:
    """The options, with the defaults of that script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="mnist", help="digits, mnist or cifar10")
    parser.add_argument("--network", default="a", help="a or b, of peers.py")
    parser.add_argument("--batch", type=int, default=64)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int)
    length.add_argument("--seconds", type=float, help="of training, over all sessions")
    parser.add_argument("--session-seconds", type=float, help="of this session")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--prepared", type=Path, help="where the PNGs are kept (OUT/data)")
    parser.add_argument("--flip", action="store_true", help="mirror half of the images")
    parser.add_argument("--workers", type=int, default=0, help="of the DataLoader")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--warmup", type=int, default=WARM_UP, help="steps")
    parser.add_argument("--checkpoint-every", type=int, default=CHECKPOINT_EVERY, help="steps")
    parser.add_argument("--mixed-precision", choices=("auto", "no", "bf16"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--quick", action="store_true", help="a few steps on the digits")
    options = parser.parse_args()
    if options.quick:
        options.data, options.batch, options.steps, options.seconds = "digits", 8, 5, None
    elif options.steps is None and options.seconds is None:
        parser.error("give --steps or --seconds")
    if options.out is None and not options.quick:
        parser.error("give --out")
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.mixed_precision == "auto":
        options.mixed_precision = "bf16" if options.device == "cuda" else "no"
    return options


def main() -> None:
    """Train, and write what it took."""
    options = parsed()
    require_diffusers()
    temporary = tempfile.mkdtemp() if options.out is None else None
    options.out = options.out or Path(temporary or "")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        timings = train(options)
        (options.out / "timings.json").write_text(json.dumps(timings, indent=1) + "\n")
        print(json.dumps(timings, indent=1))
    finally:
        if temporary is not None:
            shutil.rmtree(temporary)


if __name__ == "__main__":
    main()
